"""What a registered client sends, without sockets: where the genuine relay closes we close, and cuts change nothing."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.close_reason import CloseReason
from derp.errors import Flood, RemoteProtocolError
from derp.protocol.frames import HEADER, MAX_UNKNOWN_BYTES, PeerGoneReason, encode_frame
from derp.protocol.messages import (
    ClosePeer,
    ForwardPacket,
    NotePreferred,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    RecvPacket,
    SendPacket,
    WatchConns,
    encode,
)
from derp.relay.inbound import MAX_CONTROL_FRAMES
from tests.derp.relay.world import World, key
from tests.vectors.derp import VECTORS


@pytest.mark.parametrize("verdict", VECTORS["server_reads"], ids=lambda v: f"{v['hex'][:10]}-{v['mesh']}")
def test_a_client_is_closed_where_the_genuine_relay_closes_it(verdict: dict[str, object]) -> None:
    world = World()
    client = world.connect("a", is_mesh_peer=bool(verdict["mesh"]))
    try:
        world.receive(client, bytes.fromhex(str(verdict["hex"])))
    except RemoteProtocolError:
        closed = True
    else:
        closed = False
    assert closed is verdict["closed"]


def test_each_frame_of_a_client_has_its_effect() -> None:
    world = World()
    client, other = world.connect("a"), world.connect("b")
    world.receive(client, encode(Ping(b"12345678")), encode(NotePreferred(True)), encode_frame(0x7F, b"unknown"))
    world.receive(client, encode(Pong(b"87654321")) + encode(SendPacket(key("b"), b"hello")))
    assert world.take(client) == [Pong(b"12345678")]
    assert world.take(other) == [RecvPacket(key("a"), b"hello")]
    counters = world.router.counters
    assert (world.router.home_clients, counters.got_ping, counters.unknown_frames) == (1, 1, 1)
    world.receive(client, encode(NotePreferred(False)))
    assert world.router.home_clients == 0


def test_each_frame_of_another_relay_has_its_effect() -> None:
    world = World()
    mesh, one = world.connect("mesh", is_mesh_peer=True), world.connect("a")
    world.receive(mesh, encode(WatchConns()), encode(ForwardPacket(key("far"), key("a"), b"hello")))
    announced = {message.key for message in world.take(mesh) if isinstance(message, PeerPresent)}
    assert announced == {key("mesh"), key("a")}
    assert world.take(one) == [RecvPacket(key("far"), b"hello")]
    world.receive(mesh, encode(ClosePeer(key("a"))))
    assert world.closed == [(one, CloseReason.CLOSED_BY_MESH)]
    assert world.take(mesh) == [PeerGone(key("a"), PeerGoneReason.DISCONNECTED)]


@pytest.mark.parametrize(
    "frame", [encode(WatchConns()), encode(ClosePeer(key("b"))), encode(ForwardPacket(key("c"), key("b"), b"x"))]
)
def test_frames_of_relays_are_refused_from_others(frame: bytes) -> None:
    world = World()
    client, other = world.connect("a"), world.connect("b")
    before = encode(SendPacket(key("b"), b"in good faith"))
    with pytest.raises(RemoteProtocolError, match="for mesh peers only"):
        world.receive(client, before + frame)
    assert world.take(other) == [RecvPacket(key("a"), b"in good faith")]
    assert (world.closed, world.router.watchers) == ([], set())


@given(data=st.data())
def test_cuts_change_nothing(data: st.DataObject) -> None:
    frames = st.sampled_from(
        (
            encode(SendPacket(key("b"), b"to b")),
            encode(SendPacket(key("c"), bytes(2000))),
            encode(SendPacket(key("nobody"), b"")),
            encode(ForwardPacket(key("far"), key("b"), b"from far")),
            encode(Ping(b"12345678")),
            encode(NotePreferred(True)),
            encode_frame(0x7F, bytes(1001)),
            encode_frame(0x7F, bytes(70_000)),
            encode(WatchConns()),
        )
    )
    stream = b"".join(data.draw(st.lists(frames, max_size=12)))
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8))), len(stream)]
    got = []
    for receives in ([stream], [stream[first:last] for first, last in pairwise(cuts)]):
        world = World()
        client = world.connect("a", is_mesh_peer=True)
        others = [world.connect(name) for name in ("b", "c")]
        world.receive(client, *receives)
        assert client.skip_bytes == 0
        counters = world.router.counters
        got.append(([world.take(one) for one in (client, *others)], counters.unknown_frames, counters.packets_received))
    assert got[0] == got[1]


def test_a_frame_that_is_skipped_is_not_held() -> None:
    world = World()
    client, other = world.connect("a"), world.connect("b")
    head = HEADER.pack(0x7F, MAX_UNKNOWN_BYTES)
    world.receive(client, head + bytes(10))
    assert client.skip_bytes == MAX_UNKNOWN_BYTES - 10
    world.receive(client, bytes(MAX_UNKNOWN_BYTES - 10) + encode(SendPacket(key("b"), b"after")))
    assert world.take(other) == [RecvPacket(key("a"), b"after")]
    with pytest.raises(RemoteProtocolError, match="limit"):
        world.receive(client, HEADER.pack(0x7F, MAX_UNKNOWN_BYTES + 1))


def test_a_flood_is_told_apart_from_a_mistake() -> None:
    world = World()
    client = world.connect("a")
    most = encode(NotePreferred(True)) * MAX_CONTROL_FRAMES
    one = encode(NotePreferred(True))
    world.receive(client, most)
    world.now += 1.0  # the budget is that of a second
    world.receive(client, most[: len(most) // 2])
    world.receive(client, most[len(most) // 2 :])
    with pytest.raises(Flood, match=str(MAX_CONTROL_FRAMES)):
        world.receive(client, one)


def test_any_frame_makes_a_connection_the_active_one() -> None:
    world = World()
    old, new, sender = world.connect("a"), world.connect("a"), world.connect("b")
    world.packet(sender, "a", b"one")
    world.receive(old, encode(NotePreferred(True)))
    world.packet(sender, "a", b"two")
    assert world.take(new) == [RecvPacket(key("b"), b"one")]
    assert world.take(old) == [RecvPacket(key("b"), b"two")]
