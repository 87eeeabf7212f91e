"""What one caller has of this server: sockets, memory, reports a minute; and what all have together.  Layer L2.

A token is an identity and no promise: whoever has one may open sockets without end, begin messages and never finish
them, read nothing, report without pause.  Each of these has a bound for one socket elsewhere (rpc/), which a thousand
sockets would multiply.  No I/O: `now` comes in.  Called by server/entrance.py, channel.py,
services/agent_rpc.py and services/agent_requests.py.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import islice
from typing import Final

_MINUTE: Final = 60.0
# Looked at with each report that comes by no socket: more than come new, so that what is remembered stays small.
_FORGOTTEN_AT_ONCE: Final = 2
# Whoever floods is turned away for so long: a login costs more than the flood it begins.  No honest program floods, and
# one that shares its token with one that does waits a moment.
FLOOD_PENALTY_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What one caller may have, and all together.  tailnet/config/coordinator.py argues the numbers."""

    sockets: int = 1_000
    held_bytes: int = 64 * 1024 * 1024
    total_held_bytes: int = 512 * 1024 * 1024
    report_bytes_per_minute: int = 4 * 1024 * 1024
    reports_per_minute: int = 1_200


DEFAULT_ACCOUNT_LIMITS: Final = AccountLimits()


class Account:
    """One caller: an agent, or a user with all tokens.  Hashes by identity."""

    __slots__ = ("_bytes_due", "_paid_at", "_reports_due", "held_bytes", "key", "shut_until", "sockets")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.sockets = 0
        self.held_bytes = 0
        self.shut_until = 0.0  # nobody comes in before
        # What was reported and the time since has not worked off.
        self._bytes_due = 0.0
        self._reports_due = 0.0
        self._paid_at = 0.0

    def pay(self, size: int, limits: AccountLimits, now: float) -> float:
        """Charge a report of `size` bytes; return how many seconds its answer has to wait.

        A minute's worth is free at any time, so that an agent that starts is not slowed; what is more waits its turn.
        """
        self._settle(limits, now)
        self._bytes_due += size
        self._reports_due += 1
        over = max(
            (self._bytes_due - limits.report_bytes_per_minute) / limits.report_bytes_per_minute,
            (self._reports_due - limits.reports_per_minute) / limits.reports_per_minute,
        )
        return max(over, 0.0) * _MINUTE

    def take_back(self, size: int) -> None:
        """A report that was charged is not taken after all."""
        self._bytes_due = max(self._bytes_due - size, 0.0)
        self._reports_due = max(self._reports_due - 1, 0.0)

    def owes(self, limits: AccountLimits, now: float) -> bool:
        """Whether anything of what was done still counts."""
        self._settle(limits, now)
        return self._bytes_due > 0 or self._reports_due > 0 or self.shut_until > now

    def _settle(self, limits: AccountLimits, now: float) -> None:
        minutes = (now - self._paid_at) / _MINUTE
        self._bytes_due = max(self._bytes_due - minutes * limits.report_bytes_per_minute, 0.0)
        self._reports_due = max(self._reports_due - minutes * limits.reports_per_minute, 0.0)
        self._paid_at = now


class Accounts:
    """All callers that are here, or were a minute ago.  `open` and `close` for each socket; `hold` moves bytes."""

    def __init__(self, limits: AccountLimits) -> None:
        self.limits = limits
        self.held_bytes = 0
        self.refused_sockets = 0
        self.overdrawn: dict[Account, None] = {}
        """Who holds more than one may; whoever looks ends sockets of theirs, and takes them out."""
        self.is_overdrawn = False
        """Somebody held too much, or all together do: look, and set it back.  Plain, for it is asked in every batch."""
        self._accounts: dict[Hashable, Account] = {}
        self._idle: dict[Account, None] = {}  # without sockets, but what was reported still counts

    def __len__(self) -> int:
        return len(self._accounts)

    @property
    def has_idle(self) -> bool:
        """Whether `forget_idle` will have something to forget."""
        return bool(self._idle)

    def open(self, key: Hashable, now: float) -> Account | None:
        """One more socket of this caller; None when it has as many as one may, or flooded a moment ago."""
        account = self._account(key)
        if account.sockets >= self.limits.sockets or account.shut_until > now:
            self.refused_sockets += 1
            return None
        account.sockets += 1
        self._idle.pop(account, None)
        return account

    def may_wait(self, key: Hashable, waiting: int, now: float) -> bool:
        """Whether one more socket of this caller may wait to be opened, beside so many that do."""
        account = self._accounts.get(key)
        sockets = 0 if account is None else account.sockets
        if sockets + waiting < self.limits.sockets and (account is None or account.shut_until <= now):
            return True
        self.refused_sockets += 1
        return False

    def close(self, account: Account, now: float) -> None:
        """One socket less.  Who has none is forgotten, unless what it reported still counts: `forget_idle`."""
        account.sockets -= 1
        if not account.sockets:
            self._idle[account] = None
            self._forget(account, now)

    def pay(self, key: Hashable, size: int, now: float, most_seconds: float) -> float:
        """Charge a report that comes by no socket; return how many seconds its answer has to wait.

        If that is more than `most_seconds`, the report is to be refused, and costs nothing.
        """
        account = self._account(key)
        if not account.sockets:
            self._idle.setdefault(account)
        wait = account.pay(size, self.limits, now)
        if wait > most_seconds:
            account.take_back(size)
        for idle in tuple(islice(self._idle, _FORGOTTEN_AT_ONCE)):
            del self._idle[idle]
            self._idle[idle] = None  # the next report looks at others
            self._forget(idle, now)
        return wait

    def hold(self, account: Account, change: int) -> None:
        """A socket of this caller holds so many bytes more, or less."""
        account.held_bytes += change
        self.held_bytes += change
        if change > 0:
            if account.held_bytes > self.limits.held_bytes:
                self.overdrawn[account] = None
                self.is_overdrawn = True
            elif self.held_bytes > self.limits.total_held_bytes:
                self.is_overdrawn = True

    def shut(self, account: Account, now: float) -> None:
        """It flooded: nobody of this name comes in for a while.  Its other sockets stay."""
        account.shut_until = now + FLOOD_PENALTY_SECONDS

    def forget_idle(self, now: float) -> None:
        """Forget who left and owes nothing any more.  About once a minute."""
        for account in tuple(self._idle):
            self._forget(account, now)

    def _account(self, key: Hashable) -> Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(key)
        return account

    def _forget(self, account: Account, now: float) -> None:
        if not account.owes(self.limits, now):
            del self._idle[account], self._accounts[account.key]
