"""Whatever comes to a node: no datagram raises, and none of them harms the session and the path that are there."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tailnet.paths.disco import MAGIC
from tailnet.paths.endpoint import Endpoint
from tests.tailnet.paths.test_core import RELAYED, THERE, found
from tests.tailnet.wireguard.world import World

BYTES = st.binary(max_size=200)
FLIPS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), min_size=1, max_size=4)


def flipped(datagram: bytes, flips: list[tuple[int, int]]) -> bytes:
    changed = bytearray(datagram)
    for at, by in flips:
        if at < len(changed):
            changed[at] ^= by
        else:
            del changed[at % max(len(changed), 1) :]
    return bytes(changed)


@settings(max_examples=200)
@given(
    garbage=st.lists(BYTES, max_size=5),
    perturbed=st.lists(st.tuples(st.integers(0, 5), FLIPS), max_size=10),
    inside=BYTES,
)
def test_no_datagram_harms_a_session(
    garbage: list[bytes], perturbed: list[tuple[int, list[tuple[int, int]]]], inside: bytes
) -> None:
    world = World("AB")
    a, b = world.nodes
    a.send(b, b"one")
    world.settle()
    b.send(a, b"two")
    world.settle()
    world.run(1)
    sent = [datagram for _, _, datagram in world.wire]
    for datagram in (*garbage, *(flipped(sent[which % len(sent)], flips) for which, flips in perturbed)):
        for kind in (datagram, b"\4\0\0\0" + datagram, b"\1\0\0\0" + datagram, memoryview(datagram)):
            b.device.open([kind], b"x", world.now)
            b.device.owns(kind)
        b.device.open([datagram, sent[-1], datagram], b"x", world.now)
    current = a.peer(b).current
    assert current is not None
    b.device.open(current.seal([inside], 1280), a.source, world.now)  # authentic, whatever it is
    b.device.datagrams_to_send()
    assert b.bodies == [b"one"]
    a.send(b, b"three")
    world.settle()
    assert b.bodies[-1] == b"three"


@settings(max_examples=200)
@given(texts=st.lists(BYTES, max_size=8), raw=st.lists(BYTES, max_size=4), port=st.integers(0, 0xFFFF))
def test_no_disco_message_harms_a_path(texts: list[bytes], raw: list[bytes], port: int) -> None:
    """`texts` are sealed by the peer itself."""
    pair = found()
    for text in texts:
        for kind in (text, b"\1\0" + text, b"\2\0" + text, b"\3\0" + text):
            for source in (THERE, Endpoint("203.0.113.77", port), Endpoint("no address", port), RELAYED):
                pair.say(kind, source, 0.5)
    for datagram in raw:
        pair.paths.receive(MAGIC + bytes(32) + datagram, THERE, 0.5)
        pair.paths.receive(flipped(pair.sealed(datagram), [(40, 1)]), THERE, 0.5)
    pair.heard()
    assert pair.paths.route(pair.peer, 1.0) == (THERE, None)
