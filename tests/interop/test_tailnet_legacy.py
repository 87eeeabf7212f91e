"""Version 1: agents and clients that speak JSON nodes without RPC, with each other and with new ones."""

import pytest

from tests.interop.conftest import World
from tests.interop.test_tailnet_meeting import CLIENT_ADDRESS, start_agent, start_client
from tests.support.tailnet_peers import Event, TailnetPeer, TailnetPeers
from tests.support.tailnet_servers import TAILSCALE_PREFIX, Agent, address

pytestmark = pytest.mark.interop


async def legacy_node(peer: TailnetPeer) -> Event:
    """The one node of the next array."""
    event = await peer.program.next(peer.name, "nodes")
    (node,) = event["nodes"]
    assert isinstance(node, dict)
    return node


async def legacy_send(peer: TailnetPeer, addresses: list[str], port: int) -> Event:
    sent: Event = (await peer.ask("legacy_send", addresses=addresses, endpoints=[f"10.0.0.9:{port}"]))["node"]
    return sent


def own(agent: Agent) -> list[str]:
    return [address(TAILSCALE_PREFIX, agent.id)]


async def test_an_old_agent_and_an_old_client_meet(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, client = program.peer("agent"), program.peer("client")
    await agent.dial_legacy_agent(world.server, target)
    agent_node = await legacy_send(agent, own(target), 1)
    await client.dial_legacy_client(world.server, world.alice, target)
    assert await legacy_node(client) == agent_node  # the tunnel follows from the URL
    client_node = await legacy_send(client, [CLIENT_ADDRESS], 2)
    assert await legacy_node(agent) == client_node
    changed = await legacy_send(agent, own(target), 3)
    assert await legacy_node(client) == changed
    await agent.open_relay()
    await client.open_relay()
    await client.send_packet(agent, b"old friends")
    assert await agent.packet() == (client.node_key, b"old friends")


async def test_an_old_client_meets_a_new_agent(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, agent_node = await start_agent(program, world, target)
    client = program.peer("client")
    await client.dial_legacy_client(world.server, world.alice, target)
    node = await legacy_node(client)
    assert (node["key"], node["disco"]) == (agent.node_key, agent_node["disco"])
    assert node["addresses"] == own(target)
    sent = await legacy_send(client, [CLIENT_ADDRESS], 4)
    _, received = await agent.next_node()
    assert received["disco"] == sent["disco"]
    assert received["endpoints"] == sent["endpoints"]
    # Nothing can be taken back in version 1; the new side is told in its own words.
    await client.hang_up()
    assert (await agent.next_update()).kind == "LOST"


async def test_a_new_client_meets_an_old_agent(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent = program.peer("agent")
    await agent.dial_legacy_agent(world.server, target)
    sent = await legacy_send(agent, own(target), 5)
    client, client_node = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    ident, node = await client.next_node()
    assert (ident, node["disco"], node["preferred_derp"]) == (target.id, sent["disco"], 999)
    assert (await legacy_node(agent))["disco"] == client_node["disco"]


@pytest.mark.parametrize("door", ["agent", "client"])
async def test_garbage_ends_an_old_connection(world: World, program: TailnetPeers, door: str) -> None:
    target = world.agent()
    peer = program.peer("peer")
    if door == "agent":
        await peer.dial_raw(world.server, target.token, "/api/v2/workspaceagents/me/coordinate", version=None)
    else:
        path = f"/api/v2/workspaceagents/{target.id}/coordinate"
        await peer.dial_raw(world.server, world.alice.token, path, version=None)
    await peer.write(b'{"key": 7} nonsense')
    await peer.wait_raw_closed()


async def test_an_old_agent_with_foreign_addresses_is_put_out(world: World, program: TailnetPeers) -> None:
    agent = program.peer("agent")
    await agent.dial_legacy_agent(world.server, world.agent())
    await legacy_send(agent, own(world.agent()), 6)
    await agent.wait_closed()
