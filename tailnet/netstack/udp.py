"""UDP (RFC 768 over IPv6, RFC 8200 section 8.1) for DNS-like use: codec and a port's queue.  Layer L1.

Header: source port u16, destination port u16, length u16, checksum u16, which is never zero.  Next hop: stack.py.
"""

import struct
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from tailnet.errors import LocalProtocolError
from tailnet.netstack.ip import HEADER_BYTES, UDP, Packet, build_checked
from tailnet.netstack.limits import Drop, Limits

HEADER: Final = struct.Struct("!HHHH")


def build(source: bytes, destination: bytes, source_port: int, destination_port: int, payload: bytes) -> bytes:
    """A whole packet."""
    head = HEADER.pack(source_port, destination_port, HEADER.size + len(payload), 0)
    return build_checked(source, destination, UDP, head + payload, 6)


def parse(datagram: Packet) -> tuple[int, int, bytes] | Drop:
    """Source port, destination port and payload of a datagram without its IPv6 header."""
    if len(datagram) < HEADER.size:
        return Drop.MALFORMED_UDP
    source_port, destination_port, length, checksum = HEADER.unpack_from(datagram)
    if not HEADER.size <= length <= len(datagram) or checksum == 0 or source_port == 0 or destination_port == 0:
        return Drop.MALFORMED_UDP
    return source_port, destination_port, bytes(datagram[HEADER.size : length])


class Datagram(NamedTuple):
    """What came: from whom, to which of our addresses and ports, and the payload."""

    source: bytes
    source_port: int
    destination: bytes
    port: int
    payload: bytes


class UdpPort:
    """A bound port, or every port that nobody has bound: `receive` what came, `send` to anybody.

    The stack makes it and tells when it is readable.
    """

    __slots__ = ("_bytes", "_queue", "_send", "address", "limits", "port")

    def __init__(self, address: bytes, port: int | None, limits: Limits, send: Callable[[bytes], None]) -> None:
        self.address = address
        self.port = port
        self.limits = limits
        self._send = send
        self._queue: deque[Datagram] = deque()
        self._bytes = 0

    def add(self, datagram: Datagram) -> bool:
        """The stack's: False where the reader is too slow, and the datagram is lost as on any network."""
        limits, size = self.limits, len(datagram.payload)
        if len(self._queue) >= limits.udp_queue_datagrams or self._bytes + size > limits.udp_queue_bytes:
            return False
        self._queue.append(datagram)
        self._bytes += size
        return True

    def receive(self) -> Datagram | None:
        """The oldest datagram; None when there is none."""
        if not self._queue:
            return None
        datagram = self._queue.popleft()
        self._bytes -= len(datagram.payload)
        return datagram

    def send(
        self,
        destination: bytes,
        port: int,
        payload: bytes,
        *,
        source: tuple[bytes, int] | None = None,
    ) -> None:
        """One datagram, from the bound address and port if no `source` is said: an answer comes from where its question
        went.  LocalProtocolError when it is longer than a packet: there are no fragments inside a tunnel."""
        longest = self.limits.mtu - HEADER_BYTES - HEADER.size
        if len(payload) > longest:
            raise LocalProtocolError(f"a datagram of {len(payload)} bytes does not fit: at most {longest}")
        address, source_port = source or (self.address, self.port)
        if source_port is None or not 0 < port <= 0xFFFF:
            raise LocalProtocolError(f"from {source_port} to {port}: these are no UDP ports")
        self._send(build(address, destination, source_port, port, payload))
