"""The reactor: one trio task serves every client socket in batches.  Layer L2.

It owns a private epoll set, in which trio's own descriptor is one among many, and serves each batch of ready sockets
synchronously: receive into one arena that all connections share, let the session parse in place, and after the batch
let every flusher send what piled up for each destination.  No task, await or buffer per connection.
Sessions are in server/session.py and tailnet/server; sockets in links.py.
"""

import select
import time
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final

import trio

from derp.close_reason import CloseReason
from derp.errors import ProtocolError
from derp.transport.host import Wire, WireEnded
from derp.transport.hostcore import ARENA_BYTES, HostCore
from derp.transport.links import LEAST_RECEIVE_BYTES, RECEIVE_BYTES, Link
from derp.transport.timers import Timer

# A receive, the longest unfinished frame that may lie before it, and one TLS record that may go over.
_ROOM_BYTES: Final = RECEIVE_BYTES + 96 * 1024
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
# Trio without any deadline says "forever", which epoll cannot wait; waking once a minute costs nothing.
_MAX_WAIT_SECONDS: Final = 60.0
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT


class Reactor(HostCore):
    """Create, `add` wires or `watch` listeners from its own trio thread, and `run` it as one task until cancelled."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._links: dict[int, Link] = {}  # the wires that are sockets, by descriptor: what the set reports
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._framed = memoryview(bytearray(RECEIVE_BYTES + 16384))
        self._epoll = select.epoll()
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
            wire.poller = self._epoll
            self._epoll.register(wire.fd, _IN)

    def _forget(self, wire: Wire) -> None:
        super()._forget(wire)
        if isinstance(wire, Link):
            del self._links[wire.fd]
            wire.poller = None
            self._epoll.unregister(wire.fd)

    def watch(self, fd: int, serve: Callable[[], None]) -> None:
        """Call `serve` whenever a descriptor that is no wire (a listener, a UDP socket) is ready to be read."""
        self._watched[fd] = serve
        self._epoll.register(fd, _IN)

    def unwatch(self, fd: int) -> None:
        """Stop that; the descriptor stays open.  Once `run` has ended there is nothing left to stop."""
        if self._watched.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Call once when `now` has reached `when`, a millisecond late at most while nothing else is to do."""
        if when < self.timers.next_at():
            self._sooner.set()
        return super().call_at(when, call)

    # --- serving

    async def run(self) -> None:
        """Serve until cancelled, then close every link."""
        try:
            loop = _TrioLoop.find()
            if loop is None:
                await self._run_beside_trio()
            else:
                try:
                    await self._run_around_trio(loop)
                finally:
                    loop.leave()
        finally:
            for wire in tuple(self.wires):
                self.close(wire, CloseReason.STOPPED)
            self._epoll.close()

    async def _run_beside_trio(self) -> None:
        """The plain way: trio waits for our set, which costs a re-arm and a pass of its loop per wake-up."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._call_beside_trio)
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                until = self._clock() + _MAX_TURN_SECONDS
                while self.serve_ready() and self.now < until:
                    pass

    async def _call_beside_trio(self) -> None:
        """Timers of somebody whose waiting trio does."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_after(self.timers.next_at() - self._clock()):
                await self._sooner.wait()
            self.tick()
            self.run_timers()

    async def _run_around_trio(self, loop: "_TrioLoop") -> None:
        """Wait in our own set, with trio's descriptor in it, and give trio a turn exactly when it has work.

        A relayed packet then costs one wait instead of three calls and a pass of trio's loop: at 1,000 packets/s that
        is a quarter of the server's CPU.  Trio's tasks lose nothing: their sockets, signals and threads make trio's
        descriptor ready, their deadlines bound the wait, and tasks that can run already forbid it.
        """
        self._epoll.register(loop.descriptor, _IN)
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
                call_at = self.timers.next_at()
                if call_at < inf:
                    wait = min(wait, max(call_at - self._clock(), 0.0))
                if not self.serve_ready(wait) or self._is_trio_ready:
                    break

    def serve_ready(self, wait_seconds: float = 0.0) -> int:
        """Serve what is ready; return how many descriptors were.  With nothing ready it blocks the whole thread for
        up to `wait_seconds`."""
        events = self._epoll.poll(wait_seconds, _MAX_EVENTS)
        self.now = self._clock()
        if self.timers.next_at() <= self.now:
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
            if mask & _OUT:
                self.serve_writable(link)
                if mask == _OUT or links.get(fd) is not link:
                    continue
            if link.paused:
                if mask & (select.EPOLLHUP | select.EPOLLERR):
                    self.close(link, CloseReason.CLOSED_BY_PEER)
                continue
            if not link.is_open:
                handshakes += 1
                if handshakes > _MAX_HANDSHAKES:
                    continue
            if ARENA_BYTES - self._end < _ROOM_BYTES:
                self.flush()
            if self._is_measuring:
                self._serve_measured(link)
            else:
                self._serve_readable(link)
        self.flush()
        self._is_measuring = self._clock() - self.now > _ROUND_SECONDS
        return len(events)

    def _serve_measured(self, link: Link) -> None:
        """Serve a link, and read less of it the next time if that took long."""
        asked, began = link.appetite, self._clock()
        self._serve_readable(link)
        took = self._clock() - began
        if took > _TURN_SECONDS:
            link.appetite = max(LEAST_RECEIVE_BYTES, int(asked * _TURN_SECONDS / (2 * took)))

    def _serve_readable(self, link: Link) -> None:
        at = self._end
        kept = link.kept
        start = at
        if kept:
            self.arena[at : at + len(kept)] = kept
            at += len(kept)
        try:
            end = link.receive(self.view, at, self._scratch, self._framed)
            if link.tail:
                self.await_room(link)
            if end == at:
                return
            link.kept = b""
            self._end = end
            self._parse(link, start, end)
            if link.ending is not None:
                self.fail(link, link.ending)
        except (WireEnded, ProtocolError) as error:
            self.fail(link, error)
        except Exception:
            self._fail_for_defect(link)


class _RunQueue(deque[Any]):
    """Trio's queue of runnable tasks.  It also tells how many tasks the current pass has: trio copies and clears it
    when a pass begins, so that tasks later in the same pass are in no queue at all."""

    in_pass = 0

    def clear(self) -> None:
        self.in_pass = len(self)
        super().clear()


class _TrioLoop:
    """What the reactor must know of trio's own loop to wait in its place.

    Trio has no public names for these (its public statistics count every waiting task, too dear per packet).  They
    are looked up once; whatever is missing, or a clock that is not real, means that the plain way is taken.
    """

    def __init__(self) -> None:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        runner: Any = GLOBAL_RUN_CONTEXT.runner
        if type(runner.clock).__name__ != "SystemClock" or runner.is_guest:
            raise AttributeError("a clock of tests, or a loop that runs inside another one")
        if isinstance(runner.runq, _RunQueue):
            raise AttributeError("another reactor waits in trio's place; it wakes for the sets trio waits for")
        self.descriptor: int = runner.io_manager._epoll.fileno()
        self._next_deadline: Callable[[], float] = runner.deadlines.next_deadline
        self._clock: Callable[[], float] = runner.clock.current_time
        self._runnable = _RunQueue(runner.runq)
        self.seconds_to_spare()
        self._runner = runner
        runner.runq = self._runnable

    def leave(self) -> None:
        """Another reactor may wait in trio's place from now on."""
        self._runner.runq = deque(self._runnable)

    def is_ours_alone(self) -> bool:
        """Whether the pass of trio's loop that runs now has no task but the one that asks."""
        return self._runnable.in_pass <= 1

    def seconds_to_spare(self) -> float:
        """How long trio has nothing to do but wait; 0 when it has."""
        if self._runnable:
            return 0.0
        return min(self._next_deadline() - self._clock(), _MAX_WAIT_SECONDS)

    @classmethod
    def find(cls) -> "_TrioLoop | None":
        try:
            return cls()
        except (ImportError, AttributeError, TypeError):
            return None
