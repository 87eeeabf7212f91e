"""Two peers of ours meet through a real coordinator, and hear how the other left."""

import pytest
import trio

from derp.keys import NodePrivate
from derp.map import DERPMap, DERPNode, DERPRegion
from tailnet.client.coordination import (
    AGENT_DOOR,
    PeerUpdate,
    as_reached,
    client_door,
    make_node,
    open_coordination,
    own_id,
)
from tailnet.client.rpc import open_rpc_client
from tailnet.errors import RpcError
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer
from tailnet.types import TAILSCALE_SERVICE_PREFIX
from tests.support.seeds import agent_token, peer_id, user_token
from tests.tailnet.client.test_rpc import url_of

MAIN = peer_id("main")
Kind = tailnet.CoordinateResponse.PeerUpdate.Kind


def test_a_node_has_the_address_of_its_id() -> None:
    private = NodePrivate.generate()
    node = make_node(private, MAIN, home_region=7)
    assert node.addresses == node.allowed_ips == [f"{MAIN.address(TAILSCALE_SERVICE_PREFIX)}/128"]
    assert convert.node_key(node.key) == private.public()
    assert node.preferred_derp == 7


@pytest.mark.parametrize("orderly", [True, False])
async def test_an_agent_and_a_client_meet_and_part(server: CoordinatorServer, orderly: bool) -> None:
    url = url_of(server)
    with trio.fail_after(60):
        async with open_rpc_client(url, AGENT_DOOR, agent_token("main")) as agent:
            at_agent = await open_coordination(agent)
            agents_node = make_node(NodePrivate.generate(), MAIN, 999)
            await at_agent.announce(agents_node)
            async with open_rpc_client(url, client_door(MAIN), user_token("alice")) as client:
                client_id = await own_id(client)
                at_client = await open_coordination(client)
                await at_client.add_tunnel(MAIN)
                update: PeerUpdate = await at_client.receive()
                assert (update.id, update.kind, update.node) == (MAIN, Kind.NODE, agents_node)
                node = make_node(NodePrivate.generate(), client_id, 999)
                await at_client.announce(node)
                update = await at_agent.receive()
                assert (update.id, update.kind, update.node) == (client_id, Kind.NODE, node)
                if orderly:
                    await at_client.leave()
                    update = await at_agent.receive()
            if not orderly:
                update = await at_agent.receive()
    assert (update.id, update.kind) == (client_id, Kind.DISCONNECTED if orderly else Kind.LOST)


async def test_what_the_coordinator_refuses(server: CoordinatorServer) -> None:
    with trio.fail_after(60):
        async with open_rpc_client(url_of(server), client_door(MAIN), user_token("alice")) as client:
            coordination = await open_coordination(client)
            await coordination.add_tunnel(peer_id("web"))
            with pytest.raises(RpcError):
                await coordination.receive()


@pytest.mark.parametrize(
    ("url", "node"),
    [
        ("http://relay.example:3000", ("relay.example", 3000, True, "192.0.2.1", "pin")),
        ("https://relay.example", ("relay.example", 443, False, "192.0.2.1", "pin")),
        ("http://127.0.0.1:9", ("127.0.0.1", 9, True, "", "")),
        ("https://[::1]:9/", ("::1", 9, False, "", "")),
    ],
)
def test_the_embedded_relay_is_where_its_coordinator_is(url: str, node: tuple[str, int, bool, str, str]) -> None:
    given = DERPNode("1a", 1, "relay.example", ipv4="192.0.2.1", cert_name="pin", derp_port=7, force_http=True)
    stun = DERPNode("1b", 1, "stun.example", stun_only=True)
    regions = {1: DERPRegion(1, embedded_relay=True, nodes=(given, stun)), 2: DERPRegion(2, nodes=(given,))}
    taken = as_reached(DERPMap(regions), url).regions
    relay, other = taken[1].nodes
    assert (relay.host_name, relay.derp_port, relay.force_http, relay.ipv4, relay.cert_name) == node
    assert (other, taken[2]) == (stun, regions[2])


@pytest.mark.parametrize(
    ("url", "port"), [("https://a.example:7", 7), ("https://a.example", 0), ("https://b.example:7", 0)]
)
def test_quic_of_the_embedded_relay_is_not_looked_for_behind_a_proxy(url: str, port: int) -> None:
    given = DERPNode("1a", 1, "a.example", derp_port=7, quic_port=7)
    taken = as_reached(DERPMap({1: DERPRegion(1, embedded_relay=True, nodes=(given,))}), url)
    assert taken.regions[1].nodes[0].quic_port == port
