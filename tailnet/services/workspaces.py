"""WorkspaceUpdates: an owner's workspaces and agents, whole at first, then what changed.  Layer L3.

Each owner whom a client watches has one feed with the newest state; each stream sends what differs from what it sent
before.  The service reads the store when this server changed something of an owner, and when the store's count of
changes says that another process changed anything.  Streams are tasks of tailnet_rpc.py; `run` is one of the server.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import trio

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
    """All workspaces of an owner, and their agents."""

    workspaces: Workspaces
    agents: Agents


NOTHING: Final = OwnedState({}, {})


@dataclass(slots=True)
class _Watched:
    """An owner whom at least one stream watches.

    Who reads the store for him takes his turn: otherwise an older reading could be published after a newer one.
    """

    feed: Feed[OwnedState]
    streams: int = 0
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
        generation, look_at = None, trio.current_time()
        while True:
            with trio.move_on_at(look_at):
                await self._wake.wait()
            self._wake = trio.Event()
            try:
                if self._watched and trio.current_time() >= look_at:
                    # One number for all streams, where each of them would otherwise read all workspaces of its owner.
                    before, generation = generation, await self._store.run(self._store.callers.callers_generation)
                    if generation != before:
                        self._changed.update(self._watched)
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
        with self._watching(owner) as feed:
            await self._read_at_last(owner, caller)
            told, is_first = NOTHING, True
            try:
                with feed.follow() as follower:
                    async for events in follower:
                        state = events[-1].value
                        payload = difference(told, state).SerializeToString()
                        # The first message is the whole state, even an empty one: the client waits for it.
                        if (is_first or payload) and not send(payload):
                            raise follower.too_slow("this client does not read its workspace updates")
                        told, is_first = state, False
            except FollowerDropped as dropped:
                _log.info("! %s is told of no more workspaces: %s", caller.name, dropped)
                raise RpcError(str(dropped)) from None

    @contextmanager
    def _watching(self, owner: UUID) -> Iterator[Feed[OwnedState]]:
        watched = self._watched.get(owner)
        if watched is None:
            watched = self._watched[owner] = _Watched(Feed(key=newest_only, counts=self.counts))
        watched.streams += 1
        try:
            yield watched.feed
        finally:
            watched.streams -= 1
            if not watched.streams:
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
            try:
                state = _state(await self._store.run(self._store.callers.list_workspaces, owner))
            except StoreError:
                self.changed(owner)
                raise
            newest = watched.feed.newest
            if newest is None or newest.value != state:
                watched.feed.publish(state)


def _owner(caller: Caller, request: Any) -> UUID:
    if not isinstance(caller.identity, UserIdentity):
        raise RpcError("workspace updates are for users")
    if len(request.workspace_owner_id) != 16:
        raise RpcError(f"workspace_owner_id has {len(request.workspace_owner_id)} bytes, a user id has 16")
    owner = UUID(bytes=request.workspace_owner_id)
    if owner != caller.identity.id:
        raise RpcError("workspaces of another user are not shown")
    return owner


def _state(rows: list[WorkspaceRow]) -> OwnedState:
    return OwnedState(
        {row.id.bytes: (row.name, int(row.status)) for row in rows},
        {bytes(agent.id): (agent.name, row.id.bytes) for row in rows for agent in row.agents},
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
