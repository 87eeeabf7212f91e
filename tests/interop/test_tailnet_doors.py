"""Who gets in at the three doors and as whom: versions, tokens, resume tokens; tunnels and addresses refused."""

import base64
import json
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.interop.conftest import World
from tests.interop.test_tailnet_meeting import CLIENT_ADDRESS, start_agent, start_client
from tests.support.tailnet_peers import AGENT, TAILNET, Event, PeerError, TailnetPeer, TailnetPeers, unwire, wire
from tests.support.tailnet_servers import CODER_PREFIX, TAILSCALE_PREFIX, Agent, address

pytestmark = pytest.mark.interop

LEGACY_ADDRESS = "fd7a:115c:a1e0:49d6:b259:b7ac:b1b2:48f4/128"
# Genuine SDKs give up for good on these statuses, and retry on all others.
PERMANENT = {400, 404, 409, 500}


async def refused(dialling: Coroutine[Any, Any, None]) -> PeerError:
    """The refusal of a dial, which must come."""
    with pytest.raises(PeerError) as caught:
        await dialling
    return caught.value


@pytest.mark.parametrize("version", ["2.99", "3.0", "1.0", "two", "2", "-2.0"])
async def test_versions_not_served_are_400_with_the_field(world: World, program: TailnetPeers, version: str) -> None:
    peer, target = program.peer("peer"), world.agent()
    for dialling in (
        peer.dial_agent(world.server, target, version=version),
        peer.dial_client(world.server, world.alice, target, version=version),
        peer.dial_tailnet(world.server, world.alice, version=version),
    ):
        error = await refused(dialling)
        assert error.status == 400
        body = error.json()
        assert body["message"] == "Unknown or unsupported API version"
        assert [each["field"] for each in body["validations"]] == ["version"]


async def test_without_a_version_the_rpc_doors_serve_2_0(world: World, program: TailnetPeers) -> None:
    agent, client = program.peer("agent"), program.peer("client")
    await agent.dial_agent(world.server, world.agent(), version=None)
    await agent.boot(minor=0)
    await client.dial_tailnet(world.server, world.alice, version=None)
    assert (await client.ask("ping"))["seconds"] >= 0


@pytest.mark.parametrize("token_in", ["cookie", "header", "bearer", "query", "access_token"])
async def test_tokens_are_found_where_peers_put_them(world: World, program: TailnetPeers, token_in: str) -> None:
    target = world.agent()
    agent, client = program.peer("agent"), program.peer("client")
    await agent.dial_agent(world.server, target, token_in=token_in)
    await client.dial_client(world.server, world.alice, target, token_in=token_in)


@pytest.mark.parametrize(
    "token", ["", "nonsense", "00000000-0000-4000-8000-000000000000", "0123456789-0123456789012345678901"]
)
async def test_bad_tokens_are_401_and_not_permanent(world: World, program: TailnetPeers, token: str) -> None:
    peer, target = program.peer("peer"), world.agent()
    for dialling in (
        peer.dial_agent(world.server, target, token=token),
        peer.dial_client(world.server, world.alice, target, token=token),
        peer.dial_tailnet(world.server, world.alice, token=token),
    ):
        error = await refused(dialling)
        assert error.status == 401
        assert error.status not in PERMANENT
        assert error.json()["message"]


async def test_tokens_of_the_other_kind_open_nothing(world: World, program: TailnetPeers) -> None:
    peer, target = program.peer("peer"), world.agent()
    assert (await refused(peer.dial_agent(world.server, target, token=world.alice.token))).status == 401
    assert (await refused(peer.dial_client(world.server, world.alice, target, token=target.token))).status == 401


async def test_agents_of_others_are_not_found(world: World, program: TailnetPeers) -> None:
    peer = program.peer("peer")
    error = await refused(peer.dial_client(world.server, world.alice, world.bobs_agent))
    assert error.status == 404
    await peer.dial_client(world.server, world.bob, world.bobs_agent)


# Resume tokens.


async def resume_token(client: TailnetPeer) -> Event:
    return await client.call(TAILNET + "RefreshResumeToken")


async def test_a_resume_token_keeps_the_id(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, _ = await start_agent(program, world, target)
    client, _ = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    await client.next_node()
    ident, _ = await agent.next_node()
    given = await resume_token(client)
    assert float(given["refresh_in"].removesuffix("s")) > 0
    assert given["expires_at"]
    if "peer_id" in given:
        assert unwire(given["peer_id"]) == ident
    await client.hang_up()
    assert (await agent.next_update()).kind == "LOST"
    again = program.peer("again")
    await again.dial_client(world.server, world.alice, target, query={"resume_token": given["token"]})
    await again.coordinate()
    node = await again.update(addresses=[CLIENT_ADDRESS])
    await again.add_tunnel(target.id)
    assert await agent.next_node() == (ident, node)


async def test_a_resumed_client_takes_over_from_itself(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, _ = await start_agent(program, world, target)
    client, _ = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    ident, _ = await agent.next_node()
    token = (await resume_token(client))["token"]
    again = program.peer("again")
    await again.dial_client(world.server, world.alice, target, query={"resume_token": token})
    await again.coordinate()
    node = await again.update(addresses=[CLIENT_ADDRESS], endpoints=["10.5.5.5:5"])
    assert await agent.next_node() == (ident, node)  # the tunnel is still there, and nobody was lost
    await client.wait_ended()


async def test_forged_resume_tokens_are_refused_by_their_field(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    one, _ = await start_client(program, world, target, "one")
    two, _ = await start_client(program, world, target, "two")
    mine, theirs = (await resume_token(one))["token"], (await resume_token(two))["token"]
    forgeries = ["x", "a.b.c", mine[:-4] + ("AAAA" if mine[-4:] != "AAAA" else "BBBB"), mine + "A", mine[1:]]
    if mine.count(".") == 2:
        head, body, signature = mine.split(".")
        other_body = theirs.split(".")[1]
        unsigned = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).rstrip(b"=").decode()
        forgeries += [f"{head}.{other_body}.{signature}", f"{unsigned}.{body}.", f"{head}.{body}."]
    for forged in forgeries:
        again = program.peer("again")
        error = await refused(again.dial_client(world.server, world.alice, target, query={"resume_token": forged}))
        assert error.status == 401, forged
        assert [each["field"] for each in error.json()["validations"]] == ["resume_token"]


async def test_the_token_rpc_is_served_at_the_first_version(world: World, program: TailnetPeers) -> None:
    # One client build dials first with 2.0 for nothing but this RPC, then closes 1000.
    client = program.peer("client")
    await client.dial_tailnet(world.server, world.alice, version="2.0")
    token = (await resume_token(client))["token"]
    await client.hang_up("websocket")
    again = program.peer("again")
    await again.dial_tailnet(world.server, world.alice, query={"resume_token": token})


# What a peer may ask once inside.


async def assert_put_out(peer: TailnetPeer) -> None:
    """The coordination stream ends; an error may be said before, updates not."""
    for message in await peer.wait_ended():
        assert "peer_updates" not in message
        assert message["error"].startswith(("authorization", "malformed request")), message


async def test_an_agent_opens_no_tunnel(world: World, program: TailnetPeers) -> None:
    agent, _ = await start_agent(program, world, world.agent())
    await agent.add_tunnel(world.agent().id)
    await assert_put_out(agent)


async def test_a_client_reaches_the_agent_of_its_door_only(world: World, program: TailnetPeers) -> None:
    target, other = world.agent(), world.agent()
    bystander, _ = await start_agent(program, world, other, "bystander")
    client, _ = await start_client(program, world, target)
    await client.add_tunnel(other.id)
    await assert_put_out(client)
    allowed, _ = await start_client(program, world, other, "allowed")
    await allowed.add_tunnel(other.id)
    ident, _ = await bystander.next_node()  # the first that it hears of is the one that may
    assert ident != client.id


async def test_a_client_of_many_reaches_no_strangers(world: World, program: TailnetPeers) -> None:
    client = program.peer("client")
    await client.dial_tailnet(world.server, world.alice)
    await client.coordinate()
    await client.add_tunnel(world.bobs_agent.id)
    await assert_put_out(client)


async def test_a_client_is_not_ready_for_handshake(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    await start_agent(program, world, target)
    client, _ = await start_client(program, world, target)
    await client.ready_for(target.id)
    await assert_put_out(client)


@pytest.mark.parametrize("bad", ["fd7a:115c:a1e0::/48", "fd7a:115c:a1e0::1/127", "not an address"])
async def test_addresses_that_are_not_single_put_anyone_out(world: World, program: TailnetPeers, bad: str) -> None:
    target = world.agent()
    agent, client = program.peer("agent"), program.peer("client")
    await agent.dial_agent(world.server, target)
    await client.dial_client(world.server, world.alice, target)
    for peer in (agent, client):
        await peer.coordinate()
        await peer.update(addresses=[bad])
        await assert_put_out(peer)


async def test_an_agent_has_its_own_addresses_only(world: World, program: TailnetPeers) -> None:
    target, other = world.agent(), world.agent()
    agent = program.peer("agent")
    await agent.dial_agent(world.server, target)
    await agent.coordinate()
    mine = [address(TAILSCALE_PREFIX, target.id), address(CODER_PREFIX, target.id), LEGACY_ADDRESS]
    await agent.update(addresses=mine)
    await agent.update(addresses=[*mine, address(TAILSCALE_PREFIX, other.id)])
    await assert_put_out(agent)


async def test_the_whole_request_is_judged_before_any_of_it_is_done(world: World, program: TailnetPeers) -> None:
    target, other = world.agent(), world.agent()
    agent, _ = await start_agent(program, world, target)
    client, node = await start_client(program, world, target)
    await client.add_tunnel(target.id)
    await client.next_node()
    await agent.next_node()
    # The update stands before the tunnel in the order of work, and must not be seen all the same.
    changed = node | {"endpoints": ["10.6.6.6:6"]}
    await client.send(update_self={"node": changed}, add_tunnel={"id": wire(other.id)})
    await assert_put_out(client)
    assert (await agent.next_update()).kind == "LOST"


@pytest.mark.parametrize("raw_id", [b"", b"short", bytes(17)])
async def test_ids_of_another_length_put_a_client_out(world: World, program: TailnetPeers, raw_id: bytes) -> None:
    client, _ = await start_client(program, world, world.agent())
    await client.send(add_tunnel={"id": base64.b64encode(raw_id).decode()})
    await assert_put_out(client)


# Workspaces and maps.


def owned(update: Event) -> dict[str, str]:
    return {each["name"]: each["workspace_id"] for each in update["upserted_agents"]}


async def test_workspace_updates_begin_with_everything(world: World, program: TailnetPeers) -> None:
    client = program.peer("client")
    await client.dial_tailnet(world.server, world.bob)
    await client.open(TAILNET + "WorkspaceUpdates", "workspaces", {"workspace_owner_id": wire(world.bob.id)})
    first = await client.message("workspaces")
    agent: Agent = world.bobs_agent
    assert owned(first) == {agent.name: wire(agent.workspace_id)}
    assert [(each["id"], each["name"]) for each in first["upserted_workspaces"]] == [
        (wire(agent.workspace_id), agent.workspace_name)
    ]


async def test_workspaces_of_others_are_not_told(world: World, program: TailnetPeers) -> None:
    client = program.peer("client")
    await client.dial_tailnet(world.server, world.alice)
    await client.open(TAILNET + "WorkspaceUpdates", "workspaces", {"workspace_owner_id": wire(world.bob.id)})
    for message in await client.wait_ended("workspaces"):
        assert "upserted_agents" not in message


async def test_a_changed_map_reaches_agents_and_clients(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, client = program.peer("agent"), program.peer("client")
    await agent.dial_agent(world.server, target)
    await client.dial_client(world.server, world.alice, target)
    before = {}
    for peer in (agent, client):
        await peer.open(TAILNET + "StreamDERPMaps", "maps", {})
        before = (await peer.message("maps"))["regions"]
    node = {"Name": "7a", "RegionID": 7, "HostName": "relay.example", "STUNPort": -1, "DERPPort": 8443}
    region = {"RegionID": 7, "RegionCode": "far", "RegionName": "Far Away", "Nodes": [node]}
    world.server.write_derp_map({"7": region})
    for peer in (agent, client):
        after = (await peer.message("maps"))["regions"]
        added = after.pop("7")
        assert after == before
        assert (added["region_code"], added["nodes"][0]["host_name"]) == ("far", "relay.example")
        assert (added["nodes"][0]["stun_port"], added["nodes"][0]["derp_port"]) == (-1, 8443)
    world.server.write_derp_map({})
    for peer in (agent, client):
        assert (await peer.message("maps"))["regions"] == before


async def test_a_region_is_dropped_by_null(world: World, program: TailnetPeers) -> None:
    client = program.peer("client")
    await client.dial_client(world.server, world.alice, world.agent())
    await client.open(TAILNET + "StreamDERPMaps", "maps", {})
    before = (await client.message("maps"))["regions"]
    node = {"Name": "8a", "RegionID": 8, "HostName": "relay.example"}
    region = {"RegionID": 8, "RegionCode": "eight", "RegionName": "Eight", "Nodes": [node]}
    world.server.write_derp_map({"8": region})
    assert set((await client.message("maps"))["regions"]) == {*before, "8"}
    world.server.write_derp_map({"8": region, "999": None})
    message = await client.message("maps")
    assert "8" in message["regions"]
    assert "999" not in message["regions"]
    assert "home_params" in message  # a genuine client does not look whether it is there
    world.server.write_derp_map({})
    assert (await client.message("maps"))["regions"] == before


async def test_other_roles_of_an_agents_token_are_served(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    side = program.peer("side")
    await side.dial_agent(world.server, target, query={"role": "logstream-kube"})
    assert unwire((await side.call(AGENT + "GetManifest"))["agent_id"]) == target.id
