"""Peers that a replica which leaves sends to the others: in waves, so that nobody is flooded.  Layer L3.

services/replicas.py calls it when it leaves.  Whoever is sent away dials another replica, which claims it there;
meanwhile the coordinator here keeps what is known of it (`SharedCoordinator.handle_move`), and nobody is told LOST.
"""

import logging
import random
from collections.abc import Callable, Collection
from heapq import heapify, heappop, heapreplace
from typing import Final

import trio

from derp.close_reason import CloseReason
from derp.log import fields
from derp.protocol.websocket import CloseCode
from derp.transport.host import Host
from tailnet.transport.channel import Connected

_log = logging.getLogger("tailnet.replicas")

# The others take a sixtieth of our peers in a second: 50,000 are 833 connects, of which each costs them 1 ms.
SPREAD_SECONDS: Final = 60.0
# Of a few nobody is flooded, and three need not take a minute.
LEAST_PER_SECOND: Final = 1.0
# What the settings give has to do for the last wave too, and for its last words.
_SHARE: Final = 0.9
# A wave each 0.25 s on average; chance makes each pause longer or shorter by half, so that nothing keeps time with us.
_STEP_SECONDS: Final = 0.25


class Waves:
    """Who goes when: the longest idle first, so many a second.  No I/O; `now` and times of activity by one clock."""

    def __init__(
        self, members: Collection[Connected], active_at: Callable[[Connected], float], seconds: float, now: float
    ) -> None:
        """`active_at`: when somebody needed it last, asked again when its turn comes.  `seconds`: all have gone by
        then, faster than usual if need be."""
        self.per_second = max(
            len(members) / SPREAD_SECONDS, LEAST_PER_SECOND, len(members) / max(seconds * _SHARE, 1e-3)
        )
        self._active_at = active_at
        self._line = [(active_at(each), number, each) for number, each in enumerate(members)]
        heapify(self._line)
        self._since = now
        self._gone = 0

    def __len__(self) -> int:
        """How many have not had their turn."""
        return len(self._line)

    def due(self, now: float) -> list[Connected]:
        """Whose turn it is by now."""
        count = 1 + int((now - self._since) * self.per_second) - self._gone
        going: list[Connected] = []
        while self._line and len(going) < count:
            at, number, member = self._line[0]
            active_at = self._active_at(member)
            if active_at > at:  # it was needed meanwhile
                heapreplace(self._line, (active_at, number, member))
            else:
                heappop(self._line)
                going.append(member)
        self._gone += len(going)
        return going


async def send_away(
    open_channels: Collection[Connected],
    active_at: Callable[[Connected], float],
    leave: Callable[[Connected, float], None],
    host: Host,
    seconds: float,
) -> None:
    """Close all that are open, wave by wave.  `leave` takes each out of the coordinator before it is closed."""
    waves = Waves(tuple(open_channels), active_at, seconds, host.tick())
    told = fields(event="moving", peers_count=len(waves), per_second=waves.per_second, seconds=seconds)
    text = "= sending %d peers to other replicas, %.0f a second, within %.0f s"
    _log.info(text, len(waves), waves.per_second, seconds, extra=told)
    while waves:
        now = host.tick()
        for channel in waves.due(now):
            if channel in open_channels:
                leave(channel, now)
                channel.close(CloseCode.GOING_AWAY, "server is restarting", CloseReason.DRAINED)
        host.flush()
        if waves:
            await trio.sleep(max(_STEP_SECONDS, 1 / waves.per_second) * random.uniform(0.5, 1.5))
