"""Effects carried out in order; a receiver that does not read is dropped."""

from collections.abc import Sequence
from typing import Any

from tailnet.coordinator.core import REASON_OVERFLOW, Coordinator
from tailnet.coordinator.messages import Deliver, EndConnection, Kind, Request, SendError, Update
from tailnet.coordinator.nodes import Node
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.replica.messages import Ask
from tailnet.services.hub import Hub
from tests.support.seeds import peer_id

MAIN, CLIENT = peer_id("main"), peer_id("client")


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


def test_what_is_for_other_replicas_goes_outward_in_its_place() -> None:
    log: list[Any] = []
    a = Notes("a", log)
    question = Ask((MAIN,))
    hub = Hub(Coordinator(), outward=lambda effect, now: log.append((effect, now)))
    hub.carry_out([SendError(a, "no"), question, EndConnection(a, "over")], 1.0)
    assert log == [("a", "error", "no"), (question, 1.0), ("a", "end", "over")]


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
    return Node(raw, b"np" + bytes(32), f"discokey:{'0' * 64}", 1, (), ())
