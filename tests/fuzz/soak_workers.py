"""Soak a region with a coordinator, and a relay of two workers, in faults; `make soak`.

Travellers, strangers and laws are those of soak.py.  The relay is processes of its own, so its accounts are read off
/metrics.  Its workers die, are replaced under their clients, and read their settings again.  While they are replaced
packets between two of them may overtake each other: one waits where its receiver was, and a later one goes to where
the receiver is now.
"""

import argparse
import logging
import re
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from derp.keys import NodePrivate
from derp.server.supervisor import Supervisor
from tests.derp.server.mesh_world import MESH_KEY
from tests.derp.server.workers_world import end, make_supervisor, page, write_settings
from tests.derp.server.world import Caller, Carrier, call, port_of
from tests.fuzz.coordinators import WithCoordinator
from tests.fuzz.soak import TRAVELLERS, Region, soak
from tests.fuzz.strangers import Place

WORKERS: Final = 2
_PAUSE_SECONDS: Final = 0.02
_TOTALS: Final = {
    "received": "derp_packets_received_total",
    "forwarded in": "derp_packets_forwarded_in_total",
    "forwarded out": "derp_packets_forwarded_out_total",
    "dropped": "derp_packets_dropped_total",
    "sent": "derp_packets_sent_total",
}


class WorkersNode:
    """A relay with workers, as travellers see a relay."""

    carriers: tuple[Carrier, ...] = ("plain", "websocket")

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.callers: list[Caller] = []

    async def call(self, *, private: NodePrivate, carrier: Carrier) -> Caller:
        caller = await call(self.supervisor, carrier, private=private)
        self.callers.append(caller)
        return caller


class Workers(Region):
    """One relay of several processes."""

    async def start(self) -> None:
        write_settings(self._folder, "self_check = false", f'admission_log = "{self._folder}/log"')
        self._supervisor = make_supervisor(self._folder, count=WORKERS)
        self._supervisor.open()
        await self._nursery.start(self._supervisor.run)
        self._orders, orders = trio.open_memory_channel[int](0)
        self._nursery.start_soon(self._supervisor.obey, orders)
        self.nodes = [WorkersNode(self._supervisor)]
        self._is_replacing = False
        for traveller in self.travellers:
            self._nursery.start_soon(traveller.live)

    async def stop(self) -> None:
        await end(self._supervisor)
        self._supervisor.close()

    def keeps_order(self, source: bytes, epoch: int) -> bool:
        return not self._is_replacing

    async def cycle(self) -> int:
        objects = await super().cycle()
        self._is_replacing = False
        return objects

    async def _numbers(self, name: str) -> float:
        """The sum over all labels."""
        found = re.findall(rf"^{name}(?:{{.*}})? ([0-9.e+]+)$", await page(self._supervisor, "/metrics"), re.MULTILINE)
        return sum(map(float, found))

    async def _totals(self) -> dict[str, int]:
        return {what: int(await self._numbers(name)) for what, name in _TOTALS.items()}

    async def _check(self) -> None:
        assert await self._numbers('derp_connections_closed_total{reason="internal_error"}') == 0

    async def _is_alone(self) -> bool:
        are_there = {worker.slot for worker in self._supervisor.workers if not worker.is_leaving}
        counts = [await self._numbers(name) for name in ("derp_clients", "derp_connections")]
        return len(are_there) == len(self._supervisor.workers) == WORKERS and counts == [TRAVELLERS, TRAVELLERS]

    def _faults(self) -> list[Callable[[], Awaitable[None]]]:
        often = [self._kill, self._babble, self._stall, self._visit]
        return [*often, *often, self._lose_worker, self._replace, self._reload]

    def _place(self) -> Place:
        return Place(port_of(self._supervisor), False, MESH_KEY, self._strangers)

    async def _lose_worker(self) -> None:
        worker = self.random.choice(self._supervisor.workers)
        if worker.process is not None:
            self.done["workers lost"] += 1
            worker.process.kill()

    async def _replace(self) -> None:
        self.done["all workers replaced"] += 1
        self._is_replacing = True
        await self._orders.send(signal.SIGUSR2)

    async def _reload(self) -> None:
        self.done["settings read again"] += 1
        await self._orders.send(signal.SIGHUP)


async def soak_all(seed: int, seconds: float) -> None:
    """Half the time each."""
    for kind in (WithCoordinator, Workers):
        await soak(seed, seconds / 2, kind=kind)


def main() -> None:
    parser = argparse.ArgumentParser(description="Soak relays in faults.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    for name in ("derp", "tailnet"):
        logging.getLogger(name).addHandler(logging.NullHandler())  # faults are told by us
    trio.run(soak_all, chosen.seed, chosen.seconds)


if __name__ == "__main__":
    main()
