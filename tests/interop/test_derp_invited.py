"""Admission as genuine programs meet it: the client library with an invitation and with a ticket in its map, and the
genuine relay, which asks our coordinator about its clients.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from derp.admission.signed import IssuerPrivate
from derp.admission.ticket import sign_ticket
from derp.keys import NodePrivate
from derp.server.invitations import UNLIMITED, InvitationFile
from tailnet.config import CoordinatorConfig
from tailnet.server.server import CoordinatorServer, serve_coordinator
from tests.support.peers import PATIENCE_SECONDS, Node, open_peers
from tests.support.relays import Relay, open_relay

pytestmark = pytest.mark.interop

NAME = "localhost"  # a name with a certificate: only handshakes for it, or for a name below it, are answered
ISSUER = IssuerPrivate(b"i" * 32)


def shown(relay: Relay, labels: str) -> Node:
    """The relay by the name in a client's own map: the certificate is for the rest, and the address stands beside."""
    return Node(f"{labels}.{NAME}", relay.port, cert_name=NAME)


async def test_a_genuine_client_comes_in_by_its_invitation_and_is_told_of_its_end(tmp_path: Path) -> None:
    path, now = tmp_path / "invitations", time.time()
    made, token = InvitationFile(path).add("", now, now + 86_400, UNLIMITED, 5, "{}")
    extra = (f"--invitations={path}",)
    async with (
        open_relay("ours", tls=True, hostname=NAME, extra=extra) as relay,
        open_peers(trusted=relay.certificate) as peers,
    ):
        one = await peers.connect("one", shown(relay, f"i-{token}"))
        other = await peers.connect("other", shown(relay, f"i-{token}"))
        await one.send(other.key, b"hello")
        with trio.fail_after(PATIENCE_SECONDS):
            assert (await other.receive("packet"))["data"]
        InvitationFile(path).revoke(made.id, time.time())
        with trio.fail_after(PATIENCE_SECONDS):
            event = await one.receive("health")
        assert event["problem"] == "the invitation of this machine was revoked: ask whoever runs this relay"


async def test_a_genuine_client_comes_in_by_its_ticket_and_no_other_does(tmp_path: Path) -> None:
    issuers, now = tmp_path / "issuers", time.time()
    issuers.write_text(str(ISSUER.public()))
    private, thief = NodePrivate.generate(), NodePrivate.generate()
    ticket = sign_ticket(ISSUER, private.public().raw, now, now + 1800)
    extra = (f"--admission-keys={issuers}",)
    async with (
        open_relay("ours", tls=True, hostname=NAME, extra=extra) as relay,
        open_peers(trusted=relay.certificate) as peers,
    ):
        one = await peers.connect("one", shown(relay, ticket), private_key=private.raw)
        with trio.fail_after(PATIENCE_SECONDS):
            event = await one.receive("health")
        assert str(event["problem"]).startswith("the ticket of this machine ends at 20")
        other = await peers.connect("thief", shown(relay, ticket), private_key=thief.raw, reconnect=True)
        with trio.fail_after(PATIENCE_SECONDS):
            event = await other.receive("health")
        assert "does not admit this machine's key" in str(event["problem"])


@asynccontextmanager
async def open_coordinator(folder: Path) -> AsyncIterator[CoordinatorServer]:
    config = CoordinatorConfig(
        listen=(("127.0.0.1", 0),), stun_listen=(), store=f"sqlite:///{folder}/tailnet.db", drain_seconds=2.0
    )
    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve_coordinator, config)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["genuine", "ours"])
async def test_a_relay_asks_our_coordinator_about_its_clients(kind: str, tmp_path: Path) -> None:
    known = NodePrivate.generate()
    async with open_coordinator(tmp_path) as server:
        server.relay_keys.note(known.public().raw)
        url = f"http://127.0.0.1:{server.listening[0].port}/api/v2/relays/verify"
        extra = (f"--verify-client-url={url}", "--verify-client-url-fail-open=false")
        async with open_relay(kind, extra=extra) as relay, open_peers() as peers:  # type: ignore[arg-type]  # one of two
            one = await peers.connect("known", relay.url, private_key=known.raw)
            with pytest.raises(Exception, match=r"EOF|closed|reset|admit"):
                await peers.connect("unknown", relay.url)
            await one.send(one.key, b"to myself")
            with trio.fail_after(PATIENCE_SECONDS):
                assert await one.receive("packet")
