"""UDP: codec and a port's queue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import LocalProtocolError
from tailnet.netstack import ip, udp
from tailnet.netstack.limits import Drop, Limits
from tests.support.netsim import ADDRESSES

A, B = ADDRESSES
PORTS = st.integers(1, 65535)


@given(PORTS, PORTS, st.binary(max_size=1232), st.binary(max_size=9))
def test_round_trip(source: int, destination: int, payload: bytes, padding: bytes) -> None:
    packet = udp.build(A, B, source, destination, payload)
    assert ip.is_intact(packet, 40, ip.UDP)
    assert udp.parse(packet[40:] + padding) == (source, destination, payload)


def datagram(length: int | None = None, checksum: int = 1, ports: tuple[int, int] = (1, 2)) -> bytes:
    return udp.HEADER.pack(*ports, 8 + 4 if length is None else length, checksum) + b"four"


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        datagram()[:7],
        datagram(length=7),
        datagram(length=13),
        datagram(checksum=0),
        datagram(ports=(0, 2)),
        datagram(ports=(2, 0)),
    ],
)
def test_what_is_dropped(bad: bytes) -> None:
    assert udp.parse(datagram()) == (1, 2, b"four")
    assert udp.parse(bad) is Drop.MALFORMED_UDP


def test_the_queue_is_bounded() -> None:
    port = udp.UdpPort(A, 53, Limits(udp_queue_bytes=100, udp_queue_datagrams=3), lambda packet: None)
    assert port.add(B, 1, bytes(60))
    assert not port.add(B, 1, bytes(41)), "bytes"
    assert port.add(B, 1, b"x")
    assert port.add(B, 2, b"y")
    assert not port.add(B, 3, b""), "datagrams"
    assert port.receive() == (B, 1, bytes(60))
    assert port.receive() == (B, 1, b"x")
    assert port.add(B, 1, bytes(99))


def test_what_is_sent() -> None:
    sent: list[bytes] = []
    port = udp.UdpPort(A, 53, Limits(), sent.append)
    port.send(B, 1234, b"answer")
    assert udp.parse(sent[0][40:]) == (53, 1234, b"answer")
    port.send(B, 1234, bytes(1232))
    assert len(sent[1]) == 1280
    for size, to in ((1233, 1234), (1, 0), (1, 65536)):
        with pytest.raises(LocalProtocolError):
            port.send(B, to, bytes(size))
