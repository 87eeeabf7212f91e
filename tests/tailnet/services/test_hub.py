"""Effects carried out in order, each update encoded once, byte for byte as google's library would."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tailnet.coordinator.core import REASON_OVERFLOW, Coordinator
from tailnet.coordinator.messages import Deliver, EndConnection, Kind, Request, SendError, Update
from tailnet.coordinator.nodes import Node
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.services.hub import Hub, encode_error, encode_updates
from tailnet.types import PeerID
from tests.support.seeds import peer_id

MAIN, CLIENT = peer_id("main"), peer_id("client")


def node_of(raw: bytes) -> Node:
    return Node(raw, b"", "", 0, (), (), 0)


MESSAGES = st.builds(
    tailnet.Node,
    id=st.integers(-(2**63), 2**63 - 1),
    key=st.binary(max_size=40),
    disco=st.text(max_size=200),
    preferred_derp=st.integers(-(2**31), 2**31 - 1),
    endpoints=st.lists(st.text(max_size=40), max_size=6),
    short_description=st.sampled_from(["", "x" * 100, "y" * 127, "z" * 20_000]),
)
UPDATES = st.builds(
    Update,
    st.binary(min_size=16, max_size=16).map(PeerID),
    st.sampled_from(Kind),
    st.none() | MESSAGES.map(lambda message: node_of(message.SerializeToString(deterministic=True))),
    st.text(max_size=200),
)


@given(st.lists(UPDATES, max_size=5))
def test_updates_are_the_bytes_of_googles_library(updates: list[Update]) -> None:
    expected = tailnet.CoordinateResponse()
    for update in updates:
        added = expected.peer_updates.add(id=bytes(update.peer_id), kind=int(update.kind), reason=update.reason)
        if update.node is not None:
            added.node.ParseFromString(update.node.raw)
            added.node.SetInParent()
    assert encode_updates(updates) == expected.SerializeToString(deterministic=True)


def test_lengths_around_the_steps_of_varints() -> None:
    for size in (*range(140), *range(16_300, 16_400), 3_000_000):
        message = tailnet.Node(short_description="x" * size)
        update = Update(MAIN, Kind.NODE, node_of(message.SerializeToString()), "node update")
        [read] = tailnet.CoordinateResponse.FromString(encode_updates([update])).peer_updates
        assert (read.id, read.node, read.kind, read.reason) == (MAIN, message, Kind.NODE, "node update")


@given(st.text(max_size=300))
def test_errors_are_the_bytes_of_googles_library(text: str) -> None:
    expected = tailnet.CoordinateResponse(error=text).SerializeToString()
    assert tailnet.CoordinateResponse.FromString(encode_error(text)).error == text
    assert not text or encode_error(text) == expected


class Notes:
    """A receiver that notes what it is told and reads as much as it is told to."""

    def __init__(self, name: str, log: list[Any], *, room: int = 1000) -> None:
        self.name = name
        self.log = log
        self.room = room

    def send_updates(self, payload: bytes, updates: Sequence[Update]) -> bool:
        self.room -= 1
        if self.room < 0:
            return False
        read = tailnet.CoordinateResponse.FromString(payload).peer_updates
        self.log.extend((self.name, Kind(each.kind).name, each.reason) for each in read)
        return True

    def send_error(self, text: str) -> None:
        self.log.append((self.name, "error", text))

    def end(self, text: str) -> None:
        self.log.append((self.name, "end", text))


def test_effects_are_carried_out_in_their_order() -> None:
    log: list[Any] = []
    a, b = Notes("a", log), Notes("b", log)
    hub = Hub(Coordinator())
    update = Update(MAIN, Kind.LOST, None, "lost")
    hub.carry_out([SendError(a, "no"), Deliver((a, b), (update,)), EndConnection(a, "over")], 1.0)
    assert log == [("a", "error", "no"), ("a", "LOST", "lost"), ("b", "LOST", "lost"), ("a", "end", "over")]
    assert hub.delivered_count == 2


def test_a_receiver_without_room_is_dropped_and_the_others_are_told() -> None:
    log: list[Any] = []
    core: Coordinator[Any] = Coordinator()
    hub = Hub(core)
    agent, full, client = Notes("agent", log), Notes("full", log, room=1), Notes("client", log)
    hub.carry_out(core.handle_connect(MAIN, AgentPolicy(MAIN), agent, 0.0), 0.0)
    for at, each in enumerate((full, client)):
        own = peer_id(f"client {at}")
        hub.carry_out(core.handle_connect(own, ClientPolicy(MAIN), each, 0.0), 0.0)
        hub.carry_out(core.handle_request(each, Request(add_tunnel=MAIN), 0.0), 0.0)
        hub.carry_out(core.handle_request(each, Request(node=judged(f"c{at}")), 0.0), 0.0)
    for text in ("first", "second"):
        hub.carry_out(core.handle_request(agent, Request(node=judged(text)), 1.0), 1.0)
    assert hub.overflow_count == 1
    assert ("full", "end", REASON_OVERFLOW) in log
    assert log.count(("client", "NODE", "node update")) + log.count(("client", "NODE", "add tunnel")) == 2
    assert log[-2:] == [("agent", "DISCONNECTED", REASON_OVERFLOW), ("full", "end", REASON_OVERFLOW)]
    core.check()


def judged(text: str) -> Node:
    """A node that the core lets pass."""
    raw = tailnet.Node(short_description=text).SerializeToString()
    return Node(raw, b"np" + bytes(32), f"discokey:{'0' * 64}", 1, (), (), 0)
