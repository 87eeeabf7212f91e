"""How peers leave, return and replace each other, as genuine peers see it.

LOST keeps a live session going for 15 minutes, DISCONNECTED cuts it at once: to mix them up hurts users.
"""

from pathlib import Path

import pytest

from tests.interop.conftest import World, make_seed
from tests.interop.test_tailnet_meeting import CLIENT_ADDRESS, start_agent, start_client
from tests.support.tailnet_peers import TAILNET, Event, TailnetPeer, TailnetPeers, Update
from tests.support.tailnet_servers import TAILSCALE_PREFIX, Agent, ServerKind, address, running_server

pytestmark = pytest.mark.interop


async def meet(program: TailnetPeers, world: World, target: Agent) -> tuple[TailnetPeer, TailnetPeer, Event, Event]:
    """An agent and a client that have each other's nodes: (agent, client, agent's node, client's node)."""
    agent, agent_node = await start_agent(program, world, target)
    client, client_node = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    assert await client.next_node() == (target.id, agent_node)
    client.id, received = await agent.next_node()
    assert received == client_node
    return agent, client, agent_node, client_node


@pytest.mark.parametrize("how", ["tcp", "websocket", "yamux"])
async def test_a_peer_that_just_goes_is_lost(world: World, program: TailnetPeers, how: str) -> None:
    target = world.agent()
    agent, client, _, _ = await meet(program, world, target)
    await agent.hang_up(how)
    update = await client.next_update()
    assert (update.kind, update.id, update.node) == ("LOST", target.id, None)
    assert update.reason


@pytest.mark.parametrize("how", ["tcp", "websocket", "yamux"])
async def test_a_client_that_just_goes_is_lost(world: World, program: TailnetPeers, how: str) -> None:
    agent, client, _, _ = await meet(program, world, world.agent())
    await client.hang_up(how)
    update = await agent.next_update()
    assert (update.kind, update.id) == ("LOST", client.id)


async def test_a_cancelled_coordination_stream_is_a_loss_and_the_session_lives(
    world: World, program: TailnetPeers
) -> None:
    agent, client, _, _ = await meet(program, world, world.agent())
    await client.ask("close_stream", stream="coordinate")
    assert (await agent.next_update()).kind == "LOST"
    assert (await client.ask("ping"))["seconds"] >= 0


async def test_a_graceful_disconnect_is_said_so_and_ends_the_stream(world: World, program: TailnetPeers) -> None:
    agent, client, _, _ = await meet(program, world, world.agent())
    await client.disconnect()
    update = await agent.next_update()
    assert (update.kind, update.id) == ("DISCONNECTED", client.id)
    await client.wait_ended()
    assert (await client.ask("ping"))["seconds"] >= 0


@pytest.mark.parametrize("graceful", [True, False])
async def test_a_returning_agent_is_announced_again(world: World, program: TailnetPeers, graceful: bool) -> None:
    target = world.agent()
    agent, client, agent_node, client_node = await meet(program, world, target)
    if graceful:
        await agent.disconnect()
        await agent.wait_ended()
    else:
        await agent.hang_up()
    assert (await client.next_update()).kind == ("DISCONNECTED" if graceful else "LOST")
    again = program.peer("again")
    await again.dial_agent(world.server, target)
    await again.coordinate()
    assert await again.next_node() == (client.id, client_node)
    # Its node did not change, and is news all the same to who was told that it is gone.
    await again.send(update_self={"node": agent_node})
    assert await client.next_node() == (target.id, agent_node)
    # What came with the first batch is known too: the same again is no news.
    await client.send(update_self={"node": client_node})
    changed = client_node | {"endpoints": ["10.8.8.8:8"]}
    await client.send(update_self={"node": changed})
    assert await again.next_node() == (client.id, changed)


async def test_who_was_told_of_a_loss_is_not_told_again(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, client, agent_node, _ = await meet(program, world, target)
    await agent.hang_up()
    assert (await client.next_update()).kind == "LOST"
    # It comes and goes without a node: nothing to tell.
    silent = program.peer("silent")
    await silent.dial_agent(world.server, target)
    await silent.coordinate()
    assert (await silent.next_node())[0] == client.id
    await silent.disconnect()
    await silent.wait_ended()
    again = program.peer("again")
    await again.dial_agent(world.server, target)
    await again.coordinate()
    await again.send(update_self={"node": agent_node})
    assert await client.next_node() == (target.id, agent_node)


async def test_a_client_that_left_gracefully_has_no_tunnels_when_it_returns(
    world: World, program: TailnetPeers
) -> None:
    target = world.agent()
    agent, client, _, _ = await meet(program, world, target)
    token = (await client.call(TAILNET + "RefreshResumeToken"))["token"]
    await client.disconnect()
    assert (await agent.next_update()).kind == "DISCONNECTED"
    await client.wait_ended()
    again = program.peer("again")
    await again.dial_client(world.server, world.alice, target, query={"resume_token": token})
    await again.coordinate()
    await again.update(addresses=[CLIENT_ADDRESS], endpoints=["10.0.0.3:1"])
    node = await again.update(addresses=[CLIENT_ADDRESS], endpoints=["10.0.0.3:2"])
    await again.add_tunnel(target.id)
    assert await agent.next_node() == (client.id, node)


async def test_takeover_ends_the_old_stream_and_loses_nobody(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    old, client, old_node, client_node = await meet(program, world, target)
    new = program.peer("new")
    await new.dial_agent(world.server, target)
    await new.coordinate()
    node = await new.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=["10.7.7.7:7"])
    # The client hears of the new node and of no loss; the new connection hears of the client.
    assert await client.next_node() == (target.id, node)
    assert node["key"] != old_node["key"]
    assert await new.next_node() == (client.id, client_node)
    for message in await old.wait_ended():
        assert "peer_updates" not in message
    # The old connection's end takes nothing from the new one.
    await old.hang_up()
    changed = await client.update(addresses=[CLIENT_ADDRESS], endpoints=["10.0.0.2:9"])
    assert await new.next_node() == (client.id, changed)


async def test_a_removed_tunnel_disconnects_both(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, client, _, _ = await meet(program, world, target)
    await client.remove_tunnel(target.id)
    for peer, other in ((agent, client.id), (client, target.id)):
        update = await peer.next_update()
        assert (update.kind, update.id) == ("DISCONNECTED", other)
    # Nothing flows any more: the next thing that each hears is of the new tunnel.
    await agent.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=["10.0.0.1:5"])
    last = await agent.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=["10.0.0.1:6"])
    assert client.id is not None
    await agent.ready_for(client.id)  # no tunnel: an error, which also says that both updates were taken
    assert (await agent.next_update()).kind == "ERROR"
    await client.add_tunnel(target.id)
    assert await client.next_node() == (target.id, last)


async def test_ready_without_a_tunnel_is_an_error_and_nothing_ends(world: World, program: TailnetPeers) -> None:
    target, stranger = world.agent(), world.agent()
    agent, client, _, _ = await meet(program, world, target)
    await agent.ready_for(stranger.id)
    error = await agent.next_update()
    assert error.kind == "ERROR"
    assert f'you do not share a tunnel with "{stranger.id}"' in error.reason
    assert client.id is not None
    await agent.ready_for(client.id)
    assert await client.next_update() == Update("READY_FOR_HANDSHAKE", target.id)


async def test_a_stopping_server_says_lost_and_never_disconnected(
    kind: ServerKind, program: TailnetPeers, tmp_path: Path
) -> None:
    seed = make_seed()
    with running_server(kind, tmp_path, seed) as server:
        world = World(server, seed.users[0], seed.users[1], seed.agents[0], iter(seed.agents[1:]))
        agent, client, _, _ = await meet(program, world, world.agent())
        await client.open(TAILNET + "StreamDERPMaps", "maps", {})
        await client.message("maps")
        server.terminate()
        for peer in (agent, client):
            update = await peer.next_update()
            assert update.kind == "LOST"
            for message in await peer.wait_ended():
                assert all(each["kind"] == "LOST" for each in message.get("peer_updates", []))
            await peer.wait_closed()
