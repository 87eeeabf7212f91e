"""What tests of an agent stand on: two nodes that know each other, a stream that leads nowhere, a coordinator's ear."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, cast

import trio
import trio.testing
from google.protobuf.message import Message

from derp.keys import NodePrivate
from tailnet.agent.context import Context
from tailnet.agent.control import Control
from tailnet.agent.ports import Service, serve_ports
from tailnet.client.rpc import RpcClient
from tailnet.netstack.stack import Stack
from tailnet.node.core import PeerNode
from tailnet.node.engine import Engine, open_engine
from tailnet.node.streams import TunnelStream
from tailnet.proto.version import CURRENT

URL, TOKEN = "https://tailnet.example.org", "secret-token"
AGENT, USER = (bytes.fromhex("fd7a115ca1e0") + bytes(9) + bytes((number,)) for number in (1, 2))


def a_stream(port: int = 1) -> TunnelStream:
    """A connection with USER that carries nothing."""
    stack = Stack([AGENT], bytes, 0.0)
    return TunnelStream(stack.connect(USER, port), lambda: None)


@asynccontextmanager
async def two_engines() -> AsyncIterator[tuple[Engine, Engine]]:
    """An agent's and a user's node, which know each other's endpoints and need no relay."""
    keys, addresses = [NodePrivate.generate() for _ in range(2)], (AGENT, USER)
    async with (
        open_engine(keys[0], [AGENT], {}, None) as agent,
        open_engine(keys[1], [USER], {}, None) as user,
    ):
        for engine, peer, at in ((agent, user, 1), (user, agent, 0)):
            known = PeerNode(keys[at].public().raw, (addresses[at],), peer.core.paths.disco_key, peer.local_endpoints)
            engine.core.configure(known, trio.current_time())
        # Both have a way then: an answer that finds none is lost, and a handshake tries again after five seconds.
        await user.disco_ping(keys[0].public().raw)
        await agent.disco_ping(keys[1].public().raw)
        yield agent, user


@dataclass
class Served:
    """One service of an agent, and a user's node that reaches it."""

    context: Context
    agent: Engine
    user: Engine
    port: int

    async def dial(self) -> TunnelStream:
        return await self.user.dial(AGENT, self.port)


@asynccontextmanager
async def served(port: int, service: Service, **how: Any) -> AsyncIterator[Served]:
    """A service on its port, for a minute; `how` is what the context is given."""
    with trio.fail_after(60):
        async with two_engines() as (agent, user), trio.open_nursery() as nursery:
            context = Context(nursery, "https://tailnet.example.org", "token", **how)
            nursery.start_soon(serve_ports, agent, context, {port: service})
            await trio.testing.wait_all_tasks_blocked()
            yield Served(context, agent, user, port)
            nursery.cancel_scope.cancel()


class FakeRpc:
    """A connection to a coordinator that keeps what an agent says, and answers as it was told: else with nothing."""

    def __init__(self, **answers: Message | Exception) -> None:
        self.answers = answers
        self.calls: list[tuple[str, Any]] = []
        self.is_lost = False
        self._changed = trio.lowlevel.ParkingLot()

    async def call(self, path: str, request: Message, answer: type[Message]) -> Message:
        name = path.rpartition("/")[2]
        self.calls.append((name, request))
        self._changed.unpark_all()
        await trio.lowlevel.checkpoint()
        found = self.answers.get(name, answer())
        if isinstance(found, Exception):
            raise found
        return found

    def said(self, name: str) -> list[Any]:
        """The requests of one call."""
        return [request for called, request in self.calls if called == name]

    async def wait_said(self, name: str, count: int = 1) -> list[Any]:
        """Until there are so many."""
        while len(self.said(name)) < count:
            await self._changed.park()
        return self.said(name)

    def control(self, minor: int = CURRENT.minor) -> Control:
        """Attached to this connection."""
        control = Control()
        control.minor = minor
        control.attach(cast(RpcClient, self))
        return control


@asynccontextmanager
async def open_context(**settings: Any) -> AsyncIterator[Context]:
    """What services share, with a directory for scripts; what it has in the background ends with it."""
    with TemporaryDirectory() as directory:
        async with trio.open_nursery() as nursery:
            yield Context(nursery, URL, TOKEN, scripts_directory=directory, **settings)
            nursery.cancel_scope.cancel()
