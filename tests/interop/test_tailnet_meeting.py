"""An agent and a client on the genuine layers find each other and exchange packets: the purpose of the coordinator."""

import pytest

from tests.interop.conftest import World
from tests.support.tailnet_peers import (
    AGENT,
    CODE_UNIMPLEMENTED,
    TAILNET,
    Event,
    PeerError,
    TailnetPeer,
    TailnetPeers,
    Update,
    unwire,
)
from tests.support.tailnet_servers import CODER_PREFIX, TAILSCALE_PREFIX, Agent, address

pytestmark = pytest.mark.interop

# Any address: a client makes one up.
CLIENT_ADDRESS = "fd7a:115c:a1e0:4444:8888:1111:2222:3333/128"


async def start_agent(
    program: TailnetPeers, world: World, agent: Agent, name: str = "agent"
) -> tuple[TailnetPeer, Event]:
    """A dialled agent with its coordination stream and its node sent; and that node."""
    peer = program.peer(name)
    await peer.dial_agent(world.server, agent)
    await peer.coordinate()
    return peer, await peer.update(addresses=[address(TAILSCALE_PREFIX, agent.id)], endpoints=["10.0.0.1:1111"])


async def start_client(
    program: TailnetPeers, world: World, agent: Agent, name: str = "client"
) -> tuple[TailnetPeer, Event]:
    """A dialled client of one agent, its node sent; the tunnel is the caller's to open."""
    peer = program.peer(name)
    await peer.dial_client(world.server, world.alice, agent)
    await peer.coordinate()
    return peer, await peer.update(addresses=[CLIENT_ADDRESS], endpoints=["10.0.0.2:2222"])


async def test_nodes_reach_each_other_whole_and_packets_follow(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, agent_node = await start_agent(program, world, target)
    client, client_node = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    assert await client.next_node() == (target.id, agent_node)
    client_id, received = await agent.next_node()
    assert received == client_node
    assert client_id not in (target.id, world.alice.id)
    # Ready for handshake: without it every connection of a genuine client is five seconds slower.
    await agent.ready_for(client_id)
    assert await client.next_update() == Update("READY_FOR_HANDSHAKE", target.id)
    await agent.open_relay()
    await client.open_relay()
    for one, other in ((client, agent), (agent, client)):
        for size in (1, 148, 1280):
            payload = bytes((3 * i + size) % 256 for i in range(size))
            await one.send_packet(other, payload)
            assert await other.packet() == (one.node_key, payload)


async def test_packets_over_the_relay_websocket(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, _ = await start_agent(program, world, target)
    client, _ = await start_client(program, world, target)
    await agent.open_relay(websocket=True)
    await client.open_relay()
    await client.send_packet(agent, b"there")
    assert await agent.packet() == (client.node_key, b"there")
    await agent.send_packet(client, b"back")
    assert await client.packet() == (agent.node_key, b"back")


async def test_client_that_comes_first_waits_for_the_agent(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    client, client_node = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    agent, agent_node = await start_agent(program, world, target)
    assert await client.next_node() == (target.id, agent_node)
    assert (await agent.next_node())[1] == client_node


async def test_later_updates_flow_both_ways(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, _ = await start_agent(program, world, target)
    client, _ = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    await client.next_node()
    await agent.next_node()
    for port in range(5):
        sent = await agent.update(addresses=[address(CODER_PREFIX, target.id)], endpoints=[f"10.0.0.1:{port}"])
        assert (await client.next_node())[1] == sent
        sent = await client.update(addresses=[CLIENT_ADDRESS], endpoints=[f"10.0.0.2:{port}"])
        assert (await agent.next_node())[1] == sent


async def test_every_field_of_a_node_passes_through(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, _ = await start_agent(program, world, target)
    client, _ = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    await agent.next_node()
    await client.next_node()
    sent = await client.update(
        id="-9007199254740993",
        preferred_derp=7,
        derp_latency={"7-v4": 0.25, "7-v6": 1e-9},
        derp_forced_websocket={"7": "status 418"},
        addresses=[CLIENT_ADDRESS, "fd60:627a:a42b::9/128"],
        allowed_ips=[CLIENT_ADDRESS, "fd60:627a:a42b::a/128"],
        endpoints=["[2001:db8::1]:41641", "192.0.2.1:41641"],
        short_description="laptop",
        hostname="alice-laptop",
    )
    assert (await agent.next_node())[1] == sent


async def test_an_equal_node_is_not_sent_again(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, _ = await start_agent(program, world, target)
    client, _ = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    _, first = await client.next_node()
    await agent.send(update_self={"node": first})
    await agent.send(update_self={"node": first})
    changed = first | {"endpoints": ["10.9.9.9:9"]}
    await agent.send(update_self={"node": changed})
    assert (await client.next_node())[1] == changed


async def test_two_clients_of_one_agent_see_the_agent_and_not_each_other(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, agent_node = await start_agent(program, world, target)
    one, _ = await start_client(program, world, target, "one")
    two, _ = await start_client(program, world, target, "two")
    for client in (one, two):
        await client.add_tunnel(target.id)
        assert await client.next_node() == (target.id, agent_node)
    first, _ = await agent.next_node()
    second, _ = await agent.next_node()
    assert first != second
    await one.update(addresses=[CLIENT_ADDRESS], endpoints=["10.0.0.3:3"])
    assert (await agent.next_node())[0] == first
    changed = await agent.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=["10.0.0.1:2"])
    assert await two.next_node() == (target.id, changed)  # and nothing of `one` before it


async def test_one_client_of_many_agents(world: World, program: TailnetPeers) -> None:
    targets = [world.agent() for _ in range(3)]
    nodes = {}
    for index, target in enumerate(targets):
        _, nodes[target.id] = await start_agent(program, world, target, f"agent{index}")
    client = program.peer("client")
    await client.dial_tailnet(world.server, world.alice)
    await client.coordinate()
    await client.update(addresses=[CLIENT_ADDRESS])
    for target in targets:
        await client.add_tunnel(target.id)
    assert dict([await client.next_node() for _ in targets]) == nodes


@pytest.mark.parametrize("minor", [0, 1, 3, 4, 6, 11])
async def test_agent_boots_at_every_minor(world: World, program: TailnetPeers, minor: int) -> None:
    target = world.agent()
    agent = program.peer("agent")
    await agent.dial_agent(world.server, target, version=f"2.{minor}")
    booted = await agent.boot(minor=minor)
    manifest = booted["manifest"]
    assert unwire(manifest["agent_id"]) == target.id
    assert unwire(manifest["workspace_id"]) == target.workspace_id
    assert manifest["agent_name"] == target.name
    assert manifest["workspace_name"] == target.workspace_name
    assert manifest["owner_username"] == "alice"
    assert {"GetManifest", "UpdateStartup", "UpdateStats", "BatchCreateLogs"} <= set(booted["answered"])
    assert (await agent.message("derp_maps"))["regions"]


async def test_agent_shuts_down_as_it_does_and_the_server_ends_the_stream(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent = program.peer("agent")
    await agent.dial_agent(world.server, target)
    await agent.boot()
    client, _ = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    assert (await client.next_update()).kind == "NODE"
    await agent.ask("shutdown")
    while (update := await client.next_update()).kind == "NODE":
        pass
    assert update.kind == "DISCONNECTED"
    await agent.wait_ended()


async def test_unknown_rpcs_are_code_12_and_harm_nothing(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, _ = await start_agent(program, world, target)
    for rpc in (TAILNET + "NoSuch", AGENT + "NoSuch", "/coder.other.v9.Other/Get", "no slash at all", ""):
        with pytest.raises(PeerError) as caught:
            await agent.call(rpc)
        assert caught.value.code == CODE_UNIMPLEMENTED, rpc
    client, _ = await start_client(program, world, target)
    # A client's channel has no agent service: its RPCs are as unknown as any.
    with pytest.raises(PeerError) as caught:
        await client.call(AGENT + "GetManifest")
    assert caught.value.code == CODE_UNIMPLEMENTED
    await client.add_tunnel(target.id)
    assert (await client.next_update()).kind == "NODE"


async def test_telemetry_is_taken(world: World, program: TailnetPeers) -> None:
    client = program.peer("client")
    await client.dial_client(world.server, world.alice, world.agent(), version="2.2")
    event = {"application": "ssh", "status": "CONNECTED", "node_id_self": "12", "p2p_latency": "0.005s"}
    assert await client.call(TAILNET + "PostTelemetry", {"events": [event, {}]}) == {}


async def test_the_map_names_the_embedded_relay(world: World, program: TailnetPeers) -> None:
    client = program.peer("client")
    await client.dial_client(world.server, world.alice, world.agent())
    await client.open(TAILNET + "StreamDERPMaps", "maps", {})
    regions = (await client.message("maps"))["regions"]
    assert [region["embedded_relay"] for region in regions.values() if region.get("embedded_relay")] == [True]


async def test_a_session_answers_pings(world: World, program: TailnetPeers) -> None:
    agent, _ = await start_agent(program, world, world.agent())
    assert (await agent.ask("ping"))["seconds"] >= 0
