"""A quota that is nearly used is told, and one that is used up acts, also after a restart, until its day is over."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from derp.keys import NodePrivate
from derp.protocol.frames import FrameType
from derp.protocol.messages import Health, RecvPacket
from derp.relay.limits import ClientLimits, Limits, Quota, Rate, TenantLimits
from derp.server import ledger
from derp.server.ledger import day_of
from derp.server.quotas import QuotaKeeper
from derp.server.relay import share_use
from tests.derp.server.bare_relay import BareRelay
from tests.derp.server.test_keysets import until
from tests.derp.server.test_moving import move, two
from tests.derp.server.test_siblings import two_workers
from tests.derp.server.world import PATIENCE_SECONDS, Caller, call, open_server, relay_config

SLOW = Rate(20_000, 70_000)


@pytest.fixture(autouse=True)
def is_read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "WRITE_SECONDS", 0.01)


def quota(**changes: object) -> Limits:
    return Limits(client=ClientLimits(quota=Quota(bytes_per_day=20_000, **changes)))  # type: ignore[arg-type]  # of Quota


async def carry(caller: Caller, count: int) -> None:
    """To itself, so it counts twice."""
    await caller.send(caller.key, bytes(count))
    await caller.receive_a(RecvPacket)


async def told(caller: Caller, words: str) -> None:
    while words not in (await caller.receive_a(Health)).text:
        pass


async def test_at_80_percent_it_is_told_and_then_it_is_slow(tmp_path: Path) -> None:
    config = relay_config(ledger=tmp_path / "ledger", limits=quota(floor=SLOW))
    key = NodePrivate.generate()
    async with open_server(config) as server:
        one = await call(server, private=key)
        await carry(one, 8500)
        await told(one, "this machine has used 85 % of the 20,000 bytes")
        await carry(one, 2000)
        await until(lambda: one.key in server.relay.sessions.limiter.floors)
        session = server.relay.router.members[one.key].connections[0].wire.session
        assert session.sender.meter.rate == SLOW
        await carry(one, 1000)  # it goes on
        await one.aclose()
        await until(lambda: not server.relay.sessions.limiter.floors)
        one = await call(server, private=key)
        session = server.relay.router.members[one.key].connections[0].wire.session
        assert session.sender.meter.rate == SLOW, "to come back is no way out"
        await one.aclose()


def test_a_quota_of_a_day_ends_with_the_day_and_one_of_a_month_with_the_month() -> None:
    """In UTC, and also while nobody carries anything."""
    wall = [datetime(2026, 11, 29, 23, 59, tzinfo=UTC).timestamp()]
    with BareRelay() as bare:
        keeper = QuotaKeeper(bare.sessions, clock=lambda: wall[0])
        quota = Quota(bytes_per_day=20_000, bytes_per_month=50_000, floor=SLOW)
        limits = Limits(client=ClientLimits(quota=quota))
        bare.sessions.set_limits(Rate(), {}, limits)
        keeper.configure(limits)
        one = bare.connect()

        def state() -> tuple[bool, str]:
            """Whether it is slow, and what it was told last."""
            bare.time += 5.0
            bare.reactor.serve_ready()
            texts = [message.text for message in one.read() if isinstance(message, Health)]
            return one.client.wire.session.sender is not None, texts[-1].partition(", and goes on")[0] if texts else "-"

        keeper.spend(one.client, 20_000)
        used_up = "this machine has used 100 % of the 20,000 bytes it may have relayed today (UTC)"
        assert state() == (True, used_up)
        wall[0] += 60.0
        keeper.begin_recall()
        assert state() == (False, ""), "it is the next day"
        keeper.spend(one.client, 15_000)
        assert state() == (False, "-"), "which is no news yet"
        keeper.spend(one.client, 15_000)
        used_up = "this machine has used 150 % of the 20,000 bytes it may have relayed today (UTC)"
        assert state() == (True, used_up)
        wall[0] += 86_400.0
        keeper.begin_recall()
        assert state() == (False, ""), "and the next month"
        keeper.spend(one.client, 15_900)
        assert state() == (False, "-")


def test_the_relay_itself_comes_in_whatever_its_tenant_has_used() -> None:
    """Or its look at itself would fail, and it would send all tenants away for what one has used."""
    own = NodePrivate.generate()
    with BareRelay() as bare:
        bare.sessions.own_key = own.public().raw
        keeper = QuotaKeeper(bare.sessions)
        keeper.configure(Limits(tenants={"default": TenantLimits(quota=Quota(bytes_per_month=1000, refuses=True))}))
        keeper.spend(bare.connect().client, 1000)
        bare.connect(private=own)
        stranger = bare.open()
        bare.serve_reading(stranger)
        assert (len(bare.router.clients), keeper.acts["refused"]) == (1, 2)


def test_a_client_that_ends_when_its_day_does_takes_nobody_along() -> None:
    """It is read on then, and what was kept of it is nothing that a client may say."""
    wall = [datetime(2026, 11, 29, tzinfo=UTC).timestamp()]
    with BareRelay() as bare:
        keeper = QuotaKeeper(bare.sessions, clock=lambda: wall[0])
        keeper.configure(Limits(client=ClientLimits(quota=Quota(bytes_per_day=1000, floor=SLOW))))
        peers = [bare.connect() for _ in range(3)]
        for peer in peers:
            keeper.spend(peer.client, 1000)
            bare.reactor.pause(peer.near)
        peers[0].near.kept = peers[1].near.kept = bytes([FrameType.SEND_PACKET]) + b"\xff" * 4
        wall[0] += 86_400.0
        keeper.begin_recall()
        assert [client.wire for client in bare.router.clients.values()] == [peers[2].near]
        assert not bare.sessions.limiter.floors


def test_what_is_left_of_a_month_counts_on_each_of_its_days() -> None:
    wall = [datetime(2026, 11, 29, tzinfo=UTC).timestamp()]
    with BareRelay() as bare:
        keeper = QuotaKeeper(bare.sessions, clock=lambda: wall[0])
        keeper.configure(Limits(client=ClientLimits(quota=Quota(bytes_per_month=50_000, refuses=True))))
        one = bare.connect()
        for count, is_refused in ((30_000, False), (30_000, True)):
            keeper.spend(one.client, count)
            verdict = keeper.judge(one.key, "default")
            assert (verdict is not None) is is_refused
            wall[0] += 86_400.0
        verdict = keeper.judge(one.key, "default")
        assert verdict is None, "it is December"


async def test_what_the_process_that_we_replace_goes_on_to_count_counts_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both write one ledger until the old one has ended; clients went over, or come anew."""
    monkeypatch.setattr(ledger, "RECALL_SECONDS", 0.01)
    config = relay_config(ledger=tmp_path / "ledger", limits=quota(refuses=True))
    private = NodePrivate.generate()
    key = private.public().raw
    async with open_server(config) as old, open_server(config) as new:
        assert new.relay.quotas is not None
        one = await call(old, private=private)
        await carry(one, 6000)
        await one.aclose()
        await until(lambda: new.relay.quotas._quotas.standing(key, "default", day_of(time.time())) is not None)  # type: ignore[union-attr]
        one = await call(new, private=private)
        await carry(one, 4500)
        await told(one, "has used 105 % of the 20,000 bytes it may have relayed today (UTC): this relay takes it again")
        await one.aclose()


async def test_a_quota_goes_along_with_a_client_that_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It notices nothing of the new process, and its quota does not begin anew there."""
    monkeypatch.setattr(ledger, "RECALL_SECONDS", 0.01)
    async with two(ledger=tmp_path / "ledger", limits=quota(floor=SLOW)) as (old, new):
        one = await call(old)
        await carry(one, 6000)
        assert await move(old, new) == (1, 1)
        await carry(one, 4500)
        with trio.fail_after(PATIENCE_SECONDS):
            while one.key not in new.relay.sessions.limiter.floors:
                await carry(one, 1)  # whoever carries something is looked at; so little counts for nothing
                await trio.sleep(0.01)
        await one.aclose()


async def test_it_is_sent_away_and_stays_out_with_the_reason(tmp_path: Path) -> None:
    config = relay_config(ledger=tmp_path / "ledger", limits=quota(refuses=True))
    key = NodePrivate.generate()
    async with open_server(config) as server:
        one = await call(server, private=key)
        await carry(one, 11_000)
        await told(one, "has used 110 % of the 20,000 bytes it may have relayed today (UTC): this relay takes it again")
        await until(lambda: not server.relay.router.clients)
        await one.aclose()
    async with open_server(config) as server:
        verdict = server.relay.sessions.judges[0](key.public().raw, "default")
        assert verdict is not None, "what was used before the restart is remembered"
        assert "has used 110 %" in verdict.told
        assert server.relay.sessions.judges[0](b"x" * 32, "default") is None


async def test_who_has_used_up_a_quota_when_the_limits_change_is_sent_away_and_the_others_have_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it carried for its old tenant is counted at that moment."""
    monkeypatch.setattr(ledger, "WRITE_SECONDS", 3600.0)
    config = relay_config(ledger=tmp_path / "ledger", limits=quota(refuses=True))
    async with open_server(config) as server:
        callers = [await call(server) for _ in range(3)]
        await carry(callers[0], 15_000)
        clients = {client.key: client for client in server.relay.router.clients.values()}
        limits = Limits(tenants={"a": TenantLimits(SLOW)}, tenant_by_key=dict.fromkeys(clients, "a"))
        server.relay.configure(replace(config, limits=limits))
        await told(callers[0], "has used 150 %")
        await callers[0].wait_closed()
        for caller in callers[1:]:
            await caller.ping()
            assert clients[caller.key].wire.session.sender.tenant.name == "a"
        for caller in callers:
            await caller.aclose()


async def test_metrics_say_how_much_of_it_a_tenant_has_used(tmp_path: Path) -> None:
    limits = Limits(
        tenants={"default": TenantLimits(quota=Quota(bytes_per_month=20_000, floor=SLOW)), "other": TenantLimits()}
    )
    async with open_server(relay_config(ledger=tmp_path / "ledger", limits=limits)) as server:
        one = await call(server)
        for count, part in ((4000, 0.4), (5000, 0.9), (2500, 1.15)):
            await carry(one, count)
            await until(lambda: server.statistics().tenants["default"].quota_used_part == part)  # noqa: B023
        reading = server.statistics()
        assert {name: each.carried_bytes for name, each in reading.tenants.items()} == {
            "default": 23_000,
            "other": 0,
            "(others)": 0,
        }
        assert reading.tenants["other"].quota_used_part is None
        assert (reading.quota_acts, reading.quota_over_bytes["client"]) == ({"told": 1, "slowed": 1, "refused": 0}, 0)
        assert 0 < reading.quota_over_bytes["tenant"] <= 5_000, "of the last ones, which were counted once or twice"
        await one.aclose()


def test_what_one_worker_counted_counts_with_the_other() -> None:
    with two_workers() as workers:
        keepers = [QuotaKeeper(side.sessions) for side in workers.sides]
        for siblings, keeper in zip(workers.siblings, keepers, strict=True):
            keeper.configure(quota(refuses=True))
            share_use(siblings, keeper)
        one = workers.sides[0].connect()
        for _ in range(2):
            assert keepers[1].judge(one.key, "default") is None
            keepers[0].spend(one.client, 11_000)
            workers.serve()
        verdict = keepers[1].judge(one.key, "default")
        assert verdict is not None, "to come back to another worker is no way out"
        assert "has used 110 %" in verdict.told
        assert keepers[1].judge(b"x" * 32, "default") is None
