"""The contract of a timed core (CONTRIBUTING), kept by every class of ours that has deadlines.

Any core with `next_timeout` and `handle_timeout` that has no entry in CORES fails the first test.
Whoever hands the time on to a core, and is none, stands in DRIVERS.
"""

import ast
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.keys import NodePrivate
from derp.netcheck.load import LoadScores
from derp.relay.advice import Advice, Cause
from derp.relay.clients import Client
from derp.relay.deadlines import Deadlines
from derp.relay.keepalive import KeepAliveWheel
from derp.relay.limits import Limits as RateLimits
from derp.relay.limits import Rate, TenantLimits
from derp.relay.rounds import Round
from derp.relay.shares import Shares
from tailnet.client.coordination import make_node
from tailnet.coordinator.arrivals import Fights, Line, Strangers, Turn
from tailnet.coordinator.messages import Kind, Request
from tailnet.coordinator.policy import ClientPolicy
from tailnet.errors import PeerSilent
from tailnet.netstack.connection import Connection
from tailnet.netstack.limits import KeepAliveTimes, Limits
from tailnet.netstack.stack import Happened, Stack
from tailnet.netstack.states import State
from tailnet.node.core import NodeCore
from tailnet.node.roster import Roster
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.replica.cluster_time import ClusterTime
from tailnet.replica.codec import encode_message
from tailnet.replica.core import SharedCoordinator
from tailnet.replica.messages import Claim, Gone, Open, ReplicaID, Tell
from tailnet.rpc.connection import ClientConnection, ServerConnection
from tailnet.rpc.yamux import YamuxSession
from tailnet.types import PeerID
from tests.derp.netcheck.maps import derp_map, region
from tests.derp.relay.world import World
from tests.support.netsim import ADDRESSES
from tests.tailnet.paths.world import World as PathWorld
from tests.tailnet.replica.test_pair import World as PairWorld
from tests.tailnet.wireguard.world import Node, packet
from tests.tailnet.wireguard.world import World as WireGuardWorld
from tests.test_house import imports, modules

START = 1000.0
CLOCKS = {"time", "trio", "datetime", "asyncio", "sched", "threading"}


class TimedCore(Protocol):
    """Who is driven."""

    def next_timeout(self) -> float | None: ...

    def handle_timeout(self, now: float) -> object: ...


@dataclass
class Walked:
    """A core that a test may do things to."""

    core: TimedCore
    act: Callable[[int, float], object]
    """Something that can happen to it at a time, by its number; the same numbers do the same."""
    output: Callable[[], list[object]] = list
    """What it has to say beyond what `handle_timeout` returns, handed out once."""
    name: Callable[[object], object] = lambda one: one
    """Of what `handle_timeout` returns, what is the same for two cores with one history."""
    is_table: bool = False
    """Its deadlines do not depend on each other: one late call does what all the punctual ones would have done."""
    is_dead: bool = False

    def timeout(self, now: float) -> list[object]:
        """Drive it, and return everything that came of it."""
        try:
            result = self.core.handle_timeout(now)
        except PeerSilent as error:
            self.is_dead = True
            return [type(error), *self.output()]
        assert isinstance(result, list)
        return [*map(self.name, result), *self.output()]

    def do(self, number: int, now: float) -> None:
        if not self.is_dead:
            self.act(number, now)
            self.output()


def walk_deadlines() -> Walked:
    table = Deadlines[int]()

    def act(number: int, now: float) -> None:
        subject, rest = number % 5, number // 5
        if rest % 4 == 0:
            table.clear(subject)
        else:
            table.set(subject, now + rest % 97 / 4)

    return Walked(table, act, is_table=True)


def walk_keep_alives() -> Walked:
    world = World()
    wheel = KeepAliveWheel(7.0, 2.0, START)

    def act(number: int, now: float) -> None:
        clients = list(world.router.clients.values())
        if number % 3 == 0 and clients:
            world.leave(clients[number % len(clients)])
        else:
            wheel.add(world.connect(str(number % 10)), now, number % 11 / 11)

    return Walked(wheel, act, name=lambda client: cast(Client, client).number, is_table=True)


def walk_advice() -> Walked:
    advice = Advice[int]()
    causes = list(Cause)
    numbers = count()

    def act(number: int, now: float) -> None:
        text = (
            f"text {next(numbers)}"  # whoever was told of it already, before it was over for a moment, is told nothing
        )
        whom, cause, what = number % 3, causes[number // 3 % len(causes)], number // 15 % 5
        if what == 0:
            advice.end(whom, cause, now)
        elif what == 1:
            advice.forget(whom)
        elif what == 2:
            advice.note(whom, cause, text, now, seconds=1000.0)
        else:
            advice.begin(whom, cause, text, now, after_seconds=3.0 * (what == 3))

    # Who is told late is told in one text what is the matter by then.
    return Walked(advice, act, name=lambda one: cast(tuple[int, object, object], one)[0])


def walk_round() -> Walked:
    members: dict[int, int] = {}
    core = Round(members, 10.0)

    def act(number: int, now: float) -> None:
        if number % 3 == 0:
            members.pop(number % 7, None)
        else:
            members[number % 7] = number % 7
            core.begin(now)

    return Walked(core, act)


def walk_shares() -> Walked:
    tenants = {"a": TenantLimits(Rate(50_000, 70_000)), "b": TenantLimits(weight=3.0)}
    shares = Shares[int](RateLimits(Rate(80_000, 70_000), tenants=tenants), START)

    def act(number: int, now: float) -> None:
        whom, size = number % 6, number % 97 * 1000
        tenant = shares.tenant("abc"[whom % 3], now)
        assert tenant is not None
        if number % 5 == 0:
            shares.forget(whom, tenant)
        elif shares.charge(whom, tenant, size, 1, now)[0] > 0:
            shares.wait(whom, tenant, size, 1, now)

    return Walked(shares, act)


def walk_session(*, server: bool) -> Walked:
    session = YamuxSession(server=server, now=START)
    peer = YamuxSession(server=not server, now=START)

    def act(number: int, now: float) -> None:
        match number % 6:
            case 0:
                session.open_stream()
            case 1:
                peer.open_stream()
            case 2:
                session.ping(number)
            case 3:
                session.go_away()
            case 4:  # what the peer said arrives
                session.receive_data(b"".join(peer.data_to_send()))
            case _:  # what was said arrives there, and the answers here
                peer.receive_data(b"".join(session.data_to_send()))
                session.receive_data(b"".join(peer.data_to_send()))

    return Walked(session, act, lambda: [bytes(piece) for piece in session.data_to_send()])


def walk_server() -> Walked:
    server = ServerConnection[str]({"/a.A/Call": "call"}, now=START)
    client = ClientConnection(now=START)

    def act(number: int, now: float) -> None:
        match number % 4:
            case 0:
                client.call("/a.A/Call", b"")
            case 1:
                server.receive_data(b"".join(client.data_to_send()))
            case 2:
                client.receive_data(b"".join(server.data_to_send()))
            case _:
                server.ping(number)

    return Walked(server, act, lambda: [bytes(piece) for piece in server.data_to_send()])


def walk_client() -> Walked:
    client = ClientConnection(now=START)
    server = ServerConnection[str]({"/a.A/Call": "call"}, now=START)

    def act(number: int, now: float) -> None:
        match number % 4:
            case 0:
                client.call("/a.A/Call", b"")
            case 1:
                server.receive_data(b"".join(client.data_to_send()))
            case 2:
                client.receive_data(b"".join(server.data_to_send()))
            case _:
                client.ping(number)

    return Walked(client, act, lambda: [bytes(piece) for piece in client.data_to_send()])


def walk_device() -> Walked:
    world = WireGuardWorld("AB", lambda *_: [])
    a, b = world.nodes

    def carry(sender: Node, receiver: Node, now: float) -> None:
        world.now = now
        for outgoing in sender.device.datagrams_to_send():
            receiver.device.open([outgoing.datagram], sender.source, now)

    def act(number: int, now: float) -> None:
        for sender, receiver in ((a, b), (b, a)):
            match number % 4:
                case 0:  # a handshake, as far as messages are there
                    sender.device.begin_session(sender.peer(receiver), now)
                    carry(sender, receiver, now)
                case 1:  # a packet that arrives
                    packets = [packet(sender.number, receiver.number)]
                    receiver.device.open(sender.device.seal(sender.peer(receiver), packets, now), sender.source, now)
                case 2 if sender is a:  # one that does not
                    a.device.seal(a.peer(b), [packet(0, 1)], now)
                case _:
                    carry(sender, receiver, now)

    # What is sent is not the same a minute later: that it is, and to whom.
    def output() -> list[object]:
        return [outgoing.peer is not None for outgoing in a.device.datagrams_to_send()]

    return Walked(a.device, act, output, name=type)


def walk_netstack() -> Walked:
    """A stack whose peer is another one; the peer is asked only when a step says so."""
    times = KeepAliveTimes(30.0, 75.0, 9)
    limits = Limits(connect_seconds=8.0, give_up_seconds=20.0, time_wait_seconds=5.0, keep_alive=times)
    stack, peer = (Stack([address], bytes, START, limits) for address in ADDRESSES)
    listener = peer.listen(80)
    dialled: list[Connection] = []

    def act(number: int, now: float) -> None:
        match number % 8:
            case 0 if len(dialled) < 3:
                stack.now = now
                dialled.append(stack.connect(ADDRESSES[1], 80))
            case 1 | 2 | 3:  # what was said arrives there, and the answers here
                peer.receive_packets(stack.packets_to_send(now), now)
                stack.receive_packets(peer.packets_to_send(now), now)
            case 4:  # what was said is lost
                stack.packets_to_send(now)
            case 5:
                for connection in dialled:
                    if connection.state is State.ESTABLISHED and not connection.sender.fin_queued:
                        connection.send(bytes(number))
            case 6 if dialled:
                dialled[number // 8 % len(dialled)].close()
            case _:
                other = listener.accept()
                if other is not None:
                    other.send(bytes(number))

    def name(event: object) -> object:
        assert isinstance(event, Happened)
        assert isinstance(event.subject, Connection)
        return event.subject.local_port, event.what

    # What users did has its own events, which the step that did it takes.
    return Walked(stack, act, lambda: [name(event) for event in stack.events()], name=name)


def walk_paths() -> Walked:
    world = PathWorld("easy", "open")
    a, b = world.nodes
    core = a.paths

    def act(number: int, now: float) -> None:
        world.now = now
        match number % 5:
            case 0:
                core.route(a.peer(b), now)
            case 1:
                core.ping(a.peer(b), now)
            case 2:  # what was said arrives, and the answers
                a.flush()
                b.receive_all(now)
                a.receive_all(now)
            case 3:
                b.paths.route(b.peer(a), now)
                b.flush()
                a.receive_all(now)
            case _:
                core.set_local_endpoints(a.endpoints()[number % 2 :], now)
        core.take_events()

    # To which endpoint a ping goes may have been forgotten a minute later: that the peer is pinged is not.
    def output() -> list[object]:
        return [outgoing.endpoint is not None for outgoing in core.datagrams_to_send()]

    return Walked(core, act, output, name=type)


def walk_roster() -> Walked:
    core = NodeCore(
        NodePrivate(b"\1" * 32), b"\2" * 32, [], random=lambda count: bytes(count), now=START, unix_seconds=START
    )
    roster = Roster(core)
    updates = tailnet.CoordinateResponse.PeerUpdate

    def act(number: int, now: float) -> None:
        peer, what = number % 3, number // 3 % 4
        private = NodePrivate(bytes((3 + peer,)) * 32)
        match what:
            case 0:
                node = make_node(private, PeerID(bytes((peer,)) * 16), 7)
                roster.update(updates(id=bytes((peer,)) * 16, kind=updates.NODE, node=node), now)
            case 1:
                roster.update(updates(id=bytes((peer,)) * 16, kind=updates.LOST), now)
            case 2 if (known := core.device.find(private.public().raw)) is not None:
                known.last_handshake_at = now
            case _:
                roster.lose_all(now)

    return Walked(roster, act)


def walk_shared() -> Walked:
    """A coordinator with two clients, whose agent comes, moves, is doubted and goes at two other replicas."""
    core: SharedCoordinator[str] = SharedCoordinator(ReplicaID(b"1" * 8), ClusterTime(), lambda: 0.5)
    agent, clients = PeerID(b"A" * 16), [PeerID(b"B" * 16), PeerID(b"C" * 16)]
    count = 0

    def act(number: int, now: float) -> None:
        nonlocal count
        count += 1
        replica, client = ReplicaID(b"23"[number % 2 :][:1] * 8), clients[number // 2 % 2]
        match number // 4 % 6:
            case 0:
                core.handle_connect(client, ClientPolicy(agent), f"c{count}", now)
                core.handle_request(f"c{count}", Request(add_tunnel=agent), now)
            case 1:
                core.handle_remote_came(replica, [Claim(agent, int(now * 4096_000))], now)
            case 2:
                core.handle_remote_gone(replica, Gone(agent, 0, Kind.LOST, ""), now)
            case 3:
                core.handle_remote_open(replica, Open(agent, int(now * 4096_000), client, 0, None), now)
            case 4:
                core.handle_replica_down(replica, now)
            case _:
                connection = core.connection_of(client)
                if connection is not None:
                    core.handle_disconnect(connection, False, now)

    return Walked(core, act, name=type, is_table=False)


def walk_line() -> Walked:
    line = Line[int](2.0, START)

    def act(number: int, now: float) -> None:
        if number % 4 == 0:
            line.leave(number % 7)
        elif not line.admits(now):
            line.join(number % 7, now)

    # Who is late finds more room.
    return Walked(line, act, name=lambda turn: cast(Turn[int], turn).visitor)


def walk_strangers() -> Walked:
    strangers = Strangers[int](20.0, START)

    def act(number: int, now: float) -> None:
        visitor = number % 7
        match number // 7 % 4:
            case 0:
                strangers.leave(visitor)
            case 1:
                strangers.make_way(now)
            case _:
                if not strangers.admits(now):
                    strangers.leave(visitor)
                    strangers.join(visitor, f"10.0.0.{visitor % 3}", number % 1000, now)

    return Walked(strangers, act, name=lambda turn: cast(Turn[int], turn).visitor)


def walk_fights() -> Walked:
    fights = Fights[int]()

    def act(number: int, now: float) -> None:
        visitor, ident = number % 5, PeerID(bytes((number % 3,)) * 16)
        match number // 5 % 3:
            case 0:
                fights.note(ident, (), now)
            case 1:
                fights.leave(visitor)
                fights.join(visitor, ident)
            case _:
                fights.leave(visitor)

    return Walked(fights, act)


def walk_pair() -> Walked:
    """One end of a session; what the other says arrives when a step says so."""
    world = PairWorld()
    world.is_up = True
    pair, other = world.a, world.b
    for each in (pair, other):
        each.link_opened(START)
        each.frames_to_send()  # the first greetings are lost

    def act(number: int, now: float) -> None:
        match number % 4:
            case 0:  # what was said arrives there, and the answers here
                for frame in pair.frames_to_send():
                    other.receive_frame(frame, now)
                for frame in other.frames_to_send():
                    pair.receive_frame(frame, now)
            case 1:
                pair.send(encode_message(Tell("x", b"")), now)
            case 2:
                other.handle_timeout(now)
            case _:  # what was said is lost
                pair.frames_to_send()

    return Walked(pair, act, lambda: [len(frame) > 0 for frame in pair.frames_to_send()], name=type)


def walk_load_scores() -> Walked:
    core = LoadScores(START)
    core.follow(derp_map(*map(region, (1, 2, 3))), (1, 2, 3))

    def act(number: int, now: float) -> None:
        region_id, what = number % 3 + 1, number // 3 % 8
        if what == 0:
            core.note_away(region_id, "down")
        else:
            core.note(region_id, what / 6, "loop", now)

    return Walked(core, act)


CORES: dict[str, list[Callable[[], Walked]]] = {
    "derp/netcheck/load.py:LoadScores": [walk_load_scores],
    "derp/relay/deadlines.py:Deadlines": [walk_deadlines],
    "derp/relay/keepalive.py:KeepAliveWheel": [walk_keep_alives],
    "derp/relay/advice.py:Advice": [walk_advice],
    "derp/relay/rounds.py:Round": [walk_round],
    "derp/relay/shares.py:Shares": [walk_shares],
    "tailnet/wireguard/device.py:Device": [walk_device],
    "tailnet/netstack/stack.py:Stack": [walk_netstack],
    "tailnet/paths/core.py:Paths": [walk_paths],
    "tailnet/node/roster.py:Roster": [walk_roster],
    "tailnet/coordinator/arrivals.py:Line": [walk_line],
    "tailnet/coordinator/arrivals.py:Strangers": [walk_strangers],
    "tailnet/coordinator/arrivals.py:Fights": [walk_fights],
    "tailnet/replica/core.py:SharedCoordinator": [walk_shared],
    "tailnet/replica/pair.py:Pair": [walk_pair],
    "tailnet/rpc/yamux.py:YamuxSession": [lambda: walk_session(server=True), lambda: walk_session(server=False)],
    "tailnet/rpc/connection.py:_Connection": [walk_server, walk_client],
    "tailnet/rpc/connection.py:ServerConnection": [walk_server],
    "tailnet/rpc/connection.py:ClientConnection": [walk_client],
}
# They hand the time on; what they hand on to is walked above.
DRIVERS = {
    "derp/relay/mailbox.py:Mailboxes",  # to Deadlines
    "derp/transport/quic.py:QuicLine",  # to aioquic's connection
    "tailnet/node/core.py:NodeCore",
    "tailnet/replica/cluster.py:Cluster",
    "tailnet/transport/channel.py:Channel",
    "tailnet/services/legacy.py:LegacyChannel",
}
WALKS = [pytest.param(walk, id=f"{name}-{n}") for name, walks in CORES.items() for n, walk in enumerate(walks)]
NAMES = {"next_timeout", "handle_timeout"}


def timed_classes(name: str, tree: ast.Module) -> Iterator[str]:
    """The classes of a module that have one of the two names, as a method or as an attribute."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or "Protocol" in map(ast.unparse, node.bases):
            continue
        named = {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
        named |= {
            part.target.id
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
        }
        if named & NAMES:
            yield f"{name}:{node.name}"


def test_every_core_that_has_deadlines_is_walked() -> None:
    found = {one for name, tree in modules() for one in timed_classes(name, tree)}
    assert found == CORES.keys() | DRIVERS


def test_a_new_one_would_be_found() -> None:
    tree = ast.parse("class A:\n  def handle_timeout(self, now): ...\nclass B:\n  next_timeout: float\nclass C: ...")
    assert list(timed_classes("x.py", tree)) == ["x.py:A", "x.py:B"]


@pytest.mark.parametrize("name", sorted(CORES))
def test_no_core_imports_a_clock(name: str) -> None:
    tree = next(tree for module, tree in modules() if module == name.partition(":")[0])
    assert [imported for imported, _ in imports(tree) if imported.split(".")[0] in CLOCKS] == []


def due_at(walked: Walked) -> float | None:
    """next_timeout, which is a moment or None: infinity would be a wait for ever that looks like a moment."""
    at = walked.core.next_timeout()
    assert at is None or (isinstance(at, float) and math.isfinite(at)), at
    return at


STEPS = st.lists(
    st.tuples(st.sampled_from(("act", "act", "early", "due", "late")), st.integers(0, 10_000), st.floats(0, 1)),
    max_size=60,
)


@pytest.mark.parametrize("make", WALKS)
@given(steps=STEPS)
def test_a_timed_core_keeps_the_contract(make: Callable[[], Walked], steps: list[tuple[str, int, float]]) -> None:
    walked, now = make(), START
    for what, number, fraction in steps:
        at = due_at(walked)
        if what == "act":
            now = min(now + 5 * fraction, at) if at is not None else now + 5 * fraction
            walked.do(number, now)
        elif at is None or walked.is_dead:
            continue
        elif what == "early":
            early = now + (at - now) * fraction
            if now <= early < at:
                assert walked.timeout(early) == [], "before its time nothing happens"
                assert due_at(walked) == at
                now = early
        else:
            now = max(now, at) + (20 * fraction if what == "late" else 0.0)
            walked.timeout(now)
            following = due_at(walked)
            assert following is None or following > now, "or its driver would be busy for ever"


def drive(walked: Walked, until: float) -> list[object]:
    """Everything that comes of its deadlines until then."""
    came: list[object] = []
    while not walked.is_dead and (at := due_at(walked)) is not None and at <= until:
        came += walked.timeout(at)
    return came


@pytest.mark.parametrize("make", WALKS)
@given(
    actions=st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 3)), max_size=20),
    lateness=st.floats(0, 60),
)
def test_late_is_as_good_as_on_time(
    make: Callable[[], Walked], actions: list[tuple[int, float]], lateness: float
) -> None:
    """One deadline that is handled late: the same comes of it, and whatever else was due meanwhile."""
    punctual, late = make(), make()
    now = START
    for number, wait in actions:
        now += wait
        for walked in (punctual, late):
            drive(walked, now)
            walked.do(number, now)
    at = due_at(punctual)
    assert due_at(late) == at
    if at is None:
        return
    expected = drive(punctual, at + lateness) if punctual.is_table else punctual.timeout(at)
    came = late.timeout(at + lateness)
    assert all(one in came for one in expected), "what was due is not lost"
    for walked in (punctual, late):
        following = None if walked.is_dead else due_at(walked)
        assert following is None or following > at
