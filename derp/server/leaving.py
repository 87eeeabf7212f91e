"""Clients that are sent away: their last words, and a moment to hang up themselves.  Layer L3.

A client that is closed at once, while it still sends, gets a reset in place of what it was told last.  So it leaves the
relay at once, and its connection when it hangs up, a second later at the latest.  Used by relay.py and guests.py.
"""

from contextlib import suppress
from typing import Final

from derp.close_reason import CloseReason
from derp.relay.deadlines import Deadlines
from derp.transport.alarm import Alarm
from derp.transport.host import Host, Wire, WireEnded

# A stock client hangs up as soon as it sees the end of our side.  One that does not hang up may not hold others up.
_HANG_UP_SECONDS: Final = 1.0


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
        host = self._host
        session, wire.session = wire.session, LeavingSession(wire, self._until)
        until = host.now + _HANG_UP_SECONDS
        self._until.set(wire, until)
        self._alarm.by(until)
        assert session is not None
        session.ended(reason, text)
        with suppress(WireEnded):  # it has left, which its next event shows
            if last_words:
                wire.push(last_words)
            if wire.tail:
                host.await_room(wire)
            else:
                wire.end_output()
        host.resume(wire)  # if a rate limit paused the client, we would not see it hang up

    def _hang_up(self, now: float) -> None:
        for wire in self._until.handle_timeout(now):
            self._host.close(wire, CloseReason.DRAINED)


class LeavingSession:
    """A client this relay said goodbye to: nobody reaches it any more, and what it still writes is thrown away."""

    __slots__ = ("_until", "_wire")

    def __init__(self, wire: Wire, until: Deadlines[Wire]) -> None:
        self._wire = wire
        self._until = until

    def received(self, at: int, end: int) -> int:
        return end

    def writable(self) -> None:
        self._wire.end_output()

    def ended(self, reason: CloseReason, text: str) -> None:
        self._until.clear(self._wire)
