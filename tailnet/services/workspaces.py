"""WorkspaceUpdates: an owner's workspaces and agents, whole at first, then what changed.  Layer L3.

A task per stream, started by services/tailnet_rpc.py; the store is read when something of the owner changed here, and
now and then for what other processes changed.
"""

import logging
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import trio

from tailnet.errors import RpcError, StoreError
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.services.tailnet_rpc import Caller
from tailnet.store.rows import UserIdentity, WorkspaceRow
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.server")

# Changes made by another process (an import, a replica) are seen this much later.
LOOK_SECONDS: Final = 5.0

# id -> (name, status) and id -> (name, workspace id)
Workspaces = dict[bytes, tuple[str, int]]
Agents = dict[bytes, tuple[str, bytes]]


class WorkspaceFeed:
    """All WorkspaceUpdates streams of a server.  `changed(owner_id)` wakes those of one owner."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events: dict[UUID, trio.Event] = {}

    def changed(self, owner_id: UUID) -> None:
        """Something of this owner's workspaces changed."""
        event = self._events.pop(owner_id, None)
        if event is not None:
            event.set()

    async def stream(self, caller: Caller, request: Any, send: Callable[[bytes], bool]) -> None:
        """Serve one call until its client ends it."""
        owner = _owner(caller, request)
        workspaces: Workspaces = {}
        agents: Agents = {}
        is_first = True
        while True:
            event = self._events.setdefault(owner, trio.Event())
            try:
                rows = await self._store.run(self._store.list_workspaces, owner)
            except StoreError as error:
                # The end of this call would end the client's whole connection, and its tunnels with it.
                _log.error("! %s: workspaces cannot be read: %s", caller.name, error)
                await trio.sleep(LOOK_SECONDS)
                continue
            now_workspaces, now_agents = _state(rows)
            update = difference(workspaces, agents, now_workspaces, now_agents)
            workspaces, agents = now_workspaces, now_agents
            # The first message is the whole state, even an empty one: the client waits for it.
            payload = update.SerializeToString()
            if (is_first or payload) and not send(payload):
                raise RpcError("this client does not read its workspace updates")
            is_first = False
            with trio.move_on_after(LOOK_SECONDS):
                await event.wait()


def _owner(caller: Caller, request: Any) -> UUID:
    if not isinstance(caller.identity, UserIdentity):
        raise RpcError("workspace updates are for users")
    if len(request.workspace_owner_id) != 16:
        raise RpcError(f"workspace_owner_id has {len(request.workspace_owner_id)} bytes, a user id has 16")
    owner = UUID(bytes=request.workspace_owner_id)
    if owner != caller.identity.id:
        raise RpcError("workspaces of another user are not shown")
    return owner


def _state(rows: list[WorkspaceRow]) -> tuple[Workspaces, Agents]:
    workspaces = {row.id.bytes: (row.name, int(row.status)) for row in rows}
    agents = {bytes(agent.id): (agent.name, row.id.bytes) for row in rows for agent in row.agents}
    return workspaces, agents


def difference(
    workspaces: Workspaces, agents: Agents, now_workspaces: Workspaces, now_agents: Agents
) -> tailnet.WorkspaceUpdate:
    """What turns the first state into the second; workspaces go before the agents that name them."""
    update = tailnet.WorkspaceUpdate()
    for workspace_id, (name, status) in now_workspaces.items():
        if workspaces.get(workspace_id) != (name, status):
            update.upserted_workspaces.add(id=workspace_id, name=name, status=status)
    for agent_id, (name, workspace_id) in now_agents.items():
        if agents.get(agent_id) != (name, workspace_id):
            update.upserted_agents.add(id=agent_id, name=name, workspace_id=workspace_id)
    for workspace_id, (name, status) in workspaces.items():
        if workspace_id not in now_workspaces:
            update.deleted_workspaces.add(id=workspace_id, name=name, status=status)
    for agent_id, (name, workspace_id) in agents.items():
        if agent_id not in now_agents:
            update.deleted_agents.add(id=agent_id, name=name, workspace_id=workspace_id)
    return update
