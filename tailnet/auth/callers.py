"""The contract of those who say who is calling, and may do what (layer L2).

Three answer: the store (store_callers.py), signed tokens (signed.py), the control plane's URL (call_out.py); chain.py
asks them in their order.  tests/tailnet/auth/test_contract.py runs one suite over all.  Asked at the door by
api/rpc_admission.py and the guards of the API, and for as long as somebody is inside by services/rights.py (`standing`)
and by the API's streams (`find_lost`).
"""

from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

import trio

from tailnet import refusals
from tailnet.auth.policy import NO_RIGHT, TO_READ
from tailnet.refusals import Refused
from tailnet.store.rows import AgentIdentity, Right, Scope, UserIdentity
from tailnet.tokens import PresentedToken
from tailnet.types import PeerID

T = TypeVar("T")

# How long an answer is believed without asking the store whether anything changed.
CHECK_SECONDS: Final = 1.0
# How long answers are believed while who gave them cannot be asked at all.  A disk that hiccups, or is being restored,
# must not turn away agents that were here a minute ago; after ten minutes nobody knows any more who was revoked.
STALE_SECONDS: Final = 600.0
# Whoever is inside is looked at this often in any case: clocks are set, and not every end is foreseen.
EXPIRY_SECONDS: Final = 30.0
# How often it is looked whose answer has ended, whatever answers say of themselves.  10,000 peers take a millisecond.
TICK_SECONDS: Final = 0.5
# Whoever waits for changes has seen each within moments.
_MAX_SCOPES: Final = 64


@dataclass(frozen=True, slots=True)
class OutsideToken:
    """A token that the store does not know.  It is kept as it came, in memory and nowhere else: the control plane, and
    a signature that has a new key, can be asked about it in no other form."""

    digest: bytes  # SHA-256
    is_agent: bool
    token: str = field(repr=False, compare=False)


# What somebody came in with: an agent's token as the digest that the store holds, or a user's as it was presented, or
# one of somebody whom the store does not know.
Credential = bytes | PresentedToken | OutsideToken
Identity = AgentIdentity | UserIdentity


@dataclass(frozen=True, slots=True)
class ControlPlaneUser(UserIdentity):
    """A user whom the control plane's URL vouched for: what he may do is asked there too."""


@dataclass(frozen=True, slots=True)
class Reach:
    """An agent, and what a certain user may do with its workspace."""

    agent: AgentIdentity
    rights: frozenset[Right]


@dataclass(frozen=True, slots=True)
class Standing:
    """What some credentials are good for now.  Absent is whoever may not come in any more.

    `reached`: for users, of the agents that were asked about those that there are.  `unanswered`: nobody could say;
    they keep what they have.  `until`: when those whose answer ends by itself have to be asked about again, in seconds
    of trio's clock.
    """

    callers: Mapping[Credential, Identity]
    reached: Mapping[Credential, Mapping[PeerID, Reach]]
    unanswered: Collection[Credential] = ()
    until: Mapping[Credential, float] = field(default_factory=dict)

    def rights(self, credential: Credential, agent_id: PeerID) -> frozenset[Right]:
        """What whoever came in with that may do with an agent."""
        reach = self.reached.get(credential, {}).get(agent_id)
        return NO_RIGHT if reach is None else reach.rights


class Changes:
    """Counts changes of what callers may do, and wakes those who have to look again.  Each backend notes its own."""

    def __init__(self) -> None:
        self.count = 0
        self.watchers = 0
        self._scopes: deque[Scope | None] = deque(maxlen=_MAX_SCOPES)
        self._changed = trio.Event()
        self._told: dict[Callable[[], None], None] = {}

    def note(self, scope: Scope | None = None) -> None:
        """Those may have other rights now, or, with None, anybody."""
        self.count += 1
        self._scopes.append(scope)
        self._changed.set()
        self._changed = trio.Event()
        for tell in tuple(self._told):
            tell()

    def since(self, known: int) -> Scope | None:
        """Whom the changes since a count were about; None: anybody."""
        found = Scope()
        if self.count - known > len(self._scopes):
            return None
        for scope in islice(reversed(self._scopes), self.count - known):
            if scope is None:
                return None
            found |= scope
        return found

    @contextmanager
    def telling(self, changed: Callable[[], None]) -> Iterator[None]:
        """Inside, `changed` is called whenever they did: for whoever has no task to wait with."""
        self.watchers += 1
        self._told[changed] = None
        try:
            yield
        finally:
            del self._told[changed]
            self.watchers -= 1

    async def wait(self, known: int) -> int:
        """Wait until there were changes since `known`, a count; return the present one."""
        self.watchers += 1
        try:
            while self.count == known:
                await self._changed.wait()
        finally:
            self.watchers -= 1
        return self.count


class Callers(Protocol):
    """Who is calling.  What answers a question raises Refused with the answer for the caller.

    While `no_wait` is set, a method that would have to wait raises trio.WouldBlock instead: for code outside of tasks.
    `run` is one task.
    """

    no_wait: bool

    @property
    def changes(self) -> Changes:
        """Noted within a second of a change, while somebody waits for one."""
        ...

    async def run(self) -> None:
        """Keep answers at hand, until cancelled."""
        ...

    async def agent(self, token: str) -> AgentIdentity:
        """The agent whose token this is."""
        ...

    async def user(self, token: str) -> UserIdentity:
        """The user whose session token this is."""
        ...

    async def reach(self, user: UserIdentity, agent_id: PeerID) -> Reach | None:
        """What a user may do with an agent's workspace, by auth/policy.py or as the control plane says.  None: there is
        no such agent."""
        ...

    def knows_token(self, token: str, *, is_agent: bool) -> bool:
        """Whether somebody with this token was found lately, as memory has it, however old that is."""
        ...

    def credential(self, token: str, *, is_agent: bool) -> Credential:
        """What to ask `standing` about later, for a token that was admitted."""
        ...

    async def standing(self, asked: Mapping[Credential, Collection[PeerID]]) -> Standing:
        """What some credentials are good for now, each with the agents that its user reaches.  Raises Refused when
        nobody can say anything."""
        ...

    def remembered(self, agent_id: PeerID) -> AgentIdentity | None:
        """The agent, if it is at hand without asking anybody."""
        ...


def at_once(callers: Callers, question: Coroutine[Any, Any, T]) -> T:
    """The answer to a question of theirs, outside of tasks.  Raises trio.WouldBlock if it is not in memory."""
    callers.no_wait = True
    try:
        question.send(None)
    except StopIteration as done:
        answer: T = done.value
        return answer
    finally:
        callers.no_wait = False
        question.close()
    raise AssertionError("with no_wait nothing may wait")


async def user_of_agent_route(callers: Callers, token: str) -> UserIdentity:
    """A user with the one answer that routes give which a workspace proxy may call too."""
    try:
        return await callers.user(token)
    except Refused as refused:
        if refused.status == 401:
            raise refusals.key_or_proxy_missing() from None
        raise


class Lost(Enum):
    """What somebody who is inside has no more."""

    CREDENTIAL = "credential"
    RIGHT = "right"
    AGENT = "agent"  # the one that he follows is gone


async def find_lost(
    callers: Callers,
    credential: Credential,
    agent_id: PeerID | None = None,
    rights: Collection[Right] = TO_READ,
) -> Lost | None:
    """What whoever came in with this has lost; with `agent_id`, whether he still has one of these rights on that agent.
    None: nothing, or nobody can say."""
    try:
        standing = await callers.standing({credential: () if agent_id is None else (agent_id,)})
    except Refused:
        return None
    if credential in standing.unanswered:
        return None
    if credential not in standing.callers:
        return Lost.CREDENTIAL
    if agent_id is None or not standing.rights(credential, agent_id).isdisjoint(rights):
        return None
    return Lost.RIGHT if agent_id in standing.reached.get(credential, {}) else Lost.AGENT
