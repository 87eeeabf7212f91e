"""Random histories through the core and through the model: what everyone is told must agree at every step."""

import random
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.messages import Deliver, Effect, EndConnection, Kind, Request, SendError
from tailnet.coordinator.nodes import Limits
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy, ManyAgentsPolicy, Policy
from tailnet.types import TAILSCALE_SERVICE_PREFIX, PeerID
from tests.tailnet.coordinator.model import Ask, Message, Model, Session
from tests.tailnet.coordinator.playbook import make_node

AGENTS = [PeerID(name.encode() * 16) for name in "AB"]
CLIENTS = [PeerID(name.encode() * 16) for name in "CDE"]
PEERS = [*AGENTS, *CLIENTS]
# Clients of many may reach two agents and, so that tunnels in both directions occur, two clients.
ALLOWED: set[bytes] = {*AGENTS, *CLIENTS[:2]}
NODES = [b"n1", b"n2"]
TUNNEL_LIMIT = 2
FOREIGN = "fd7a:115c:a1e0:1:2:3:4:5/128"
# The model's short words for the refusals that it knows.
REFUSALS = {
    "does not follow from the agent's id": "foreign address",
    "a tunnel to itself": "self",
    "agents cannot open tunnels": "agent",
    "this connection reaches only": "other agent",
    "you do not have permission": "no permission",
    "only agents send ready_for_handshake": "not ready",
    "which is the limit": "too many tunnels",
}


class World:
    """The core and the model side by side, and every connection's own idea of what it was told."""

    def __init__(self) -> None:
        self.core: Coordinator[str] = Coordinator(Limits(tunnels=TUNNEL_LIMIT))
        self.model = Model(TUNNEL_LIMIT, ALLOWED)
        self.names: list[str] = []
        self.beliefs: dict[str, dict[str, str]] = {}
        self.history: list[str] = []

    def connect(self, peer: PeerID, role: str, agent: PeerID) -> None:
        name = f"{peer[:1].decode().lower()}{len(self.names)}"
        policies: dict[str, Policy] = {
            "agent": AgentPolicy(peer),
            "client": ClientPolicy(agent),
            "many": ManyAgentsPolicy(),
        }
        self.names.append(name)
        self.beliefs[name] = {}
        self.history.append(f"connect {name} {role} {agent!r}")
        self.model.connect(name, Session(bytes(peer), role, bytes(agent)))
        self.compare(self.core.handle_connect(peer, policies[role], name, 0))

    def request(self, at: int, ask: Ask) -> None:
        name = self.pick(at)
        node = None
        if ask.node is not None:
            peer = PEERS[["a", "b", "c", "d", "e"].index(name[0])]
            own = FOREIGN if ask.foreign else f"{peer.address(TAILSCALE_SERVICE_PREFIX)}/128"
            node = make_node(ask.node.decode(), [own])
        self.history.append(f"{name}: {ask}")
        self.model.request(name, ask)
        request = Request(node, ask.add, ask.remove, ask.disconnect, ask.ready, ALLOWED)
        self.compare(self.core.handle_request(name, request, 0))

    def end(self, at: int, how: str) -> None:
        name = self.pick(at)
        self.history.append(f"{how} {name}")
        if how == "overflow":
            self.model.depart(name, "DISCONNECTED", "failed update", end="failed update")
            self.compare(self.core.handle_overflow(name, 0))
        elif how == "revoke":
            if name in self.model.sessions:
                self.model.sessions[name].inbox.append(("error", "authorization: authorization withdrawn"))
            self.model.depart(name, "DISCONNECTED", "authorization withdrawn", end="authorization withdrawn")
            self.compare(self.core.handle_revoke(name, 0))
        elif how == "leave":
            self.model.depart(name, "DISCONNECTED", "graceful disconnect")
            self.compare(self.core.handle_disconnect(name, True, 0))
        else:
            self.model.depart(name, "LOST", "lost")
            self.compare(self.core.handle_disconnect(name, False, 0))

    def revoke_tunnels(self, at: int) -> None:
        """Every tunnel of a connection, and one that was never there."""
        name = self.pick(at)
        self.history.append(f"revoke the tunnels of {name}")
        session = self.model.sessions.get(name)
        mine = [] if session is None else [dst for src, dst in self.model.tunnels if src == session.peer]
        assert sorted(self.core.tunnels_of(name)) == sorted(mine)
        self.model.revoke_tunnels(name)
        self.compare(self.core.handle_revoke_tunnels(name, [*mine, bytes(16)]))

    def close(self) -> None:
        self.history.append("close")
        self.model.close()
        self.compare(self.core.handle_close(0))

    def pick(self, at: int) -> str:
        """One of the living, except that 0 is whoever came first, mostly long gone."""
        living = list(self.model.sessions) if at else []
        return living[at % len(living)] if living else self.names[0]

    def sensible(self, at: int, ask: Ask) -> Ask:
        """The request without what would only be refused, so that histories live long enough to be interesting."""
        session = self.model.sessions.get(self.pick(at))
        if session is None:
            return ask
        agent = session.role == "agent"
        add = ask.add if self.model.judge(session, Ask(add=ask.add)) is None else None
        return replace(ask, foreign=False, add=add, ready=ask.ready if agent else ())

    def compare(self, effects: list[Effect[str]]) -> None:
        told = flatten(effects)
        where = "\n".join(self.history)
        assert by_peer(told) == by_peer(self.model.collect()), where
        for name, messages in told.items():
            self.believe(name, messages)
        for name, session in self.model.sessions.items():
            assert self.beliefs[name] == {k.hex(): v.decode() for k, v in session.knows.items()}, where
        self.core.check()

    def believe(self, name: str, messages: list[Message]) -> None:
        """Follow the updates as a client does; a client would log each of these mistakes."""
        knows = self.beliefs[name]
        for at, (kind, *rest) in enumerate(messages):
            if kind == "NODE":
                assert knows.get(rest[0]) != rest[1], "told twice"
                knows[rest[0]] = rest[1]
            elif kind in ("LOST", "DISCONNECTED"):
                del knows[rest[0]]
            elif kind == "end":
                assert at == len(messages) - 1, "something was sent after the end"


def flatten(effects: list[Effect[str]]) -> dict[str, list[Message]]:
    """What every connection was sent, in order."""
    told: dict[str, list[Message]] = defaultdict(list)
    for effect in effects:
        if isinstance(effect, SendError):
            told[effect.connection].append(("error", shorten(effect.text)))
        elif isinstance(effect, EndConnection):
            told[effect.connection].append(("end", shorten(effect.reason)))
        else:
            assert isinstance(effect, Deliver)
            assert len(set(effect.receivers)) == len(effect.receivers) > 0
            for update in effect.updates:
                assert (update.node is not None) == (update.kind is Kind.NODE)
                node = "" if update.node is None else update.node.raw.decode()
                for receiver in effect.receivers:
                    told[receiver].append((update.kind.name, update.peer_id.hex(), node, update.reason))
    return told


def shorten(text: str) -> str:
    if text.startswith("ready for handshake error"):
        return f"no shared tunnel {PeerID.parse(text.split(chr(34))[1]).hex()}"
    return next((word for part, word in REFUSALS.items() if part in text), text)


def by_peer(told: dict[str, list[Message]]) -> dict[str, dict[str, list[Message]]]:
    """What is told of different peers may come in any order; what is told of one may not."""
    sorted_out: dict[str, dict[str, list[Message]]] = {}
    for name, messages in told.items():
        for message in messages:
            subject = "" if message[0] in ("error", "end") else message[1]
            sorted_out.setdefault(name, {}).setdefault(subject, []).append(message)
    return sorted_out


class Histories(RuleBasedStateMachine):
    """Hypothesis' own search, which shortens what it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(peer=st.sampled_from(AGENTS))
    def an_agent_comes(self, peer: PeerID) -> None:
        self.world.connect(peer, "agent", peer)

    @rule(peer=st.sampled_from(CLIENTS), role=st.sampled_from(["many", "client"]), agent=st.sampled_from(AGENTS))
    def a_client_comes(self, peer: PeerID, role: str, agent: PeerID) -> None:
        self.world.connect(peer, role, agent)

    @rule(
        at=st.integers(0, 19),
        node=st.none() | st.sampled_from(NODES),
        foreign=st.integers(0, 15).map(lambda number: number == 15),
        add=st.none() | st.sampled_from(PEERS),
        remove=st.none() | st.sampled_from(PEERS),
        disconnect=st.integers(0, 15).map(lambda number: number == 15),
        ready=st.just([]) | st.lists(st.sampled_from(PEERS), max_size=3),
        sensible=st.integers(0, 15).map(lambda number: number != 15),
    )
    def a_request(
        self,
        at: int,
        node: bytes | None,
        foreign: bool,
        add: PeerID | None,
        remove: PeerID | None,
        disconnect: bool,
        ready: list[PeerID],
        sensible: bool,
    ) -> None:
        if self.world.names:
            ask = Ask(node, foreign, add, remove, disconnect, ready)
            self.world.request(at, self.world.sensible(at, ask) if sensible else ask)

    @rule(at=st.integers(0, 19), how=st.sampled_from(["drop", "leave", "overflow", "revoke"]))
    def one_ends(self, at: int, how: str) -> None:
        if self.world.names:
            self.world.end(at, how)

    @rule(at=st.integers(0, 19))
    def tunnels_are_revoked(self, at: int) -> None:
        if self.world.names:
            self.world.revoke_tunnels(at)

    @rule(sure=st.integers(0, 30))
    def the_server_closes(self, sure: int) -> None:
        if sure == 30:
            self.world.close()

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.world.core.peers) <= len(PEERS)

    def teardown(self) -> None:
        empty_out(self.world)


def empty_out(world: World) -> None:
    """Everyone leaves: nothing may be held."""
    while world.model.sessions:
        world.end(1, "drop")
    assert world.core.peers == {}
    assert world.core.statistics().tunnels == 0


def test_histories_that_hypothesis_finds() -> None:
    run_state_machine_as_test(Histories, settings=settings(max_examples=120, stateful_step_count=30, deadline=None))


@pytest.mark.parametrize("seed", range(8))
def test_long_random_histories(seed: int) -> None:
    """Cheap to make, so there are thousands; shaped so that peers live long enough to know each other."""
    chance = random.Random(seed)
    for _ in range(250):
        walk(chance, steps=chance.choice((10, 30, 120)))


def walk(chance: random.Random, steps: int) -> None:
    world = World()
    for _ in range(steps):
        dice = chance.random()
        absent = [peer for peer in PEERS if world.model.holder(peer) is None]
        if (absent and dice < 0.2) or dice < 0.06 or not world.names:
            peer = chance.choice(absent or PEERS)
            role = "agent" if peer in AGENTS else chance.choice(("many", "many", "client"))
            world.connect(peer, role, chance.choice(AGENTS))
        elif dice < 0.24:
            world.end(chance.randrange(20), chance.choice(("drop", "leave", "overflow", "revoke")))
        elif dice < 0.27:
            world.revoke_tunnels(chance.randrange(20))
        else:
            at, ask = chance.randrange(20), random_ask(chance)
            world.request(at, world.sensible(at, ask) if chance.random() < 0.98 else ask)
    if chance.random() < 0.3:
        world.close()
        world.connect(PEERS[0], "agent", PEERS[0])
    empty_out(world)


def random_ask(chance: random.Random) -> Ask:
    def sometimes(chances: float) -> bool:
        return chance.random() < chances

    return Ask(
        node=chance.choice(NODES) if sometimes(0.5) else None,
        foreign=sometimes(0.2),
        add=chance.choice(PEERS) if sometimes(0.4) else None,
        remove=chance.choice(PEERS) if sometimes(0.15) else None,
        disconnect=sometimes(0.02),
        ready=chance.choices(PEERS, k=2) if sometimes(0.2) else (),
    )
