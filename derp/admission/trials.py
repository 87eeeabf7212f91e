"""Keys that nobody knows yet: a minute and a few bytes, within bounds for each address.  Layer L1: `now` is an
argument.

A stock peer dials its relay before it announces its node to the coordinator, so a coordinator's own relay cannot turn
an unknown key away at once.  Whoever is not announced within its minute was none of the coordinator's peers.  Used by
server/admission.py; server/guests.py ends those who are not announced.
"""

from collections import OrderedDict
from typing import Final

from derp.admission.terms import Allowance, Terms

# A genuine peer announces its node within a second of its first connection; on a bad network it may need some tries.
TRIAL_SECONDS: Final = 60.0
# What disco, handshakes and a first page of a shell take.
TRIAL_BYTES: Final = 256 * 1024
# After its minute a key may try again so much later: it may have been announced too late.
AGAIN_SECONDS: Final = 60.0
# Keys cost nothing, so one address has only so many in a minute.  An office behind one address comes back at once after
# a restart, but then its keys are known.
MAX_PER_ADDRESS: Final = 64
MAX_TRIALS: Final = 4096


class Trials:
    """Those of one relay.  `now` is any clock that does not run backwards, `wall` the one by which terms end."""

    def __init__(self) -> None:
        # By key: when its trial began, from which address, and its bytes.  The oldest first, for it is over first.
        self._begun: OrderedDict[bytes, tuple[float, str, Allowance]] = OrderedDict()
        self._per_address: dict[str, int] = {}

    def offer(self, key: bytes, group: str, now: float, wall: float) -> Terms | str:
        """On what terms an unknown key may come in, or why it may not.  `group`: what counts as one address.

        A second connection of a key gets what is left of its minute and of its bytes: else whoever comes again and
        again had a relay for a minute.
        """
        self._forget(now)
        begun = self._begun.get(key)
        if begun is None:
            if self._per_address.get(group, 0) >= MAX_PER_ADDRESS:
                return (
                    f"{MAX_PER_ADDRESS} unknown keys came from its address within {TRIAL_SECONDS + AGAIN_SECONDS:.0f} s"
                )
            if len(self._begun) >= MAX_TRIALS:
                return f"{MAX_TRIALS:,} unknown keys came within {TRIAL_SECONDS + AGAIN_SECONDS:.0f} s"
            begun = self._begun[key] = (now, group, Allowance(TRIAL_BYTES))
            self._per_address[group] = self._per_address.get(group, 0) + 1
        left = begun[0] + TRIAL_SECONDS - now
        if left <= 0:
            return f"nobody announced it in the {TRIAL_SECONDS:.0f} s that it had"
        if begun[2].left <= 0:
            return f"nobody has announced it yet, and it has used up its {TRIAL_BYTES >> 10} KiB"
        what = "the time of this machine, whose key nobody has announced to the coordinator,"
        return Terms(what, wall + left, begun[2], is_trial=True)

    def settle(self, key: bytes) -> None:
        """A key became known."""
        begun = self._begun.pop(key, None)
        if begun is not None:
            self._leave(begun[1])

    def _forget(self, now: float) -> None:
        while self._begun:
            key, (began, group, _) = next(iter(self._begun.items()))
            if now < began + TRIAL_SECONDS + AGAIN_SECONDS:
                return
            del self._begun[key]
            self._leave(group)

    def _leave(self, group: str) -> None:
        self._per_address[group] -= 1
        if not self._per_address[group]:
            del self._per_address[group]
