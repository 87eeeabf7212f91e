"""Genuine WireGuard nodes in pairs, or with agents of ours, directly and by relays: one of three replicas is killed."""

import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.support.composed import REPLICAS, Composed, ProgramMissing, running_compose
from tests.support.gobuild import WGPAIRS
from tests.support.missing import or_missing
from tests.support.peers import require
from tests.support.postgresql import PostgresqlMissing
from tests.support.redis import RedisMissing
from tests.support.tailnet_servers import Seed, import_seed
from tests.support.wg_pairs import Tunnels, open_tunnels

pytestmark = pytest.mark.interop

PAIRS_EACH = 2
OURS_EACH = 1
# Hang guards: three replicas, their store and eight nodes begin on a machine that may be busy.
PATIENCE_SECONDS = 300.0


async def peers_at(place: Composed, service: str) -> int:
    """How many peers a replica has, as it tells an operator on its own machine."""
    url = "http://{}:{}/debug/replicas".format(*place.address(service, 3000))
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(url, headers={"X-Forwarded-For": "127.0.0.2", "Host": "localhost"})
    found: dict[str, Any] = answer.raise_for_status().json()
    return int(found["peers"])


async def feel_a_kill(place: Composed, tunnels: Tunnels) -> None:
    counts = {service: await peers_at(place, service) for service in REPLICAS}
    assert sum(counts.values()) == 4 * PAIRS_EACH
    victim = max(counts, key=lambda service: counts[service])
    await tunnels.begin()
    await trio.to_thread.run_sync(place.stop, victim, signal.SIGKILL)
    # Our own agents do not tell of their dials.
    while await tunnels.dials() < counts[victim] - 2 * OURS_EACH:  # noqa: ASYNC110  # other processes tell when asked
        await trio.sleep(0.05)
    await tunnels.met()
    await tunnels.heard()
    await trio.to_thread.run_sync(place.start, victim)
    direct, relayed = await tunnels.end()
    assert (direct.lost, direct.twice) == (0, 0), "what goes directly needs no replica"
    assert relayed.lost < relayed.sent
    assert (relayed.twice, relayed.strayed) == (0, 0)
    assert direct.kinds.keys() | relayed.kinds.keys() <= {"NODE", "LOST", "READY_FOR_HANDSHAKE"}


async def test_pairs_outlive_a_replica(tmp_path: Path) -> None:
    require(WGPAIRS)
    seed = Seed()
    alice = seed.add_user("alice")
    targets = [seed.add_agent(alice) for _ in range(2 * PAIRS_EACH)]
    with or_missing(ProgramMissing, PostgresqlMissing, RedisMissing), running_compose(tmp_path) as place:
        import_seed(tmp_path, seed, place.store)
        with trio.fail_after(PATIENCE_SECONDS):
            async with open_tunnels(place.url, place.certificate, targets, ours=OURS_EACH) as tunnels:
                await feel_a_kill(place, tunnels)
