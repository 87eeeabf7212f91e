"""However a peer dies, whoever knew it hears so at once, and nothing of it is left."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailnet.config import CoordinatorConfig
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer, serve_coordinator
from tailnet.transport.channel import Channel
from tests.support.seeds import agent_token, make_id, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
    MANY_DOOR,
    TAILNET,
    Coordination,
    Peer,
    client_door,
    open_peer,
    wait_for,
)

MAIN, GPU = peer_id("main"), peer_id("gpu")
ALICE = user_token("alice")
LOST, DISCONNECTED = tailnet.CoordinateResponse.PeerUpdate.LOST, tailnet.CoordinateResponse.PeerUpdate.DISCONNECTED
SYN = 1
# Frames that end a yamux session, by the peer's fault or at its wish.
FATAL_FRAMES = {
    "another version": struct.pack(">BBHII", 1, 0, 0, 1, 0),
    "unknown type": struct.pack(">BBHII", 0, 9, 0, 0, 0),
    "window overrun": struct.pack(">BBHII", 0, 0, SYN, 4001, (1 << 18) + 1),
    "our number": struct.pack(">BBHII", 0, 1, SYN, 2, 0),
    "go away with an error": struct.pack(">BBHII", 0, 3, 0, 0, 1),
    "flood of pings": struct.pack(">BBHII", 0, 2, SYN, 0, 7) * 5000,
}
FATAL_WEBSOCKET = {
    "unmasked": b"\x82\x05hello",
    "text": b"\x81\x80\x00\x00\x00\x00",
    "close frame": b"\x88\x82\x00\x00\x00\x00\x03\xe8",
    "end in the middle of a message": b"\x82\xfe\xff\xff\x00\x00\x00\x00half",
}
OTHERS = (
    "hang up",
    "reset",
    "silence",
    "goodbye",
    "half close",
    "cancel",
    "malformed request",
    "refused request",
    "broken dRPC",
)
DEATHS = (*FATAL_FRAMES, *FATAL_WEBSOCKET, *OTHERS)
ROLES = ("agent", "client", "client of many")


class World:
    """One server with an agent and a client that live through all deaths and watch."""

    def __init__(self, server: CoordinatorServer, mine: Coordination, theirs: Coordination) -> None:
        self.server = server
        self.of_main = mine  # the agent's coordination: hears of its clients
        self.of_gpu = theirs  # a client's: hears of the agent `gpu`
        self.before = self.left()

    def left(self) -> dict[str, Any]:
        """What there is now, of everybody."""
        server = self.server
        reading = server.reading()
        return {
            "channels": len(server.channels.open),
            "links": len(server.reactor.wires),
            "tasks": len(server._nursery.child_tasks),
            "calls": sorted(len(each.calls) for each in server.channels.open if isinstance(each, Channel)),
            "peers": sorted(server.coordinator.peers),
            "connected": reading.statistics.connected_peers,
            "absent": reading.statistics.absent_peers,
            "tunnels": reading.statistics.tunnels,
            "agents": reading.agents_connected,
        }


@asynccontextmanager
async def open_world(server: CoordinatorServer) -> AsyncIterator[World]:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, client_door(GPU), ALICE) as client,
    ):
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        await mine.update(agent_peer.node(MAIN))
        await theirs.tunnel(GPU)
        await wait_for(lambda: server.reading().statistics.tunnels == 1)
        yield World(server, mine, theirs)


@dataclass
class Victim:
    """A peer with all its calls in hand, its coordination, and that of whoever has been told its node."""

    peer: Peer
    call: Coordination
    watcher: Coordination
    id: bytes


async def live(world: World, role: str, stack: AsyncExitStack) -> Victim:
    server = world.server
    if role == "agent":
        peer = await stack.enter_async_context(open_peer(server, AGENT_DOOR, agent_token("gpu")))
        call, watcher = await peer.coordinate(), world.of_gpu
        await call.update(peer.node(GPU))
        await peer.open(AGENT + "GetManifest")  # whose request never comes
        await peer.call(AGENT + "GetServiceBanner", agent.GetServiceBannerRequest(), agent.ServiceBanner)
    else:
        door = client_door(MAIN) if role == "client" else MANY_DOOR
        peer = await stack.enter_async_context(open_peer(server, door, ALICE))
        call, watcher = await peer.coordinate(), world.of_main
        await call.tunnel(MAIN)
        await call.next_node()
        await call.update(peer.node(peer_id("a client"), preferred_derp=3))
        updates = await peer.stream(
            TAILNET + "WorkspaceUpdates",
            tailnet.WorkspaceUpdatesRequest(workspace_owner_id=make_id("alice").bytes),
        )
        if role == "client of many":
            await updates.receive(tailnet.WorkspaceUpdate)
    maps = await peer.stream(TAILNET + "StreamDERPMaps", tailnet.StreamDERPMapsRequest())
    await maps.receive(tailnet.DERPMap)
    ident, _ = await watcher.next_node()
    return Victim(peer, call, watcher, ident)


async def die(server: CoordinatorServer, victim: Victim, how: str) -> None:
    peer, call = victim.peer, victim.call
    if how in FATAL_FRAMES:
        await peer.websocket.write(FATAL_FRAMES[how])
    elif how in FATAL_WEBSOCKET:
        await peer.websocket.write_raw(FATAL_WEBSOCKET[how])
    match how:
        case "end in the middle of a message" | "hang up":
            await peer.websocket.stream.aclose()
        case "reset":
            stream: Any = peer.websocket.stream
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()
        case "silence":
            peer.stop_reading()
            channel = server.coordinator.connection_of(victim.id).channel
            now = server.reactor.now
            channel.handle_timeout(now + 15.0)
            channel.handle_timeout(now + 46.0)
            server.reactor.flush()
        case "goodbye":
            await call.request(disconnect={})
        case "half close":
            await call.close_send()
        case "cancel":
            await call.cancel()
        case "malformed request":
            await call.send_bytes(b"\xff\xff\xff")
        case "refused request":
            await call.request(add_tunnel={"id": b"short"})
        case "broken dRPC":
            await peer.websocket.write(struct.pack(">BBHII", 0, 0, 0, call.id, 4) + b"\x05\x01\x01\x00")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("how", DEATHS)
async def test_whoever_knew_a_peer_hears_of_its_death_and_nothing_is_left(
    server: CoordinatorServer, role: str, how: str
) -> None:
    async with open_world(server) as world:
        await live_and_die(world, [(role, how)])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives=st.lists(st.tuples(st.sampled_from(ROLES), st.sampled_from(DEATHS)), min_size=2, max_size=6))
def test_several_that_die_one_after_the_other(filled_url: str, lives: list[tuple[str, str]]) -> None:
    # One agent of an id at a time: a second one would take its place, which is another matter.
    agents = [each for each in lives if each[0] == "agent"]
    lives = [each for each in lives if each[0] != "agent"] + agents[:1]

    async def run() -> None:
        config = CoordinatorConfig(listen=(("127.0.0.1", 0),), stun_listen=(), store=filled_url)
        async with trio.open_nursery() as nursery:
            server: CoordinatorServer = await nursery.start(serve_coordinator, config)
            async with open_world(server) as world:
                await live_and_die(world, lives)
            nursery.cancel_scope.cancel()

    trio.run(run)


async def live_and_die(world: World, lives: list[tuple[str, str]]) -> None:
    """All live at the same time, then each dies and is heard of."""
    async with AsyncExitStack() as stack:
        victims = [(how, await live(world, role, stack)) for role, how in lives]
        for how, victim in victims:
            await die(world.server, victim, how)
            update = await victim.watcher.next()
            assert (update.id, update.kind) == (victim.id, DISCONNECTED if how == "goodbye" else LOST)
    await wait_for(lambda: world.left() == world.before)
    world.server.coordinator.check()
