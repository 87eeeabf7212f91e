"""STUN against the genuine parser and the RFC's own example, and a round trip."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.protocol.stun import encode_request, encode_response, is_stun, parse_request, parse_response
from tests.vectors.derp import VECTORS

TRANSACTION = bytes(range(1, 13))
transactions = st.binary(min_size=12, max_size=12)


@pytest.mark.parametrize("vector", VECTORS["stun_requests"], ids=lambda v: v["name"])
def test_requests_are_judged_as_the_genuine_relay_judges_them(vector: dict[str, str]) -> None:
    expected = bytes.fromhex(vector["tx"]) if "tx" in vector else None
    assert parse_request(bytes.fromhex(vector["hex"])) == expected


@pytest.mark.parametrize("vector", VECTORS["stun_responses"], ids=lambda v: v["name"])
def test_responses_are_read_as_the_genuine_client_reads_them(vector: dict[str, object]) -> None:
    datagram = bytes.fromhex(str(vector["hex"]))
    if not vector["ok"]:
        with pytest.raises(RemoteProtocolError):
            parse_response(datagram)
        return
    transaction, ip, port = parse_response(datagram)
    assert transaction == TRANSACTION
    assert (str(ipaddress.ip_address(ip)), port) == (vector["address"], vector["port"])


def test_our_datagrams_are_the_genuine_ones() -> None:
    genuine = {vector["name"]: bytes.fromhex(vector["hex"]) for vector in VECTORS["stun_requests"]}
    genuine |= {vector["name"]: bytes.fromhex(vector["hex"]) for vector in VECTORS["stun_responses"] if vector["ok"]}
    assert encode_request(TRANSACTION) == genuine["good"]
    four, six = ipaddress.ip_address("192.0.2.7").packed, ipaddress.ip_address("2001:db8::7").packed
    assert encode_response(TRANSACTION, four, 41641) == genuine["ipv4"]
    assert encode_response(TRANSACTION, six, 41641) == genuine["ipv6"]


@pytest.mark.parametrize(
    ("datagram", "ip", "port"),
    [
        # RFC 5769 sections 2.2 and 2.3, made by others, with attributes that we do not know.
        (
            "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643"
            "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96",
            "192.0.2.1",
            32853,
        ),
        (
            "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a147"
            "0113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c",
            "2001:db8:1234:5678:11:2233:4455:6677",
            32853,
        ),
    ],
)
def test_the_examples_of_rfc_5769(datagram: str, ip: str, port: int) -> None:
    transaction, packed, got = parse_response(bytes.fromhex(datagram))
    assert transaction.hex() == "b7e7a701bc34d686fa87dfae"
    assert (str(ipaddress.ip_address(packed)), got) == (ip, port)


@given(transactions, st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(0, 65535))
def test_answers_round_trip(
    transaction: bytes, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    mapped = getattr(address, "ipv4_mapped", None)
    expected = (mapped or address).packed
    answer = encode_response(transaction, address.packed, port)
    assert len(answer) == 28 + len(expected)
    assert parse_response(answer) == (transaction, expected, port)


@given(transactions)
def test_requests_round_trip(transaction: bytes) -> None:
    request = encode_request(transaction)
    assert len(request) == 40
    assert parse_request(request) == transaction
    assert parse_request(memoryview(request)) == transaction


def test_a_mapped_address_is_told_as_ipv4() -> None:
    mapped = bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 7))
    assert encode_response(TRANSACTION, mapped, 9) == encode_response(TRANSACTION, mapped[12:], 9)


def test_no_byte_of_a_request_may_change() -> None:
    request = bytearray(encode_request(TRANSACTION))
    for position in range(len(request)):
        request[position] ^= 0x20
        assert parse_request(request) is None
        request[position] ^= 0x20
    assert parse_request(request) == TRANSACTION


@pytest.mark.parametrize("length", range(40))
def test_no_shorter_request_is_answered(length: int) -> None:
    assert parse_request(encode_request(TRANSACTION)[:length]) is None


@pytest.mark.parametrize(
    ("transaction", "ip", "port"),
    [(bytes(11), bytes(4), 1), (bytes(12), bytes(5), 1), (bytes(12), b"", 1), (bytes(12), bytes(4), 65536)],
)
def test_values_that_fit_no_datagram_are_refused(transaction: bytes, ip: bytes, port: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_response(transaction, ip, port)


def test_a_request_needs_a_transaction_id() -> None:
    with pytest.raises(LocalProtocolError, match="12"):
        encode_request(b"short")


# --- the law: bytes parse, or raise RemoteProtocolError (a request: are ignored) ---


@given(st.binary(max_size=120), st.booleans())
def test_any_datagram_is_an_answer_or_an_error(tail: bytes, with_head: bool) -> None:
    head = bytes.fromhex("0101") + len(tail).to_bytes(2, "big") + bytes.fromhex("2112a442") + TRANSACTION
    try:
        _, ip, port = parse_response(head + tail if with_head else tail)
    except RemoteProtocolError:
        return
    assert len(ip) in (4, 16)
    assert 0 <= port <= 65535


@given(st.binary(max_size=120), st.booleans())
def test_any_datagram_is_a_request_or_nothing(tail: bytes, with_head: bool) -> None:
    datagram = encode_request(TRANSACTION)[:20] + tail if with_head else tail
    if parse_request(datagram) is not None:
        assert b"tailnode" in datagram


def test_it_is_told_from_what_else_comes_by_the_same_socket() -> None:
    request = encode_request(bytes(12))
    assert is_stun(request)
    assert is_stun(encode_response(bytes(12), bytes(4), 1))
    assert not is_stun(request[:19])
    assert not is_stun(b"\x54" + request[1:]), "disco"
    assert not is_stun(request[:4] + b"\0" + request[5:]), "WireGuard"
