"""WorkspaceUpdates: a user's workspaces and agents, whole at first, then what changed.  Layer L3.

His are those that he owns, and those that others share with him: he has a grant to read them.

Each owner whom a client watches has one feed with the newest state; each stream sends what differs from what it sent
before.  The service reads the store when this server changed something of an owner, and when the store's count of
changes says that another process changed anything.  Streams are tasks of tailnet_rpc.py; `run` is one of the server.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import trio

from tailnet.auth.policy import shared_with
from tailnet.errors import RpcError, StoreError
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.services.feed import Feed, FeedCounts, FollowerDropped, newest_only
from tailnet.services.tailnet_rpc import Caller
from tailnet.store.rows import UserIdentity, WorkspaceRow
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.server")

# A change by another process (an import, a replica) is seen this much later at the most; a store that failed is asked
# again after as long.
LOOK_SECONDS: Final = 5.0

# id -> (name, status) and id -> (name, workspace id)
Workspaces = dict[bytes, tuple[str, int]]
Agents = dict[bytes, tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class OwnedState:
    """All workspaces of an owner, and their agents; with them those that others share with him."""

    workspaces: Workspaces
    agents: Agents
    shared: frozenset[bytes] = frozenset()  # the ids of those of others

    def without(self, hidden: Collection[bytes]) -> "OwnedState":
        """The same without these workspaces and their agents."""
        if not hidden:
            return self
        workspaces = {ident: each for ident, each in self.workspaces.items() if ident not in hidden}
        agents = {ident: each for ident, each in self.agents.items() if each[1] not in hidden}
        return OwnedState(workspaces, agents, self.shared.difference(hidden))


NOTHING: Final = OwnedState({}, {})


@dataclass(slots=True)
class _Watched:
    """An owner whom at least one stream watches.

    Who reads the store for him takes his turn: otherwise an older reading could be published after a newer one.
    """

    feed: Feed[OwnedState]
    callers: list[Caller] = field(default_factory=list)  # one for each stream
    # What each of them may see of others' was this when the store was read: a signed token may grant less than another.
    shared: frozenset[frozenset[UUID]] = frozenset()
    turn: trio.Lock = field(default_factory=trio.Lock)


class WorkspaceUpdates:
    """All WorkspaceUpdates streams of a server.  `changed(owner_id)` tells those of one owner."""

    def __init__(self, store: Store) -> None:
        self.counts = FeedCounts()
        self._store = store
        self._watched: dict[UUID, _Watched] = {}
        self._changed: set[UUID] = set()
        self._wake = trio.Event()

    def changed(self, owner_id: UUID) -> None:
        """Something of this owner's workspaces changed."""
        if owner_id in self._watched:
            self._changed.add(owner_id)
            self._wake.set()

    async def run(self) -> None:
        """Read again what changed, until cancelled."""
        generation: int | None = None
        look_at = trio.current_time()
        while True:
            with trio.move_on_at(look_at):
                await self._wake.wait()
            self._wake = trio.Event()
            try:
                if self._watched and trio.current_time() >= look_at:
                    # One number for all streams, where each of them would otherwise read all workspaces of its owner.
                    before, generation = generation, await self._store.run(self._store.callers.callers_generation)
                    for owner, watched in self._watched.items():
                        # services/rights.py gives callers what they were granted meanwhile.
                        if generation != before or _shared_with_each(watched) != watched.shared:
                            self._changed.add(owner)
                while self._changed:
                    await self._read(next(iter(self._changed)))
            except StoreError as error:
                _log.error("! workspaces cannot be read: %s", error)
                await trio.sleep(LOOK_SECONDS)
            if trio.current_time() >= look_at:
                look_at = trio.current_time() + LOOK_SECONDS

    async def stream(self, caller: Caller, request: Any, send: Callable[[bytes], bool]) -> None:
        """Serve one call until its client ends it."""
        owner = _owner(caller, request)
        with self._watching(owner, caller) as feed:
            await self._read_at_last(owner, caller)
            told, is_first = NOTHING, True
            try:
                with feed.follow() as follower:
                    async for events in follower:
                        newest = events[-1].value
                        visible = {each.bytes for each in _shared_with(caller)}
                        state = newest.without(newest.shared - visible)
                        payload = difference(told, state).SerializeToString()
                        # The first message is the whole state, even an empty one: the client waits for it.
                        if (is_first or payload) and not send(payload):
                            raise follower.too_slow("this client does not read its workspace updates")
                        told, is_first = state, False
            except FollowerDropped as dropped:
                _log.info("! %s is told of no more workspaces: %s", caller.name, dropped)
                raise RpcError(str(dropped)) from None

    @contextmanager
    def _watching(self, owner: UUID, caller: Caller) -> Iterator[Feed[OwnedState]]:
        watched = self._watched.get(owner)
        if watched is None:
            watched = self._watched[owner] = _Watched(Feed(key=newest_only, counts=self.counts))
        watched.callers.append(caller)
        try:
            yield watched.feed
        finally:
            watched.callers.remove(caller)
            if not watched.callers:
                del self._watched[owner]
                self._changed.discard(owner)

    async def _read_at_last(self, owner: UUID, caller: Caller) -> None:
        """Read an owner's workspaces, however long the store takes to answer."""
        while True:
            try:
                await self._read(owner)
            except StoreError as error:
                # The end of this call would end the client's whole connection, and its tunnels with it.
                _log.error("! %s: workspaces cannot be read: %s", caller.name, error)
                await trio.sleep(LOOK_SECONDS)
            else:
                return

    async def _read(self, owner: UUID) -> None:
        """Read an owner's workspaces and publish them if they changed.  After StoreError they are still to be read."""
        watched = self._watched.get(owner)
        if watched is None:
            self._changed.discard(owner)
            return
        async with watched.turn:
            # Before the read: what changes while it runs has to be read again.
            self._changed.discard(owner)
            shared = _shared_with_each(watched)
            wanted = frozenset[UUID]().union(*shared)
            try:
                state = _state(owner, await self._store.run(self._store.callers.list_workspaces, owner, wanted))
            except StoreError:
                self.changed(owner)
                raise
            newest = watched.feed.newest
            if newest is None or newest.value != state or watched.shared != shared:
                watched.feed.publish(state)
            watched.shared = shared


def _owner(caller: Caller, request: Any) -> UUID:
    if not isinstance(caller.identity, UserIdentity):
        raise RpcError("workspace updates are for users")
    if len(request.workspace_owner_id) != 16:
        raise RpcError(f"workspace_owner_id has {len(request.workspace_owner_id)} bytes, a user id has 16")
    owner = UUID(bytes=request.workspace_owner_id)
    if owner != caller.identity.id:
        raise RpcError("workspaces of another user are not shown")
    return owner


def _shared_with(caller: Caller) -> frozenset[UUID]:
    return frozenset(shared_with(caller.identity)) if isinstance(caller.identity, UserIdentity) else frozenset()


def _shared_with_each(watched: _Watched) -> frozenset[frozenset[UUID]]:
    return frozenset(map(_shared_with, watched.callers))


def _state(owner: UUID, rows: list[WorkspaceRow]) -> OwnedState:
    return OwnedState(
        {row.id.bytes: (row.name, int(row.status)) for row in rows},
        {bytes(agent.id): (agent.name, row.id.bytes) for row in rows for agent in row.agents},
        frozenset(row.id.bytes for row in rows if row.owner_id != owner),
    )


def difference(told: OwnedState, now: OwnedState) -> tailnet.WorkspaceUpdate:
    """What turns the first state into the second; workspaces go before the agents that name them."""
    update = tailnet.WorkspaceUpdate()
    for workspace_id, (name, status) in now.workspaces.items():
        if told.workspaces.get(workspace_id) != (name, status):
            update.upserted_workspaces.add(id=workspace_id, name=name, status=status)
    for agent_id, (name, workspace_id) in now.agents.items():
        if told.agents.get(agent_id) != (name, workspace_id):
            update.upserted_agents.add(id=agent_id, name=name, workspace_id=workspace_id)
    for workspace_id, (name, status) in told.workspaces.items():
        if workspace_id not in now.workspaces:
            update.deleted_workspaces.add(id=workspace_id, name=name, status=status)
    for agent_id, (name, workspace_id) in told.agents.items():
        if agent_id not in now.agents:
            update.deleted_agents.add(id=agent_id, name=name, workspace_id=workspace_id)
    return update
