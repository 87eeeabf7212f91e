"""Which handshake messages are worth their computations: budgets and cookies (layer L1; white paper 5.3).

An honest node's handshakes are few; a stranger who knows our public key can send any number that cost us 40 to 150 us
each.  Up to FREE_PER_SECOND nobody is asked for anything.  Beyond, for a second, a message needs a right mac2, each
source has its own budget, and all together have one: a flood costs at most 10 % of a core, and known peers get through.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from derp.relay.limits import TokenBucket
from tailnet.wireguard.cookies import CookieMaker

# A server whose 250 clients all come back after a restart asks none of them for a cookie, which would cost each 5 s.
FREE_PER_SECOND: Final = 100.0
FREE_BURST: Final = 256.0

# With a cookie: what the genuine implementation grants a source, and the total that bounds our time.
SOURCE_PER_SECOND: Final = 20
PROVEN_PER_SECOND: Final = 200.0

# How long we are under load after the free budget was used up, as the genuine implementation.
LOAD_SECONDS: Final = 1.0

# A cookie reply costs us 8 us.  So many that a flood of invented addresses leaves some for honest nodes; and few for
# one address, so that a flood from there leaves all.
COOKIE_REPLIES_PER_SECOND: Final = 5000.0
SOURCE_REPLIES_PER_SECOND: Final = 5


class Verdict(Enum):
    """What to do with a handshake message."""

    TAKE = "take"
    ASK = "ask"  # for a cookie
    REFUSE = "refuse"


class _Shares:
    """How often each source was served within the current second: never more entries than are served in one."""

    def __init__(self, share: int) -> None:
        self._share = share
        self._counts: dict[bytes, int] = {}
        self._began = float("-inf")

    def __len__(self) -> int:
        return len(self._counts)

    def is_left(self, source: bytes, now: float) -> bool:
        if now - self._began >= 1.0:
            self._began = now
            self._counts.clear()
        return self._counts.get(source, 0) < self._share

    def take(self, source: bytes) -> None:
        self._counts[source] = self._counts.get(source, 0) + 1


class Admission:
    """One per device.  `judge` is asked for each message whose mac1 is right."""

    def __init__(self, public: bytes, random: Callable[[int], bytes], now: float) -> None:
        self.cookies = CookieMaker(public, random)
        self._loaded_until = now
        self._free = TokenBucket(FREE_PER_SECOND, FREE_BURST, now)
        self._proven = TokenBucket(PROVEN_PER_SECOND, PROVEN_PER_SECOND, now)
        self._replies = TokenBucket(COOKIE_REPLIES_PER_SECOND, COOKIE_REPLIES_PER_SECOND, now)
        self._proven_shares = _Shares(SOURCE_PER_SECOND)
        self._reply_shares = _Shares(SOURCE_REPLIES_PER_SECOND)

    def is_under_load(self, now: float) -> bool:
        """Whether handshakes need cookies now."""
        return now < self._loaded_until

    def judge(self, message: bytes, source: bytes, now: float) -> Verdict:
        """`source`: any stable form of where the message came from, as a peer cannot choose it."""
        if not self.is_under_load(now):
            if self._free.take(now):
                return Verdict.TAKE
            self._loaded_until = now + LOAD_SECONDS
        if self.cookies.has_mac2(message, source, now):
            budget, shares, verdict = self._proven, self._proven_shares, Verdict.TAKE
        else:
            budget, shares, verdict = self._replies, self._reply_shares, Verdict.ASK
        if not shares.is_left(source, now) or not budget.take(now):
            return Verdict.REFUSE
        shares.take(source)
        return verdict
