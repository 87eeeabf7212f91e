"""The two seams between a protocol and whatever carries it: a Wire is one connection, a Host serves many.  Layer L2.

Sessions (of derp/server/, the tailnet's channels) know these two and no socket.  The reactor (reactor.py) is a Host
over TCP sockets (links.py).  What all hosts do alike is in hostcore.py, and what all wires
that are streams of bytes in framing.py; tests/support/memory_host.py is both without a socket.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from derp.close_reason import CloseReason
from derp.errors import ProtocolError
from derp.protocol.websocket import WebSocketDecoder
from derp.relay.pace import Pace
from derp.transport.timers import Timer

Piece = bytes | bytearray | memoryview


class WireEnded(Exception):
    """The connection must end.  `reason` is counted, the text is for the log."""

    def __init__(self, reason: CloseReason, text: str = "") -> None:
        super().__init__(text or reason.value)
        self.reason = reason


class Session(Protocol):
    """What the bytes of a wire mean.  Its host calls; nothing here may block."""

    def received(self, at: int, end: int) -> int:
        """Bytes lie in the host's arena from `at` to `end`; return where the unfinished rest begins, which the host
        keeps and puts before the next bytes.  May raise ProtocolError or WireEnded: the wire is closed then."""
        ...

    def writable(self) -> None:
        """The wire takes bytes again, and everything handed to it before has gone."""
        ...

    def ended(self, reason: CloseReason, text: str) -> None:
        """The wire is closed.  Called once, whoever closed it; `text` is for the log."""
        ...


class Wire(Protocol):
    """One connection: an ordered stream of bytes both ways.  Owned by its host, closed through it."""

    # --- for its session

    session: Session | None
    address: tuple[str, int]
    """Of the caller, as the log and admission know it; a front door behind proxies corrects it."""
    codec: WebSocketDecoder | None
    """Set by an upgrade: from then on the session's bytes travel in websocket messages."""
    tail: bytes
    """Bytes on their way that the carrier did not take yet; they go before anything else."""
    is_newcomer: bool
    """What it sends can wait until those who are inside were served; the lobby sets it."""
    blocked: bool
    """The carrier is full: `send` takes nothing until the session's `writable`."""

    pace: Pace | None
    """How fast the carrier takes bytes, once it was full; its session measures that."""

    def version(self) -> str | None:
        """The TLS version in use, as OpenSSL spells it; None without TLS."""
        ...

    def rtt_microseconds(self) -> int:
        """The smoothed round-trip time.  OSError where nobody measures it."""
        ...

    def peer_left(self) -> bool:
        """Whether the peer has ended its side, as far as can be known without reading; for who is paused."""
        ...

    def send(self, pieces: Sequence[Piece], size: int) -> int:
        """Give `pieces`, together `size` bytes, to the carrier; return how many bytes it, or `tail`, has now.

        Fewer than `size` only when the wire is blocked now.  WireEnded when it failed.
        """
        ...

    def push(self, data: Piece) -> None:
        """Send bytes that may not be refused, framed as the wire is: the end of a frame that was begun."""
        ...

    def send_raw(self, data: Piece) -> None:
        """Send bytes that may not be refused, below any websocket (an HTTP answer, a pong): what the carrier leaves
        becomes `tail`.  Callers keep them small."""
        ...

    def limit_unsent(self, size_bytes: int) -> None:
        """Have the wire call itself full when it holds so many bytes that were not sent yet, as far as it can."""
        ...

    def end_output(self) -> None:
        """Tell the peer that no more bytes come, and go on receiving."""
        ...

    # --- for its host

    kept: bytes
    """The unfinished rest of what was received."""
    paused: bool
    """Not being read, by a rate limit or an open decision."""
    wants_out: bool
    """Somebody waits for `writable`."""
    write_seconds: float | None
    """How long the carrier may take nothing while the wire is blocked, then the host closes it.  0: as long as it
    likes; None: as long as the host allows all."""

    def want(self, *, read: bool, write: bool) -> None:
        """What the carrier shall report from now on: bytes that came, room for bytes.  Only the host calls it."""
        ...

    def flush_tail(self) -> bool:
        """Send on what was left over; True when nothing is left and the wire takes new bytes."""
        ...

    def close(self) -> None:
        """End it at once.  Only the host calls it: sessions ask the host, which tells them that it is done."""
        ...


class Host(Protocol):
    """Serves wires.  All calls come from its own thread, and it calls sessions from there too."""

    arena: bytearray
    """What was received lies here until the next flush; forwarding overwrites it in place."""
    view: memoryview
    """The same bytes."""
    now: float
    """Seconds on a clock of the host, taken once per batch."""
    blocked: set[Wire]
    """Wires somebody waits for room on."""
    write_seconds: float
    """How long a blocked wire may take nothing before it is closed; 0: as long as it likes."""
    flushers: list[Callable[[], None]]
    """Called after each batch: whoever collects output for many wires sends it now."""

    @property
    def wires(self) -> Collection[Wire]:
        """Everything that is served, in the order in which it came."""
        ...

    def add(self, wire: Wire) -> None:
        """Serve a wire from now on.  Its session must be set."""
        ...

    def adopt(self, wire: Wire, received: bytes) -> None:
        """Serve a wire that lived elsewhere until now; `received` is what its session has not seen yet."""
        ...

    def release(self, wire: Wire) -> None:
        """Stop serving a wire without closing it: somebody else takes it over."""
        ...

    def close(self, wire: Wire, reason: CloseReason, text: str = "") -> None:
        """Close a wire and tell its session.  A second call does nothing."""
        ...

    def fail(self, wire: Wire, error: WireEnded | ProtocolError) -> None:
        """Close a wire for an error of its own."""
        ...

    def pause(self, wire: Wire) -> None:
        """Stop reading a wire; what it sends backs up on the way and then into the peer."""
        ...

    def resume(self, wire: Wire) -> None:
        """Read on, beginning with what was kept when the wire was paused."""
        ...

    def await_room(self, wire: Wire) -> None:
        """The carrier was full: call the session's `writable` when it is not."""
        ...

    def flush(self) -> None:
        """Let every flusher send; afterwards nothing refers to the arena and it is free again."""
        ...

    def tick(self) -> float:
        """Take the time for work that no wire caused (deadlines, drains); call `flush` after that work."""
        ...

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Call once when `now` has reached `when`; a flush follows.  Cancel it by the timer that is returned."""
        ...
