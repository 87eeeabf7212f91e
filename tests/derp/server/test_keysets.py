"""Key sets from a URL and from a file: what is believed, what is kept, and how soon a revocation is felt."""

import math
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import trio
import trio.testing

from derp.admission.keyset import KeySet, open_key_set, sign_key_set
from derp.admission.signed import IssuerPrivate
from derp.config import RelayConfig
from derp.errors import ConnectError
from derp.keys import NodePrivate
from derp.protocol.messages import Health, RecvPacket
from derp.relay.limits import Limits, Rate, TenantLimits
from derp.server.advisor import REFUSED_TEXT, WITHDRAWN_TEXT
from derp.server.keysets import MAX_RETRY_SECONDS, KeySetFollower
from derp.server.ledger import LedgerFile
from derp.server.server import RelayServer
from tests.derp.server.issuer import DAY_SECONDS, PRIVATE, IssuingServer, open_issuer
from tests.derp.server.world import PATIENCE_SECONDS, Caller, call, closed, open_server, relay_config

GOOD, BAD, NEW = b"g" * 32, b"b" * 32, b"n" * 32
HOUR_SECONDS = 3600.0


def rules(source: str, **changes: object) -> RelayConfig:
    return relay_config(issuers=(PRIVATE.public(),), key_set=source, **changes)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  # what is waited for is in another task, or in a kernel
            await trio.sleep(0.002)


async def test_a_set_is_followed_and_a_change_is_told_with_those_it_takes_the_right_from(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    async with open_issuer(time.time()) as issuer:
        issuer.publish([GOOD, BAD])
        kept = tmp_path / "kept"
        follower = KeySetFollower(rules(issuer.url, key_set_file=kept, key_set_token="s3cret"))
        told: list[Collection[bytes]] = []
        follower.on_change.append(told.append)
        await nursery.start(follower.run)
        await until(lambda: follower.has(GOOD))
        assert (follower.has(NEW), follower.problem) == (False, "")
        issuer.publish([GOOD, NEW], [BAD])
        await until(lambda: follower.has(NEW))
        assert (follower.has(BAD), follower.is_revoked(BAD)) == (False, True)
        assert told == [frozenset(), frozenset({BAD})]
        await until(lambda: kept.exists() and kept.read_bytes() == issuer.document)
        first, second = issuer.requests[:2]
        assert "if-none-match" not in first.headers
        assert second.headers["if-none-match"]
        assert first.headers["authorization"] == "Bearer s3cret"
        assert first.headers["prefer"] == "wait=25"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (lambda issuer: issuer.publish([NEW], version=99), "an old one is not believed"),
        (lambda issuer: issuer.publish([NEW], version=101), "other keys"),
        (lambda issuer: issuer.offer(issuer.document[:-20]), "does not fit"),
        (lambda issuer: issuer.offer(b"<html>"), "is no derp-key-set"),
        (lambda issuer: issuer.publish([NEW], life=-1.0), "ended at"),
        (lambda issuer: setattr(issuer, "status", 500) or issuer.offer(b""), "is answered with 500"),
    ],
)
async def test_what_is_refused_leaves_what_counts_and_is_said(
    nursery: trio.Nursery, attack: Callable[[IssuingServer], object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_issuer(time.time()) as issuer:
        issuer.publish([GOOD])
        follower = KeySetFollower(rules(issuer.url))
        await nursery.start(follower.run)
        await until(lambda: follower.has(GOOD))
        good = issuer.document
        attack(issuer)
        await until(lambda: bool(follower.problem))
        assert reason in follower.problem
        assert reason in caplog.text
        assert (follower.has(GOOD), follower.has(NEW), follower.closed_by) == (True, False, "")
        issuer.status = 200
        issuer.offer(good)
        issuer.publish([GOOD, NEW], version=102)
        await until(lambda: follower.has(NEW))
        assert follower.problem == ""
        nursery.cancel_scope.cancel()


async def test_a_restart_begins_with_what_was_kept_and_believes_nothing_older(
    nursery: trio.Nursery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "kept"
    async with open_issuer(time.time()) as issuer:
        kept.write_bytes(issuer.publish([GOOD], version=200))
        issuer.publish([BAD], version=150)
        follower = KeySetFollower(rules(issuer.url, key_set_file=kept))
        await nursery.start(follower.run)
        assert follower.has(GOOD), "before anybody was asked"
        await until(lambda: "an old one is not believed" in follower.problem)
        assert not follower.has(BAD)
        nursery.cancel_scope.cancel()
    kept.write_bytes(b"garbage")
    follower = KeySetFollower(rules("http://127.0.0.1:9/", key_set_file=kept))
    await follower._recall()
    assert "is no derp-key-set" in caplog.text
    assert "there is no key set yet" in follower.closed_by


async def test_an_hour_without_the_control_plane(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Virtual time: known keys get in for the whole hour, unknown ones never, and the end is said before it comes."""
    start = 1_800_000_000.0 - trio.current_time()

    def wall() -> float:
        return start + trio.current_time()

    issuer = IssuingServer(wall())
    document = issuer.publish([GOOD], life=2 * HOUR_SECONDS)
    follower = KeySetFollower(rules("http://127.0.0.1:9/gone"), clock=wall)
    follower._newest.take(open_key_set(document, [PRIVATE.public()]), wall())
    async with trio.open_nursery() as nursery:
        await nursery.start(follower.run)
        for minute in range(60):
            assert (follower.has(GOOD), follower.has(NEW)) == (True, False), minute
            await trio.sleep(60)
        assert follower.failed_count >= HOUR_SECONDS / (MAX_RETRY_SECONDS + 5)
        assert follower.closed_by == ""
        assert "cannot be reached" in follower.problem
        assert "ends at 2027-01-15 10:00:00 UTC" in follower.problem
        await trio.sleep(HOUR_SECONDS / 2 + 60)
        assert "ends soon, at 2027-01-15 10:00:00 UTC" in follower.problem
        await trio.sleep(HOUR_SECONDS)
        assert not follower.has(GOOD)
        assert "the key set 101 ended at 2027-01-15 10:00:00 UTC" in follower.closed_by
        for said in ("ends at", "ends soon, at", "the key set 101 ended at"):
            assert sum(said in record.getMessage() for record in caplog.records) == 1, said
        nursery.cancel_scope.cancel()


async def test_a_file_is_read_again_when_it_changes(nursery: trio.Nursery, tmp_path: Path) -> None:
    issuer, path = IssuingServer(time.time()), tmp_path / "set"
    follower = KeySetFollower(rules(str(path)))
    await nursery.start(follower.run)
    assert "No such file" in follower.closed_by
    path.write_bytes(issuer.publish([GOOD]))
    await until(lambda: follower.has(GOOD))
    path.write_bytes(issuer.publish([NEW], version=5))
    await until(lambda: "an old one" in follower.problem)
    assert follower.has(GOOD)
    nursery.cancel_scope.cancel()


def admits(server: RelayServer, key: bytes) -> bool:
    verdict = server.relay.sessions.admission.decide(key, "192.0.2.1")
    assert verdict is not None
    return verdict.allowed


async def told_why(caller: Caller) -> str:
    return (await caller.receive_a(Health)).text


async def test_revocation_reaches_connected_clients_within_a_second() -> None:
    """From the issuer's change to the end of the connection, over loopback: of 50 clients, 49 and the last one."""
    privates = [NodePrivate.generate() for _ in range(50)]
    keys = [private.public().raw for private in privates]
    async with open_issuer(time.time()) as issuer:
        issuer.publish([GOOD, *keys])
        async with open_server(rules(issuer.url)) as server:
            await until(lambda: admits(server, GOOD))
            callers = [await call(server, private=private) for private in privates]
            seconds = []
            for number, caller in enumerate(callers):
                began = trio.current_time()
                issuer.publish([GOOD, *keys[number + 1 :]], keys[: number + 1])
                assert await told_why(caller) == WITHDRAWN_TEXT
                await caller.wait_closed()
                await caller.aclose()
                seconds.append(trio.current_time() - began)
            assert sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1] < 1.0, seconds
            assert closed(server)["not_admitted"] == len(callers)
            assert not admits(server, keys[0])


async def test_unknown_keys_stay_out_of_a_relay_and_known_ones_come_in_while_the_issuer_is_away(
    tmp_path: Path, refused_briefly: None
) -> None:
    private, stranger = NodePrivate.generate(), NodePrivate.generate()
    document = IssuingServer(time.time()).publish([private.public().raw], life=DAY_SECONDS)
    (tmp_path / "kept").write_bytes(document)
    async with open_server(rules("http://127.0.0.1:9/gone", key_set_file=tmp_path / "kept")) as server:
        caller = await call(server, private=private)
        await caller.ping()
        with pytest.raises(ConnectError, match=REFUSED_TEXT):
            await call(server, private=stranger)
        await caller.ping()
        await caller.aclose()


async def test_whose_a_key_is_follows_the_set_while_it_is_connected(tmp_path: Path) -> None:
    private, now = NodePrivate.generate(), time.time()
    key, path, ledger = private.public().raw, tmp_path / "set", tmp_path / "ledger"

    def publish(version: int, tenant: str) -> None:
        tenants = {key: tenant} if tenant else {}
        key_set = KeySet(version, now, now + DAY_SECONDS, frozenset({key}), tenants=tenants)
        path.with_suffix(".new").write_bytes(sign_key_set(PRIVATE, key_set))
        path.with_suffix(".new").rename(path)

    publish(1, "acme")
    limits = Limits(tenants={"acme": TenantLimits(Rate(100_000)), "other": TenantLimits(Rate(200_000))})
    async with open_server(rules(str(path), limits=limits, ledger=ledger)) as server:
        caller = await call(server, private=private)
        (client,) = server.relay.router.clients.values()
        for version, tenant, rate in ((1, "acme", 100_000), (2, "other", 200_000), (3, "", 0)):
            publish(version, tenant)
            await until(lambda: client.tenant == (tenant or "default"))  # noqa: B023  # it is called in this round
            sender = client.wire.session.sender
            assert (sender.tenant.limits.rate.bytes_per_second if sender is not None else 0) == rate
            await caller.send(key, bytes(version * 100))
            await caller.receive_a(RecvPacket)
        await caller.aclose()
        await until(lambda: not server.relay.router.clients)
    rows = {tenant: usage.bytes_in for _, tenant, _, usage in LedgerFile(ledger).read()}
    assert rows == {"acme": 100, "other": 200, "default": 300}, "each has what was carried while it was theirs"


def test_another_issuer_is_not_believed() -> None:
    follower = KeySetFollower(rules("/nowhere"))
    now = time.time()
    document = sign_key_set(IssuerPrivate(b"x" * 32), KeySet(1, now, now + 60, frozenset({GOOD})))
    with pytest.raises(ValueError, match="none of the issuers"):
        follower._newest.take(open_key_set(document, follower._newest.issuers), now)
