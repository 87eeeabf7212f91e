"""Invitations: who shows one comes in, as long as it is good; they are counted, durable, and end at once."""

import json
import sqlite3
import stat
import time
from pathlib import Path

import pytest
import trio

from derp.admission.terms import Terms
from derp.client.client import Identity, reach
from derp.client.dial import DialOptions
from derp.errors import ConfigError, ConnectError
from derp.keys import NodePrivate
from derp.map import DERPNode, DERPRegion
from derp.protocol.messages import Health
from derp.server.invitations import UNLIMITED, Invitation, InvitationFile, Invitations, with_token
from derp.server.server import RelayServer
from tests.derp.server.test_keysets import until
from tests.derp.server.world import HOST, PATIENCE_SECONDS, Caller, ask, call, open_server, port_of, relay_config

KEY, OTHER = b"k" * 32, b"o" * 32
NOW = 1_800_000_000.0
MAP = json.dumps({"Regions": {"900": {"Nodes": [{"HostName": "relay.example", "IPv4": "192.0.2.1"}]}}})
pytestmark = pytest.mark.usefixtures("refused_briefly")


def made(
    path: Path, most: int = UNLIMITED, machines: int = 2, life: float = 3600.0, now: float = NOW
) -> tuple[str, str]:
    invitation, token = InvitationFile(path).add("for a test", now, now + life, most, machines, MAP)
    return invitation.id, token


async def loaded(path: Path, nursery: trio.Nursery, now: float = NOW) -> Invitations:
    invitations = Invitations(path, clock=lambda: now)
    await nursery.start(invitations.run)
    return invitations


async def test_a_token_is_good_in_front_of_a_name_and_for_so_many_keys(tmp_path: Path, nursery: trio.Nursery) -> None:
    ident, token = made(tmp_path / "db")
    invitations = await loaded(tmp_path / "db", nursery)
    for key in (KEY, OTHER, KEY):
        terms = invitations.judge(key, f"I-{token.upper()}.relay.example:443")
        assert isinstance(terms, Terms)
        assert (terms.ends_at, terms.what) == (NOW + 3600, "the invitation of this machine")
    assert invitations.judge(b"x" * 32, f"i-{token}.relay") == f"its invitation {ident} is used by 2 machines already"
    assert invitations.judge(KEY, "relay.example") is None
    assert invitations.judge(KEY, f"i-{'a' * 26}.relay") == "it shows an invitation that nobody made here"
    assert invitations.map_for("a" * 26) is None
    node = json.loads(invitations.map_for(token) or b"")["Regions"]["900"]["Nodes"][0]
    assert node == {"HostName": f"i-{token}.relay.example", "IPv4": "192.0.2.1", "CertName": "relay.example"}
    await until(lambda: len(InvitationFile(tmp_path / "db").load()[0].keys) == 2)
    nursery.cancel_scope.cancel()


async def test_whose_clients_come_by_it(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "db"
    made(path)
    with sqlite3.connect(path) as before:  # as an older program made it
        before.execute("DROP TABLE invited_tenants")
    before.close()
    _, token = InvitationFile(path).add("", NOW, NOW + 60, UNLIMITED, 1, MAP, "acme")
    assert [one.tenant for one in InvitationFile(path).load()] in (["", "acme"], ["acme", ""])
    terms = (await loaded(path, nursery)).judge(KEY, f"i-{token}.relay")
    assert isinstance(terms, Terms)
    assert terms.tenant == "acme"
    nursery.cancel_scope.cancel()


async def test_what_was_used_is_written_and_a_revocation_is_felt(tmp_path: Path, nursery: trio.Nursery) -> None:
    ident, token = made(tmp_path / "db", most=1000)
    invitations = await loaded(tmp_path / "db", nursery)
    told: list[Invitation] = []
    invitations.on_revoked.append(told.append)
    terms = invitations.judge(KEY, f"i-{token}")
    assert isinstance(terms, Terms)
    assert terms.account is not None
    terms.account.spend(400)
    file = InvitationFile(tmp_path / "db")
    await until(lambda: file.load()[0].used_bytes == 400)
    assert terms.account.left == 600
    terms.account.spend(600)
    assert invitations.judge(KEY, f"i-{token}") == f"its invitation {ident} has no bytes left"
    assert invitations.map_for(token) is None
    assert file.revoke(ident, NOW)
    assert not file.revoke(ident, NOW)
    assert not file.revoke("nobody", NOW)
    await until(lambda: bool(told))
    assert told == [terms.account]
    assert invitations.judge(KEY, f"i-{token}") == f"its invitation {ident} was revoked"
    nursery.cancel_scope.cancel()


async def test_it_ends(tmp_path: Path, nursery: trio.Nursery) -> None:
    ident, token = made(tmp_path / "db")
    invitations = await loaded(tmp_path / "db", nursery, NOW + 3600)
    assert invitations.judge(KEY, f"i-{token}") == f"its invitation {ident} ended at 2027-01-15 09:00:00 UTC"
    nursery.cancel_scope.cancel()


def test_the_file_has_no_token_is_its_owner_s_and_old_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "db"
    _, token = made(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token.encode() not in path.read_bytes()
    made(path, now=NOW + 40 * 86_400)
    assert len(InvitationFile(path).load()) == 1
    path.write_bytes(b"no database at all, and long enough to be looked at" * 20)
    with pytest.raises(ConfigError, match="cannot be used for invitations"):
        InvitationFile(path).load()


def test_a_pin_stays_the_name_of_the_certificate() -> None:
    derp_map = {"Regions": {"1": {"Nodes": [{"HostName": "r", "CertName": "sha256-raw:ab"}]}}}
    assert with_token(derp_map, "x")["Regions"]["1"]["Nodes"][0] == {"HostName": "i-x.r", "CertName": "sha256-raw:ab"}


async def invited(server: RelayServer, token: str) -> Caller:
    """A client with the map of an invitation: the name is not looked up, the address stands beside it."""
    node = DERPNode("1a", 1, f"i-{token}.relay.example", ipv4=HOST, derp_port=port_of(server), force_http=True)
    private = NodePrivate.generate()
    options = DialOptions(environment=None)
    region = DERPRegion(1, "r", "r", nodes=(node,))
    reached = await reach(region, Identity(private), options, "", PATIENCE_SECONDS)
    return Caller(reached.dialled.stream, reached.core, private)


async def test_a_relay_lets_in_who_is_invited_and_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "db"
    ident, token = made(path, most=100_000, now=time.time())
    async with open_server(relay_config(invitations=path)) as server:
        with pytest.raises(ConnectError, match="does not admit"):
            await call(server, private=NodePrivate.generate())
        caller = await invited(server, token)
        await caller.ping()
        page = await ask(server, f"GET /invited/{token} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert f"i-{token}.relay.example".encode() in page
        assert b"200 OK" in page
        none = await ask(server, b"GET /invited/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"404" in none.partition(b"\r\n")[0]
        InvitationFile(path).revoke(ident, time.time())
        # That it ends within the hour may be told before.
        while (await caller.receive_a(Health)).text != (
            "the invitation of this machine was revoked: ask whoever runs this relay"
        ):
            pass
        await caller.wait_closed()
        await caller.aclose()
        with pytest.raises(ConnectError, match="does not admit"):
            await invited(server, token)


async def test_bytes_are_counted_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "db"
    _, token = made(path, most=100_000, now=time.time())
    async with open_server(relay_config(invitations=path)) as server:
        caller = await invited(server, token)
        await caller.send(b"n" * 32, *([bytes(1000)] * 40))
        await caller.ping()
        await caller.aclose()
    (one,) = InvitationFile(path).load()
    assert 40_000 < one.used_bytes < 45_000
    async with open_server(relay_config(invitations=path)) as server:
        caller = await invited(server, token)
        await caller.send(b"n" * 32, *([bytes(1000)] * 60))
        while "has no bytes left" not in (await caller.receive_a(Health)).text:
            pass
        await caller.wait_closed()
        await caller.aclose()


def test_a_database_of_another_kind_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE invitations (x)")
    connection.close()
    with pytest.raises(ConfigError, match="cannot be used for invitations"):
        made(path)
