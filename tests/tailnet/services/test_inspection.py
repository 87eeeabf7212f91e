"""The tailnet as the person on call sees it, by a clock that the test sets."""

import pytest

from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.messages import Request
from tailnet.coordinator.nodes import Node
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.inspection import DepartureView, Inspection
from tailnet.types import TAILSCALE_SERVICE_PREFIX
from tests.support.seeds import peer_id

MAIN, CLIENT = peer_id("main"), peer_id("client")


class World:
    def __init__(self) -> None:
        self.seconds = 100.0
        self.coordinator: Coordinator[object] = Coordinator()
        self.maps = DerpMaps()
        self.reasons: list[str] = []
        self.inspection = Inspection(self.coordinator, self.maps, lambda: self.seconds, lambda: self.reasons)


@pytest.fixture
def world() -> World:
    return World()


def test_who_is_here_and_who_left(world: World) -> None:
    agent, client = object(), object()
    world.coordinator.handle_connect(MAIN, AgentPolicy(MAIN), agent, 40.0)
    world.coordinator.handle_connect(CLIENT, ClientPolicy(MAIN), client, 50.0)
    world.coordinator.handle_disconnect(client, False, 70.0)
    view = world.inspection.describe()
    assert [(each.peer_id, each.connected_seconds) for each in view.peers] == [(MAIN, 60.0)]
    assert view.departures == [DepartureView(CLIENT, 30.0, "LOST", "lost", "")]
    world.seconds = 130.0
    assert world.inspection.describe().departures[0].left_seconds == 60.0


def test_what_is_wrong(world: World) -> None:
    world.maps.steer(avoid=[7])
    world.reasons.append("draining")
    view = world.inspection.describe()
    assert view.not_ready == world.inspection.not_ready() == ["draining"]
    assert view.derp_map.version == world.maps.current.version
    assert (list(view.derp_map.regions), list(view.derp_map.sources)) == ([], [])


def test_an_explanation_names_both(world: World) -> None:
    sentences = world.inspection.explain(CLIENT, MAIN)
    assert str(MAIN) in " ".join(sentences)
    assert sentences[-1].startswith(f"So {CLIENT}")


def test_the_last_node(world: World) -> None:
    connection = object()
    world.coordinator.handle_connect(MAIN, AgentPolicy(MAIN), connection, 1.0)
    assert world.inspection.node(MAIN) is None
    address = f"{MAIN.address(TAILSCALE_SERVICE_PREFIX)}/128"
    node = Node(b"as it came", b"np" + bytes(32), "discokey:" + "ab" * 32, 1, (address,), ())
    world.coordinator.handle_request(connection, Request(node=node), 2.0)
    assert world.inspection.node(MAIN) == b"as it came"
    assert world.inspection.node(CLIENT) is None
