"""Whether this relay should be chosen, by what it sees of itself.  Layer L1: signs in, one sentence out.

server/selfcheck.py looks at each sign about once a second and notes what it saw; whoever answers probes (STUN,
/derp/latency-check, /healthz) asks `problem`.  A sign counts only after some patience, and is forgotten only after the
relay was well for a while: a client that moves its home to another region breaks every connection through this one.
"""

from enum import Enum
from typing import Final


class Sign(Enum):
    """What is looked at."""

    PATH = "path"  # a packet to ourselves, through our own port
    LOOP = "loop"  # how late the event loop is
    BACKLOG = "backlog"  # connections that wait to be accepted
    CERTIFICATE = "certificate"
    ADMISSION = "admission"  # whether those can answer who say which client may come in


# How long a sign has to be bad before it counts, in seconds.  A genuine client looks at its regions every 20 to 26 s,
# so three seconds cost it nothing; a certificate does not get well by waiting.
PATIENCE_SECONDS: Final = {
    Sign.PATH: 3.0,
    Sign.LOOP: 2.0,
    Sign.BACKLOG: 2.0,
    Sign.CERTIFICATE: 0.0,
    Sign.ADMISSION: 10.0,
}
# How long it has to be good again: longer than any patience, so that a relay that is half well is not well.
RECOVERY_SECONDS: Final = 15.0
# Nobody looked for so long: then whoever looks does not get his turn, and clients will not get theirs.
STALE_SECONDS: Final = 10.0


class _Seen:
    __slots__ = ("bad_since", "counts", "text", "well_since")

    def __init__(self) -> None:
        self.text = ""  # the last trouble
        self.bad_since: float | None = None
        self.well_since: float | None = None
        self.counts = False


class Wellness:
    """One per server.  `note` what was seen, about once a second; ask `problem` at any time."""

    def __init__(self, now: float) -> None:
        self._seen = {sign: _Seen() for sign in Sign}
        self._looked_at = now

    def note(self, sign: Sign, trouble: str, now: float) -> None:
        """What a look at `sign` showed: a sentence, or "" if all is well."""
        self._looked_at = now
        seen = self._seen[sign]
        if trouble:
            seen.text, seen.well_since = trouble, None
            if seen.bad_since is None:
                seen.bad_since = now
            seen.counts = seen.counts or now - seen.bad_since >= PATIENCE_SECONDS[sign]
            return
        seen.bad_since = None
        if seen.well_since is None:
            seen.well_since = now
        if now - seen.well_since >= RECOVERY_SECONDS:
            seen.counts = False

    def problem(self, now: float) -> str | None:
        """Why no new client should come here; None if nothing speaks against it."""
        for seen in self._seen.values():
            if seen.counts:
                return seen.text if seen.well_since is None else f"{seen.text}; well again for a moment"
        silent = now - self._looked_at
        return f"this server has not looked at itself for {silent:.0f} s" if silent > STALE_SECONDS else None

    def counting(self, now: float) -> dict[str, bool]:
        """Each sign, and whether it speaks against this relay now, for metrics."""
        signs = {sign.value: seen.counts for sign, seen in self._seen.items()}
        return signs | {"stale": now - self._looked_at > STALE_SECONDS}
