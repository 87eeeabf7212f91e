"""A quota that is nearly used is told, and one that is used up acts, also after a restart, until its day is over."""

from pathlib import Path

import pytest

from derp.keys import NodePrivate
from derp.protocol.messages import Health, RecvPacket
from derp.relay.limits import ClientLimits, Limits, Quota, Rate, TenantLimits
from derp.server import ledger
from derp.server.quotas import QuotaKeeper
from derp.server.relay import share_use
from tests.derp.server.test_keysets import until
from tests.derp.server.test_siblings import two_workers
from tests.derp.server.world import Caller, call, open_server, relay_config

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
        server.relay.quotas._begin("tomorrow")  # type: ignore[union-attr]  # there is a ledger
        assert session.sender is None
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
