"""Bytes of honest clients, perturbed and cut at random, through all layers of the RPC stack."""

import itertools
import random
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tailnet.errors import RemoteProtocolError
from tailnet.proto.services import TAILNET, Rpc
from tailnet.rpc.connection import ClientConnection, ConnectionEvent, ServerConnection
from tailnet.rpc.drpc import ClientStream, ServerStream
from tailnet.rpc.yamux import YamuxSession
from tests.tailnet.rpc.link import feed, joined, transcript

PREFIX = "/coder.tailnet.v2.Tailnet/"


def recorded_client() -> bytes:
    return b"".join(joined(writes, "C>S") for writes in transcript().values())


def busy_client() -> bytes:
    """A client with two calls in hand, long and short messages, metadata, a cancel, pings and a go-away."""
    client = ClientConnection(now=0.0)
    coordinate = client.open_call(PREFIX + "Coordinate", {"trace": "1"})
    client.send_message(coordinate, b"first")
    maps = client.call(PREFIX + "StreamDERPMaps", b"")
    client.send_message(coordinate, bytes(range(256)) * 300)  # split by dRPC
    client.ping(5)
    client.cancel(maps)
    client.call(PREFIX + "NoSuchThing", b"?")
    client.close_send(coordinate)
    client.go_away()
    client.handle_timeout(15.0)
    return b"".join(client.data_to_send())


WIRES = {"recorded": recorded_client(), "busy": busy_client()}
NAMES = st.sampled_from(sorted(WIRES))


def perturb(wire: bytes, seed: int) -> bytes:
    """Flip, drop, insert, repeat or swap a few bytes; half of the places near headers, where it hurts."""
    rng = random.Random(seed)
    data = bytearray(wire)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(data), 400)) if rng.random() < 0.8 else rng.randrange(len(data))
        choice = rng.randrange(5)
        if choice == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif choice == 1:
            data[place] = rng.randrange(256)
        elif choice == 2:
            del data[place : place + rng.randint(1, 20)]
        elif choice == 3:
            data[place:place] = rng.randbytes(rng.randint(1, 20))
        else:
            data[place:place] = data[place : place + rng.randint(1, 100)]
        if not data:
            return b""
    return bytes(data)


def serve(wire: bytes, sizes: list[int], *, answer: bool) -> tuple[list[Any], str]:
    """Feed a server, and answer if told.  The events, and why it gave up ("" if it did not)."""
    server: ServerConnection[Rpc] = ServerConnection(TAILNET, now=0.0)
    events: list[Any] = []
    at, turn, reason = 0, 0, ""
    while at < len(wire) and not reason:
        size = sizes[turn % len(sizes)] if sizes else len(wire)
        turn += 1
        piece, at = wire[at : at + size], at + size
        try:
            got = server.receive_data(piece)
        except RemoteProtocolError as error:
            reason = str(error)
            break
        events += got
        for kind, call_id, value in got if answer else ():
            if kind is ConnectionEvent.MESSAGE:
                server.send_message(call_id, value)
            elif kind is ConnectionEvent.HALF_CLOSED:
                server.finish(call_id)
    server.data_to_send()
    return events, reason


@settings(max_examples=300, deadline=None)
@given(NAMES, st.integers(0, 1 << 32), st.lists(st.integers(1, 5000), max_size=5))
def test_perturbed_bytes_raise_nothing_but_remote_faults(name: str, seed: int, sizes: list[int]) -> None:
    serve(perturb(WIRES[name], seed), sizes, answer=True)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(1, 50), max_size=5))
def test_noise_raises_nothing_but_remote_faults(noise: bytes, sizes: list[int]) -> None:
    serve(noise, sizes, answer=True)


@settings(max_examples=100, deadline=None)
@given(NAMES, st.lists(st.integers(1, 3000), min_size=1, max_size=8))
def test_how_the_bytes_are_cut_changes_nothing(name: str, sizes: list[int]) -> None:
    wire = WIRES[name]
    # Without answers: an answer sent before a Close arrives makes that Close no news.
    assert serve(wire, sizes, answer=False) == serve(wire, [1 << 30], answer=False)


DEATHS = ("end of the stream", "silence", "another version", "error of the peer", "overrun")


def die(server: ServerConnection[Rpc], how: str) -> list[Any]:
    """End a session in one of the ways that sessions end, or try to: the bytes may be the rest of a frame."""
    header = struct.Struct("!III")
    match how:
        case "silence":
            return server.handle_timeout(15.0) + server.handle_timeout(46.0)
        case "another version":
            return server.receive_data(header.pack(1 << 24, 1, 0))
        case "error of the peer":
            return server.receive_data(header.pack(3 << 16, 0, 2))
        case "overrun":
            return server.receive_data(header.pack(1, 4001, 1 << 20))
        case _:
            return []


@settings(max_examples=200, deadline=None)
@given(NAMES, st.integers(0, 1 << 32), st.booleans(), st.sampled_from(DEATHS), st.data())
def test_whatever_ends_a_session_every_call_in_hand_is_ended_once(
    name: str, seed: int, broken: bool, how: str, draw: st.DataObject
) -> None:
    wire = perturb(WIRES[name], seed) if broken else WIRES[name]
    wire = wire[: draw.draw(st.integers(0, len(wire)))]
    server: ServerConnection[Rpc] = ServerConnection(TAILNET, now=0.0)
    in_hand: set[int] = set()

    def hear(events: list[Any]) -> None:
        for kind, call_id, _ in events:
            if kind is ConnectionEvent.CALLED:
                assert call_id not in in_hand
                in_hand.add(call_id)
            elif kind is ConnectionEvent.ENDED:
                in_hand.discard(call_id)

    try:
        for at in range(0, len(wire), 1000):
            hear(server.receive_data(wire[at : at + 1000]))
        assert sorted(in_hand) == sorted(server.calls_in_hand())
        hear(die(server, how))
    except RemoteProtocolError:
        pass
    hear(server.receive_eof())
    assert not in_hand
    assert server.receive_eof() == server.calls_in_hand() == []


def judge(core: YamuxSession | ServerStream, wire: bytes, sizes: list[int]) -> tuple[str, bytes]:
    """Why one core alone gave up on these bytes ("" if it did not), and what it sent by then."""
    reason = ""
    try:
        feed(core, wire, itertools.cycle(sizes))
    except RemoteProtocolError as error:
        reason = str(error)
    return reason, b"".join(core.data_to_send()) if isinstance(core, YamuxSession) else b""


# Each core by itself: together they may differ, since a fault inside a stream resets it, and what follows on that
# stream is judged no more if it arrives later.
@settings(max_examples=150, deadline=None)
@given(NAMES, st.integers(0, 1 << 32), st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_nor_does_it_change_what_is_a_fault_of_the_session(name: str, seed: int, sizes: list[int]) -> None:
    broken = perturb(WIRES[name], seed)
    pieces, whole = (judge(YamuxSession(server=True, now=0.0), broken, cut) for cut in (sizes, [1 << 30]))
    assert pieces == whole


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_nor_what_is_a_fault_of_the_call(seed: int, sizes: list[int]) -> None:
    client = ClientStream()
    honest = client.invoke(PREFIX + "Coordinate", {"trace": "1"})
    for payload in (b"", b"first", bytes(300), bytes(70_000)):
        honest += b"".join(client.send_message(payload))
    broken = perturb(honest + client.send_close_send() + client.send_close(), seed)
    (pieces, _), (whole, _) = (judge(ServerStream(), broken, cut) for cut in (sizes, [1 << 30]))
    # Which of several faults is named first may differ: packets are cut before they are understood.
    assert bool(pieces) == bool(whole)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_perturbed_answers_raise_nothing_but_remote_faults(seed: int, sizes: list[int]) -> None:
    answers = b"".join(joined(writes, "S>C") for writes in transcript().values())
    client = ClientConnection(now=0.0)
    for name in ("RefreshResumeToken", "PostTelemetry", "Coordinate"):
        client.call(PREFIX + name, b"")
    broken, at, turn = perturb(answers, seed), 0, 0
    while at < len(broken):
        size = sizes[turn % len(sizes)]
        turn += 1
        try:
            client.receive_data(broken[at : at + size])
        except RemoteProtocolError:
            return
        at += size
