"""The router against a model: random histories of clients, packets, watchers and other relays."""

from collections import Counter, defaultdict
from typing import cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from derp.protocol.frames import PeerGoneReason
from derp.protocol.messages import Message, PeerGone, PeerPresent, RecvPacket
from derp.relay.clients import Client
from derp.relay.counters import DropReason
from derp.relay.mesh import MeshRoute
from tests.derp.relay.test_router import check, frame
from tests.derp.relay.world import World, disco, key

LEFT, NOT_HERE = PeerGoneReason.DISCONNECTED, PeerGoneReason.NOT_HERE


# --- random histories against a model

NAMES = st.sampled_from(("a", "b", "c"))


class RouterMachine(RuleBasedStateMachine):
    """Everything that can happen to a router, against plain lists of who is where."""

    clients = Bundle("clients")
    links = Bundle("links")

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.connections: dict[str, list[Client]] = defaultdict(list)  # in the order of activity
        self.forwarders: dict[str, list[MeshRoute]] = defaultdict(list)  # in the order of announcement
        self.reached: dict[str, set[Client]] = defaultdict(set)
        self.watchers: set[Client] = set()
        self.preferred: set[Client] = set()
        self.tokens: dict[Client, tuple[float, float]] = {}
        self.expected: dict[object, list[Message]] = defaultdict(list)
        self.open_links: list[MeshRoute] = []
        self.sent = self.delivered = self.forwarded = self.dropped = 0

    # -- what happens

    @rule(target=clients, name=NAMES, is_mesh_peer=st.booleans(), is_ideal=st.booleans(), is_prober=st.booleans())
    def connect(self, name: str, is_mesh_peer: bool, is_ideal: bool, is_prober: bool) -> Client:
        client = self.world.connect(
            name, is_mesh_peer=is_mesh_peer, is_ideal=is_ideal, is_prober=is_prober, port=len(self.tokens)
        )
        for watcher in self.watchers:
            self.expected[watcher].append(self.presence(client))
        self.connections[name].append(client)
        self.tokens[client] = (3.0, self.world.now)
        return client

    @rule(client=clients)
    def leave(self, client: Client) -> None:
        if self.is_here(client):
            self.world.leave(client)
            self.forget(client)

    @rule(client=clients)
    def frame(self, client: Client) -> None:
        if self.is_here(client):
            frame(self.world, client)
            self.note_activity(client)

    @rule(client=clients, to=st.sampled_from(("a", "b", "c", "far", "nobody")), is_disco=st.booleans())
    def packet(self, client: Client, to: str, is_disco: bool) -> None:
        if not self.is_here(client):
            return
        packet = disco() if is_disco else b"p" * 70
        frame(self.world, client)
        self.world.packet(client, to, packet)
        self.note_activity(client)
        self.sent += 1
        if self.connections[to]:
            receiver = self.connections[to][-1]
            self.expected[receiver].append(RecvPacket(client.key, packet))
            self.reached[name_of(client)].add(receiver)
            self.delivered += 1
        elif self.forwarders[to]:
            self.expected[self.forwarders[to][0]].append(RecvPacket(client.key, key(to)))
            self.forwarded += 1
        else:
            self.dropped += 1
            if is_disco and self.take_token(client):
                self.expected[client].append(PeerGone(key(to), NOT_HERE))

    @rule(client=clients, preferred=st.booleans())
    def prefer(self, client: Client, preferred: bool) -> None:
        if self.is_here(client):
            self.world.router.handle_note_preferred(client, preferred, self.world.now)
            self.preferred.discard(client)
            if preferred:
                self.preferred.add(client)

    @rule(client=clients)
    def watch(self, client: Client) -> None:
        if self.is_here(client) and client.is_mesh_peer:
            self.world.router.handle_watch_conns(client)
            if client not in self.watchers:
                self.watchers.add(client)
                self.expected[client] += [self.presence(found[-1]) for found in self.connections.values() if found]

    @rule(name=NAMES)
    def close_peer(self, name: str) -> None:
        self.world.router.handle_close_peer(key(name))
        self.world.flush()
        for client in tuple(self.connections[name]):
            self.forget(client)

    @rule(seconds=st.sampled_from((0.1, 0.5, 1.0, 10.0)))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(target=links)
    def open_link(self) -> MeshRoute:
        link = self.world.mesh(f"relay {len(self.open_links)}")
        self.open_links.append(link)
        return link

    @rule(link=links, name=st.sampled_from(("a", "b", "c", "far")))
    def announce(self, link: MeshRoute, name: str) -> None:
        if link in self.open_links:
            link.handle_message(PeerPresent(key(name)))
            if link not in self.forwarders[name]:
                self.forwarders[name].append(link)

    @rule(link=links, name=st.sampled_from(("a", "b", "c", "far")))
    def take_back(self, link: MeshRoute, name: str) -> None:
        if link in self.open_links:
            link.handle_message(PeerGone(key(name)))
            self.lose(link, name)

    @rule(link=links)
    def break_link(self, link: MeshRoute) -> None:
        if link in self.open_links:
            link.handle_break()
            self.open_links.remove(link)
            for name in tuple(self.forwarders):
                self.lose(link, name)

    # -- the model

    def is_here(self, client: Client) -> bool:
        return client in self.connections[name_of(client)]

    def presence(self, client: Client) -> PeerPresent:
        flags = 2 * client.is_mesh_peer + 4 * client.is_prober + 8 * (not client.is_ideal)
        return PeerPresent(client.key, None, client.port, flags or 1)

    def note_activity(self, client: Client) -> None:
        mine = self.connections[name_of(client)]
        mine.remove(client)
        mine.append(client)

    def forget(self, client: Client) -> None:
        name = name_of(client)
        self.connections[name].remove(client)
        self.watchers.discard(client)
        self.preferred.discard(client)
        for receivers in self.reached.values():
            receivers.discard(client)
        self.expected.pop(client, None)
        if not self.connections[name]:
            for watcher in self.watchers:
                self.expected[watcher].append(PeerGone(key(name), LEFT))
        self.tell_if_gone(name)

    def lose(self, link: MeshRoute, name: str) -> None:
        if link in self.forwarders[name]:
            self.forwarders[name].remove(link)
            self.tell_if_gone(name)

    def tell_if_gone(self, name: str) -> None:
        if not self.connections[name] and not self.forwarders[name]:
            for receiver in self.reached.pop(name, ()):
                self.expected[receiver].append(PeerGone(key(name), LEFT))

    def take_token(self, client: Client) -> bool:
        tokens, at = self.tokens[client]
        tokens = min(tokens + self.world.now - at, 3.0)
        self.tokens[client] = (tokens - (tokens >= 1), self.world.now)
        return tokens >= 1

    # -- the comparison

    @invariant()
    def everybody_got_what_the_model_says(self) -> None:
        for found in self.connections.values():
            for client in found:
                got = self.world.take(client)
                assert Counter(got) == Counter(self.expected.pop(client, [])), name_of(client)
        for link in self.open_links:
            forwards = bytes(self.world.sent.pop(link, b""))
            wanted = self.expected.pop(link, [])
            heads = [forwards[at : at + 69] for at in range(0, len(forwards), 5 + 64 + 70)]
            assert [head[5:] for head in heads] == [one.src + one.packet for one in cast(list[RecvPacket], wanted)]
        assert not any(self.expected.values())

    @invariant()
    def the_registry_is_in_order(self) -> None:
        router, counters = self.world.router, self.world.router.counters
        check(self.world)
        for name in ("a", "b", "c", "far"):
            here, ways = self.connections[name], self.forwarders[name]
            assert router.routes.get(key(name)) is (here[-1] if here else ways[0] if ways else None)
            assert [client.is_duplicate for client in here] == [len(here) > 1] * len(here)
        known = {name for table in (self.connections, self.forwarders) for name, found in table.items() if found}
        assert set(router.members) == {key(name) for name in known}
        everybody = [client for found in self.connections.values() for client in found]
        assert set(router.clients.values()) == set(everybody)
        assert router.duplicate_keys == sum(len(found) > 1 for found in self.connections.values())
        assert router.not_ideal_clients == sum(not client.is_ideal for client in everybody)
        assert router.home_clients == len(self.preferred)
        assert router.watchers == self.watchers
        assert counters.packets_received == self.sent == self.delivered + self.forwarded + self.dropped
        assert counters.packets_forwarded_out == self.forwarded
        assert counters.dropped(DropReason.UNKNOWN_DEST) == sum(counters.packets_dropped) == self.dropped

    @invariant()
    def memory_of_packets_is_mutual(self) -> None:
        members = self.world.router.members.values()
        forward = {(member.key, client) for member in members for client in member.sent_to or ()}
        clients = self.world.router.clients.values()
        assert forward == {(member.key, client) for client in clients for member in client.heard_from or ()}
        assert forward == {(key(name), client) for name, found in self.reached.items() for client in found}


def name_of(client: Client) -> str:
    return client.key.rstrip(b".").decode()


RouterMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
test_random_histories = RouterMachine.TestCase
