"""The reactor: one trio task serves every client socket in batches.  Layer L2.

It owns a private set of descriptors (poller.py), in which trio's own is one among many, and serves each batch of ready
sockets synchronously: receive into one arena that all connections share, let the session parse in place, and after the
batch let every flusher send what piled up for each destination.  No task, await or buffer per connection.
Sessions are in derp/server/ and tailnet/; sockets in links.py; what other hosts do as well in hostcore.py.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from derp.close_reason import CloseReason
from derp.transport.framing import LEAST_RECEIVE_BYTES
from derp.transport.host import Wire
from derp.transport.hostcore import HostCore
from derp.transport.links import Link
from derp.transport.poller import ENDED, FAILED, READ, WRITE, Poller, open_poller
from derp.transport.timers import Timer
from derp.transport.trioloop import NotPossible, TrioLoop

_log = logging.getLogger("derp.transport")

_MAX_EVENTS: Final = 512
# Who comes in (accepts, TLS, heads of requests, logins) and who leaves can wait: 0.1 ms each, 1 ms with TLS.  When a
# fleet loses its way and finds it again, thousands come at one moment; those who are inside have their turn after each
# such portion.  Larger ones are what a packet waits for, smaller ones lose more by the waiting in between (30 us).
_PORTION_SECONDS: Final = 0.001
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


class _Watched(NamedTuple):
    """A descriptor that is no wire."""

    serve: Callable[[], None]
    can_wait: bool


_Patient = tuple[int, Link | _Watched, int]  # a descriptor that is ready, whose it is, and the mask


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
        self._watched: dict[int, _Watched] = {}
        # Ready descriptors that wait for their turn, in the order of their coming.  Meanwhile they are not in the set,
        # which would report them over and over; closed ones are in the queue alone.
        self._patient: deque[_Patient] = deque()
        self._aside: set[int] = set()
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
            self._drop(wire.fd)

    def watch(self, fd: int, serve: Callable[[], None], *, can_wait: bool = False) -> None:
        """Call `serve` whenever a descriptor that is no wire (a listener, a UDP socket) is ready to be read; if it can
        wait, in turn with wires that come in."""
        self._watched[fd] = _Watched(serve, can_wait)
        self._poller.add(fd)

    def unwatch(self, fd: int) -> None:
        """Stop that; the descriptor stays open.  Once `run` has ended there is nothing left to stop."""
        if self._watched.pop(fd, None) is not None and not self._poller.is_closed:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        if fd in self._aside:
            self._aside.remove(fd)
        else:
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
                if self._patient:
                    await trio.lowlevel.checkpoint()
                elif descriptor is None:
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
            with trio.move_on_after(max(self.timers.next_at - self._clock(), 0.0)):
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
        """Serve what is ready; return how many descriptors were, with those that waited for their turn.  With
        nothing ready it blocks the whole thread for up to `wait_seconds`."""
        waited = len(self._patient)
        events = self._wait(0.0 if waited else wait_seconds, _MAX_EVENTS)
        self.now = self._clock()
        if self.timers.next_at <= self.now:
            self.run_timers()
        if not events and not waited:
            return 0
        links = self._links
        came: list[_Patient] = []
        if self._end:  # left by a delivery outside of a batch
            self.flush()
        for fd, mask in events:
            link = links.get(fd)
            if link is None:
                watched = self._watched.get(fd)
                if watched is None:
                    self._is_trio_ready = True
                elif watched.can_wait:
                    came.append((fd, watched, mask))
                else:
                    watched.serve()
                continue
            if mask != READ:
                if mask & WRITE:
                    self.serve_writable(link)
                    if mask == WRITE or links.get(fd) is not link:
                        continue
                if mask & (FAILED if link.paused else ENDED):
                    came.append((fd, link, mask))
                    continue
            if link.paused:
                continue
            if link.is_newcomer:
                came.append((fd, link, mask))
            elif self._is_measuring:
                self._serve_measured(link)
            else:
                self.serve_readable(link)
        if came or waited:
            self._serve_portion(came)
        self.flush()
        self._is_measuring = self._clock() - self.now > _ROUND_SECONDS
        return len(events) + waited

    def _serve_portion(self, came: list[_Patient]) -> None:
        """Serve those who can wait for as long as a portion lasts, and at least one; put the others aside."""
        patient, aside, clock = self._patient, self._aside, self._clock
        until = clock() + _PORTION_SECONDS
        is_over = False
        while patient and not is_over:
            fd, who, mask = patient.popleft()
            if fd in aside and self._is_here(fd, who):
                aside.remove(fd)
                self._poller.add(fd)
                if isinstance(who, Link):
                    who.poller = self._poller
                    if who.paused or who.wants_out:
                        self._tell_interest(who)
                self._serve_patient(who, mask)
                is_over = clock() >= until
        for fd, who, mask in came:
            if not self._is_here(fd, who):
                continue
            if not is_over:
                self._serve_patient(who, mask)
                is_over = clock() >= until
                continue
            patient.append((fd, who, mask))
            aside.add(fd)
            self._poller.remove(fd)
            if isinstance(who, Link):
                who.poller = None

    def _is_here(self, fd: int, who: Link | _Watched) -> bool:
        """Whether a descriptor is still whose it was."""
        return (self._links.get(fd) or self._watched.get(fd)) is who

    def _serve_patient(self, who: Link | _Watched, mask: int) -> None:
        if isinstance(who, _Watched):
            who.serve()
        elif not who.paused:
            self._serve_measured(who)
        elif mask & FAILED:
            self.close(who, CloseReason.CLOSED_BY_PEER)

    def _serve_measured(self, link: Link) -> None:
        """Serve a link, and read less of it the next time if that took long."""
        asked, began = link.appetite, self._clock()
        self.serve_readable(link)
        took = self._clock() - began
        if took > _TURN_SECONDS:
            link.appetite = max(LEAST_RECEIVE_BYTES, int(asked * _TURN_SECONDS / (2 * took)))
