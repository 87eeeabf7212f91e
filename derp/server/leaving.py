"""Clients that are sent away: their last words, and a moment to hang up themselves.  Layer L3.

A client that is closed at once, while it still sends, gets a reset in place of what it was told last.  So it hears the
end of our side, and its connection ends when it hangs up, some seconds later at the latest.  What it still sends is
thrown away (guests.py), or served by its session as before (a drain, relay.py).
"""

from contextlib import suppress
from typing import Final

from derp.close_reason import CloseReason
from derp.protocol.websocket import CloseCode, close_frame
from derp.relay.deadlines import Deadlines
from derp.transport.alarm import Alarm
from derp.transport.host import Host, Session, Wire, WireEnded

# A stock client hangs up as soon as it sees the end of our side.  One that does not hang up may not hold others up.
_HANG_UP_SECONDS: Final = 1.0
# One that is seen off has done nothing wrong: what it sent until it saw the end, over the worst of lines (a round trip
# of 1 s, and a lost segment), is still served.
_SEE_OFF_SECONDS: Final = 3.0


class Leaving:
    """Those of one relay who were told that nothing more comes."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._until = Deadlines[Wire]()
        self._alarm = Alarm(host, self._hang_up, self._until)

    def __len__(self) -> int:
        return len(self._until)

    def send_away(self, wire: Wire, reason: CloseReason, text: str = "", last_words: bytes = b"") -> None:
        """End the session of a wire.  What others hear of it goes with the next flush."""
        session = wire.session
        assert session is not None
        self._leave(wire, None, _HANG_UP_SECONDS)
        session.ended(reason, text)
        with suppress(WireEnded):  # it has left, which its next event shows
            if last_words:
                wire.push(last_words)
            self._end_output(wire)
        self._host.resume(wire)  # if a rate limit paused the client, we would not see it hang up

    def see_off(self, wire: Wire) -> None:
        """Tell a client that nothing more comes, which must be true, and have its session serve what it still sends."""
        self._leave(wire, wire.session, _SEE_OFF_SECONDS)
        with suppress(WireEnded):
            self._end_output(wire)
        self._host.resume(wire)

    def _leave(self, wire: Wire, session: Session | None, seconds: float) -> None:
        wire.session = LeavingSession(wire, self._until, session)
        until = self._host.now + seconds
        self._until.set(wire, until)
        self._alarm.by(until)

    def _end_output(self, wire: Wire) -> None:
        if wire.codec is not None:
            # Libraries take the end of a stream without it for a failure, and some then wait before they try again.
            wire.send_raw(close_frame(CloseCode.GOING_AWAY))
        if wire.tail:
            self._host.await_room(wire)
        else:
            wire.end_output()

    def _hang_up(self, now: float) -> None:
        for wire in self._until.handle_timeout(now):
            self._host.close(wire, CloseReason.DRAINED)


class LeavingSession:
    """A client this relay said goodbye to: nobody reaches it any more.  `session` serves what it still sends; without
    one, that is thrown away."""

    __slots__ = ("_session", "_until", "_wire")

    def __init__(self, wire: Wire, until: Deadlines[Wire], session: Session | None) -> None:
        self._wire = wire
        self._until = until
        self._session = session

    def received(self, at: int, end: int) -> int:
        return end if self._session is None else self._session.received(at, end)

    def writable(self) -> None:
        self._wire.end_output()

    def ended(self, reason: CloseReason, text: str) -> None:
        self._until.clear(self._wire)
        if self._session is not None:  # however it ended, that was its part of our drain
            self._session.ended(CloseReason.DRAINED, "")
