"""How a replica leaves in good order, in the order of tailnet/server/server.py: notice, Bye, waves, close, end.

The waves are the real ones (tailnet/services/waves.py), and so is what the core is told of each peer that is sent away.
"""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final, cast

from sim.peers import Connection
from tailnet.replica.messages import Bye
from tailnet.services.waves import Waves
from tailnet.transport.channel import Connected

if TYPE_CHECKING:
    from sim.world import Process

# Balancers look elsewhere, and newcomers are still let in.
NOTICE_SECONDS: Final = 0.5
# Behind its last peer its relay drains, and its links stand meanwhile.
RELAY_SECONDS: Final = (0.2, 3.0)
# As tailnet/services/waves.py has it.
_STEP_SECONDS: Final = 0.25


class Leaving:
    """One process that leaves.  `seconds` are for its waves; none: another process took its place, and it closes."""

    def __init__(self, process: "Process", seconds: float) -> None:
        self.process = process
        self.seconds = seconds
        self._heap = process.heap
        self._random = Random(f"{process.world.plan.seed} {process.name} leaves")
        process.is_ready = False
        self._after(NOTICE_SECONDS if seconds else 0.0, self._begin)

    def _after(self, seconds: float, call: Callable[[], object]) -> None:
        self._heap.after(seconds, partial(self.process.do, call))

    def _begin(self) -> None:
        process = self.process
        process.is_accepting = False
        process.tell(Bye(max(1, round(self.seconds))))
        cluster = process.cluster
        if self.seconds and any(pair.is_open and not pair.is_leaving for pair in cluster.pairs.values()):
            served = [each for peer in process.world.peers for each in peer.connections if self._has(each)]
            self._send_away(Waves(cast("list[Connected]", served), self._active_at, self.seconds, process.now))
        else:
            self._close()

    def _has(self, connection: Connection) -> bool:
        return connection.is_served and connection.process is self.process

    def _active_at(self, channel: Connected) -> float:
        core, connection = self.process.cluster.coordinator, cast(Connection, channel)
        return core.active_at(connection) if core.policy_of(connection) is not None else 0.0

    def _send_away(self, waves: Waves) -> None:
        process = self.process
        for each in cast("list[Connection]", waves.due(process.now)):
            if self._has(each):
                process.move(each)
        if waves:
            pause = max(_STEP_SECONDS, 1 / waves.per_second) * self._random.uniform(0.5, 1.5)
            self._after(pause, partial(self._send_away, waves))
        else:
            self._close()

    def _close(self) -> None:
        process, world = self.process, self.process.world
        process.core(process.cluster.coordinator.handle_close(process.now))
        process.reporter.finish()
        if world.relays is not None:
            world.relays.left(process)
        ends_in = self._random.uniform(*RELAY_SECONDS)
        self._heap.after(ends_in, partial(world.die, process))
        self._heap.after(ends_in + 0.5, partial(world.start, process.place))
