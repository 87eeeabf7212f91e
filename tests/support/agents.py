"""What tests of an agent's services stand on: two nodes that know each other, and a stream that leads nowhere."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from derp.keys import NodePrivate
from tailnet.netstack.stack import Stack
from tailnet.node.core import PeerNode
from tailnet.node.engine import Engine, open_engine
from tailnet.node.streams import TunnelStream

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
        await user.disco_ping(keys[0].public().raw)
        yield agent, user
