"""Who is calling, asked of all who can say (layer L2).

The order: a token that looks signed (tokens.py, looks_signed) is for the signing keys alone, if there are any; any
other one is looked up in the store, and what the store does not know is asked of the control plane's URL.  A "no" of
the first who knows a token is final.  An agent that others know gets a row in the store when it comes in
(store/outside.py).  The server has one chain, also when the store is all it has.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime

import trio

from tailnet import refusals
from tailnet.auth.call_out import RETRY_SECONDS, CallOut
from tailnet.auth.callers import Changes, ControlPlaneUser, Credential, Identity, OutsideToken, Reach, Standing, at_once
from tailnet.auth.policy import NO_RIGHT
from tailnet.auth.recent import RecentAnswers
from tailnet.auth.signed import SignedTokens
from tailnet.auth.store_callers import StoreCallers
from tailnet.errors import StoreError
from tailnet.refusals import Refused
from tailnet.store.rows import AgentIdentity, Right, UserIdentity
from tailnet.store.store import Store
from tailnet.tokens import MAX_SIGNED_CHARS, looks_signed
from tailnet.types import PeerID


class CallerChain:
    """All of callers.Callers.  One per server; used from trio only."""

    def __init__(
        self,
        store: Store,
        *,
        signed: SignedTokens | None = None,
        call_out: CallOut | None = None,
        changes: Changes | None = None,
        admins_enter: bool = True,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`changes` is that of `signed` and `call_out`."""
        self.changes = Changes() if changes is None else changes
        self.store = StoreCallers(store, clock, admins_enter=admins_enter, changes=self.changes)
        self.signed = signed
        self.call_out = call_out
        self._rows = store
        self._clock = clock
        self._admins_enter = admins_enter
        self._no_wait = False
        # Agents of others whose rows are as they should be.
        self._written: RecentAnswers[PeerID, AgentIdentity] = RecentAnswers()
        self._written_at = -1

    @property
    def no_wait(self) -> bool:
        return self._no_wait

    @no_wait.setter
    def no_wait(self, value: bool) -> None:
        self._no_wait = self.store.no_wait = value
        if self.signed is not None:
            self.signed.no_wait = value
        if self.call_out is not None:
            self.call_out.no_wait = value

    async def run(self) -> None:
        """All that keep answers at hand, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.store.run)
            if self.signed is not None:
                nursery.start_soon(self.signed.keys.run)
            if self.call_out is not None:
                nursery.start_soon(self.call_out.run)

    def note_change(self) -> None:
        """This server changed the store itself: see StoreCallers."""
        self.store.note_change()

    async def agent(self, token: str) -> AgentIdentity:
        if self._is_signed(token):
            assert self.signed is not None
            found = (await self.signed.find(_outside(token, is_agent=True))).identity
            assert isinstance(found, AgentIdentity)
            return await self._write_through(found)
        try:
            return await self.store.agent(token)
        except Refused as refused:
            if self.call_out is None or not _is_open(refused, token):
                raise
            known = await self.call_out.agent(_outside(token, is_agent=True))
            if known is None:
                raise
        return await self._write_through(known)

    async def user(self, token: str) -> UserIdentity:
        if self._is_signed(token):
            assert self.signed is not None
            found = (await self.signed.find(_outside(token, is_agent=False))).identity
            assert isinstance(found, UserIdentity)
            return found
        try:
            return await self.store.user(token)
        except Refused as refused:
            if self.call_out is None or not _is_open(refused, token):
                raise
            known = await self.call_out.user(_outside(token, is_agent=False))
            if known is None:
                raise
        return known

    async def reach(self, user: UserIdentity, agent_id: PeerID) -> Reach | None:
        if self.call_out is not None and isinstance(user, ControlPlaneUser):
            return await self.call_out.reach(user.id, agent_id)
        # Also of agents whom others vouch for: they have rows since they came in.
        return await self.store.reach(user, agent_id)

    def reach_now(self, user: UserIdentity, agent_id: PeerID) -> frozenset[Right]:
        """What `reach` says of the rights, if all it needs is in memory.  Raises trio.WouldBlock otherwise."""
        reach = at_once(self, self.reach(user, agent_id))
        return NO_RIGHT if reach is None else reach.rights

    def remembered(self, agent_id: PeerID) -> AgentIdentity | None:
        return self.store.remembered(agent_id)

    def knows_token(self, token: str, *, is_agent: bool) -> bool:
        if len(token) > MAX_SIGNED_CHARS:
            return False
        if self.signed is not None and self._is_signed(token):
            return self.signed.knows(_outside(token, is_agent=is_agent))
        if self.store.knows_token(token, is_agent=is_agent):
            return True
        return self.call_out is not None and self.call_out.knows(_outside(token, is_agent=is_agent))

    def credential(self, token: str, *, is_agent: bool) -> Credential:
        if not self._is_signed(token):
            try:
                credential = self.store.credential(token, is_agent=is_agent)
            except Refused:
                if self.call_out is None:
                    raise
            else:
                if self.call_out is None or self.store.knows(credential):
                    return credential
        return _outside(token, is_agent=is_agent)

    async def standing(self, asked: Mapping[Credential, Collection[PeerID]]) -> Standing:
        outside = {each: ids for each, ids in asked.items() if isinstance(each, OutsideToken)}
        inside: dict[Credential, Collection[PeerID]] = {
            each: ids for each, ids in asked.items() if not isinstance(each, OutsideToken)
        }
        signed = {each: ids for each, ids in outside.items() if self._is_signed(each.token)}
        parts: list[Standing] = []
        if inside or not outside:
            parts.append(await self.store.standing(inside))
        if signed and self.signed is not None:
            parts.append(await self._signed_standing(self.signed, signed))
        others = {each: ids for each, ids in outside.items() if each not in signed}
        if others and self.call_out is not None:
            parts.append(await self.call_out.standing(others))
        return parts[0] if len(parts) == 1 else _together(parts)

    async def _signed_standing(
        self, signed: SignedTokens, asked: Mapping[OutsideToken, Collection[PeerID]]
    ) -> Standing:
        good, unanswered = await signed.standing(asked)
        lost_sight: set[Credential] = set(unanswered)
        reached: dict[Credential, Mapping[PeerID, Reach]] = {}
        for token, verified in good.items():
            if isinstance(verified.identity, UserIdentity):
                try:
                    found = {each: await self.reach(verified.identity, each) for each in asked[token]}
                except Refused:
                    lost_sight.add(token)
                else:
                    reached[token] = {each: reach for each, reach in found.items() if reach is not None}
        now = trio.current_time()
        until: dict[Credential, float] = {token: now + signed.seconds_left(each) for token, each in good.items()}
        until |= dict.fromkeys(lost_sight, now + RETRY_SECONDS)
        return Standing({token: each.identity for token, each in good.items()}, reached, lost_sight, until)

    def _is_signed(self, token: str) -> bool:
        return self.signed is not None and looks_signed(token)

    async def _write_through(self, agent: AgentIdentity) -> AgentIdentity:
        """Have rows for an agent that the store does not know."""
        if self._written_at != self.changes.count:
            # Somebody may have deleted them.
            self._written.clear()
            self._written_at = self.changes.count
        if self._written.get(agent.id) == agent:
            return agent
        if self._no_wait:
            raise trio.WouldBlock
        try:
            await self._rows.run(self._rows.outside.put_agent, agent, self._clock())
        except StoreError:
            raise refusals.store_unreachable() from None
        self._written.keep({agent.id: agent})
        return agent


def _outside(token: str, *, is_agent: bool) -> OutsideToken:
    return OutsideToken(hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest(), is_agent, token)


def _is_open(refused: Refused, token: str) -> bool:
    """Whether the store's refusal leaves it to others who this is: it has no such token, or cannot be read."""
    return bool(token) and len(token) <= MAX_SIGNED_CHARS and (refused.is_unknown or refused.status == 503)


def _together(parts: Collection[Standing]) -> Standing:
    callers: dict[Credential, Identity] = {}
    reached: dict[Credential, Mapping[PeerID, Reach]] = {}
    until: dict[Credential, float] = {}
    unanswered: set[Credential] = set()
    for part in parts:
        callers |= part.callers
        reached |= part.reached
        until |= part.until
        unanswered |= set(part.unanswered)
    return Standing(callers, reached, unanswered, until)
