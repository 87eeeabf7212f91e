"""The handshake byte for byte against two genuine devices, and whatever is not one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.wireguard.messages import INITIATION_BYTES, MACS_BYTES, RESPONSE_BYTES
from tailnet.wireguard.noise import (
    Identity,
    Remote,
    SentInitiation,
    TransportKeys,
    kdf,
    make_initiation,
    open_static,
)
from tests.vectors.wireguard import HANDSHAKES, VECTORS

hexed = bytes.fromhex
GENUINE = pytest.mark.parametrize("vector", HANDSHAKES, ids=["without psk", "with psk"])
ALICE, BOB = Identity(bytes(range(32))), Identity(bytes(range(100, 132)))
STAMP = b"t" * 12
SMALL_ORDER = bytes(32)


def both(vector: dict[str, Any]) -> tuple[Identity, Remote, Identity, Remote]:
    """Initiator, what it knows of the responder, and the other way round."""
    a, b = Identity(hexed(vector["initiator_private"])), Identity(hexed(vector["responder_private"]))
    return a, remote(a, b, hexed(vector["psk"])), b, remote(b, a, hexed(vector["psk"]))


def remote(mine: Identity, other: Identity, psk: bytes = bytes(32)) -> Remote:
    shared = mine.agree(other.public)
    assert shared is not None
    return Remote(other.public, shared, psk)


def initiation(psk: bytes = bytes(32)) -> tuple[bytes, SentInitiation]:
    return make_initiation(ALICE, remote(ALICE, BOB, psk), 7, b"e" * 32, STAMP)


def response(message: bytes, psk: bytes = bytes(32)) -> tuple[bytes, TransportKeys]:
    received = open_static(BOB, message)
    assert received is not None
    assert received.open_stamp(remote(BOB, ALICE).static_static) == STAMP
    return received.respond(remote(BOB, ALICE, psk), 9, b"f" * 32)


@GENUINE
def test_the_genuine_handshake_byte_for_byte(vector: dict[str, Any]) -> None:
    a, to_b, b, to_a = both(vector)
    derived = vector["derived"]
    assert (a.public.hex(), b.public.hex()) == (vector["initiator_public"], vector["responder_public"])
    assert to_b.static_static == to_a.static_static == hexed(derived["static_static"])
    sent = [hexed(packet["bytes"]) for packet in vector["packets"][:2]]
    stamp = hexed(derived["timestamp_tai64n"])
    seeds = [hexed(derived[f"{who}_ephemeral_private"]) for who in ("initiator", "responder")]

    message, kept = make_initiation(a, to_b, vector["local_index_initiator"], seeds[0], stamp)
    assert message == sent[0][:-MACS_BYTES]
    received = open_static(b, sent[0])
    assert received is not None
    assert received.public == a.public
    assert received.sender == vector["local_index_initiator"]
    assert received.open_stamp(to_a.static_static) == stamp
    answer, theirs = received.respond(to_a, vector["local_index_responder"], seeds[1])
    assert answer == sent[1][:-MACS_BYTES]
    ours = kept.open_response(sent[1])
    keys = [hexed(derived[f"{who}_sends_with"]) for who in ("initiator", "responder")]
    assert ours == TransportKeys(*keys)
    assert theirs == TransportKeys(*keys[::-1])


@GENUINE
def test_every_step_of_the_transcript(vector: dict[str, Any]) -> None:
    """The state after the first message, as recomputed by the vectors' author."""
    a, to_b, _, _ = both(vector)
    derived = vector["derived"]
    seed, stamp = hexed(derived["initiator_ephemeral_private"]), hexed(derived["timestamp_tai64n"])
    _, kept = make_initiation(a, to_b, 1, seed, stamp)
    steps = {step["after"]: (step["chain_key"], step["hash"]) for step in derived["steps"]}
    state = (kept._transcript.chain.hex(), kept._transcript.hash.hex())
    assert state in steps.values()


def test_the_key_derivation() -> None:
    vector = VECTORS["kdf"]
    key, given = hexed(vector["key"]), hexed(vector["input"])
    for count in (1, 2, 3):
        expected = vector[f"kdf{count}"]
        assert [each.hex() for each in kdf(key, given, count)] == ([expected] if count == 1 else expected)


def test_both_sides_agree() -> None:
    message, kept = initiation()
    answer, theirs = response(message)
    ours = kept.open_response(answer)
    assert ours == TransportKeys(theirs.receive, theirs.send)
    assert len(message) == INITIATION_BYTES - MACS_BYTES
    assert len(answer) == RESPONSE_BYTES - MACS_BYTES


def test_another_psk_does_not_agree() -> None:
    message, kept = initiation(psk=b"1" * 32)
    answer, _ = response(message, psk=b"2" * 32)
    assert kept.open_response(answer) is None


def test_claiming_the_key_of_another_is_found_out() -> None:
    """Mallory puts Alice's public key into an initiation of hers: only the static-static secret is missing."""
    mallory = Identity(b"m" * 32)
    mallory.public = ALICE.public  # type: ignore[misc]
    message, _ = make_initiation(mallory, remote(mallory, BOB), 7, b"e" * 32, STAMP)
    received = open_static(BOB, message)
    assert received is not None
    assert received.public == ALICE.public
    assert received.open_stamp(remote(BOB, ALICE).static_static) is None


def test_keys_for_which_everybody_knows_the_secret_are_refused() -> None:
    assert ALICE.agree(SMALL_ORDER) is None
    message, kept = initiation()
    assert open_static(BOB, message[:8] + SMALL_ORDER + message[40:]) is None
    answer, _ = response(message)
    assert kept.open_response(answer[:12] + SMALL_ORDER + answer[44:]) is None
    assert kept.open_response(answer) is not None, "the right one may still follow"


@given(at=st.integers(8, INITIATION_BYTES - MACS_BYTES - 1), flip=st.integers(1, 255))
def test_no_bit_of_an_initiation_may_change(at: int, flip: int) -> None:
    message, _ = initiation()
    changed = bytearray(message)
    changed[at] ^= flip
    received = open_static(BOB, bytes(changed))
    assert received is None or received.open_stamp(remote(BOB, ALICE).static_static) is None


@given(at=st.integers(12, RESPONSE_BYTES - MACS_BYTES - 1), flip=st.integers(1, 255))
def test_no_bit_of_a_response_may_change(at: int, flip: int) -> None:
    message, kept = initiation()
    answer, _ = response(message)
    changed = bytearray(answer)
    changed[at] ^= flip
    assert kept.open_response(bytes(changed)) is None
    assert kept.open_response(answer) is not None
