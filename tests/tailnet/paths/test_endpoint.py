"""Endpoints: their text and wire forms, those that are refused, and which of two is better."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.paths.endpoint import (
    WIRE_BYTES,
    Endpoint,
    decode_endpoint,
    encode_endpoint,
    is_better,
    make_endpoint,
    parse_endpoint,
    relay_endpoint,
)

NEAR, FAR = Endpoint("192.168.1.2", 1), Endpoint("203.0.113.9", 1)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("203.0.113.9:41641", Endpoint("203.0.113.9", 41641)),
        ("[2001:DB8:0:0::1]:65535", Endpoint("2001:db8::1", 65535)),
        ("[::ffff:203.0.113.9]:5", Endpoint("203.0.113.9", 5)),
        ("127.0.0.1:5", Endpoint("127.0.0.1", 5)),
    ],
)
def test_forms(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert parse_endpoint(str(endpoint)) == endpoint
    assert decode_endpoint(encode_endpoint(endpoint)) == endpoint
    assert len(encode_endpoint(endpoint)) == WIRE_BYTES


@pytest.mark.parametrize(
    "text",
    [
        *("", "203.0.113.9", "203.0.113.9:", "203.0.113.9:0", "203.0.113.9:65536", "203.0.113.9:-1", "x:5", "host:5"),
        *("0.0.0.0:5", "[::]:5", "224.0.0.1:5", "[ff02::1]:5", "255.255.255.255:5", "[fe80::1]:5", "[fe80::1%eth0]:5"),
        *("127.3.3.40:5", "[fd7a:115c:a1e0::1]:5", "[fd60:627a:a42b::1]:5", "[::ffff:0.0.0.0]:5", "203.0.113.9:٣"),
    ],
)
def test_nothing_is_sent_there(text: str) -> None:
    assert parse_endpoint(text) is None


def test_a_relay_is_no_endpoint() -> None:
    assert decode_endpoint(encode_endpoint(relay_endpoint(999))) is None


@given(st.binary(min_size=16, max_size=16), st.integers(0, 0xFFFF))
def test_any_wire_form(address: bytes, port: int) -> None:
    endpoint = decode_endpoint(address + port.to_bytes(2, "big"))
    if endpoint is not None:
        assert encode_endpoint(endpoint) == address + port.to_bytes(2, "big")
        assert make_endpoint(*endpoint) == endpoint


@pytest.mark.parametrize(
    ("one", "seconds", "other", "other_seconds", "better"),
    [
        (FAR, 0.010, Endpoint("198.51.100.1", 1), 0.020, True),
        (FAR, 0.020, Endpoint("198.51.100.1", 1), 0.010, False),
        (FAR, 0.0197, Endpoint("198.51.100.1", 1), 0.020, False),  # one percent is not worth it
        (FAR, 0.0195, Endpoint("198.51.100.1", 1), 0.020, True),
        (FAR, 0.010, FAR._replace(port=2), 0.010, False),
        (NEAR, 0.011, FAR, 0.010, True),
        (NEAR, 0.020, FAR, 0.010, False),
        (Endpoint("2001:db8::1", 1), 0.0105, FAR, 0.010, True),
        (Endpoint("127.0.0.1", 1), 0.010, NEAR, 0.010, True),
        (Endpoint("169.254.1.1", 1), 0.010, NEAR, 0.010, True),
        (Endpoint("fd00::1", 1), 0.010, NEAR, 0.010, True),
        (Endpoint("100.64.0.1", 1), 0.010, FAR, 0.010, False),  # a carrier's network is not ours
    ],
)
def test_which_is_better(one: Endpoint, seconds: float, other: Endpoint, other_seconds: float, better: bool) -> None:
    assert is_better(one, seconds, other, other_seconds) is better


@given(st.sampled_from([NEAR, FAR, Endpoint("::1", 1)]), st.floats(0.0001, 1), st.floats(0.0001, 1))
def test_never_both_are_better(one: Endpoint, seconds: float, other_seconds: float) -> None:
    other = Endpoint("198.51.100.1", 1)
    assert not (is_better(one, seconds, other, other_seconds) and is_better(other, other_seconds, one, seconds))
