"""The order of each pair's packets while clients go from a leaving relay to others: any schedule of what arrives when.

Relays are brains without sockets.  Bytes of one connection keep their order; what comes first of two connections the
seed decides, and nothing waits for a deadline.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest

from derp.protocol.frames import HEADER_BYTES
from derp.protocol.messages import (
    ForwardPacket,
    PeerPresent,
    RecvPacket,
    Restarting,
    SendPacket,
    WatchConns,
    encode,
    parse_from_server,
)
from derp.protocol.settle import HERE, SETTLE, Settle, SettleStep
from derp.relay.clients import Client
from derp.relay.mailbox import HOLD_SECONDS, MAILBOX_BYTES
from derp.relay.mesh import MeshRoute
from derp.relay.router import Route
from tests.derp.relay.world import OWN_KEY, World, key

END = b""


def cut(data: bytes) -> list[bytes]:
    """Whole frames."""
    frames = []
    while data:
        size = HEADER_BYTES + int.from_bytes(data[1:HEADER_BYTES], "big")
        frames.append(data[:size])
        data = data[size:]
    return frames


@dataclass(eq=False)
class Connection:
    """A client's, with what is on its way; the relay has closed its side when END is in `down`."""

    relay: str
    client: Client = field(init=False)
    up: deque[bytes] = field(default_factory=deque)
    down: deque[bytes] = field(default_factory=deque)
    is_paused: bool = False


class Person:
    """One client, wherever it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections: list[Connection] = []
        self.home: Connection | None = None  # where it sends; None when it has to dial anew
        self.sent: dict[str, int] = defaultdict(int)
        self.heard: dict[bytes, list[int]] = defaultdict(list)


class Region:
    """Relays that mesh with each other, and people."""

    def __init__(self, relays: str, people: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.worlds = {name: World(own_key=key(name)) for name in relays}
        self.people = {name: Person(name) for name in people}
        self.wires: dict[Route, Callable[[bytes], object]] = {}
        self.channels: dict[Route, deque[bytes]] = defaultdict(deque)
        self.leaving: set[str] = set()
        for one in relays:
            for other in relays.replace(one, ""):
                self._mesh(one, other)
        self.run_out()

    def _mesh(self, one: str, other: str) -> None:
        """`one` dials `other`."""
        link = self.worlds[one].mesh(other)
        peer = self.worlds[other].connect(one, is_mesh_peer=True)
        self.wires[link] = lambda frame: self.worlds[other].receive(peer, frame)
        self.wires[peer] = lambda frame: link.handle_message(parse_from_server(frame[0], frame[HEADER_BYTES:]))
        self.worlds[other].receive(peer, encode(WatchConns()))

    # --- people

    def come(self, person: Person, relay: str) -> None:
        connection = person.home = Connection(relay)
        person.connections.append(connection)
        world = self.worlds[relay]
        client = connection.client = world.connect(person.name, wire=connection)
        assert client.member is not None
        connection.is_paused = client.member.mailbox is not None
        self.wires[client] = connection.down.append

    def write(self, person: Person, to: str) -> None:
        if person.home is not None:
            person.sent[to] += 1
            person.home.up.append(encode(SendPacket(key(to), person.sent[to].to_bytes(8, "big"))))

    def hear(self, person: Person, connection: Connection) -> None:
        frame = connection.down.popleft()
        if frame == END:
            connection.up.append(END)
            if person.home is connection:
                person.home = None
            return
        message = parse_from_server(frame[0], frame[HEADER_BYTES:])
        if isinstance(message, RecvPacket):
            person.heard[message.src].append(int.from_bytes(message.packet, "big"))

    # --- relays

    def read(self, connection: Connection) -> None:
        world, frame = self.worlds[connection.relay], connection.up.popleft()
        if frame == END:
            world.router.unregister(connection.client)
        else:
            world.receive(connection.client, frame)

    def leave(self, relay: str) -> None:
        """The other relays hear of it before anything else happens."""
        self.leaving.add(relay)
        world = self.worlds[relay]
        world.router.is_leaving = True
        said = encode(Restarting(2000, 60_000))
        for client in world.router.clients.values():
            world.router.send(client, said)
        self.flush()
        for route, waiting in list(self.channels.items()):
            while said in waiting:
                self._arrive(route)

    def send_off(self, person: Person) -> None:
        connection = person.connections[-1]
        world = self.worlds[connection.relay]
        world.flush()
        self.flush()
        world.router.send_off(connection.client, world.now)
        connection.down.append(END)

    def flush(self) -> None:
        """What the sessions do after a batch."""
        for world in self.worlds.values():
            boxes = world.router.mailboxes
            while boxes.changed:
                hold = boxes.changed.pop()
                for connection in hold.wires:
                    connection.is_paused = False
            world.flush()
            for route in list(world.sent):
                for frame in cut(bytes(world.sent.pop(route))):
                    if isinstance(route, Client) and not route.is_mesh_peer:
                        self.wires[route](frame)
                    else:
                        self.channels[route].append(frame)

    # --- what happens

    def steps(self) -> list[Callable[[], None]]:
        """All that can happen next without anybody's will."""
        self.flush()
        found: list[Callable[[], None]] = []
        for route, waiting in self.channels.items():
            if waiting:
                found.append(partial(self._arrive, route))
        for person in self.people.values():
            for connection in person.connections:
                if connection.up and not connection.is_paused:
                    found.append(partial(self.read, connection))
                if connection.down:
                    found.append(partial(self.hear, person, connection))
            if person.home is None and person.connections:
                to = self.random.choice(sorted(set(self.worlds) - self.leaving))
                found.append(partial(self.come, person, to))
        return found

    def _arrive(self, route: Route) -> None:
        self.wires[route](self.channels[route].popleft())

    def step(self) -> bool:
        found = self.steps()
        if found:
            self.random.choice(found)()
        return bool(found)

    def run_out(self) -> None:
        """Until nothing more happens by itself."""
        while self.step():
            pass

    def check(self) -> None:
        for person in self.people.values():
            for other in self.people.values():
                if person is not other:
                    seen = person.heard[key(other.name)]
                    assert seen == list(range(1, other.sent[person.name] + 1)), f"{other.name} to {person.name}"


def begun(relays: str, people: str, seed: int) -> Region:
    """`people` are anywhere, and all relays know where."""
    region = Region(relays, people, seed)
    for person in region.people.values():
        region.come(person, region.random.choice(relays))
    region.run_out()
    return region


def play(relays: str, people: str, leaving: int, seed: int) -> Region:
    """`people` come anywhere and talk while the first relays leave, one after the other, and none ends; everybody who
    is there is sent on."""
    region = begun(relays, people, seed)
    chance = region.random
    for relay in relays[:leaving]:
        region.leave(relay)
        region.run_out()
        there = [person for person in region.people.values() if person.connections[-1].relay == relay]
        while there or chance.random() < 0.99:
            if there and chance.random() < 0.05:
                region.send_off(there.pop())
            one, other = chance.sample(people, 2)
            if chance.random() < 0.3:
                region.write(region.people[one], other)
            region.step()
    region.run_out()
    return region


def play_together(relays: str, people: str, leaving: int, seed: int) -> Region:
    """The same, but relays leave while others do, and any of their clients goes next for which nothing waits."""
    region = begun(relays, people, seed)
    chance = region.random
    to_leave = list(relays[:leaving])
    there = list(region.people.values())
    while to_leave or there or chance.random() < 0.98:
        if to_leave and chance.random() < 0.05:
            region.leave(to_leave.pop(0))
        there = [person for person in region.people.values() if person.connections[-1].relay in region.leaving]
        there = [person for person in there if person.connections[-1].client.member is not None]
        if there and chance.random() < 0.05:
            person = chance.choice(there)
            member = person.connections[-1].client.member
            if member is not None and member.mailbox is None:
                region.send_off(person)
        one, other = chance.sample(people, 2)
        if chance.random() < 0.3:
            region.write(region.people[one], other)
        region.step()
    region.run_out()
    return region


@pytest.mark.parametrize(
    ("relays", "leaving", "how"),
    [
        ("AB", 1, play),
        ("ABC", 1, play),
        ("ABC", 2, play),
        ("ABCD", 3, play),
        ("ABC", 2, play_together),
        ("ABCD", 3, play_together),
    ],
)
def test_packets_of_a_pair_keep_their_order(
    relays: str, leaving: int, how: Callable[[str, str, int, int], Region]
) -> None:
    for seed in range(100):
        region = how(relays, "wxyz", leaving, seed)
        region.check()
        for world in region.worlds.values():
            router = world.router
            assert (len(router.mailboxes), router.mailboxes.held_bytes) == (0, 0)
            assert not any(member.mailbox for member in router.members.values())
            assert (router._questions, router._seen_off) == ({}, {})


# --- one relay, and what waits there


def arrival(world: World) -> tuple[MeshRoute, Client]:
    """A client comes here from a relay that is leaving, which has been asked."""
    link = world.mesh("leaving", "a")
    link.handle_message(Restarting(2000, 60_000))
    client = world.connect("a", wire="its wire")
    world.flush()
    (asked,) = cut(bytes(world.sent.pop(link)))
    assert asked == Settle(SettleStep.ASKED, client.key, OWN_KEY, (client.number + 1) | HERE).encode()
    (hold,) = world.router.mailboxes.changed
    world.router.mailboxes.changed.clear()
    world.router.mailboxes.keep_until(hold, world.now + HOLD_SECONDS)
    return link, client


def answer(world: World, client: Client, answers: int) -> bytes:
    return Settle(SettleStep.TOLD, client.key, OWN_KEY, (client.number + 1) | HERE, answers).encode()


def test_newer_packets_wait_until_all_relays_have_answered() -> None:
    world = World()
    mesh, sender = world.connect("leaving", is_mesh_peer=True), world.connect("b")
    _, client = arrival(world)
    world.packet(sender, "a", b"newer")
    world.receive(mesh, encode(ForwardPacket(sender.key, client.key, b"older")))
    assert world.take(client) == [RecvPacket(sender.key, b"older")]
    world.receive(mesh, answer(world, client, answers=2))
    assert world.take(client) == []
    world.receive(mesh, answer(world, client, answers=2))
    assert world.take(client) == [RecvPacket(sender.key, b"newer")]
    (hold,) = world.router.mailboxes.changed
    assert hold.wires == ("its wire",)
    assert world.router.mailboxes.next_timeout() is None
    world.leave(sender)
    assert [message.key for message in world.take(client)] == [sender.key], "it hears when one of them leaves"  # type: ignore[union-attr]


def test_nobody_waits_longer_for_an_answer_than_in_a_queue() -> None:
    world = World()
    sender = world.connect("b")
    _, client = arrival(world)
    world.packet(sender, "a")
    world.now += HOLD_SECONDS
    (hold,) = world.router.mailboxes.handle_timeout(world.now)
    world.router.close_mailbox(hold)
    assert world.take(client) == [RecvPacket(sender.key, b"hello")]
    assert hold.wires == ("its wire",)
    world.receive(world.connect("leaving", is_mesh_peer=True), answer(world, client, answers=1))
    assert world.router.routes[client.key] is client


def test_what_is_too_much_to_wait_is_not_lost() -> None:
    world = World()
    sender = world.connect("b")
    _, client = arrival(world)
    for _ in range(5):
        world.packet(sender, "a", bytes(MAILBOX_BYTES // 4))
    (hold,) = world.router.mailboxes.changed
    assert hold.is_full
    world.router.close_mailbox(hold)
    assert len(world.take(client)) == 5
    assert sum(world.router.counters.packets_dropped) == world.router.mailboxes.held_bytes == 0


def test_who_leaves_while_packets_wait_takes_none_along() -> None:
    world = World()
    sender = world.connect("b")
    link, client = arrival(world)
    world.packet(sender, "a")
    world.leave(client)
    world.flush()
    assert bytes(world.sent.pop(link)) == encode(ForwardPacket(sender.key, client.key, b"hello"))
    assert world.router.routes[client.key] is link
    assert len(world.router.mailboxes) == 0


def test_one_that_leaves_no_more_than_others_or_does_not_know_of_it_is_not_asked() -> None:
    world = World()
    stays, genuine = world.mesh("stays", "a"), world.mesh("genuine", "b")
    genuine.handle_message(Restarting(2000, 60_000))
    world.router.mesh_links.remove(genuine)
    for name, link in (("a", stays), ("b", genuine)):
        client = world.connect(name)
        assert world.router.routes[client.key] is client
        assert link not in world.sent
    assert not world.router.mailboxes.changed


def test_another_relay_that_comes_is_not_held_though_one_that_leaves_has_it_too() -> None:
    """What others have asked for comes by its connection, and so do the answers for which one would wait."""
    world = World()
    leaving = world.mesh("leaving", "other")
    leaving.handle_message(Restarting(2000, 60_000))
    relay = world.connect("other", is_mesh_peer=True)
    world.flush()
    assert world.router.routes[relay.key] is relay
    assert leaving not in world.sent
    assert not world.router.mailboxes.changed


def test_a_third_relay_holds_its_packets_back_too_and_then_sends_them_to_the_new_place() -> None:
    world = World()
    sender, mesh = world.connect("b"), world.connect("leaving", is_mesh_peer=True)
    old, new = world.mesh("leaving", "a"), world.mesh("new")
    old.handle_message(Restarting(2000, 60_000))
    world.packet(sender, "a", b"older")
    new.handle_message(PeerPresent(key("a")))
    world.packet(sender, "a", b"newer")
    older, asked = cut(bytes(world.sent.pop(old)))
    assert (older, asked[0]) == (encode(ForwardPacket(sender.key, key("a"), b"older")), SETTLE)
    assert new not in world.sent
    number = int.from_bytes(asked[-9:-1], "big")
    world.receive(mesh, Settle(SettleStep.ANSWERED, key("a"), OWN_KEY, number, 1).encode())
    world.packet(sender, "a", b"newest")
    assert cut(bytes(world.sent.pop(new))) == [
        encode(ForwardPacket(sender.key, key("a"), text)) for text in (b"newer", b"newest")
    ]


def test_a_relay_passes_on_the_answers_for_others() -> None:
    world = World()
    mesh, links = world.connect("leaving", is_mesh_peer=True), [world.mesh(name) for name in ("one", "two")]
    world.receive(mesh, Settle(SettleStep.ANSWERED, key("a"), key("one"), 7, 3).encode())
    world.receive(mesh, Settle(SettleStep.TOLD, key("a"), key("one"), 7, 3).encode())
    for link in links:
        assert bytes(world.sent.pop(link)) == Settle(SettleStep.TOLD, key("a"), key("one"), 7, 3).encode()


def test_many_questions_of_a_relay_are_no_flood_and_of_a_stranger_they_are_unknown_frames() -> None:
    world = World()
    mesh, stranger = world.connect("other", is_mesh_peer=True), world.connect("a")
    asked = Settle(SettleStep.ASKED, key("nobody"), key("other"), 1).encode()
    world.receive(mesh, asked * 5000)
    assert world.router._questions == {}
    world.receive(stranger, asked)
    assert world.router.counters.unknown_frames == 1
