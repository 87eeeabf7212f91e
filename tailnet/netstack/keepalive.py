"""When an idle peer is asked whether it lives (RFC 9293 section 3.8.4), and how often a suspect segment is answered
(RFC 5961 section 7).  Layer L1.  Called by connection.py."""

from typing import Final

from tailnet.netstack.limits import KeepAliveTimes, Limits

GIVE_UP: Final = "give up"
PROBE: Final = "probe"


class KeepAlive:
    """Probes after a long silence.  `at` says when `on_deadline` is due.  `times` may be changed at any moment."""

    __slots__ = ("_after", "_probes", "times")

    def __init__(self, times: KeepAliveTimes) -> None:
        self.times = times
        self._after = 0.0
        self._probes = 0

    def at(self, heard_at: float) -> float:
        """`heard_at`: when the peer's last acceptable segment came."""
        at = heard_at + self.times.idle
        return at if at > self._after else self._after

    def on_deadline(self, now: float, heard_at: float) -> str | None:
        """PROBE, GIVE_UP, or None before its time."""
        times = self.times
        if self.at(heard_at) > now:
            return None
        if self._after < heard_at + times.idle:
            self._probes = 0  # the last ones were answered
        if self._probes >= times.probes:
            return GIVE_UP
        self._probes += 1
        self._after = now + times.interval
        return PROBE


class Challenges:
    """So many answers in a period, each connection for itself: a bound for all would tell a stranger of others."""

    __slots__ = ("_count", "_limits", "_since")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._count = 0
        self._since = 0.0

    def may_answer(self, now: float) -> bool:
        limits = self._limits
        if now - self._since >= limits.challenge_period_seconds:
            self._since = now
            self._count = 0
        self._count += 1
        return self._count <= limits.challenges_per_period
