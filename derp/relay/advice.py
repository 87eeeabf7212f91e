"""What clients are told about their connection: a sentence that their users see, and "" when all is well again.
Layer L1, a timed core.

A genuine client shows the text of a Health frame in its list of health problems (`tailscale status`) until an empty one
comes or it connects anew.  server/advisor.py says what is the matter with whom, sends what `handle_timeout` gives, and
never more than one text in five seconds to one client: what comes and goes faster is no help to anybody.
"""

import math
from enum import Enum
from typing import Final, Generic, TypeVar

from derp.relay.deadlines import Deadlines

Whom = TypeVar("Whom")


class Cause(Enum):
    """What may be the matter, the most important first: in this order the sentences stand."""

    DUPLICATE_KEY = "duplicate_key"
    MESH_BROKEN = "mesh_broken"
    QUEUE_DELAY = "queue_delay"
    ADMISSION_ENDING = "admission_ending"
    RATE_LIMITED = "rate_limited"
    NOT_HERE = "not_here"


_RANK: Final = {cause: rank for rank, cause in enumerate(Cause)}
# Between two texts for one client.
INTERVAL_SECONDS: Final = 5.0
_NEVER: Final = -math.inf


class _Told:
    """One client: what is the matter, from when until when each cause counts, and what it was told last."""

    __slots__ = ("causes", "said", "said_at")

    def __init__(self) -> None:
        self.causes: dict[Cause, tuple[str, float, float]] = {}
        self.said = ""
        self.said_at = _NEVER


class Advice(Generic[Whom]):
    """What is the matter with whom.  It knows only those with whom something is, or was a moment ago."""

    def __init__(self) -> None:
        self._told: dict[Whom, _Told] = {}
        self._due = Deadlines[Whom]()

    def __len__(self) -> int:
        return len(self._told)

    def begin(self, whom: Whom, cause: Cause, text: str, now: float, *, after_seconds: float = 0.0) -> None:
        """Something is the matter until `end`; it counts only if it lasts for `after_seconds`."""
        self._set(whom, cause, text, now + after_seconds, math.inf, now)

    def note(self, whom: Whom, cause: Cause, text: str, now: float, *, seconds: float) -> None:
        """Something happened, of a kind that is the matter for so long afterwards."""
        self._set(whom, cause, text, now, now + seconds, now)

    def _set(self, whom: Whom, cause: Cause, text: str, begin: float, end: float, now: float) -> None:
        told = self._told.get(whom)
        if told is None:
            told = self._told[whom] = _Told()
        before = told.causes.get(cause)
        # A cause that counts already goes on doing so, also when its words change.
        told.causes[cause] = (text, min(begin, before[1]) if before is not None else begin, end)
        if before is None or before[0] != text or before[2] > end:
            self._look_by(whom, max(begin, now))

    def end(self, whom: Whom, cause: Cause, now: float) -> None:
        """It is no longer the matter; it need not have been."""
        told = self._told.get(whom)
        if told is not None and told.causes.pop(cause, None) is not None:
            self._look_by(whom, now)

    def forget(self, whom: Whom) -> None:
        """The client left."""
        self._told.pop(whom, None)
        self._due.clear(whom)

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None while there is nothing to tell."""
        return self._due.next_timeout()

    def handle_timeout(self, now: float) -> list[tuple[Whom, tuple[Cause, ...], str]]:
        """Whom to tell what now, and for which causes; "" takes back what was told before."""
        said: list[tuple[Whom, tuple[Cause, ...], str]] = []
        for whom in self._due.handle_timeout(now):
            told = self._told[whom]
            told.causes = {cause: one for cause, one in told.causes.items() if one[2] > now}
            counting = (cause for cause, (_, begin, _) in told.causes.items() if begin <= now)
            causes = tuple(sorted(counting, key=_RANK.__getitem__))
            text = "; ".join(told.causes[cause][0] for cause in causes)
            may_speak = now >= told.said_at + INTERVAL_SECONDS
            if text != told.said and may_speak:
                told.said, told.said_at, may_speak = text, now, False
                said.append((whom, causes, text))
            moments = [at for _, begin, end in told.causes.values() for at in (begin, end) if now < at < math.inf]
            if text != told.said or not (told.causes or told.said or may_speak):
                moments.append(told.said_at + INTERVAL_SECONDS)
            if moments:
                self._due.set(whom, min(moments))
            elif not told.causes and not told.said:
                del self._told[whom]
        return said

    def _look_by(self, whom: Whom, at: float) -> None:
        due = self._due.at(whom)
        if due is None or at < due:
            self._due.set(whom, at)
