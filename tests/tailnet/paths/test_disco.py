"""Disco messages byte for byte against the genuine package, whole and damaged."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.paths.disco import (
    MAX_CALLED_ENDPOINTS,
    CallMeMaybe,
    Ping,
    Pong,
    encode_call_me_maybe,
    encode_ping,
    encode_pong,
    is_disco,
    open_message,
    parse_message,
    seal_message,
    sender_of,
)
from tailnet.paths.endpoint import Endpoint, relay_endpoint
from tests.vectors.disco import KEYS, MESSAGES, VECTORS

TXID = bytes(range(1, 13))
V4, V6 = Endpoint("203.0.113.9", 41641), Endpoint("2001:db8::1", 65535)
NODE = KEYS["node_a_public"]

PARSED = {
    "ping": Ping(TXID, NODE),
    "ping_no_node_key": Ping(TXID, None),
    "ping_padding_5": Ping(TXID, NODE, 5),
    "pong_v4": Pong(TXID, V4),
    "pong_v6": Pong(TXID, V6),
    "pong_derp_999": Pong(TXID, None),
    "call_me_maybe_empty": CallMeMaybe(()),
    "call_me_maybe_two": CallMeMaybe((V4, V6)),
}
ENCODED = {
    "ping": encode_ping(TXID, NODE),
    "pong_v4": encode_pong(TXID, V4),
    "pong_v6": encode_pong(TXID, V6),
    "pong_derp_999": encode_pong(TXID, relay_endpoint(999)),
    "call_me_maybe_empty": encode_call_me_maybe(()),
    "call_me_maybe_two": encode_call_me_maybe((V4, V6)),
}
EVERY = [*VECTORS["messages_v1_80_3"], *VECTORS["messages_only_in_v1_102_5"]]


def test_every_kind_is_tried() -> None:
    assert PARSED.keys() == MESSAGES.keys() == set(VECTORS["same_bytes_in_v1_102_5"])


@pytest.mark.parametrize("name", MESSAGES)
def test_the_genuine_messages_are_read(name: str) -> None:
    assert parse_message(bytes.fromhex(MESSAGES[name]["payload"])) == PARSED[name]


@pytest.mark.parametrize("name", ENCODED)
def test_the_genuine_messages_are_written(name: str) -> None:
    message = MESSAGES[name]
    assert ENCODED[name].hex() == message["payload"]
    nonce = bytes.fromhex(message["nonce"])
    wire = seal_message(KEYS["disco_a_public"], KEYS["shared"], nonce, ENCODED[name])
    assert wire.hex() == message["packet_a_to_b"]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: message["name"])
def test_the_genuine_envelopes_are_opened(message: dict[str, Any]) -> None:
    wire = bytes.fromhex(message["packet_a_to_b"])
    assert is_disco(wire)
    assert sender_of(wire) == KEYS["disco_a_public"]
    assert open_message(wire, KEYS["shared"]) == bytes.fromhex(message["payload"])
    assert open_message(memoryview(wire), KEYS["shared"]) == bytes.fromhex(message["payload"])


@pytest.mark.parametrize("message", VECTORS["messages_only_in_v1_102_5"], ids=lambda message: message["name"])
def test_what_only_newer_nodes_have_is_not_for_us(message: dict[str, Any]) -> None:
    assert parse_message(bytes.fromhex(message["payload"])) is None


@pytest.mark.parametrize("odd", VECTORS["odd_payloads"], ids=lambda odd: odd["name"])
def test_odd_messages_are_read_as_the_genuine_node_does(odd: dict[str, str]) -> None:
    parsed, verdict = parse_message(bytes.fromhex(odd["payload"])), odd["result_v1_80_3"]
    assert (parsed is None) == verdict.startswith("error")
    if isinstance(parsed, Ping):
        # The vectors' zero key counts as none there; here a key of zeros is a key that no peer has.
        assert f"padding={parsed.padding_bytes}" in verdict
    if isinstance(parsed, CallMeMaybe):
        assert "0 endpoints" in verdict
        assert parsed.endpoints == ()


@given(st.binary(max_size=120))
def test_any_bytes_are_a_message_or_none(text: bytes) -> None:
    parsed = parse_message(text)
    if parsed is not None:
        assert text[0] in (1, 2, 3)
    is_disco(text)


@given(st.integers(0, 200), st.integers(1, 255))
def test_no_byte_of_an_envelope_may_change(at: int, flip: int) -> None:
    wire = bytearray.fromhex(MESSAGES["ping"]["packet_a_to_b"])
    if at >= len(wire):
        del wire[at % len(wire) :]
    else:
        wire[at] ^= flip
    known = is_disco(wire) and sender_of(wire) == KEYS["disco_a_public"]
    assert not known or open_message(wire, KEYS["shared"]) is None


def test_a_call_names_a_bounded_number() -> None:
    many = tuple(Endpoint("203.0.113.9", port) for port in range(1, 3600))
    parsed = parse_message(encode_call_me_maybe(many))
    assert parsed == CallMeMaybe(many[:MAX_CALLED_ENDPOINTS])


def test_a_call_skips_what_cannot_be_reached() -> None:
    useless = (Endpoint("fe80::1", 1), Endpoint("0.0.0.0", 1), Endpoint("224.0.0.1", 5))
    assert parse_message(encode_call_me_maybe((*useless, V6))) == CallMeMaybe((V6,))
