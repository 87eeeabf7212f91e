"""The coordinator's rules, one script each (see playbook).  A random walk over all of them is in test_model."""

import gc
import weakref

import pytest

from tailnet.coordinator.core import MAX_DEPARTURES, Coordinator, Statistics
from tailnet.coordinator.messages import Deliver, Kind, Request, SendError
from tailnet.coordinator.nodes import Limits, Refusal
from tailnet.coordinator.policy import AgentPolicy, ManyAgentsPolicy
from tailnet.errors import LocalProtocolError
from tailnet.types import PeerID
from tests.tailnet.coordinator.playbook import Playbook, make_node, peer_id

MEET = """
    connect a A agent
    a: node a1
    connect c C client A
    c: node c1; add A
      a <- NODE C c1 "add tunnel"
      c <- NODE A a1 "add tunnel"
"""

RULES = {
    "two peers meet, whoever comes first": MEET,
    "a client that comes first gets the agent's node once there is one": """
        connect c C client A
        c: add A
        c: node c1
        connect a A agent
          a <- NODE C c1 "init"
        a: node a1
          c <- NODE A a1 "node update"
    """,
    "nodes flow both ways along a tunnel": MEET
    + """
    c: node c2
      a <- NODE C c2 "node update"
    a: node a2
      c <- NODE A a2 "node update"
    """,
    "nodes do not flow without a tunnel": """
        connect a A agent
        connect b B agent
        connect c C client A
        a: node a1
        b: node b1
        c: node c1
    """,
    "one update reaches all receivers as one message": """
        connect a A agent
        connect c C client A
        connect d D client A
        c: add A
        d: add A
        a: node a1
          c, d <- NODE A a1 "node update"
        a: node a2
          c, d <- NODE A a2 "node update"
    """,
    "the same node again is not told again": MEET
    + """
    a: node a1
    c: node c1
    a: node a2
      c <- NODE A a2 "node update"
    a: node a1
      c <- NODE A a1 "node update"
    """,
    "the same tunnel again tells nobody anything": MEET
    + """
    c: add A
    """,
    "remove_tunnel disconnects both": MEET
    + """
    c: remove A
      a <- DISCONNECTED C "tunnel removed"
      c <- DISCONNECTED A "tunnel removed"
    a: node a2
    c: node c2
    c: remove A
    """,
    "remove_tunnel tells only those who knew something": """
        connect a A agent
        connect c C client A
        c: add A
        c: node c1
          a <- NODE C c1 "node update"
        c: remove A
          a <- DISCONNECTED C "tunnel removed"
    """,
    "an agent cannot close its client's tunnel": MEET
    + """
    a: remove C
    a: node a2
      c <- NODE A a2 "node update"
    """,
    "a client that may be here no more is dropped at once": MEET
    + """
    revoke c
      c <- error "authorization: authorization withdrawn"
      a <- DISCONNECTED C "authorization withdrawn"
      c ends "authorization withdrawn"
    c: node c9
    """,
    "so is an agent, and whoever waits for it goes on waiting": MEET
    + """
    revoke a
      a <- error "authorization: authorization withdrawn"
      c <- DISCONNECTED A "authorization withdrawn"
      a ends "authorization withdrawn"
    connect a2 A agent
      a2 <- NODE C c1 "init"
    """,
    "a tunnel that may be no more, of a client that stays": MEET
    + """
    untie c A B
      a <- DISCONNECTED C "authorization withdrawn"
      c <- DISCONNECTED A "authorization withdrawn"
    a: node a9
    untie c A
    """,
    "a tunnel removed and opened again tells the nodes again": MEET
    + """
    c: remove A
      a <- DISCONNECTED C "tunnel removed"
      c <- DISCONNECTED A "tunnel removed"
    c: add A
      a <- NODE C c1 "add tunnel"
      c <- NODE A a1 "add tunnel"
    """,
    "a tunnel in the other direction keeps the two together": """
        connect c C many
        connect d D many
        c: node c1
        d: node d1; add E
        c: add D
          d <- NODE C c1 "add tunnel"
          c <- NODE D d1 "add tunnel"
        connect e E many
          e <- NODE D d1 "init"
        e: add D
        d: remove E
        e: node e1
          d <- NODE E e1 "node update"
        e: remove D
          d <- DISCONNECTED E "tunnel removed"
          e <- DISCONNECTED D "tunnel removed"
    """,
    "disconnect is DISCONNECTED and ends the stream": MEET
    + """
    c: disconnect
      a <- DISCONNECTED C "graceful disconnect"
      c ends "graceful disconnect"
    c: node c2
    drop c
    """,
    "any other loss is LOST": MEET
    + """
    drop c
      a <- LOST C "lost"
    drop c
    """,
    "a service that knows better may call it graceful": MEET
    + """
    leave c
      a <- DISCONNECTED C "graceful disconnect"
    """,
    "whoever was lost gets no more updates": MEET
    + """
    connect d D client A
    d: add A
      d <- NODE A a1 "add tunnel"
    a: node a2
      c, d <- NODE A a2 "node update"
    drop d
    a: node a3
      c <- NODE A a3 "node update"
    """,
    "so too when the tunnel to it survives": MEET
    + """
    c: node c2
      a <- NODE C c2 "node update"
    drop a
      c <- LOST A "lost"
    c: node c3
    """,
    "a loss is told only to those who knew something": """
        connect a A agent
        connect c C client A
        c: add A
        drop a
        drop c
    """,
    "a returning agent is announced again, for tunnels to it survive": MEET
    + """
    drop a
      c <- LOST A "lost"
    c: node c2
    connect a2 A agent
      a2 <- NODE C c2 "init"
    a2: node a1
      c <- NODE A a1 "node update"
    """,
    "so too after a graceful disconnect": MEET
    + """
    a: disconnect
      c <- DISCONNECTED A "graceful disconnect"
      a ends "graceful disconnect"
    connect a2 A agent
      a2 <- NODE C c1 "init"
    a2: node a1
      c <- NODE A a1 "node update"
    """,
    "tunnels of a lost client are gone": MEET
    + """
    drop c
      a <- LOST C "lost"
    connect c2 C client A
    c2: node c2
    c2: add A
      a <- NODE C c2 "add tunnel"
      c2 <- NODE A a1 "add tunnel"
    """,
    "a request is applied in the order of its fields": MEET
    + """
    c: remove A; add A; node c2
      a <- NODE C c2 "node update"
      a <- DISCONNECTED C "tunnel removed"
      c <- DISCONNECTED A "tunnel removed"
    """,
    "update_self comes before disconnect, and nothing after it": MEET
    + """
    a: ready C; disconnect; node a2
      c <- NODE A a2 "node update"
      c <- DISCONNECTED A "graceful disconnect"
      a ends "graceful disconnect"
    """,
    "a newer connection of the same id takes over, nobody is lost": MEET
    + """
    connect a2 A agent
      a <- error "peer ID overwritten by new connection"
      a ends "peer ID overwritten by new connection"
      a2 <- NODE C c1 "init"
    a: node a9
    a: disconnect
    drop a
    a2: node a2
      c <- NODE A a2 "node update"
    """,
    "a takeover by the same node is silent, but for those who came meanwhile": MEET
    + """
    connect a2 A agent
      a <- error "peer ID overwritten by new connection"
      a ends "peer ID overwritten by new connection"
      a2 <- NODE C c1 "init"
    connect d D client A
    d: add A
    a2: node a1
      d <- NODE A a1 "node update"
    a2: node a2
      c, d <- NODE A a2 "node update"
    """,
    "a takeover of a takeover still knows what was told": MEET
    + """
    connect a2 A agent
      a <- error "peer ID overwritten by new connection"
      a ends "peer ID overwritten by new connection"
      a2 <- NODE C c1 "init"
    connect a3 A agent
      a2 <- error "peer ID overwritten by new connection"
      a2 ends "peer ID overwritten by new connection"
      a3 <- NODE C c1 "init"
    drop a3
      c <- LOST A "lost"
    """,
    "a stream that took over was told nothing, not even what the other end's older stream said": MEET
    + """
    connect a2 A agent
      a <- error "peer ID overwritten by new connection"
      a ends "peer ID overwritten by new connection"
      a2 <- NODE C c1 "init"
    connect c2 C client A
      c <- error "peer ID overwritten by new connection"
      c ends "peer ID overwritten by new connection"
    a2: node a1
      c2 <- NODE A a1 "node update"
    c2: node c1
    """,
    "a client that takes over keeps its tunnels": MEET
    + """
    connect c2 C client A
      c <- error "peer ID overwritten by new connection"
      c ends "peer ID overwritten by new connection"
      c2 <- NODE A a1 "init"
    c2: node c2
      a <- NODE C c2 "node update"
    """,
    "but not those that it could not open itself": MEET
    + """
    connect c2 C client B
      c <- error "peer ID overwritten by new connection"
      c ends "peer ID overwritten by new connection"
      a <- DISCONNECTED C "tunnel removed"
    c2: node c2
    """,
    "ready_for_handshake reaches the other end, even before any node": """
        connect a A agent
        connect c C client A
        c: add A
        a: ready C
          c <- READY_FOR_HANDSHAKE A
    """,
    "ready_for_handshake to a stranger is an error, and the sender lives on": MEET
    + """
    a: ready X
      a <- error "ready for handshake error: you do not share a tunnel with "X""
    connect d D client A
    a: ready D C D X
      c <- READY_FOR_HANDSHAKE A
      a <- error "ready for handshake error: you do not share a tunnel with "D""
    a: node a2
      c <- NODE A a2 "node update"
    """,
    "ready_for_handshake for a client that has left is an error, for its tunnel left with it": MEET
    + """
    drop c
      a <- LOST C "lost"
    a: ready C
      a <- error "ready for handshake error: you do not share a tunnel with "C""
    """,
    "ready_for_handshake said twice is passed on once": MEET
    + """
    a: ready C C C
      c <- READY_FOR_HANDSHAKE A
    """,
    "a peer that does not read is removed, and others do not wait for it": MEET
    + """
    overflow a
      c <- DISCONNECTED A "failed update"
      a ends "failed update"
    overflow a
    c: node c2
    connect a2 A agent
      a2 <- NODE C c2 "init"
    """,
    "at close everyone is LOST, by receiver, and only then ended": MEET
    + """
    connect d D client A
    d: node d1; add A
      a <- NODE D d1 "add tunnel"
      d <- NODE A a1 "add tunnel"
    connect e E client A
    e: add A
      e <- NODE A a1 "add tunnel"
    close
      a <- LOST C "coordinator close" + LOST D "coordinator close"
      c <- LOST A "coordinator close"
      d <- LOST A "coordinator close"
      e <- LOST A "coordinator close"
      a ends "coordinator close"
      c ends "coordinator close"
      d ends "coordinator close"
      e ends "coordinator close"
    c: node c2
    drop a
    close
    connect b B agent
      b <- error "coordinator close"
      b ends "coordinator close"
    """,
}

REFUSED = {
    "an agent opens a tunnel": """
        connect b B agent
        b: add A
          b <- error "authorization: agents cannot open tunnels"
          b ends "authorization: agents cannot open tunnels"
    """,
    "a client opens a tunnel to another agent": MEET
    + """
    c: add B
      c <- error "authorization: this connection reaches only agent "A", not "B""
      a <- LOST C "lost"
      c ends "authorization: this connection reaches only agent "A", not "B""
    """,
    "a client of many opens a tunnel to what it may not see": """
        connect c C many
        c: add X
          c <- error "authorization: workspace agent not found or you do not have permission"
          c ends "authorization: workspace agent not found or you do not have permission"
    """,
    "a tunnel to oneself": """
        connect d D many
        d: add D
          d <- error "authorization: a peer cannot open a tunnel to itself"
          d ends "authorization: a peer cannot open a tunnel to itself"
    """,
    "a client says ready": MEET
    + """
    c: ready A
      c <- error "authorization: only agents send ready_for_handshake"
      a <- LOST C "lost"
      c ends "authorization: only agents send ready_for_handshake"
    """,
    "an agent claims a foreign address": MEET
    + """
    a: node a2 fd7a:115c:a1e0:4242:4242:4242:4242:4242/128
      a <- error "authorization: node addresses has fd7a:115c:a1e0:4242:4242:4242:4242:4242, which does not follow \
from the agent's id"
      c <- LOST A "lost"
      a ends "authorization: node addresses has fd7a:115c:a1e0:4242:4242:4242:4242:4242, which does not follow \
from the agent's id"
    """,
    "ids that are none": """
        connect c C many
        c: add no
          c <- error "malformed request: add_tunnel id has 2 bytes, a peer id has 16"
          c ends "malformed request: add_tunnel id has 2 bytes, a peer id has 16"
        connect c C many
        c: remove seventeen.letters
          c <- error "malformed request: remove_tunnel id has 17 bytes, a peer id has 16"
          c ends "malformed request: remove_tunnel id has 17 bytes, a peer id has 16"
        connect a A agent
        a: ready C no
          a <- error "malformed request: ready_for_handshake id has 2 bytes, a peer id has 16"
          a ends "malformed request: ready_for_handshake id has 2 bytes, a peer id has 16"
    """,
    "nothing of a refused request is applied": MEET
    + """
    c: node c2; add B; remove A; disconnect
      c <- error "authorization: this connection reaches only agent "A", not "B""
      a <- LOST C "lost"
      c ends "authorization: this connection reaches only agent "A", not "B""
    """,
}


def clean(script: str) -> str:
    """A script without the indentation that this file adds."""
    lines = [line.rstrip() for line in script.strip("\n").splitlines() if line.strip()]
    # The commands are the lines that do not show an answer; answers are two columns in.
    answer = (" <- ", " ends ")
    return "\n".join(("  " if any(mark in line for mark in answer) else "") + line.strip() for line in lines)


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    script = clean(RULES[name])
    assert Playbook().run(script) == script


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    script = clean(REFUSED[name])
    assert Playbook().run(script) == script


def test_a_tunnel_too_many_is_an_error_and_the_peer_lives_on() -> None:
    script = clean("""
        connect d D agent
        d: node d1
        connect c C many
        c: add A
        c: add B
        c: add B
        c: node c1; add D
          c <- error "add tunnel error: no tunnel to "D": 2 are open, which is the limit"
        c: remove B
        c: add D
          d <- NODE C c1 "add tunnel"
          c <- NODE D d1 "add tunnel"
    """)
    book = Playbook(Limits(tunnels=2))
    assert book.run(script) == script
    assert book.core.statistics().refusals[Refusal.TUNNEL_COUNT] == 1


def test_a_list_of_ready_ids_is_bounded() -> None:
    script = clean("""
        connect a A agent
        a: ready B C
          a <- error "ready for handshake error: you do not share a tunnel with "B""
        a: ready B C D
          a <- error "malformed request: ready_for_handshake lists 3 peers, limit 2"
          a ends "malformed request: ready_for_handshake lists 3 peers, limit 2"
    """)
    assert Playbook(Limits(ready_for_handshake=2)).run(script) == script


def test_an_oversized_node_is_refused_and_the_one_before_it_stays() -> None:
    script = clean("""
        connect a A agent
        connect c C client A
        c: add A
        a: node a1
          c <- NODE A a1 "node update"
        a: node a2345
          a <- error "update error: node has 5 bytes, limit 4; the last one stays"
        c: node c2345; remove A; ready A
          c <- error "authorization: only agents send ready_for_handshake"
          c ends "authorization: only agents send ready_for_handshake"
        connect c2 C client A
        c2: node c2345; add A
          c2 <- error "update error: node has 5 bytes, limit 4; the last one stays"
          c2 <- NODE A a1 "add tunnel"
        a: node a2
          c2 <- NODE A a2 "node update"
    """)
    book = Playbook(Limits(node_bytes=4))
    assert book.run(script) == script
    assert book.core.statistics().refusals[Refusal.NODE_SIZE] == 2


def test_what_an_oversized_node_claims_is_not_looked_at() -> None:
    """Two hundred thousand addresses would take a second."""
    core: Coordinator[str] = Coordinator()
    core.handle_connect(peer_id("A"), AgentPolicy(peer_id("A")), "a", 0)
    node = make_node("n", ["nonsense"] * 200_000)
    [effect] = core.handle_request("a", Request(node=node), 0)
    assert isinstance(effect, SendError)
    assert "node has 200000 addresses, limit 16" in effect.text
    assert core.node_of(peer_id("A")) is None


def test_a_changed_key_is_checked_again() -> None:
    core: Coordinator[str] = Coordinator()
    core.handle_connect(peer_id("A"), AgentPolicy(peer_id("A")), "a", 0)
    assert core.handle_request("a", Request(node=make_node("1")), 0) == []
    effects = core.handle_request("a", Request(node=make_node("2", key=b"np")), 0)
    assert 'node key must be "np" and 32 bytes' in repr(effects)


def test_ten_receivers_cost_one_effect_and_no_new_list() -> None:
    core: Coordinator[str] = Coordinator()
    core.handle_connect(peer_id("A"), AgentPolicy(peer_id("A")), "a", 0)
    for letter in "BCDEFGHIJK":
        core.handle_connect(peer_id(letter), ManyAgentsPolicy(), letter, 0)
        core.handle_request(letter, Request(add_tunnel=peer_id("A"), allowed={peer_id("A")}), 0)
    core.handle_request("a", Request(node=make_node("1")), 0)
    seen = [core.handle_request("a", Request(node=make_node(str(count))), 0) for count in (2, 3)]
    first, second = (effect for effects in seen for effect in effects)
    assert isinstance(first, Deliver)
    assert isinstance(second, Deliver)
    assert set(first.receivers) == set("BCDEFGHIJK")
    assert first.receivers is second.receivers


def test_init_comes_in_few_messages() -> None:
    core: Coordinator[str] = Coordinator()
    for at in range(1000):
        core.handle_connect(PeerID(at.to_bytes(16, "big")), ManyAgentsPolicy(), f"c{at}", 0)
        node = make_node("n" * 400)
        core.handle_request(f"c{at}", Request(node=node, add_tunnel=peer_id("A"), allowed={peer_id("A")}), 0)
    effects = core.handle_connect(peer_id("A"), AgentPolicy(peer_id("A")), "a", 0)
    assert len(effects) < 10
    told = [update.peer_id for effect in effects if isinstance(effect, Deliver) for update in effect.updates]
    assert len(set(told)) == len(told) == 1000


def test_a_connection_is_used_once() -> None:
    core: Coordinator[str] = Coordinator()
    core.handle_connect(peer_id("A"), AgentPolicy(peer_id("A")), "a", 0)
    with pytest.raises(LocalProtocolError):
        core.handle_connect(peer_id("B"), AgentPolicy(peer_id("B")), "a", 0)
    assert core.connection_of(peer_id("A")) == "a"
    assert core.connection_of(peer_id("B")) is None


def test_queries_answer_for_raw_ids_and_forget_who_left() -> None:
    book = Playbook()
    book.run(clean(MEET))
    node = book.core.node_of(bytes(peer_id("A")))
    assert node is not None
    assert node.raw == b"a1"
    assert isinstance(book.core.policy_of("a"), AgentPolicy)
    book.step("drop a")
    assert book.core.node_of(peer_id("A")) is None
    assert book.core.policy_of("a") is None


def test_statistics_count_what_happened() -> None:
    book = Playbook()
    book.run(clean(MEET))
    book.run("a: node a1\na: node a2\na: ready C X\nconnect c2 C client A\nc2: add B\noverflow a\nclose")
    assert book.core.statistics() == Statistics(
        connected_peers=0,
        absent_peers=0,
        tunnels=0,
        connects=3,
        overtaken=1,
        requests=6,
        node_updates=4,
        suppressed_updates=1,
        deliveries=6,
        ready_for_handshake=1,
        departures={"graceful disconnect": 0, "lost": 1, "failed update": 1, "coordinator close": 0}
        | {"authorization withdrawn": 0},
        refusals=dict.fromkeys(Refusal, 0) | {Refusal.TUNNEL: 1},
    )


def test_departures_are_remembered_with_their_reason() -> None:
    book = Playbook()
    book.run("connect a A agent\na: add B\nconnect b B agent\nb: disconnect")
    first, second = book.core.departures
    assert (first.peer_id, first.kind, first.at) == (peer_id("A"), Kind.LOST, 2)
    assert first.refusal == "authorization: agents cannot open tunnels"
    assert (second.peer_id, second.kind, second.refusal) == (peer_id("B"), Kind.DISCONNECTED, "")


def test_nothing_is_held_when_everyone_has_left() -> None:
    book = Playbook()
    for _ in range(3):
        book.run("connect a A agent\na: node a1\nconnect c C many\nc: node c1; add A\nc: add B\nc: add D")
        book.run("connect c2 C many\ndrop a\nconnect a2 A agent\noverflow c2\na2: disconnect")
    assert book.core.peers == {}
    assert book.core.statistics().connected_peers == book.core.statistics().tunnels == 0


class Channel:
    """A connection as the hub names it: an object of its own."""


def test_churn_leaves_nothing_behind() -> None:
    """Not even for the cycle collector: a server that froze it must not grow."""
    core: Coordinator[Channel] = Coordinator()
    alive: weakref.WeakSet[Channel] = weakref.WeakSet()
    agents = [PeerID(bytes([1, at]) * 8) for at in range(5)]
    clients = [PeerID(bytes([2, at]) * 8) for at in range(20)]

    def live_and_leave(turn: int) -> None:
        channels = {peer: Channel() for peer in agents + clients}
        alive.update(channels.values())
        for peer, channel in channels.items():
            core.handle_connect(peer, AgentPolicy(peer) if peer in agents else ManyAgentsPolicy(), channel, turn)
            core.handle_request(channel, Request(node=make_node(f"{turn}")), turn)
        for at, client in enumerate(clients):
            for agent in (agents[at % 5], agents[(at + turn) % 5]):
                core.handle_request(channels[client], Request(add_tunnel=agent, allowed={agent}), turn)
            core.handle_request(channels[client], Request(node=make_node(f"again {turn}")), turn)
        core.check()
        ends = [
            lambda channel: core.handle_disconnect(channel, False, turn),
            lambda channel: core.handle_disconnect(channel, True, turn),
            lambda channel: core.handle_overflow(channel, turn),
            lambda channel: core.handle_request(channel, Request(disconnect=True), turn),
            lambda channel: core.handle_request(channel, Request(add_tunnel=b""), turn),
        ]
        for at, channel in enumerate(channels.values()):
            ends[(at + turn) % len(ends)](channel)

    gc.disable()
    try:
        for turn in range(20):
            live_and_leave(turn)
            assert core.peers == {}
            assert len(alive) == 0
        channel = Channel()
        alive.add(channel)
        core.handle_connect(agents[0], ManyAgentsPolicy(), channel, 0)
        core.handle_request(channel, Request(add_tunnel=clients[0], allowed={clients[0]}), 0)
        core.handle_close(0)
        del channel
        assert len(alive) == 0
    finally:
        gc.enable()
    assert core.statistics().tunnels == 0
    assert len(core.departures) == MAX_DEPARTURES
