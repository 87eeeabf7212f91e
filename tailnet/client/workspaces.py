"""A user's workspaces and agents, followed.  Layer L3.

    async with open_workspaces(url, token) as workspaces:
        async for change in workspaces: ...
The first change is all there is; each later one is what became different, over losses of the coordinator too: what went
meanwhile is in the first change after it.  `workspaces.all` and `.agents` are the state so far.  Next hop: link.py.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar
from uuid import UUID

import trio

from derp.client.client import open_background
from derp.client.dial import DialOptions
from derp.client.reconnect import BackOff
from tailnet.client.agents import Login
from tailnet.client.coordination import TAILNET_DOOR
from tailnet.client.link import BACK_OFF, Link, bare_refusals
from tailnet.client.rpc import RpcClient
from tailnet.errors import RpcError, TransportError
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.proto.services import WORKSPACE_UPDATES

T = TypeVar("T")

# Ten times what the largest deployments give one user; more is a server that means no good.
MAX_KNOWN: Final = 100_000
# Changes that the user has not taken; then the coordinator waits, and gives up in the end.
MAX_UNREAD: Final = 64


@dataclass(frozen=True, slots=True)
class Workspace:
    """`status` in the words of the schema, in lower case: running, stopped, failed ..."""

    id: UUID
    name: str
    status: str


@dataclass(frozen=True, slots=True)
class WorkspaceAgent:
    """An agent of a workspace."""

    id: UUID
    name: str
    workspace_id: UUID


@dataclass(frozen=True, slots=True)
class Change:
    """What is there or is otherwise, and what has gone, each as it was known last."""

    workspaces: tuple[Workspace, ...] = ()
    agents: tuple[WorkspaceAgent, ...] = ()
    gone_workspaces: tuple[Workspace, ...] = ()
    gone_agents: tuple[WorkspaceAgent, ...] = ()


class Workspaces:
    """Made by `open_workspaces`; an iterator of changes for one task.  `take` is its core."""

    def __init__(self) -> None:
        self.all: dict[UUID, Workspace] = {}
        self.agents: dict[UUID, WorkspaceAgent] = {}
        self._put, self._got = trio.open_memory_channel[Change](MAX_UNREAD)

    def __aiter__(self) -> "Workspaces":
        return self

    async def __anext__(self) -> Change:
        return await self._got.receive()

    async def offer(self, change: Change) -> None:
        """Have the user's iteration give a change."""
        await self._put.send(change)

    def take(self, update: tailnet.WorkspaceUpdate, *, is_whole: bool) -> Change:
        """What an update changes.  `is_whole`: it is all there is, so what it does not name has gone.

        Raises MalformedField for ids that are none, RpcError for more than anybody has.
        """
        workspaces = [_workspace(each) for each in update.upserted_workspaces]
        agents = [_agent(each) for each in update.upserted_agents]
        gone = {convert.peer_id(each.id) for each in update.deleted_workspaces}
        gone_agents = {convert.peer_id(each.id) for each in update.deleted_agents}
        if is_whole:
            gone |= self.all.keys() - {each.id for each in workspaces}
            gone_agents |= self.agents.keys() - {each.id for each in agents}
        change = Change(
            _put(self.all, {each.id: each for each in workspaces}),
            _put(self.agents, {each.id: each for each in agents}),
            _pop(self.all, gone),
            _pop(self.agents, gone_agents),
        )
        if len(self.all) + len(self.agents) > MAX_KNOWN:
            raise RpcError(f"the coordinator tells of more than {MAX_KNOWN} workspaces and agents")
        return change


def _put(known: dict[UUID, T], told: Mapping[UUID, T]) -> tuple[T, ...]:
    changed = {key: value for key, value in told.items() if known.get(key) != value}
    known.update(changed)
    return tuple(changed.values())


def _pop(known: dict[UUID, T], gone: Iterable[UUID]) -> tuple[T, ...]:
    return tuple(known.pop(key) for key in gone if key in known)


def _workspace(told: tailnet.Workspace) -> Workspace:
    known = tailnet.Workspace.Status.values()
    status = tailnet.Workspace.Status.Name(told.status) if told.status in known else "UNKNOWN"
    return Workspace(convert.peer_id(told.id), told.name, status.lower())


def _agent(told: tailnet.Agent) -> WorkspaceAgent:
    return WorkspaceAgent(convert.peer_id(told.id), told.name, convert.peer_id(told.workspace_id))


@asynccontextmanager
async def open_workspaces(
    url: str, token: str, *, options: DialOptions | None = None, back_off: BackOff = BACK_OFF
) -> AsyncIterator[Workspaces]:
    """Follow the workspaces of the user whose token it is, until the block ends.

    Raises ConnectError, RpcError or ConfigError, in the block too when the coordinator refuses later.
    """
    owner_id = await _own_user_id(Login(url.rstrip("/"), token))
    link = Link(url, TAILNET_DOOR, token, options=options, back_off=back_off)
    workspaces = Workspaces()

    async def serve(rpc: RpcClient) -> None:
        request = tailnet.WorkspaceUpdatesRequest(workspace_owner_id=owner_id.bytes)
        call = await rpc.open(WORKSPACE_UPDATES, request, tailnet.WorkspaceUpdate)
        is_whole = True
        while True:
            try:
                update = await call.receive()
            except trio.EndOfChannel:
                raise RpcError("the coordinator ended the call that workspaces are told by") from None
            change = workspaces.take(update, is_whole=is_whole)
            if is_whole:
                link.proven()
            is_first, is_whole = is_whole and link.connection_count == 1, False
            if is_first or change != Change():
                await workspaces.offer(change)

    with bare_refusals():
        async with open_background() as nursery:
            nursery.start_soon(link.run, serve)
            yield workspaces


async def _own_user_id(login: Login) -> UUID:
    me = await login.ask("/api/v2/users/me")
    try:
        return UUID(me["id"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise TransportError("the coordinator describes users in a form that is not known") from None
