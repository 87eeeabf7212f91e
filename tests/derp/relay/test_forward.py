"""Relaying in place against a slow model that builds every frame anew; streams cut anywhere, wrong lengths."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from derp.errors import RemoteProtocolError
from derp.metrics import routed_totals
from derp.protocol.frames import HEADER, MAX_FORWARD_BYTES, MAX_SEND_BYTES, FrameType, PeerGoneReason, encode_frame
from derp.protocol.messages import ForwardPacket, PeerGone, Ping, RecvPacket, SendPacket, encode
from derp.relay.clients import NOT_HERE_BURST, Client
from derp.relay.counters import DropReason, PacketKind
from derp.relay.forward import relay_forwarded, relay_packets
from derp.relay.router import Route
from tests.derp.relay.world import World, disco, key

SOURCE, LOCAL, REMOTE, TWICE, ABSENT = "source", ("a", "b", "c"), ("far", "farther"), "twice", ("x", "y")
NAMES = (SOURCE, *LOCAL, *REMOTE, TWICE, *ABSENT)


@dataclass
class Setting:
    """A sender, local clients, two other relays, a key with two connections, absent keys."""

    world: World = field(default_factory=World)
    routes: dict[str, Route] = field(default_factory=dict)

    def __post_init__(self) -> None:
        world = self.world
        self.source = world.connect(SOURCE)
        self.routes |= {SOURCE: self.source} | {name: world.connect(name) for name in LOCAL}
        self.routes |= {name: world.mesh(f"relay of {name}", name) for name in REMOTE}
        world.connect(TWICE)
        self.routes[TWICE] = world.connect(TWICE)

    def feed(self, stream: bytes, cuts: list[int], receives_per_flush: int) -> bytes:
        """Receive `stream` cut at `cuts` as the reactor does: several receives side by side, the unfinished rest
        kept and put before the next.  Returns what is left."""
        world, kept = self.world, b""
        buffer = bytearray(len(stream) + receives_per_flush * (MAX_SEND_BYTES + 5))
        view = memoryview(buffer)
        end = 0
        edges = [0, *sorted(cuts), len(stream)]
        for count, (first, last) in enumerate(pairwise(edges), 1):
            received = kept + stream[first:last]
            start, end = end, end + len(received)
            buffer[start:end] = received
            rest = relay_packets(buffer, view, start, end, self.source, world.router, world.now)
            kept = bytes(buffer[rest:end])
            if count % receives_per_flush == 0:
                world.flush()
                buffer[:] = bytes(len(buffer))  # nothing may still refer to it
                end = 0
        world.flush()
        return kept

    def check(self, packets: list[tuple[str, bytes]]) -> None:
        """Compare what everybody got with what the obvious way of relaying `packets` gives."""
        expected: dict[str, bytes] = defaultdict(bytes)
        drops = [0, 0]
        dropped_bytes = delivered = delivered_bytes = forwarded = forwarded_bytes = 0
        for name, packet in packets:
            if name in REMOTE:
                expected[name] += encode(ForwardPacket(key(SOURCE), key(name), packet))
                forwarded, forwarded_bytes = forwarded + 1, forwarded_bytes + len(packet)
            elif name in ABSENT:
                drops[looks_like_disco(packet)] += 1
                dropped_bytes += len(packet)
            else:
                expected[name] += encode(RecvPacket(key(SOURCE), packet))
                delivered, delivered_bytes = delivered + 1, delivered_bytes + len(packet)
        world, counters = self.world, self.world.router.counters
        for name, route in self.routes.items():
            got = bytes(world.sent.get(route, b""))
            if name == SOURCE:
                got = without_notices(got)
            assert got == expected[name], name
        total_bytes = sum(len(packet) for _, packet in packets)
        assert (counters.packets_received, counters.bytes_received) == (len(packets), total_bytes)
        assert counters.disco_received == sum(looks_like_disco(packet) for _, packet in packets)
        assert counters.packets_dropped[2 * DropReason.UNKNOWN_DEST :][:2] == drops
        assert sum(counters.packets_dropped) == sum(drops)
        assert sum(counters.bytes_dropped) == dropped_bytes
        assert (counters.packets_forwarded_out, counters.bytes_forwarded_out) == (forwarded, forwarded_bytes)
        assert routed_totals(world.router, 0, 0) == (delivered, delivered_bytes)
        assert (self.source.packets_in, self.source.bytes_in) == (len(packets), total_bytes)
        for name, route in self.routes.items():
            mine = [packet for to, packet in packets if to == name]
            assert (route.packets_out, route.bytes_out) == (len(mine), sum(map(len, mine)))


def looks_like_disco(packet: bytes) -> bool:
    return len(packet) >= 62 and packet[:6] == b"TS\xf0\x9f\x92\xac"


def without_notices(frames: bytes) -> bytes:
    """Leave PeerGone frames out: the limiter decides about those, not the forwarding."""
    kept, at = b"", 0
    while at < len(frames):
        kind, length = HEADER.unpack_from(frames, at)
        if kind != FrameType.PEER_GONE:
            kept += frames[at : at + 5 + length]
        at += 5 + length
    return kept


def stream_of(packets: list[tuple[str, bytes]]) -> bytes:
    return b"".join(encode(SendPacket(key(name), packet)) for name, packet in packets)


SIZES = st.one_of(st.integers(0, 200), st.sampled_from((0, 61, 62, 63, 1280, 65535, 65536)))


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    """Packets as they come: often several alike after each other, of one size or one destination."""
    name, size = draw(st.sampled_from(NAMES)), draw(SIZES)
    count = draw(st.integers(1, 5 if size < 2000 else 1))
    packets = []
    for _ in range(count):
        fill = draw(st.binary(min_size=1, max_size=3))
        is_disco = size >= 6 and draw(st.booleans())
        packet = (b"TS\xf0\x9f\x92\xac" if is_disco else b"") + fill * (size // len(fill) + 1)
        packets.append((name, packet[:size]))
    return packets


STREAMS = st.lists(runs(), max_size=12).map(lambda lists: [packet for run in lists for packet in run])


@settings(max_examples=300, deadline=None)
@given(packets=STREAMS, data=st.data(), receives=st.integers(1, 4))
def test_any_stream_cut_anywhere(packets: list[tuple[str, bytes]], data: st.DataObject, receives: int) -> None:
    stream = stream_of(packets)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    setting = Setting()
    assert setting.feed(stream, cuts, receives) == b""
    setting.check(packets)


@settings(max_examples=100, deadline=None)
@given(packets=st.lists(runs(), min_size=1, max_size=4).map(lambda lists: [p for run in lists for p in run]))
@example(packets=[("a", b""), ("a", b""), ("b", disco()), ("x", disco()), ("far", b"1"), ("source", b"me")])
def test_byte_by_byte(packets: list[tuple[str, bytes]]) -> None:
    packets = [(name, packet[:150]) for name, packet in packets]
    stream = stream_of(packets)
    setting = Setting()
    assert setting.feed(stream, list(range(1, len(stream))), 3) == b""
    setting.check(packets)


def test_a_rest_is_left_where_it_begins() -> None:
    packets = [("a", b"one"), ("b", b"two"), ("x", b"gone")]
    stream = stream_of(packets)
    for cut in range(len(stream) + 1):
        setting = Setting()
        rest = setting.feed(stream[:cut], [], 1)
        assert stream[:cut].endswith(rest)
        whole = cut - len(rest)
        setting.check(
            [packet for number, packet in enumerate(packets) if len(stream_of(packets[: number + 1])) <= whole]
        )
        assert len(rest) < 5 + 32 + 4


@pytest.mark.parametrize("other", [encode(Ping(b"12345678")), encode_frame(0x7F, b"future"), b"\x06\0\0\0\0"])
def test_other_frames_are_left_to_the_caller(other: bytes) -> None:
    setting = Setting()
    stream = stream_of([("a", b"one")]) + other + stream_of([("a", b"two")])
    assert setting.feed(stream, [], 1) == stream[-len(stream) + len(stream_of([("a", b"one")])) :]
    setting.check([("a", b"one")])


@pytest.mark.parametrize("size", [0, 65536])
def test_the_shortest_and_the_longest_pass(size: int) -> None:
    setting = Setting()
    packets = [("a", b"p" * size), ("far", b"p" * size), ("x", b"p" * size), ("source", b"p" * size)]
    assert setting.feed(stream_of(packets), [], 1) == b""
    setting.check(packets)


@pytest.mark.parametrize("length", [0, 31, MAX_SEND_BYTES + 1, 0xFFFFFFFF])
@pytest.mark.parametrize("following", [0, 31, 1000])
def test_a_wrong_length_is_refused_and_takes_nothing_along(length: int, following: int) -> None:
    # The header alone suffices; the packets before it were sent in good faith, so they arrive and are counted.
    before = [("a", b"one"), ("a", b"two"), ("x", b"lost"), ("far", b"three"), ("b", b"four")]
    stream = stream_of(before) + HEADER.pack(FrameType.SEND_PACKET, length) + b"\0" * following
    setting = Setting()
    with pytest.raises(RemoteProtocolError, match=rf"SendPacket of {length} bytes, allowed are 32 to 65568"):
        setting.feed(stream, [], 1)
    setting.world.flush()
    setting.check(before)


def test_a_run_stays_one_piece() -> None:
    # The cost of a packet in a run rests on this: one slice for all that goes to one destination without a gap.
    setting = Setting()
    stream = bytearray(stream_of([("a", b"x" * 100)] * 8 + [("a", b"y" * 50)] * 3 + [("b", b"z")] * 2))
    relay_packets(stream, memoryview(stream), 0, len(stream), setting.source, setting.world.router, 0.0)
    assert [len(setting.routes[name].pending) for name in ("a", "b")] == [1, 1]
    assert [route.key for route in setting.world.router.dirty] == [key("a"), key("b")]


def test_receivers_hear_when_the_source_leaves() -> None:
    setting = Setting()
    world = setting.world
    setting.feed(stream_of([("a", b"1"), ("a", b"2"), ("b", b"3"), ("x", b"4"), ("source", b"5")]), [], 1)
    world.sent.clear()
    world.leave(setting.source)
    gone = PeerGone(key(SOURCE), PeerGoneReason.DISCONNECTED)
    assert [world.take(setting.routes[name]) for name in (*LOCAL, TWICE)] == [[gone], [gone], [], []]


def test_absent_disco_peers_are_told_of() -> None:
    setting = Setting()
    world = setting.world
    for _ in range(NOT_HERE_BURST + 2):
        setting.feed(stream_of([("x", disco()), ("y", b"x" * 80), ("x", b"TS\xf0\x9f\x92\xac")]), [], 1)
    assert world.take(setting.source) == [PeerGone(key("x"), PeerGoneReason.NOT_HERE)] * NOT_HERE_BURST
    counters = world.router.counters
    assert counters.packets_dropped[2 * DropReason.UNKNOWN_DEST + PacketKind.DISCO] == NOT_HERE_BURST + 2
    assert counters.packets_dropped[2 * DropReason.UNKNOWN_DEST + PacketKind.OTHER] == 2 * (NOT_HERE_BURST + 2)


# --- ForwardPacket: from another relay to clients here


def forwarded(world: World, peer: Client, stream: bytes, cuts: list[int]) -> bytes:
    buffer, kept, end = bytearray(2 * len(stream) + 200_000), b"", 0
    edges = [0, *sorted(cuts), len(stream)]
    for first, last in pairwise(edges):
        received = kept + stream[first:last]
        start, end = end, end + len(received)
        buffer[start:end] = received
        rest = relay_forwarded(buffer, memoryview(buffer), start, end, peer, world.router, world.now)
        kept = bytes(buffer[rest:end])
        if end > len(stream):
            world.flush()
            buffer[:] = bytes(len(buffer))
            end = 0
    world.flush()
    return kept


@settings(max_examples=150, deadline=None)
@given(packets=STREAMS, senders=st.lists(st.sampled_from(("far", "a", "unheard")), min_size=1), data=st.data())
def test_forwarded_packets_reach_local_clients_only(
    packets: list[tuple[str, bytes]], senders: list[str], data: st.DataObject
) -> None:
    world = World()
    routes: dict[str, Route] = {name: world.connect(name) for name in (SOURCE, *LOCAL)}
    links = [world.mesh(f"relay of {name}", name) for name in REMOTE]
    world.connect(TWICE)
    routes[TWICE] = world.connect(TWICE)
    peer = world.connect("peer", is_mesh_peer=True)
    messages = [
        ForwardPacket(key(senders[number % len(senders)]), key(name), packet)
        for number, (name, packet) in enumerate(packets)
    ]
    stream = b"".join(map(encode, messages))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    assert forwarded(world, peer, stream, cuts) == b""
    expected: dict[bytes, bytes] = defaultdict(bytes)
    lost = []
    for message in messages:
        if message.dst in [key(name) for name in routes]:
            expected[message.dst] += encode(RecvPacket(message.src, message.packet))
        else:
            lost.append(message.packet)
    for name, route in routes.items():
        assert world.sent.get(route, b"") == expected[key(name)], name
    assert all(not world.sent.get(link) for link in links), "forwarded twice"
    counters = world.router.counters
    assert counters.packets_forwarded_in == len(messages)
    assert counters.bytes_forwarded_in == sum(len(message.packet) for message in messages)
    assert counters.packets_received == 0
    assert counters.dropped(DropReason.UNKNOWN_DEST_ON_FWD) == len(lost)
    assert sum(counters.bytes_dropped) == sum(map(len, lost))
    assert routed_totals(world.router, 0, 0)[0] == len(messages) - len(lost)


def test_a_mesh_peer_hears_who_is_not_here() -> None:
    world = World()
    peer = world.connect("peer", is_mesh_peer=True)
    lost = [ForwardPacket(key("far"), key("x"), disco())] * (NOT_HERE_BURST + 1)
    silent = ForwardPacket(key("far"), key("y"), b"x" * 80)
    forwarded(world, peer, b"".join(map(encode, [*lost, silent])), [])
    assert world.take(peer) == [PeerGone(key("x"), PeerGoneReason.NOT_HERE)] * NOT_HERE_BURST


def test_receivers_hear_when_a_remote_source_leaves() -> None:
    world = World()
    a, peer = world.connect("a"), world.connect("peer", is_mesh_peer=True)
    link = world.mesh("other", "far", "unrelated")
    stream = b"".join(encode(ForwardPacket(key(name), key("a"), b"hello")) for name in ("far", "unheard"))
    forwarded(world, peer, stream, [])
    world.take(a)
    link.handle_message(PeerGone(key("unrelated")))
    link.handle_message(PeerGone(key("far")))
    assert world.take(a) == [PeerGone(key("far"), PeerGoneReason.DISCONNECTED)]


@pytest.mark.parametrize("length", [0, 63, MAX_FORWARD_BYTES + 1])
def test_a_wrong_forward_length_is_refused(length: int) -> None:
    world = World()
    a, peer = world.connect("a"), world.connect("peer", is_mesh_peer=True)
    stream = encode(ForwardPacket(key("far"), key("a"), b"hello")) + HEADER.pack(FrameType.FORWARD_PACKET, length)
    with pytest.raises(RemoteProtocolError, match=f"ForwardPacket of {length} bytes"):
        forwarded(world, peer, stream, [])
    assert world.take(a) == [RecvPacket(key("far"), b"hello")]


def test_other_frames_of_a_mesh_peer_are_left() -> None:
    world = World()
    world.connect("a")
    peer = world.connect("peer", is_mesh_peer=True)
    stream = encode(ForwardPacket(key("far"), key("a"), b"hello")) + encode(Ping(b"12345678"))
    assert forwarded(world, peer, stream, []) == encode(Ping(b"12345678"))
