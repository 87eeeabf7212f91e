"""The reactor: one trio task serves every client socket in batches.  Layer L2.

It owns a private epoll set, in which trio's own descriptor is one among many, and serves each batch of ready sockets
synchronously: receive into one arena that all connections share, let the session parse in place, and after the batch
let every flusher send what piled up for each destination.  No task, await or buffer per connection.
Sessions are in server/session.py and tailnet/server; sockets in links.py.
"""

import logging
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from derp.errors import ProtocolError
from derp.relay.counters import CloseReason
from derp.transport.links import RECEIVE_BYTES, Link, LinkEnded

_log = logging.getLogger("derp.transport")

# Receives of one batch lie side by side in the arena until the flush.  Four full receives: enough that a batch of
# many small ones is flushed once, and small enough to stay in the second-level cache.
ARENA_BYTES: Final = 1024 * 1024
# A receive, the longest unfinished frame that may lie before it, and one TLS record that may go over.
_ROOM_BYTES: Final = RECEIVE_BYTES + 96 * 1024
_MAX_EVENTS: Final = 512
# A TLS handshake costs as much as a hundred packets, 0.4 ms.  When thousands come back at once, those who are inside
# are served after every few of them (5 ms later instead of 32, at 4,000 newcomers a second); the others stay ready, and
# it is their turn in the next batch.
_MAX_HANDSHAKES: Final = 8
# After a batch the set is asked again without going back to trio, which would cost a task switch and, beside trio, a
# re-arm; but other tasks (handed-over requests, timers, drain) wait meanwhile, so not forever.  In trio's place we see
# when it has work; beside it we do not, and 16 batches of a full set would be a tenth of a second.
_MAX_ROUNDS: Final = 16
_MAX_TURN_SECONDS: Final = 0.005
# Trio without any deadline says "forever", which epoll cannot wait; waking once a minute costs nothing.
_MAX_WAIT_SECONDS: Final = 60.0
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT


class Reactor:
    """Create, `add` links or listeners from its own trio thread, and `run` it as one task until cancelled.

    Closing a link ends in its session's `ended`, exactly once.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.arena = bytearray(ARENA_BYTES)
        self.view = memoryview(self.arena)
        self.now = clock()
        self.links: dict[int, Link] = {}
        # links whose kernel buffer is full: the tick looks at these for write deadlines
        self.blocked: set[Link] = set()
        self.flushers: list[Callable[[], None]] = []
        self._clock = clock
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._framed = memoryview(bytearray(RECEIVE_BYTES + 16384))
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._is_trio_ready = False
        self._end = 0

    # --- membership

    def add(self, link: Link) -> None:
        """Serve a link from now on.  Its session must be set."""
        self.links[link.fd] = link
        self._epoll.register(link.fd, _IN)

    def adopt(self, link: Link, received: bytes) -> None:
        """Serve a link that lived elsewhere until now; `received` is what its session has not seen yet."""
        self.add(link)
        if received:
            self._deliver(link, received)

    def watch(self, fd: int, serve: Callable[[], None]) -> None:
        """Call `serve` whenever a descriptor that is no link (a listener, a UDP socket) is ready to be read."""
        self._watched[fd] = serve
        self._epoll.register(fd, _IN)

    def unwatch(self, fd: int) -> None:
        """Stop that; the descriptor stays open.  Once `run` has ended there is nothing left to stop."""
        if self._watched.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def release(self, link: Link) -> None:
        """Stop serving a link without closing it: somebody else takes the socket over."""
        if not self._serves(link):
            return
        del self.links[link.fd]
        self._epoll.unregister(link.fd)
        self.blocked.discard(link)

    def close(self, link: Link, reason: CloseReason, text: str = "") -> None:
        """Close a link and tell its session.  A second call does nothing."""
        if not self._serves(link):
            return
        del self.links[link.fd]
        self.blocked.discard(link)
        link.kept = link.tail = b""
        link.close()  # which takes the descriptor out of the epoll set
        session, link.session = link.session, None
        if session is not None:
            session.ended(reason, text)

    def fail(self, link: Link, error: LinkEnded | ProtocolError) -> None:
        """Close a link for an error of its own."""
        reason = error.reason if isinstance(error, LinkEnded) else CloseReason.PROTOCOL_ERROR
        self.close(link, reason, str(error))

    def _fail_for_defect(self, link: Link) -> None:
        # One connection met a defect of ours; everybody else's packets go on.
        _log.exception("! a session failed on fd %d and is closed; please report this", link.fd)
        self.close(link, CloseReason.INTERNAL_ERROR)

    def _serves(self, link: Link) -> bool:
        # Not merely by number: that of a closed socket belongs to somebody else after the next accept.
        return self.links.get(link.fd) is link

    # --- interest

    def pause(self, link: Link) -> None:
        """Stop reading a link; what it sends backs up into its kernel and then into the peer."""
        if not link.paused:
            link.paused = True
            self._rearm(link)

    def resume(self, link: Link) -> None:
        """Read on, beginning with what was kept when the link was paused."""
        if link.paused:
            link.paused = False
            self._rearm(link)
            if link.kept and self._serves(link):
                kept, link.kept = link.kept, b""
                self._deliver(link, kept)

    def await_room(self, link: Link) -> None:
        """The kernel was full: call the session's `writable` when it is not."""
        if not link.wants_out and self._serves(link):
            link.wants_out = True
            link.progress_at = self.now
            self.blocked.add(link)
            self._rearm(link)

    def _rearm(self, link: Link) -> None:
        if self._serves(link):
            self._epoll.modify(link.fd, (0 if link.paused else _IN) | (_OUT if link.wants_out else 0))

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
            for link in tuple(self.links.values()):
                self.close(link, CloseReason.STOPPED)
            self._epoll.close()

    async def _run_beside_trio(self) -> None:
        """The plain way: trio waits for our set, which costs a re-arm and a pass of its loop per wake-up."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            until = self._clock() + _MAX_TURN_SECONDS
            while self.serve_ready() and self.now < until:
                pass

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
                if not self.serve_ready(wait) or self._is_trio_ready:
                    break

    def serve_ready(self, wait_seconds: float = 0.0) -> int:
        """Serve what is ready; return how many descriptors were.  With nothing ready it blocks the whole thread for
        up to `wait_seconds`."""
        events = self._epoll.poll(wait_seconds, _MAX_EVENTS)
        if not events:
            return 0
        self.now = self._clock()
        links = self.links
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
                self._serve_writable(link)
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
            self._serve_readable(link)
        self.flush()
        return len(events)

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
        except (LinkEnded, ProtocolError) as error:
            self.fail(link, error)
        except Exception:
            self._fail_for_defect(link)

    def _deliver(self, link: Link, data: bytes) -> None:
        if ARENA_BYTES - self._end < len(data):
            self.flush()
        start = self._end
        self._end = end = start + len(data)
        self.arena[start:end] = data
        try:
            self._parse(link, start, end)
        except (LinkEnded, ProtocolError) as error:
            self.fail(link, error)
        except Exception:
            self._fail_for_defect(link)

    def _parse(self, link: Link, start: int, end: int) -> None:
        session = link.session
        assert session is not None
        rest = session.received(start, end)
        # A session may replace itself (an upgrade); the new one gets what the old one did not take.
        while link.session is not session and link.session is not None and rest < end and not link.paused:
            session = link.session
            rest = session.received(rest, end)
        if rest < end and self._serves(link):
            link.kept = bytes(self.view[rest:end])

    def _serve_writable(self, link: Link) -> None:
        session = link.session
        assert session is not None
        try:
            before = len(link.tail)
            took_all = link.flush_tail()
            if took_all or len(link.tail) < before:
                link.progress_at = self.now
            if took_all:
                session.writable()
        except (LinkEnded, ProtocolError) as error:
            self.fail(link, error)
            return
        except Exception:
            self._fail_for_defect(link)
            return
        if not link.blocked and link.wants_out:
            link.wants_out = False
            self.blocked.discard(link)
            self._rearm(link)

    def flush(self) -> None:
        """Let every flusher send; afterwards nothing refers to the arena and it is free again."""
        for flusher in self.flushers:
            flusher()
        self._end = 0

    def tick(self) -> float:
        """Take the time for work outside of `serve_ready` (deadlines, drains); call `flush` after that work."""
        self.now = self._clock()
        return self.now


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
