"""Packets byte for byte, the window against the genuine one and against a set, and what is inside."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import LocalProtocolError
from tailnet.wireguard.counters import Drop
from tailnet.wireguard.keypair import MAX_PACKET_BYTES, WINDOW, KeyPair
from tailnet.wireguard.messages import TRANSPORT_HEAD
from tailnet.wireguard.noise import TransportKeys
from tests.tailnet.wireguard.world import address, packet
from tests.vectors.wireguard import HANDSHAKES, VECTORS

GENUINE = pytest.mark.parametrize("vector", HANDSHAKES, ids=["without psk", "with psk"])
MTU = 1280
HERE, THERE = TransportKeys(b"a" * 32, b"b" * 32), TransportKeys(b"b" * 32, b"a" * 32)
OWNERS = {address(1): "peer", address(9): "another"}
INSIDE = packet(1, 0, b"hello")


def pair(keys: TransportKeys = HERE, local: int = 1, remote: int = 2) -> KeyPair[str]:
    return KeyPair("peer", keys, local, remote, 0.0, is_initiator=True)


def other() -> KeyPair[str]:
    return pair(THERE, local=2, remote=1)


class Receiver:
    """A pair with the lists it fills."""

    def __init__(self, keys: KeyPair[str]) -> None:
        self.keys = keys
        self.opened: list[bytes] = []
        self.drops = dict.fromkeys(Drop, 0)

    def open(self, *datagrams: bytes | bytearray | memoryview, at: int = 0) -> tuple[int, int]:
        return self.keys.open(datagrams, at, OWNERS, self.opened, self.drops)

    def dropped(self) -> dict[Drop, int]:
        return {reason: count for reason, count in self.drops.items() if count}


def at_counter(counter: int, inside: bytes = INSIDE) -> bytes:
    sender = other()
    sender.sent = counter
    return sender.seal([inside], MTU)[0]


@GENUINE
def test_the_genuine_packets_byte_for_byte(vector: dict[str, Any]) -> None:
    derived = vector["derived"]
    i, r = (bytes.fromhex(derived[f"{who}_sends_with"]) for who in ("initiator", "responder"))
    indices = vector["local_index_initiator"], vector["local_index_responder"]
    pairs = {
        "initiator": KeyPair("r", TransportKeys(i, r), indices[0], indices[1], 0.0, is_initiator=True),
        "responder": KeyPair("i", TransportKeys(r, i), indices[1], indices[0], 0.0, is_initiator=False),
    }
    plain = iter([*(bytes.fromhex(each["plain"]) for each in vector["plaintexts"]), b""])
    drops = dict.fromkeys(Drop, 0)
    for sent in vector["packets"][2:]:
        wire, inside = bytes.fromhex(sent["bytes"]), next(plain)
        receiver = pairs["responder" if sent["from"] == "initiator" else "initiator"]
        opened: list[bytes] = []
        source = inside[8:24]
        assert receiver.open([wire], 0, {source: receiver.owner}, opened, drops) == (1, 1)
        assert [bytes(each) for each in opened] == ([inside] if inside else [])
        if sent["from"] == "initiator" or len(inside) <= MTU:
            assert pairs[sent["from"]].seal([inside], vector["mtu"]) == [wire]
    assert not any(drops.values())


@GENUINE
def test_the_genuine_probe_at_a_large_counter(vector: dict[str, Any]) -> None:
    """A counter that needs more than 32 bits: little endian, in the header and in the nonce."""
    derived, probe = vector["derived"], vector["probe"]
    i, r = (bytes.fromhex(derived[f"{who}_sends_with"]) for who in ("initiator", "responder"))
    sender = KeyPair("x", TransportKeys(i, r), 1, 2, 0.0, is_initiator=True)
    sender.sent = probe["counter"]
    (wire,) = sender.seal([bytes.fromhex(probe["plain"])], 5)  # an MTU of its length: it was not padded
    assert wire[:16] == TRANSPORT_HEAD.pack(4, 2, probe["counter"])
    assert wire[16:].hex() == probe["initiator_seal"]


def test_the_window_is_the_genuine_one() -> None:
    receiver = Receiver(pair())
    for step in VECTORS["replay"]["sequence"]:
        counter, before = int(step["counter"]), len(receiver.opened)
        receiver.open(at_counter(counter))
        assert (len(receiver.opened) > before) == step["accepted"], step


@given(
    st.lists(
        st.one_of(st.integers(0, 300), st.integers(0, 3 * WINDOW), st.integers(0, (1 << 64) - 1)),
        max_size=60,
    ),
    st.integers(0, 1 << 40),
)
def test_the_window_against_a_set(counters: list[int], base: int) -> None:
    receiver, seen, highest = Receiver(pair()), set[int](), -1
    for counter in (min(base + each, (1 << 64) - (1 << 14)) for each in counters):
        fresh = counter not in seen and highest - counter <= WINDOW
        assert receiver.open(at_counter(counter)) == (1, int(fresh))
        if fresh:
            seen.add(counter)
            highest = max(highest, counter)
    assert len(receiver.opened) == len(seen)


@given(sizes=st.lists(st.integers(0, 1240), max_size=12), cut=st.integers(0, 12))
def test_a_batch_comes_out_as_it_went_in(sizes: list[int], cut: int) -> None:
    packets = [packet(1, 0, bytes(size)) for size in sizes]
    wire = other().seal([*packets[:cut], *(memoryview(each) for each in packets[cut:])], MTU)
    assert all(len(each) % 16 == 0 and len(each) <= MTU + 32 for each in wire)
    receiver = Receiver(pair())
    assert receiver.open(*wire) == (len(wire), len(wire))
    assert [bytes(each) for each in receiver.opened] == packets
    again = Receiver(receiver.keys)
    again.open(*map(bytearray, wire))
    assert again.opened == []
    assert again.dropped() == ({Drop.REPLAYED: len(wire)} if wire else {})


def test_it_stops_at_what_is_not_its_own() -> None:
    wire = other().seal([INSIDE] * 3, MTU)
    stranger = pair(THERE, local=5, remote=6).seal([INSIDE], MTU)[0]
    receiver = Receiver(pair())
    assert receiver.open(wire[0], stranger, wire[1]) == (1, 1)
    assert receiver.open(wire[0], stranger, wire[1], at=2) == (3, 1)
    assert receiver.open(wire[2], b"\4\0\0\0") == (1, 1)
    assert receiver.open(b"\3" + wire[2][1:]) == (0, 0)
    assert receiver.dropped() == {}


def test_a_forged_packet_moves_nothing() -> None:
    receiver = Receiver(pair())
    far = bytearray(at_counter(1 << 50))
    far[-1] ^= 1
    assert receiver.open(far) == (1, 0)
    assert receiver.open(at_counter(0)) == (1, 1), "the window stayed where it was"
    assert receiver.dropped() == {Drop.FORGED_PACKET: 1}


@given(at=st.integers(8, 16 + 48 + 15), flip=st.integers(1, 255))
def test_no_bit_of_a_packet_may_change(at: int, flip: int) -> None:
    wire = bytearray(at_counter(0))
    wire[at] ^= flip
    receiver = Receiver(pair())
    receiver.open(wire)
    assert receiver.opened == []
    assert receiver.open(at_counter(0)) == (1, 1)


def test_keepalives_count_as_heard_and_not_as_data() -> None:
    receiver = Receiver(pair())
    assert receiver.open(*other().seal([b""], MTU)) == (1, 1)
    assert (receiver.opened, receiver.keys.data, receiver.dropped()) == ([], 0, {})


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (b"\x60", Drop.NOT_IPV6),
        (INSIDE[:32], Drop.NOT_IPV6),
        (b"\x45" + INSIDE[1:], Drop.NOT_IPV6),
        (INSIDE[:4] + b"\xff\xff" + INSIDE[6:], Drop.NOT_IPV6),
        (INSIDE[:4] + b"\x00\x10" + INSIDE[6:45], Drop.NOT_IPV6),
        (packet(9, 0), Drop.FOREIGN_SOURCE),
        (packet(5, 0), Drop.FOREIGN_SOURCE),
    ],
    ids=["one byte", "no whole head", "IPv4", "far too long", "too long", "another peer's", "nobody's"],
)
def test_what_is_inside_must_be_a_packet_of_the_peer(inside: bytes, reason: Drop) -> None:
    receiver = Receiver(pair())
    assert receiver.open(at_counter(0, inside)) == (1, 1), "it is authentic all the same"
    assert receiver.opened == []
    assert receiver.dropped() == {reason: 1}


def test_padding_is_cut_off_whatever_it_is() -> None:
    receiver = Receiver(pair())
    receiver.open(at_counter(0, INSIDE + b"anything up to the end"))
    assert [bytes(each) for each in receiver.opened] == [INSIDE]


def test_a_packet_that_no_datagram_carries_is_our_mistake() -> None:
    sender = other()
    with pytest.raises(LocalProtocolError, match="65496 bytes"):
        sender.seal([INSIDE, bytes(MAX_PACKET_BYTES + 1)], MTU)
    assert sender.sent == 1, "the nonce of the first is used"
