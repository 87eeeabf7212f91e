"""Who is calling, answered from the embedded store (layer L2).

A storm of reconnects must not become a storm of queries: answers are kept in memory, and look-ups that arrive while a
query runs go together into the next one.  The store counts every change of callers, and one read a second compares that
count, so a revoked token works a second longer at the most.  Called by api/rpc_admission.py and the resources of api/.
"""

import hmac
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

import trio

from tailnet import refusals
from tailnet.auth.policy import workspace_rights
from tailnet.errors import StoreError
from tailnet.refusals import Refused
from tailnet.store.rows import AgentIdentity, CallerKey, Right, UserIdentity, UserToken
from tailnet.store.store import Store
from tailnet.tokens import PresentedToken, agent_token_digest, parse_agent_token, parse_user_token
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.auth")

Answer = AgentIdentity | UserToken
# What somebody came in with: an agent's token as the digest that the store holds, or a user's as it was presented.
Credential = bytes | PresentedToken

# How long an answer is believed without asking the store whether anything changed.
CHECK_SECONDS: Final = 1.0
# How long answers are believed while the store cannot be read at all.  A disk that hiccups, or is being restored, must
# not turn away agents that were here a minute ago; after ten minutes nobody knows any more who was revoked.
STALE_SECONDS: Final = 600.0
# A token that expires changes nothing in the store.  Whoever is inside with it is looked at this often.
EXPIRY_SECONDS: Final = 30.0
# Agents and tokens read at the start, so that those who come back after a restart need no query.  More would hold the
# first ones up, and come in batches instead.
MAX_PRELOADED: Final = 20_000
# An entry has about half a kilobyte, so 32 MB at the most.  An agent that is both caller and target has two.
MAX_FOUND: Final = 65_536
# Strangers choose these keys: few are kept, and they never push out callers that were found.
MAX_UNKNOWN: Final = 4_096


class Callers(Protocol):
    """Who is calling.  Every method raises Refused with the answer for the caller.

    While `no_wait` is set, a method that would have to wait raises trio.WouldBlock instead: for code outside of tasks.
    """

    no_wait: bool

    async def agent(self, token: str) -> AgentIdentity:
        """The agent whose token this is."""
        ...

    async def user(self, token: str) -> UserIdentity:
        """The user whose session token this is."""
        ...

    async def user_of_agent_route(self, token: str) -> UserIdentity:
        """The same with the one answer that routes give which a workspace proxy may call too."""
        ...

    async def find_agent(self, agent_id: PeerID) -> AgentIdentity | None:
        """An agent by its id, None if there is none."""
        ...

    def rights(self, user: UserIdentity, agent: AgentIdentity) -> frozenset[Right]:
        """What a user may do with an agent's workspace: see auth/policy.py."""
        ...

    @property
    def generation(self) -> int:
        """The count of changes of callers, as of the last look at it."""
        ...

    async def wait_changed(self, known: int) -> int:
        """Wait until callers changed since `known`, a generation; return the present one."""
        ...

    def telling(self, changed: Callable[[], None]) -> AbstractContextManager[None]:
        """Inside, `changed` is called whenever they did: for whoever has no task to wait with."""
        ...


@dataclass(frozen=True, slots=True)
class Standing:
    """Who some callers are now.  Absent is whoever may not come in any more, and an agent that does not exist."""

    callers: Mapping[Credential, AgentIdentity | UserIdentity]
    agents: Mapping[PeerID, AgentIdentity]


class StoreCallers:
    """Callers from a Store.  One per process; used from trio only."""

    def __init__(
        self, store: Store, clock: Callable[[], datetime] = lambda: datetime.now(UTC), *, admins_enter: bool = True
    ) -> None:
        self.no_wait = False
        self._admins_enter = admins_enter
        self._store = store
        self._clock = clock
        self._recent = _RecentAnswers()
        self._generation = -1
        self._checked_at = -float("inf")
        self._changed_at = -float("inf")  # by this server
        self._store_failed = False
        self._is_asking = False
        self._was_asked = False  # by somebody, since the last look at the store
        self._gathering = _Batch()
        self._changed = trio.Event()
        self._watchers = 0
        self._told: dict[Callable[[], None], None] = {}  # when callers changed

    async def run(self) -> None:
        """Have answers at hand before anybody waits for them, until cancelled: all callers at the start, and whether
        anything changed for as long as somebody asks or waits for it."""
        await self._preload()
        while True:
            await trio.sleep(CHECK_SECONDS / 2)
            if (self._was_asked or self._watchers) and not self._is_asking:
                self._was_asked = False
                await self._work()

    async def agent(self, token: str) -> AgentIdentity:
        identity = await self._look_up(agent_token_digest(parse_agent_token(token)))
        if not isinstance(identity, AgentIdentity):
            raise refusals.agent_unknown()
        return identity

    async def user(self, token: str) -> UserIdentity:
        presented = parse_user_token(token)
        return self._judge(presented, await self._look_up(presented.id))

    def _judge(self, presented: PresentedToken, stored: Answer | None) -> UserIdentity:
        if not isinstance(stored, UserToken):
            raise refusals.user_token_malformed() if presented.opaque else refusals.user_token_unknown()
        if not hmac.compare_digest(stored.secret_digest, presented.secret_digest):
            raise refusals.user_secret_wrong()
        if stored.expires_at is not None and stored.expires_at <= self._clock():
            raise refusals.user_token_expired(stored.expires_at.isoformat())
        if not stored.user.active:
            raise refusals.user_not_active()
        return stored.user

    async def user_of_agent_route(self, token: str) -> UserIdentity:
        try:
            return await self.user(token)
        except Refused as refused:
            if refused.status == 401:
                raise refusals.key_or_proxy_missing() from None
            raise

    async def find_agent(self, agent_id: PeerID) -> AgentIdentity | None:
        identity = await self._look_up(agent_id)
        return identity if isinstance(identity, AgentIdentity) else None

    def rights(self, user: UserIdentity, agent: AgentIdentity) -> frozenset[Right]:
        return workspace_rights(user, agent, admins_enter=self._admins_enter)

    def known_agent(self, agent_id: PeerID) -> AgentIdentity | None:
        """An agent that is in memory and believed, for code that cannot wait.  None means: ask `find_agent`."""
        identity = self._recent.get(agent_id) if self._is_fresh() else None
        return identity if isinstance(identity, AgentIdentity) else None

    def note_change(self) -> None:
        """This server changed callers itself: whoever asks from now on hears of it, and not within a second."""
        self._changed_at = trio.current_time()

    @property
    def generation(self) -> int:
        """The store's count of changes of callers, as of the last look at it."""
        return self._generation

    async def wait_changed(self, known: int) -> int:
        """Wait until callers changed since `known`, a generation; return the present one.  Seen within half a second
        while `run` runs."""
        self._watchers += 1
        try:
            while self._generation == known:
                await self._changed.wait()
        finally:
            self._watchers -= 1
        return self._generation

    @contextmanager
    def telling(self, changed: Callable[[], None]) -> Iterator[None]:
        """Inside, `changed` is called whenever callers did, within half a second while `run` runs."""
        self._watchers += 1
        self._told[changed] = None
        try:
            yield
        finally:
            del self._told[changed]
            self._watchers -= 1

    async def standing(self, credentials: Collection[Credential], agent_ids: Collection[PeerID]) -> Standing:
        """Who all these are now, in one look at the store.  Raises Refused when it cannot be read."""
        keys: set[CallerKey] = set(agent_ids)
        keys.update(each.id if isinstance(each, PresentedToken) else each for each in credentials)
        batch = await self._ask(keys)
        if batch.failed:
            raise refusals.store_unreachable()
        callers: dict[Credential, AgentIdentity | UserIdentity] = {}
        for credential in credentials:
            if isinstance(credential, PresentedToken):
                with suppress(Refused):
                    callers[credential] = self._judge(credential, batch.answers.get(credential.id))
            else:
                agent = batch.answers.get(credential)
                if isinstance(agent, AgentIdentity):
                    callers[credential] = agent
        found = ((agent_id, batch.answers.get(agent_id)) for agent_id in agent_ids)
        return Standing(callers, {key: agent for key, agent in found if isinstance(agent, AgentIdentity)})

    def _is_fresh(self) -> bool:
        return self._checked_at > self._changed_at and trio.current_time() - self._checked_at < CHECK_SECONDS

    def _is_recent(self) -> bool:
        return trio.current_time() - self._checked_at < STALE_SECONDS

    async def _look_up(self, key: CallerKey) -> Answer | None:
        self._was_asked = True
        # While the store is away nobody whom we know waits until it has failed once more: `run` asks it again.
        if key in self._recent and (self._is_fresh() or (self._store_failed and self._is_recent())):
            if not self.no_wait:
                await trio.lowlevel.checkpoint()
            return self._recent.get(key)
        if self.no_wait:
            raise trio.WouldBlock
        batch = await self._ask((key,))
        if batch.failed:
            if key in self._recent and self._is_recent():
                return self._recent.get(key)
            raise refusals.store_unreachable()
        # From the batch, since a later answer may have pushed this one out of memory.
        return batch.answers.get(key)

    async def _ask(self, keys: Iterable[CallerKey]) -> "_Batch":
        """Put questions into the batch that is being gathered, and wait until the store answered it."""
        batch = self._gathering
        batch.keys.update(keys)
        # One of the callers works for its whole batch, the others are parked until it is done: no lock that is handed
        # from one to the next, which in a storm would cost more than the query.
        while not batch.done:
            if self._is_asking:
                await batch.waiting.park()
                continue
            await self._work()
        return batch

    async def _work(self) -> None:
        """Answer the batch that is being gathered."""
        batch, self._gathering = self._gathering, _Batch()
        self._is_asking = True
        try:
            # The caller that works for its batch may give up; the others still want their answers.
            with trio.CancelScope(shield=True):
                await self._answer(batch)
        finally:
            self._is_asking = False
            batch.done = True
            batch.waiting.unpark_all()
            self._gathering.waiting.unpark()  # one of those who came meanwhile works next

    async def _preload(self) -> None:
        asked_at = trio.current_time()
        try:
            generation, found = await self._store.run(self._store.callers.read_all_callers, MAX_PRELOADED)
        except StoreError:
            return  # whoever asks first is told
        if self._generation == -1:
            self._note_generation(generation)
            self._checked_at = asked_at
            self._recent.keep(found)

    async def _answer(self, batch: "_Batch") -> None:
        batch.failed = True
        asked_at = trio.current_time()
        missing = [key for key in batch.keys if key not in self._recent]
        try:
            generation, found = await self._store.run(
                self._store.callers.read_callers, self._generation, missing, list(batch.keys)
            )
        except StoreError as error:
            if not self._store_failed:
                _log.error("! callers: %s; those known are let in for %.0f s", error, STALE_SECONDS)
            self._store_failed = True
            return
        if self._store_failed:
            _log.warning("= callers: the store answers again")
        self._store_failed = batch.failed = False
        if generation != self._generation:
            self._recent.clear()
            self._note_generation(generation)
        self._checked_at = asked_at
        batch.answers = {key: found[key] if key in found else self._recent.get(key) for key in batch.keys}
        self._recent.keep(batch.answers)
        # Clients of an agent that connects will soon ask for it by its id.
        self._recent.keep({agent.id: agent for agent in batch.answers.values() if isinstance(agent, AgentIdentity)})

    def _note_generation(self, generation: int) -> None:
        self._generation = generation
        self._changed.set()
        self._changed = trio.Event()
        for tell in tuple(self._told):
            tell()


class _Batch:
    """Look-ups that go into one query."""

    __slots__ = ("answers", "done", "failed", "keys", "waiting")

    def __init__(self) -> None:
        self.keys: set[CallerKey] = set()
        self.answers: Mapping[CallerKey, Answer | None] = {}
        self.done = False
        self.failed = False
        self.waiting = trio.lowlevel.ParkingLot()


class _RecentAnswers:
    """Answers in memory.  A new one pushes out the least recently used; those for unknown keys are kept apart."""

    def __init__(self) -> None:
        self._found: OrderedDict[CallerKey, Answer] = OrderedDict()
        self._unknown: OrderedDict[CallerKey, None] = OrderedDict()

    def __contains__(self, key: CallerKey) -> bool:
        return key in self._found or key in self._unknown

    def get(self, key: CallerKey) -> Answer | None:
        answer = self._found.get(key)
        if answer is not None:
            self._found.move_to_end(key)
        return answer

    def keep(self, answers: Mapping[CallerKey, Answer | None]) -> None:
        for key, answer in answers.items():
            if answer is None:
                self._unknown[key] = None
            else:
                self._found[key] = answer
        while len(self._found) > MAX_FOUND:
            self._found.popitem(last=False)
        while len(self._unknown) > MAX_UNKNOWN:
            self._unknown.popitem(last=False)

    def clear(self) -> None:
        self._found.clear()
        self._unknown.clear()
