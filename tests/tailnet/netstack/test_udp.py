"""UDP: codec and a port's queue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import LocalProtocolError
from tailnet.netstack import ip, udp
from tailnet.netstack.limits import Drop, Limits
from tests.support.netsim import ADDRESSES

A, B = ADDRESSES
OTHER = bytes.fromhex("fd60627aa42b0000000000000000000a")
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
    first, second, third = (udp.Datagram(B, 1, A, 53, payload) for payload in (bytes(60), b"x", b"y"))
    assert port.add(first)
    assert not port.add(first._replace(payload=bytes(41))), "bytes"
    assert port.add(second)
    assert port.add(third)
    assert not port.add(first._replace(payload=b"")), "datagrams"
    assert port.receive() == first
    assert port.receive() == second
    assert port.add(first._replace(payload=bytes(99)))


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


def test_an_answer_comes_from_where_its_question_went() -> None:
    sent: list[bytes] = []
    port = udp.UdpPort(A, None, Limits(), sent.append)
    with pytest.raises(LocalProtocolError, match="from None"):
        port.send(B, 1234, b"answer")
    port.send(B, 1234, b"answer", source=(OTHER, 5353))
    assert sent[0][8:24] == OTHER
    assert udp.parse(sent[0][40:]) == (5353, 1234, b"answer")
