"""A node's connections to relays: its home's, and those of regions where it reaches others.  Layer L3.

    set_map, set_home       what the coordinator and the node's own measurements say
    send(region, ...)       never waits; another region's relay is dialled for the first datagram
The home is kept, and dialled again for as long as it takes; another region's connection ends when nothing was sent
there for a while.  Caller: engine.py.  Next hop: derp/client/reconnect.py.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

import trio

from derp.client.dial import DialOptions
from derp.client.quic import QuicTries
from derp.client.reconnect import Connected, Disconnected, Heard, ReconnectingClient, open_reconnecting_client
from derp.errors import DerpError
from derp.keys import NodePrivate
from derp.map import DERPRegion

CONNECT_SECONDS: Final = 30.0
# Datagrams for a region whose connection is being begun: a handshake and what follows it in the first second.
MAX_WAITING: Final = 64
# As genuine nodes do, after so long without a datagram of ours.
IDLE_SECONDS: Final = 60.0

Hear: TypeAlias = Callable[[int, Sequence[Heard]], None]


class _Link:
    """One region's connection."""

    def __init__(self, now: float) -> None:
        self.scope = trio.CancelScope()
        self.client: ReconnectingClient | None = None  # from the moment when its task runs
        self.waiting: list[tuple[bytes, bytes]] = []  # until then: whom it is for, a datagram
        self.used_at = now
        self.heard_at: float | None = None
        self.down_since: float | None = now
        """None while the relay has us."""


class Relays:
    """Made by the engine.  `hear(region, messages)` gets what comes; a connection that is given up is told as lost."""

    def __init__(
        self,
        private: NodePrivate,
        regions: Mapping[int, DERPRegion],
        nursery: trio.Nursery,
        options: DialOptions | None,
        hear: Hear,
    ) -> None:
        self.regions = dict(regions)
        """Those that can be dialled; `set_map` replaces them."""
        self.home: int | None = None
        self._private = private
        self._nursery = nursery
        self._options = options or DialOptions(quic=QuicTries())
        self._hear = hear
        self._links: dict[int, _Link] = {}
        self._changed = trio.lowlevel.ParkingLot()

    def set_map(self, regions: Mapping[int, DERPRegion]) -> None:
        """Take another map.  Connections to regions that are gone, or are others now, end; a home that stays in the map
        is dialled anew."""
        before, self.regions = self.regions, dict(regions)
        for region, link in list(self._links.items()):
            if self.regions.get(region) != before.get(region):
                self._end(region, link)
        if self.home is not None:
            self.set_home(self.home)

    def set_home(self, region: int | None) -> None:
        """Keep a connection to this region's relay, whose others are idle ones from now on."""
        self.home = region
        if region is not None:
            self.open(region)
        self._changed.unpark_all()
        for number, link in self._links.items():
            if link.client is not None:
                link.client.note_preferred(number == region)

    def open(self, region: int) -> None:
        """Dial a region's relay, if it is not, without moving there."""
        if region not in self._links and region in self.regions:
            self._begin(region)

    def redial(self) -> None:
        """End all connections, since our addresses are others; the home's is made anew."""
        for region, link in list(self._links.items()):
            self._end(region, link)
        self.set_home(self.home)

    def send(self, region: int, node_key: bytes, datagrams: Sequence[bytes]) -> int:
        """Have the region's relay hand datagrams on; how many were lost here."""
        link = self._links.get(region)
        if link is None:
            if region not in self.regions:
                return len(datagrams)
            link = self._begin(region)
        link.used_at = trio.current_time()
        if link.client is None:
            kept = datagrams[: MAX_WAITING - len(link.waiting)]
            link.waiting += [(node_key, datagram) for datagram in kept]
            return len(datagrams) - len(kept)
        try:
            link.client.send_batch_nowait(node_key, datagrams)
        except (trio.WouldBlock, DerpError):  # WireGuard and TCP see to it
            return len(datagrams)
        return 0

    def last_heard(self, region: int) -> float | None:
        """When the region's relay last sent anything; None: never, or there is no connection."""
        return self._links[region].heard_at if self._is_up(region) else None

    def down_since(self, region: int) -> float | None:
        """Since when a region's relay has been dialled in vain; None: it has us, or is not dialled."""
        link = self._links.get(region)
        return link.down_since if link is not None else None

    async def wait_connected(self, region: int) -> None:
        """Until the relay of a region has us.  Raises trio.TooSlowError."""
        with trio.fail_after(CONNECT_SECONDS):
            while not self._is_up(region):
                await self.wait_change()

    async def wait_home(self) -> None:
        """Until the relay of the home, whichever that is by then, has us.  Raises trio.TooSlowError."""
        with trio.fail_after(CONNECT_SECONDS):
            while not self._is_up(self.home):
                await self.wait_change()

    async def wait_change(self) -> None:
        """Until a connection begins or ends, or another region is home."""
        await self._changed.park()

    # --- below ---

    def _is_up(self, region: int | None) -> bool:
        link = self._links.get(region) if region is not None else None
        return link is not None and link.down_since is None

    def _begin(self, region: int) -> _Link:
        link = self._links[region] = _Link(trio.current_time())
        self._nursery.start_soon(self._serve, region, link)
        self._changed.unpark_all()
        return link

    def _end(self, region: int, link: _Link) -> None:
        del self._links[region]
        link.scope.cancel()
        self._changed.unpark_all()
        self._hear(region, [Disconnected(0, "the connection is no longer wanted")])

    async def _serve(self, region: int, link: _Link) -> None:
        """Hold the connection to a region's relay; what waited for it leaves first."""
        # The map may name other relays by the next attempt; a region that is gone ends the link before that.
        target: Callable[[], DERPRegion] = lambda: self.regions[region]  # noqa: E731
        hear = partial(self._take, region, link)
        with link.scope:
            async with open_reconnecting_client(target, self._private, options=self._options, hear=hear) as client:
                client.note_preferred(region == self.home)
                waiting, link.waiting = link.waiting, []
                link.client = client
                for node_key, datagram in waiting:
                    client.send_batch_nowait(node_key, [datagram])
                await self._wait_idle(region, link)
                self._end(region, link)

    def _take(self, region: int, link: _Link, batch: Sequence[Heard]) -> None:
        if self._links.get(region) is not link:
            return  # its end was told, and another may be there
        link.heard_at = trio.current_time()
        for heard in batch:
            if isinstance(heard, Connected):
                link.down_since = None
                self._changed.unpark_all()
            elif isinstance(heard, Disconnected):
                link.down_since = link.heard_at
                self._changed.unpark_all()
        self._hear(region, batch)

    async def _wait_idle(self, region: int, link: _Link) -> None:
        """Until nothing was sent there for so long; of the home for ever."""
        while True:
            idle_at = link.used_at + IDLE_SECONDS
            if trio.current_time() < idle_at:
                await trio.sleep_until(idle_at)
            elif region != self.home:
                return
            else:
                link.used_at = trio.current_time()
