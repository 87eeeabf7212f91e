"""ICMPv6 on the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.netstack import icmp, ip, udp
from tailnet.netstack.icmp import Echo, PacketError
from tailnet.netstack.limits import Drop
from tests.support.netsim import ADDRESSES

A, B = ADDRESSES
# From genuine nodes: an echo request and its answer.
REQUEST = bytes.fromhex(
    "60000000000a3a40fd7a115ca1e00000000000000000000afd7a115ca1e00000000000000000000b8000a398123400016869"
)
REPLY = bytes.fromhex(
    "600fffff000a3a40fd7a115ca1e00000000000000000000bfd7a115ca1e00000000000000000000a8100a298123400016869"
)


def test_genuine_echoes() -> None:
    assert icmp.parse(REQUEST[40:]) == Echo(False, 0x1234, 1, b"hi")
    assert icmp.parse(REPLY[40:]) == Echo(True, 0x1234, 1, b"hi")
    assert icmp.build_echo(A, B, Echo(False, 0x1234, 1, b"hi")) == REQUEST
    # The genuine one flips the flow label, which nothing looks at.
    assert icmp.build_echo(B, A, Echo(True, 0x1234, 1, b"hi"))[4:] == REPLY[4:]


def test_an_error_quotes_the_packet() -> None:
    about = udp.build(A, B, 1234, 53, b"question")
    packet = icmp.build_error(B, A, icmp.DESTINATION_UNREACHABLE, icmp.PORT_UNREACHABLE, about)
    assert ip.is_intact(packet, 40, ip.ICMPV6)
    parsed = icmp.parse(packet[40:])
    assert isinstance(parsed, PacketError)
    assert (parsed.kind, parsed.code, parsed.protocol) == (1, 4, ip.UDP)
    assert (parsed.source, parsed.destination, parsed.source_port, parsed.destination_port) == (A, B, 1234, 53)


def test_an_error_fits_into_the_smallest_mtu() -> None:
    assert len(icmp.build_error(B, A, 1, 4, bytes(1280))) == 1280


def test_too_big_has_its_mtu() -> None:
    about = ip.build_packet(A, B, ip.TCP, b"\0\1\0\2\xde\xad\xbe\xef")
    parsed = icmp.parse(icmp.build_error(B, A, icmp.PACKET_TOO_BIG, 0, about, 0x12345)[40:])
    assert isinstance(parsed, PacketError)
    assert (parsed.mtu, parsed.sequence) == (0x12345, 0xDEADBEEF)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", Drop.MALFORMED_ICMP),
        (REQUEST[40:47], Drop.MALFORMED_ICMP),
        (b"\x80\x01" + bytes(6), Drop.MALFORMED_ICMP),
        (bytes((135, 0)) + bytes(30), Drop.UNKNOWN_PROTOCOL),
        (bytes((1, 4)) + bytes(6) + bytes(47), Drop.MALFORMED_ICMP),
        (bytes((100, 0)) + bytes(60), Drop.MALFORMED_ICMP),
    ],
)
def test_what_is_dropped(message: bytes, reason: Drop) -> None:
    assert icmp.parse(message) is reason


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    parsed = icmp.parse(data)
    if isinstance(parsed, Echo):
        assert icmp.parse(icmp.build_echo(A, B, parsed)[40:]) == parsed
