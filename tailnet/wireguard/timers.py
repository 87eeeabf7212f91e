"""When a peer's session does something by itself (layer L1; white paper 6).

Plain times that move when something happens; `device.py` tells them what happened, asks what is due and does it.
The triggers are the genuine implementation's, whose traces under a fake clock are tests; where it would stall after
a lost message (an initiation within 5 s of our own response) ours is made later instead of not at all.
"""

from enum import Enum
from math import inf
from typing import Final

REKEY_AFTER_SECONDS: Final = 120.0
REJECT_AFTER_SECONDS: Final = 180.0
REKEY_TIMEOUT_SECONDS: Final = 5.0
KEEPALIVE_SECONDS: Final = 10.0
REKEY_AFTER_MESSAGES: Final = 1 << 60

# An initiator whose session is about to end while it only receives asks for a new one in time for one retry.
REKEY_BEFORE_REJECT_SECONDS: Final = REJECT_AFTER_SECONDS - KEEPALIVE_SECONDS - REKEY_TIMEOUT_SECONDS

# Retries after the first initiation: REKEY_ATTEMPT_TIME of 90 s in steps of 5.  With their jitter 20 take 97 s.
MAX_RETRIES: Final = 18

_SILENCE_SECONDS: Final = KEEPALIVE_SECONDS + REKEY_TIMEOUT_SECONDS
_FORGET_SECONDS: Final = 3 * REJECT_AFTER_SECONDS


class Due(Enum):
    """What a peer's time has come for."""

    RETRY = "retry"  # no answer to our initiation
    KEEPALIVE = "keepalive"  # we received something and had nothing to send
    NEW_HANDSHAKE = "new handshake"  # we sent something and heard nothing at all
    FORGET = "forget"  # no new session for so long that the keys of the old one only do harm
    PERSISTENT_KEEPALIVE = "persistent keepalive"


class Timers:
    """Of one peer.  `inf` is a timer that does not run."""

    __slots__ = (
        "_forget_at",
        "_handshake_at",
        "_keepalive_at",
        "_persistent_at",
        "_retry_at",
        "_wants_another",
        "handshake_sent_at",
        "persistent_seconds",
        "rekeyed_late",
        "retries",
    )

    def __init__(self) -> None:
        self._retry_at = self._keepalive_at = self._handshake_at = self._forget_at = self._persistent_at = inf
        self._wants_another = False
        self.handshake_sent_at = -inf
        """When we sent the last initiation or response."""
        self.retries = 0
        self.rekeyed_late = False
        """The initiation because of REKEY_BEFORE_REJECT_SECONDS was sent for this session."""
        self.persistent_seconds: float | None = None

    def next_due(self) -> float:
        """When the first of them runs out; `inf` if none runs."""
        return min(self._retry_at, self._keepalive_at, self._handshake_at, self._forget_at, self._persistent_at)

    def pop_due(self, now: float) -> Due | None:
        """The timer that ran out first, which stops; None if none has by now."""
        at = self.next_due()
        if at > now:
            return None
        if at == self._retry_at:
            self._retry_at = inf
            return Due.RETRY
        if at == self._keepalive_at:
            self._keepalive_at = inf
            return Due.KEEPALIVE
        if at == self._handshake_at:
            self._handshake_at = inf
            return Due.NEW_HANDSHAKE
        if at == self._persistent_at:
            self._persistent_at = inf
            return Due.PERSISTENT_KEEPALIVE
        self._forget_at = inf
        return Due.FORGET

    def initiation_sent(self, now: float, jitter: float) -> None:
        self.handshake_sent_at = now
        self._retry_at = now + REKEY_TIMEOUT_SECONDS + jitter
        self.packet_sent(now)

    def response_sent(self, now: float) -> None:
        self.handshake_sent_at = now
        self.session_begun(now)
        self.packet_sent(now)

    def initiation_must_wait(self, now: float) -> bool:
        """One handshake message per 5 s.  An initiation that is too early comes as a retry as soon as it may."""
        allowed_at = self.handshake_sent_at + REKEY_TIMEOUT_SECONDS
        if allowed_at <= now:
            return False
        if self._retry_at == inf:
            self._retry_at = allowed_at
        return True

    def session_begun(self, now: float) -> None:
        """There are new keys."""
        self._forget_at = now + _FORGET_SECONDS

    def handshake_done(self) -> None:
        """The peer has proved that it has the new keys."""
        self._retry_at = inf
        self.retries = 0
        self.rekeyed_late = False

    def gave_up(self, now: float) -> None:
        self._keepalive_at = inf
        self._forget_at = min(self._forget_at, now + _FORGET_SECONDS)

    def packet_sent(self, now: float) -> None:
        """Any authenticated datagram, handshakes too."""
        self._keepalive_at = inf
        self._restart_persistent(now)

    def packet_received(self, now: float) -> None:
        """Any authenticated datagram, handshakes too."""
        self._handshake_at = inf
        self._restart_persistent(now)

    def keepalive_sent(self, now: float) -> None:
        """Because it was due.  If more data came since it was started, the peer waits for the next one already."""
        if self._wants_another:
            self._wants_another = False
            self._keepalive_at = now + KEEPALIVE_SECONDS

    @property
    def expects_answer(self) -> bool:
        """We sent something that the peer has not answered in any way."""
        return self._handshake_at != inf

    def data_sent(self, now: float, jitter: float) -> None:
        """The first packet since we heard something."""
        self._handshake_at = now + _SILENCE_SECONDS + jitter

    def data_received(self, now: float) -> None:
        if self._keepalive_at == inf:
            self._keepalive_at = now + KEEPALIVE_SECONDS
        else:
            self._wants_another = True

    def keep_alive(self, now: float, seconds: float | None) -> None:
        """Send something at least every so many seconds, whoever is there; None: only when the protocol asks for it."""
        self.persistent_seconds = seconds
        self._persistent_at = inf
        self._restart_persistent(now)

    def stop(self) -> None:
        """The keys are forgotten: nothing is due any more, except persistent keepalives."""
        self._retry_at = self._keepalive_at = self._handshake_at = self._forget_at = inf
        self._wants_another = False

    def _restart_persistent(self, now: float) -> None:
        if self.persistent_seconds is not None:
            self._persistent_at = now + self.persistent_seconds
