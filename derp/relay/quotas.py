"""How much of its quota everybody has used, in a day and in a month of UTC.  Layer L1: the day is an argument.

server/quotas.py spends what the ledger counts, and acts on what `standing` says.  Only who has a quota has an account.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from derp.relay.limits import NO_LIMITS, Limits, Quota

# An account of a key that is not connected may be forgotten for a newer one; 100,000 are 30 MB, and as many as a day of
# the ledger has rows.
MAX_ACCOUNTS: Final = 100_000
NOTICE_PART: Final = 0.8


class _Account:
    __slots__ = ("day", "used_day", "used_month")

    def __init__(self, day: str, used_day: int = 0, used_month: int = 0) -> None:
        self.day = day
        self.used_day = used_day
        self.used_month = used_month

    def turn(self, day: str) -> None:
        """Begin a new day, and a new month if it is one."""
        if day != self.day:
            self.used_day = 0
            if day[:7] != self.day[:7]:
                self.used_month = 0
            self.day = day


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with the quota that is used most.  `part` of it is used; `text` says so."""

    quota: Quota
    is_of_tenant: bool
    part: float
    text: str

    @property
    def is_used_up(self) -> bool:
        return self.part >= 1.0


class Quotas:
    """The accounts of one relay, of keys (bytes) and of tenants (text)."""

    def __init__(self) -> None:
        self.limits: Limits = NO_LIMITS
        self._accounts: OrderedDict[bytes | str, _Account] = OrderedDict()
        self._meanwhile = Counter[bytes | str]()  # spent since the last `begin_recall`

    def __len__(self) -> int:
        return len(self._accounts)

    def begin_recall(self) -> None:
        """What is spent from now on will not be in what `recall` is given."""
        self._meanwhile.clear()

    def recall(self, day: str, used: Iterable[tuple[bytes | str, int, int]]) -> None:
        """What was used on a day and in its month until then, here and by other processes."""
        for whose, used_day, used_month in used:
            account, more = self._accounts.get(whose), self._meanwhile[whose]
            if account is None:
                self._accounts[whose] = _Account(day, used_day + more, used_month + more)
                self._accounts.move_to_end(whose, last=False)  # whoever spends here is needed more
                self._bound()
            elif account.day <= day:  # or it is of the day before, and what it says is over
                account.turn(day)
                # The ledger may know less: days that it has forgotten, rows for which there was no room.
                account.used_day = max(account.used_day, used_day + more)
                account.used_month = max(account.used_month, used_month + more)

    def spend(self, key: bytes, tenant: str, count: int, day: str) -> bool:
        """So many bytes were relayed for a client.  Whether it, or its tenant, has a quota of them."""
        limited = [whose for whose, quota in self._quotas(key, tenant) if quota]
        for whose in limited:
            account = self._accounts.get(whose)
            if account is None:
                account = self._accounts[whose] = _Account(day)
                self._bound()
            self._accounts.move_to_end(whose)
            account.turn(day)
            account.used_day += count
            account.used_month += count
            self._meanwhile[whose] += count
        return bool(limited)

    def standing(self, key: bytes, tenant: str, day: str) -> Standing | None:
        """How it stands with a client; None: nothing that it or its tenant used is limited."""
        found = [each for whose, quota in self._quotas(key, tenant) for each in self._standings(whose, quota, day)]
        return max(found, key=lambda one: one.part, default=None)

    def standing_of_tenant(self, tenant: str, day: str) -> Standing | None:
        """The same of a tenant alone."""
        found = self._standings(tenant, self.limits.of_tenant(tenant).quota, day)
        return max(found, key=lambda one: one.part, default=None)

    def _standings(self, whose: bytes | str, quota: Quota, day: str) -> Iterator[Standing]:
        account = self._accounts.get(whose)
        if account is None or not quota:
            return
        account.turn(day)
        who = "this machine" if isinstance(whose, bytes) else f"the tenant {whose} of this machine"
        for used, most, when in (
            (account.used_day, quota.bytes_per_day, "today"),
            (account.used_month, quota.bytes_per_month, "this month"),
        ):
            if most:
                text = f"{who} has used {used * 100 // most} % of the {most:,} bytes it may have relayed {when} (UTC)"
                yield Standing(quota, isinstance(whose, str), used / most, text)

    def _quotas(self, key: bytes, tenant: str) -> tuple[tuple[bytes | str, Quota], ...]:
        return (key, self.limits.of_client(key, tenant).quota), (tenant, self.limits.of_tenant(tenant).quota)

    def _bound(self) -> None:
        if len(self._accounts) > MAX_ACCOUNTS:
            self._accounts.popitem(last=False)
