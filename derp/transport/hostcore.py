"""What every Host does alike, whatever it waits for: who is served, deliveries, pauses, ends, timers.  Layer L2.

Bytes that came are put into one arena that all wires share; the session parses them in place; after the batch every
flusher sends what piled up for each destination.  Nothing here waits or knows a descriptor: reactor.py adds that for
sockets.  Another carrier calls `serve_readable` (or `deliver`, for bytes that it has unframed itself), `serve_writable`
and, after a batch, `flush` and `run_timers`.
"""

import logging
from collections.abc import Callable
from typing import Final

from derp.close_reason import CloseReason
from derp.errors import Flood, ProtocolError
from derp.log import Rarely, and_more
from derp.relay.deadlines import Deadlines
from derp.transport.alarm import Alarm
from derp.transport.framing import RECEIVE_BYTES, RECORD_BYTES, StreamWire
from derp.transport.host import Wire, WireEnded
from derp.transport.timers import Timer, Timers

_log = logging.getLogger("derp.transport")

# Receives of one batch lie side by side in the arena until the flush.  Four full receives: enough that a batch of
# many small ones is flushed once, and small enough to stay in the second-level cache.
ARENA_BYTES: Final = 1024 * 1024
# A receive, the longest unfinished frame that may lie before it, and one TLS record that may go over.
_ROOM_BYTES: Final = RECEIVE_BYTES + 96 * 1024
# Those whose time is up end in portions, as all who leave do: thousands of silent connections that came at one moment
# would hold up the others for as long as it takes to close them, 0.02 ms each.
MAX_CLOSED_AT_ONCE: Final = 50
# Each end by a flood is counted; the log has a line for those of this long.
FLOOD_LOG_SECONDS: Final = 10.0


class HostCore:
    """A Host (derp/transport/host.py) without its waiting.

    Closing a wire ends in its session's `ended`, exactly once.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.arena = bytearray(ARENA_BYTES)
        self.view = memoryview(self.arena)
        self.now = clock()
        self.wires: dict[Wire, None] = {}  # for its order
        self.blocked: set[Wire] = set()
        self.write_seconds = 0.0
        self.flushers: list[Callable[[], None]] = []
        self.timers = Timers()
        self._clock = clock
        self._writes = Deadlines[Wire]()
        self._write_alarm = Alarm(self, self._end_stuck, self._writes)
        self._end = 0
        self._floods = Rarely(FLOOD_LOG_SECONDS)
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._framed = memoryview(bytearray(RECEIVE_BYTES + RECORD_BYTES))

    # --- membership

    def add(self, wire: Wire) -> None:
        """Serve a wire from now on.  Its session must be set."""
        self.wires[wire] = None

    def adopt(self, wire: Wire, received: bytes) -> None:
        """Serve a wire that lived elsewhere until now; `received` is what its session has not seen yet."""
        self.add(wire)
        if received:
            self.deliver(wire, received)

    def release(self, wire: Wire) -> None:
        """Stop serving a wire without closing it: somebody else takes it over."""
        if wire in self.wires:
            self._forget(wire)

    def close(self, wire: Wire, reason: CloseReason, text: str = "") -> None:
        """Close a wire and tell its session.  A second call does nothing."""
        if wire not in self.wires:
            return
        self._forget(wire)
        wire.kept = wire.tail = b""
        wire.close()
        session, wire.session = wire.session, None
        if session is not None:
            session.ended(reason, text)

    def fail(self, wire: Wire, error: WireEnded | ProtocolError) -> None:
        """Close a wire for an error of its own."""
        if isinstance(error, WireEnded):
            reason = error.reason
        else:
            reason = CloseReason.FLOOD if isinstance(error, Flood) else CloseReason.PROTOCOL_ERROR
        if reason is CloseReason.FLOOD:
            self._log_flood(wire, str(error))
        self.close(wire, reason, str(error))

    def _log_flood(self, wire: Wire, text: str) -> None:
        """Whoever floods dials again at once: a line for each end would be the next flood."""
        more = self._floods.held_back("flood", self.now)
        if more is not None:
            _log.warning("! %s:%d floods and is closed: %s%s", *wire.address[:2], text, and_more(more))

    def _forget(self, wire: Wire) -> None:
        del self.wires[wire]
        self._note_room(wire)

    def _fail_for_defect(self, wire: Wire) -> None:
        # One connection met a defect of ours; everybody else's packets go on.
        _log.exception("! a session failed on %r and is closed; please report this", wire)
        self.close(wire, CloseReason.INTERNAL_ERROR)

    # --- interest

    def pause(self, wire: Wire) -> None:
        """Stop reading a wire; what it sends backs up on the way and then into the peer."""
        if not wire.paused:
            wire.paused = True
            self._tell_interest(wire)

    def resume(self, wire: Wire) -> None:
        """Read on, beginning with what was kept when the wire was paused."""
        if wire.paused:
            wire.paused = False
            self._tell_interest(wire)
            if wire.kept and wire in self.wires:
                kept, wire.kept = wire.kept, b""
                self.deliver(wire, kept)

    def await_room(self, wire: Wire) -> None:
        """The carrier was full: call the session's `writable` when it is not."""
        if not wire.wants_out and wire in self.wires:
            wire.wants_out = True
            self.blocked.add(wire)
            self._note_progress(wire)
            self._tell_interest(wire)

    def _note_progress(self, wire: Wire) -> None:
        """A blocked wire has all its time again."""
        seconds = self.write_seconds if wire.write_seconds is None else wire.write_seconds
        if seconds and wire in self.blocked:
            at = self.now + seconds
            self._writes.set(wire, at)
            self._write_alarm.by(at)

    def _note_room(self, wire: Wire) -> None:
        """Nobody waits for room on this wire any more."""
        self.blocked.discard(wire)
        self._writes.clear(wire)

    def _end_stuck(self, now: float) -> None:
        for wire in self._writes.handle_timeout(now, MAX_CLOSED_AT_ONCE):
            self.close(wire, CloseReason.WRITE_TIMEOUT)

    def _tell_interest(self, wire: Wire) -> None:
        if wire in self.wires:
            wire.want(read=not wire.paused, write=wire.wants_out)

    # --- serving

    def serve_readable(self, wire: StreamWire) -> None:
        """Receive what a wire has, and give it to its session.  A flush has to follow."""
        if ARENA_BYTES - self._end < _ROOM_BYTES:
            self.flush()
        at = self._end
        kept = wire.kept
        start = at
        if kept:
            self.arena[at : at + len(kept)] = kept
            at += len(kept)
        try:
            end = wire.receive(self.view, at, self._scratch, self._framed)
            if wire.tail:
                self.await_room(wire)
            if end == at:
                return
            wire.kept = b""
            self._end = end
            self._parse(wire, start, end)
            if wire.ending is not None:
                self.fail(wire, wire.ending)
        except (WireEnded, ProtocolError) as error:
            self.fail(wire, error)
        except Exception:
            self._fail_for_defect(wire)

    def deliver(self, wire: Wire, data: bytes) -> None:
        """Give a session bytes that came in another way than by a receive into the arena.  A flush has to follow."""
        if ARENA_BYTES - self._end < len(data):
            self.flush()
        start = self._end
        self._end = end = start + len(data)
        self.arena[start:end] = data
        try:
            self._parse(wire, start, end)
        except (WireEnded, ProtocolError) as error:
            self.fail(wire, error)
        except Exception:
            self._fail_for_defect(wire)

    def _parse(self, wire: Wire, start: int, end: int) -> None:
        session = wire.session
        assert session is not None
        rest = session.received(start, end)
        # A session may replace itself (an upgrade); the new one gets what the old one did not take.
        while wire.session is not session and wire.session is not None and rest < end and not wire.paused:
            session = wire.session
            rest = session.received(rest, end)
        if rest < end and wire in self.wires:
            wire.kept = bytes(self.view[rest:end])

    def serve_writable(self, wire: Wire) -> None:
        """The carrier has room again: send on what was left over, and let the session send."""
        session = wire.session
        assert session is not None
        try:
            before = len(wire.tail)
            took_all = wire.flush_tail()
            if took_all or len(wire.tail) < before:
                self._note_progress(wire)
            if took_all:
                session.writable()
        except (WireEnded, ProtocolError) as error:
            self.fail(wire, error)
            return
        except Exception:
            self._fail_for_defect(wire)
            return
        if not wire.blocked and wire.wants_out:
            wire.wants_out = False
            self._note_room(wire)
            self._tell_interest(wire)

    def flush(self) -> None:
        """Let every flusher send; afterwards nothing refers to the arena and it is free again."""
        for flusher in self.flushers:
            flusher()
        self._end = 0

    # --- time

    def tick(self) -> float:
        """Take the time for work that no wire caused (deadlines, drains); call `flush` after that work."""
        self.now = self._clock()
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Call once when `now` has reached `when`; a flush follows."""
        return self.timers.call_at(when, call)

    def run_timers(self) -> None:
        """Call what is due by `now`, and flush."""
        try:
            if self.timers.run_due(self.now):
                self.flush()
        except Exception:
            # Those behind it are still due, and have their turn the next time.
            _log.exception("! a timer failed; please report this")
