"""Who is calling, answered from the embedded store (layer L2).

A storm of reconnects must not become a storm of queries: answers are kept in memory, and look-ups that arrive while a
query runs go together into the next one.  The store counts every change of callers, and says whom it was about: those
are forgotten.  One read a second compares that count, so a revoked token works a second longer at the most.  The
contract is callers.py.
"""

import hmac
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import trio

from tailnet import refusals
from tailnet.auth.callers import (
    CHECK_SECONDS,
    STALE_SECONDS,
    Changes,
    Credential,
    Identity,
    OutsideToken,
    Reach,
    Standing,
)
from tailnet.auth.policy import workspace_rights
from tailnet.auth.recent import RecentAnswers
from tailnet.errors import StoreError
from tailnet.refusals import Refused
from tailnet.store.callers import identity_of
from tailnet.store.rows import AgentIdentity, CallerKey, Scope, UserIdentity, UserToken
from tailnet.store.store import Store
from tailnet.tokens import PresentedToken, agent_token_digest, parse_agent_token, parse_user_token
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.auth")

Answer = AgentIdentity | UserToken

# Agents and tokens read at the start, so that those who come back after a restart need no query.  More would hold the
# first ones up, and come in batches instead.
MAX_PRELOADED: Final = 20_000


class StoreCallers:
    """Callers from a Store.  One per process; used from trio only."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        admins_enter: bool = True,
        changes: Changes | None = None,
    ) -> None:
        self.no_wait = False
        self.changes = Changes() if changes is None else changes
        self._admins_enter = admins_enter
        self._store = store
        self._clock = clock
        self._recent: RecentAnswers[CallerKey, Answer] = RecentAnswers()
        self._generation = -1
        self._checked_at = -float("inf")
        self._changed_at = -float("inf")  # by this server
        self._store_failed = False
        self._is_asking = False
        self._was_asked = False  # by somebody, since the last look at the store
        self._gathering = _Batch()

    async def run(self) -> None:
        """Have answers at hand before anybody waits for them, until cancelled: all callers at the start, and whether
        anything changed for as long as somebody asks or waits for it."""
        await self._preload()
        while True:
            await trio.sleep(CHECK_SECONDS / 2)
            if (self._was_asked or self.changes.watchers) and not self._is_asking:
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

    async def find_agent(self, agent_id: PeerID) -> AgentIdentity | None:
        identity = await self._look_up(agent_id)
        return identity if isinstance(identity, AgentIdentity) else None

    def note_change(self) -> None:
        """This server changed callers itself: whoever asks from now on hears of it, and not within a second."""
        self._changed_at = trio.current_time()

    async def reach(self, user: UserIdentity, agent_id: PeerID) -> Reach | None:
        agent = await self.find_agent(agent_id)
        return None if agent is None else self._reach(user, agent)

    def _reach(self, user: UserIdentity, agent: AgentIdentity) -> Reach:
        return Reach(agent, workspace_rights(user, agent, admins_enter=self._admins_enter))

    def credential(self, token: str, *, is_agent: bool) -> Credential:
        return agent_token_digest(parse_agent_token(token)) if is_agent else parse_user_token(token)

    @property
    def cached_count(self) -> int:
        """Answers in memory."""
        return len(self._recent)

    def remembered(self, agent_id: PeerID) -> AgentIdentity | None:
        found = self._recent.get(agent_id)
        return found if isinstance(found, AgentIdentity) else None

    def knows(self, credential: Credential) -> bool:
        """Whether somebody who came in with this is in memory."""
        key = _key(credential)
        return key is not None and self._recent.get(key) is not None

    def knows_token(self, token: str, *, is_agent: bool) -> bool:
        try:
            credential = self.credential(token, is_agent=is_agent)
        except Refused:
            return False
        if not isinstance(credential, PresentedToken):
            return self.knows(credential)
        found = self._recent.get(credential.id)
        return isinstance(found, UserToken) and hmac.compare_digest(found.secret_digest, credential.secret_digest)

    async def standing(self, asked: Mapping[Credential, Collection[PeerID]]) -> Standing:
        agent_ids = {agent_id for reached in asked.values() for agent_id in reached}
        keys: set[CallerKey] = {key for key in map(_key, asked) if key is not None}
        batch = await self._ask(keys | agent_ids)
        if batch.failed:
            raise refusals.store_unreachable()
        agents = {key: found for key in agent_ids if isinstance(found := batch.answers.get(key), AgentIdentity)}
        callers: dict[Credential, Identity] = {}
        reached: dict[Credential, Mapping[PeerID, Reach]] = {}
        until: dict[Credential, float] = {}
        for credential, ids in asked.items():
            key = _key(credential)
            answer = None if key is None else batch.answers.get(key)
            if isinstance(credential, PresentedToken):
                with suppress(Refused):
                    user = callers[credential] = self._judge(credential, answer)
                    reached[credential] = {each: self._reach(user, agents[each]) for each in ids if each in agents}
                    if isinstance(answer, UserToken) and answer.expires_at is not None:
                        left = (answer.expires_at - self._clock()).total_seconds()
                        until[credential] = trio.current_time() + left
            elif isinstance(answer, AgentIdentity):
                callers[credential] = answer
        return Standing(callers, reached, until=until)

    def _is_fresh(self) -> bool:
        return self._checked_at > self._changed_at and trio.current_time() - self._checked_at < CHECK_SECONDS

    def _is_recent(self) -> bool:
        return trio.current_time() - self._checked_at < STALE_SECONDS

    async def _look_up(self, key: CallerKey) -> Answer | None:
        self._was_asked = True
        # While the store is away nobody whom we know waits until it has failed once more: `run` asks it again.
        if key in self._recent and (self._is_fresh() or (self._store_failed and self._is_recent())):
            # Taken before the checkpoint: a change of anybody that is seen meanwhile empties the memory.
            answer = self._recent.get(key)
            if not self.no_wait:
                await trio.lowlevel.checkpoint()
            return answer
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
        remembered = {key: self._recent.get(key) for key in batch.keys if key in self._recent}
        try:
            generation, scope, found = await self._store.run(
                self._store.callers.read_callers, self._generation, missing, remembered
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
            if scope is None:
                self._recent.clear()
            else:
                self._recent.drop_where(lambda answer: scope.concerns(identity_of(answer)))
            self._note_generation(generation, scope)
        self._checked_at = asked_at
        # What was asked for and not found is nobody; all else is at hand.
        batch.answers = {key: found[key] if key in found else self._recent.get(key) for key in batch.keys}
        self._recent.keep(batch.answers)
        # Clients of an agent that connects will soon ask for it by its id.
        self._recent.keep({agent.id: agent for agent in batch.answers.values() if isinstance(agent, AgentIdentity)})

    def _note_generation(self, generation: int, scope: Scope | None = None) -> None:
        self._generation = generation
        self.changes.note(scope)


def _key(credential: Credential) -> CallerKey | None:
    """Under which the store finds it; nowhere what is not the store's."""
    if isinstance(credential, OutsideToken):
        return None
    return credential.id if isinstance(credential, PresentedToken) else credential


class _Batch:
    """Look-ups that go into one query."""

    __slots__ = ("answers", "done", "failed", "keys", "waiting")

    def __init__(self) -> None:
        self.keys: set[CallerKey] = set()
        self.answers: Mapping[CallerKey, Answer | None] = {}
        self.done = False
        self.failed = False
        self.waiting = trio.lowlevel.ParkingLot()
