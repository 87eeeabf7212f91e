"""The reactor: one trio task serves every client socket in batches.  Layer L2.

It owns a private set of descriptors (poller.py), in which trio's own is one among many, and serves each batch of ready
sockets synchronously: receive into one arena that all connections share, let the session parse in place, and after the
batch let every flusher send what piled up for each destination.  No task, await or buffer per connection.
Sessions are in derp/server/ and tailnet/; sockets in links.py; what other hosts do as well in hostcore.py.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

import trio

from derp.close_reason import CloseReason
from derp.transport.framing import LEAST_RECEIVE_BYTES
from derp.transport.host import Wire
from derp.transport.hostcore import HostCore
from derp.transport.links import Link
from derp.transport.poller import FAILED, WRITE, Poller, open_poller
from derp.transport.timers import Timer
from derp.transport.trioloop import NotPossible, TrioLoop

_log = logging.getLogger("derp.transport")

_MAX_EVENTS: Final = 512
# A TLS handshake costs as much as a hundred packets, 0.4 ms.  When thousands come back at once, those who are inside
# are served after every few of them (5 ms later instead of 32, at 4,000 newcomers a second); the others stay ready, and
# it is their turn in the next batch.
_MAX_HANDSHAKES: Final = 8
# What one receive may take, whatever its bytes are: a session whose bytes are dear is read in smaller pieces, so that
# everybody's turn comes soon.  Twenty of the dearest make a round of 10 ms.  In short rounds nothing is measured: two
# readings of the clock for each receive would be 5 % of a packet that comes alone.
_ROUND_SECONDS: Final = 0.004
_TURN_SECONDS: Final = 0.0007
# After a batch the set is asked again without going back to trio, which would cost a task switch and, beside trio, a
# re-arm; but other tasks (handed-over requests, timers, drain) wait meanwhile, so not forever.  In trio's place we see
# when it has work; beside it we do not, and 16 batches of a full set would be a tenth of a second.
_MAX_ROUNDS: Final = 16
_MAX_TURN_SECONDS: Final = 0.005
# A set without a descriptor of its own (poll) cannot be waited for beside trio: it is asked so often.  Nobody but a
# test on a system without epoll and kqueue pays that.
_LOOK_SECONDS: Final = 0.002


class Reactor(HostCore):
    """Create, `add` wires or `watch` listeners from its own trio thread, and `run` it as one task until cancelled."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, poller: Poller | None = None) -> None:
        """`poller`: the best that the system has, if none is given."""
        super().__init__(clock)
        self.is_in_trios_place = False
        """Whether it waits in the place of trio's loop, which is what packets want."""
        self._links: dict[int, Link] = {}  # the wires that are sockets, by descriptor: what the set reports
        self._poller = poller or open_poller()
        self._wait = self._poller.wait
        self._watched: dict[int, Callable[[], None]] = {}
        self._is_trio_ready = False
        self._is_measuring = False  # the last round was a long one
        self._sooner = trio.Event()  # the next timer is an earlier one than before

    # --- membership

    def add(self, wire: Wire) -> None:
        """Serve a wire from now on.  Its session must be set.  One without a socket calls `deliver` itself."""
        super().add(wire)
        if isinstance(wire, Link):
            self._links[wire.fd] = wire
            wire.poller = self._poller
            self._poller.add(wire.fd)

    def _forget(self, wire: Wire) -> None:
        super()._forget(wire)
        if isinstance(wire, Link):
            del self._links[wire.fd]
            wire.poller = None
            self._poller.remove(wire.fd)

    def watch(self, fd: int, serve: Callable[[], None]) -> None:
        """Call `serve` whenever a descriptor that is no wire (a listener, a UDP socket) is ready to be read."""
        self._watched[fd] = serve
        self._poller.add(fd)

    def unwatch(self, fd: int) -> None:
        """Stop that; the descriptor stays open.  Once `run` has ended there is nothing left to stop."""
        if self._watched.pop(fd, None) is not None and not self._poller.is_closed:
            self._poller.remove(fd)

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Call once when `now` has reached `when`, a millisecond late at most while nothing else is to do."""
        if when < self.timers.next_at:
            self._sooner.set()
        return super().call_at(when, call)

    # --- serving

    async def run(self) -> None:
        """Serve until cancelled, then close every link."""
        try:
            try:
                loop = await TrioLoop.enter()
            except NotPossible as reason:
                if not reason.is_expected:
                    _log.warning(
                        "! packets cost up to a third more CPU: trio %s is another than this relay knows (%s); install "
                        "the version that requirements.lock names",
                        trio.__version__,
                        reason,
                    )
                await self._run_beside_trio()
            else:
                self.is_in_trios_place = True
                try:
                    await self._run_around_trio(loop)
                finally:
                    self.is_in_trios_place = False
                    loop.leave()
        finally:
            self.end()

    def end(self) -> None:
        """Close every wire, and the set.  For who drives it by `serve_ready`; `run` does it itself."""
        for wire in tuple(self.wires):
            self.close(wire, CloseReason.STOPPED)
        self._poller.close()

    async def _run_beside_trio(self) -> None:
        """The plain way: trio waits for our set, which costs a re-arm and a pass of its loop per wake-up."""
        descriptor = self._poller.fileno()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._call_beside_trio)
            while True:
                if descriptor is None:
                    await trio.sleep(_LOOK_SECONDS)
                else:
                    await trio.lowlevel.wait_readable(descriptor)
                until = self._clock() + _MAX_TURN_SECONDS
                while self.serve_ready() and self.now < until:
                    pass

    async def _call_beside_trio(self) -> None:
        """Timers of somebody whose waiting trio does."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_after(self.timers.next_at - self._clock()):
                await self._sooner.wait()
            self.tick()
            self.run_timers()

    async def _run_around_trio(self, loop: TrioLoop) -> None:
        """Wait in our own set, with trio's descriptor in it, and give trio a turn exactly when it has work.

        A relayed packet then costs one wait instead of three calls and a pass of trio's loop: at 1,000 packets/s that
        is a quarter of the server's CPU.  Trio's tasks lose nothing: their sockets, signals and threads make trio's
        descriptor ready, their deadlines bound the wait, and tasks that can run already forbid it.
        """
        self._poller.add(loop.descriptor)
        while True:
            await trio.lowlevel.checkpoint()
            self._is_trio_ready = False
            if not loop.is_ours_alone():  # tasks of this pass may still be waiting behind us for their turn
                self.serve_ready()
                continue
            for _ in range(_MAX_ROUNDS):
                wait = loop.seconds_to_spare()
                if wait <= 0:
                    self.serve_ready()
                    break
                # By the time of the last batch, which is moments ago: the clock is read only where it may matter.
                if self.timers.next_at - self.now < wait:
                    wait = min(wait, max(self.timers.next_at - self._clock(), 0.0))
                if not self.serve_ready(wait) or self._is_trio_ready:
                    break

    def serve_ready(self, wait_seconds: float = 0.0) -> int:
        """Serve what is ready; return how many descriptors were.  With nothing ready it blocks the whole thread for
        up to `wait_seconds`."""
        events = self._wait(wait_seconds, _MAX_EVENTS)
        self.now = self._clock()
        if self.timers.next_at <= self.now:
            self.run_timers()
        if not events:
            return 0
        links = self._links
        handshakes = 0
        if self._end:  # left by a delivery outside of a batch
            self.flush()
        for fd, mask in events:
            link = links.get(fd)
            if link is None:
                serve = self._watched.get(fd)
                if serve is not None:
                    serve()
                else:
                    self._is_trio_ready = True
                continue
            if mask & WRITE:
                self.serve_writable(link)
                if mask == WRITE or links.get(fd) is not link:
                    continue
            if link.paused:
                if mask & FAILED:
                    self.close(link, CloseReason.CLOSED_BY_PEER)
                continue
            if not link.is_open:
                handshakes += 1
                if handshakes > _MAX_HANDSHAKES:
                    continue
            if self._is_measuring:
                self._serve_measured(link)
            else:
                self.serve_readable(link)
        self.flush()
        self._is_measuring = self._clock() - self.now > _ROUND_SECONDS
        return len(events)

    def _serve_measured(self, link: Link) -> None:
        """Serve a link, and read less of it the next time if that took long."""
        asked, began = link.appetite, self._clock()
        self.serve_readable(link)
        took = self._clock() - began
        if took > _TURN_SECONDS:
            link.appetite = max(LEAST_RECEIVE_BYTES, int(asked * _TURN_SECONDS / (2 * took)))
