"""Why something does not arrive: each way to name the two, with and without a relay."""

from collections.abc import Iterator
from typing import Any

import pytest

from derp.close_reason import CloseReason
from derp.keys import NodePrivate
from derp.map import DERPRegion
from derp.server.lobby import Lobby
from derp.server.relay import Relay
from derp.transport.reactor import Reactor
from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.messages import Request
from tailnet.coordinator.nodes import Node
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.inspection import Inspection
from tailnet.services.region_load import RegionLoads
from tailnet.services.why import Why
from tailnet.types import TAILSCALE_SERVICE_PREFIX
from tests.derp.server.world import relay_config
from tests.support.seeds import peer_id

MAIN, CLIENT, NOBODY = peer_id("main"), peer_id("a client"), peer_id("nobody")
KEY = NodePrivate(b"k" * 32).public()
NOW = 100.0


class World:
    """An agent that sent its node, a client with a tunnel to it that did not, and a relay where nobody is."""

    def __init__(self) -> None:
        self.coordinator: Coordinator[Any] = Coordinator()
        agent, client = object(), object()
        self.coordinator.handle_connect(MAIN, AgentPolicy(MAIN), agent, 10.0)
        self.coordinator.handle_connect(CLIENT, ClientPolicy(MAIN), client, 20.0)
        self.coordinator.handle_request(client, Request(add_tunnel=bytes(MAIN)), 30.0)
        address = f"{MAIN.address(TAILSCALE_SERVICE_PREFIX)}/128"
        raw = tailnet.Node(preferred_derp=999, derp_latency={"999-v4": 0.02, "999-v6": 0.01, "1-v4": 0.03})
        node = Node(raw.SerializeToString(), b"np" + KEY.raw, "discokey:" + "ab" * 32, 999, (address,), (address,))
        self.coordinator.handle_request(agent, Request(node=node), 40.0)
        self.reactor = Reactor(clock=lambda: NOW)
        config = relay_config()
        self.relay = Relay(config, self.reactor, Lobby(self.reactor, config))
        maps = DerpMaps([], DERPRegion(999, "embedded", "Embedded relay"), scores={999: 4.0})
        inspection = Inspection(self.coordinator, maps, lambda: NOW, lambda: ())
        self.loads = RegionLoads(maps, (999,))
        self.why = Why(inspection, self.relay, self.loads)
        self.without_relay = Why(inspection, None, self.loads)

    def ask(self, **asked: str) -> list[str]:
        names = {"source": "from", "target": "to", "key": "key"}
        return self.why.answer({names[name]: text for name, text in asked.items()}).splitlines()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for wire in tuple(made.reactor.wires):
        made.reactor.close(wire, CloseReason.STOPPED)
    made.reactor._poller.close()


def test_two_peers_are_explained_by_the_graph_and_then_by_the_relay(world: World) -> None:
    lines = world.ask(source=str(CLIENT), target=str(MAIN))
    assert f"{CLIENT} is connected as client since 80 s." in lines
    assert any(line.startswith(f"So {CLIENT} has been told {MAIN}'s node") for line in lines)
    assert f"{MAIN} has the key {KEY}." in lines
    assert lines[-1] == "Of packets nothing can be said: whoever has sent no node has no key here."


def test_one_peer_and_what_the_relay_has_of_its_key(world: World) -> None:
    lines = world.ask(key=str(MAIN).upper())
    assert lines[0] == f"{MAIN} is connected as agent since 90 s."
    assert lines[1] == "It has 0 tunnels to others, 1 have one to it."
    assert lines[2] == "It sent its node 60 s ago, with relay region 999 as its home; 1 peers have been told."
    assert lines[3] == f"{MAIN} has the key {KEY}."
    assert lines[4] == (
        "Its home, by what it measured and the map of now: region 999 at 10.0 ms x 4 = 40.0 ms; region 1 at 30.0 ms "
        "looks nearer, but not by 10 ms and a third: it stays."
    )
    assert lines[5] == "On the relay of this server:"
    assert "is not here" in lines[6]


def test_a_peer_without_a_node_and_one_that_is_not_here(world: World) -> None:
    assert "It has sent no node yet, so nobody is told of it." in world.ask(key=str(CLIENT))
    assert world.ask(key=str(NOBODY))[0] == f"{NOBODY} is not connected here."


@pytest.mark.parametrize("text", [str(KEY), KEY.raw.hex(), KEY.raw.hex()[:8]])
def test_a_key_is_that_of_a_peer_and_the_relay_says_the_rest(world: World, text: str) -> None:
    lines = world.ask(key=text)
    assert lines[:2] == [f"{text} is the key of the peer {MAIN}.", "On the relay of this server:"]


def test_two_keys_are_the_relay_s_matter(world: World) -> None:
    other = str(NodePrivate.generate().public())
    assert world.ask(source=other, target=other)[0] == "On the relay of this server:"
    assert world.ask(source=other, target=str(MAIN))[-1].startswith("So: ")


def test_a_region_is_explained_by_its_score_and_where_that_comes_from(world: World) -> None:
    lines = world.why.answer({"region": "999"}).splitlines()
    assert lines[0].startswith("Region 999 (embedded) has the score 4: clients multiply what they measure of it")
    assert lines[0].endswith("4 by settings and maps, 1 by its load.")
    assert lines[-1] == "Region 999 looks as far as the map says: its load is not known yet."
    assert world.why.answer({"region": "7"}) == "The DERP map has no region 7; it has 999.\n"


@pytest.mark.parametrize("asked", [{}, {"key": ""}, {"source": "x"}, {"target": str(MAIN)}])
def test_a_question_that_is_none_is_told_how_to_ask(world: World, asked: dict[str, str]) -> None:
    (line,) = world.ask(**asked)
    assert line.startswith("ask for ?from=ID&to=ID or ?key=ID")


def test_without_a_relay_peers_are_explained_all_the_same(world: World) -> None:
    lines = world.without_relay.answer({"from": str(CLIENT), "to": str(MAIN)}).splitlines()
    assert any(line.startswith(f"So {CLIENT} has been told") for line in lines)
    assert lines[-1] == "This server has no relay, so it knows nothing of packets."
