"""Holds clients to their quotas: a notice at 80 %, and at the end a slow rate, or a goodbye with the reason.  Layer L3.

server/ledger.py says what each client carried, every few seconds; relay/quotas.py adds it up; session.py asks
`judge` about whoever comes.  What was used before this start is recalled from the ledger.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable

from derp.relay.clients import Client
from derp.relay.limits import Limits
from derp.relay.quotas import NOTICE_PART, Quotas, Standing
from derp.server.admission import Verdict
from derp.server.ledger import day_of
from derp.server.session import Sessions


class QuotaKeeper:
    """One per relay that has a ledger."""

    def __init__(self, sessions: Sessions, *, clock: Callable[[], float] = time.time) -> None:
        self._sessions = sessions
        self._clock = clock
        self._quotas = Quotas()
        self._day = ""
        self.on_spent: list[Callable[[bytes, str, int], None]] = []
        """Each hears what a client here carried of a quota: its key, its tenant, and how many bytes."""
        self.carried_bytes = Counter[str]()
        """Of all clients, by the label of their tenant (limiter.py)."""
        self.acts = dict.fromkeys(("told", "slowed", "refused"), 0)
        """What was done with clients, for metrics."""
        self.over_bytes = dict.fromkeys(("client", "tenant"), 0)
        """What was relayed beyond a quota, by whose that was; of what was counted at once with its last bytes, all."""
        self._warned: set[bytes] = set()  # keys that are connected; emptied each day
        sessions.judges.append(self.judge)
        sessions.on_end.append(self.forget)

    def configure(self, limits: Limits) -> None:
        """Take other limits.  Who is over an old one is looked at anew when it carries something."""
        self._quotas.limits = limits
        self._day = ""

    def begin_recall(self) -> bool:
        """For the ledger.  Also the moment at which a new day is noticed while nobody carries anything."""
        self._look_at_day()
        self._quotas.begin_recall()
        return self._quotas.limits.has_quotas

    def recall(self, day: str, used: Iterable[tuple[bytes | str, int, int]]) -> None:
        """What keys and tenants have used on a day and in its month, off the ledger."""
        self._quotas.recall(day, used)

    def spend(self, client: Client, count: int) -> None:
        """A client carried so many bytes."""
        sessions, key, tenant, day = self._sessions, client.key, client.tenant, day_of(self._clock())
        # Below zero, of a client that came over with packets which are lost here: no counter may go back.
        carried = max(count, 0)
        self.carried_bytes[sessions.limiter.label(tenant)] += carried
        if self._quotas.spend(key, tenant, count, day):
            for notify in self.on_spent:
                notify(key, tenant, count)
        standing = self._quotas.standing(key, tenant, day)
        if standing is not None and standing.is_used_up:
            self.over_bytes["tenant" if standing.is_of_tenant else "client"] += carried
        if client.member is None:
            return  # it is gone, or on its way
        self._look_at_day()
        if standing is None or standing.part < NOTICE_PART:
            return
        if not standing.is_used_up:
            self.acts["told"] += key not in self._warned
            self._warned.add(key)
            sessions.advisor.note_ending(client, f"{standing.text}; ask whoever runs this relay for more")
        elif standing.quota.refuses:
            self.acts["refused"] += 1
            sessions.guests.send_away(client, standing.text, _used_up(standing))
        elif key not in sessions.limiter.floors:
            self.acts["slowed"] += 1
            self._warned.add(key)
            sessions.advisor.note_ending(client, f"{standing.text}, and goes on at {standing.quota.floor}")
            sessions.set_floor(key, standing.quota.floor)
        sessions.host.flush()

    def spent_elsewhere(self, key: bytes, tenant: str, count: int) -> None:
        """The same of a client of another worker, which acts on it; here it counts when the client comes."""
        self._quotas.spend(key, tenant, count, day_of(self._clock()))

    def part_of_tenant(self, tenant: str) -> float | None:
        """How much of its quota a tenant has used; None: it has none."""
        if not self._quotas.limits.of_tenant(tenant).quota:
            return None
        standing = self._quotas.standing_of_tenant(tenant, day_of(self._clock()))
        return standing.part if standing is not None else 0.0

    def judge(self, key: bytes, tenant: str) -> Verdict | None:
        """The refusal of a key that comes and whose quota is used up, if that refuses; else the key is slow at once."""
        standing = self._quotas.standing(key, tenant, day_of(self._clock()))
        if standing is None or not standing.is_used_up:
            return None
        if standing.quota.refuses:
            self.acts["refused"] += 1
            return Verdict(False, standing.text, told=_used_up(standing))
        self.acts["slowed"] += 1
        self._warned.add(key)
        self._sessions.limiter.floors[key] = standing.quota.floor
        return None

    def lift(self, client: Client) -> None:
        """A client becomes another tenant's: whether that one has used up its quota is seen when it carries more."""
        self._warned.discard(client.key)
        self._sessions.limiter.floors.pop(client.key, None)
        self._sessions.advisor.note_no_ending(client)

    def forget(self, client: Client) -> None:
        """A client has gone: if it was the last of its key, nothing is kept but the account."""
        member = self._sessions.router.members.get(client.key)
        if member is None or not member.connections:
            self._warned.discard(client.key)
            self._sessions.limiter.floors.pop(client.key, None)

    def _look_at_day(self) -> None:
        """On a new day, or by new limits, everybody is well until it is seen that he is not."""
        sessions, day = self._sessions, day_of(self._clock())
        if day == self._day:
            return
        self._day = day
        warned, self._warned = self._warned, set()  # who is read on may end at once
        for key in warned:
            sessions.set_floor(key, None)
            member = sessions.router.members.get(key)
            for client in member.connections if member is not None else ():
                sessions.advisor.note_no_ending(client)
        sessions.host.flush()


def _used_up(standing: Standing) -> str:
    return f"{standing.text}: this relay takes it again when that is over; ask whoever runs this relay for more"
