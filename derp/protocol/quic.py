"""DERP over QUIC: which frames travel as datagrams, and which in the stream.  Layer L1: no I/O.

One bidirectional stream, the client's first, carries what a TLS connection to the relay would: `Upgrade: DERP`, then
frames.  A packet that fits travels as a datagram (RFC 9221) instead: one whole frame each.  A STUN binding request in a
datagram is answered with the address from which it came.  Clients of a relay that has started anew are told so.
docs/quic.md has the wire; next hop: transport/quic.py.
"""

import hmac
from collections.abc import Callable
from typing import Final

from derp.protocol.frames import HEADER, HEADER_BYTES, KEY_BYTES, MAX_CLIENT_FRAME_BYTES, FrameType

ALPN: Final = "derp-quic/2"
# UDP payload of a full QUIC packet.  A WireGuard packet of the usual MTU of 1,280 has 1,312 bytes; with the frame's 37
# and QUIC's own (below) that is 1,394.  Every link of 1,500 bytes carries it, PPPoE and a tunnel's 50 bytes included.
# The handshake's packets are padded to it: where a path does not carry them, there is no connection, and TCP is used.
UDP_BYTES: Final = 1400
# Of it: one byte of head, a connection ID of up to 20, a packet number of up to 4, the tag of 16, the frame's own 3.
DATAGRAM_BYTES: Final = UDP_BYTES - 44
# A stateless reset looks like a short packet (RFC 9000 section 10.3).
_LEAST_RESET_BYTES: Final = 21
_MOST_RESET_BYTES: Final = 42
_TOKEN_BYTES: Final = 16
_PACKETS: Final = (FrameType.SEND_PACKET, FrameType.RECV_PACKET)


class ResetTokens:
    """By what a relay says that it does not know a connection: the same after every start, since they follow from its
    key.  Each is told to the client with the connection's name, and to nobody else while that lives."""

    def __init__(self, secret: bytes, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._key = hmac.digest(secret, b"derp-quic stateless reset", "sha256")

    def token(self, name: bytes) -> bytes:
        """For the connection of this name, 16 bytes."""
        return hmac.digest(self._key, name, "sha256")[:_TOKEN_BYTES]

    def reset(self, datagram: bytes, name: bytes) -> bytes | None:
        """The answer to a datagram for a connection that nobody knows; None if it may be no such thing.  It is shorter:
        so two ends that know nothing of each other come to an end."""
        size = min(len(datagram) - 1, _MOST_RESET_BYTES)
        if size < _LEAST_RESET_BYTES or datagram[0] & 0xC0 != 0x40:
            return None
        noise = self._random(size - _TOKEN_BYTES)
        return bytes((noise[0] & 0x3F | 0x40,)) + noise[1:] + self.token(name)


def is_reset(datagram: bytes, token: bytes) -> bool:
    """Whether a datagram is the stateless reset of the connection with this token; without one it is none."""
    return len(token) == _TOKEN_BYTES and hmac.compare_digest(datagram[-_TOKEN_BYTES:], token)


def is_packet(datagram: bytes, frame_type: int) -> bool:
    """Whether a datagram is exactly one frame of this type: the only ones that may travel so."""
    if len(datagram) < HEADER_BYTES + KEY_BYTES:
        return False
    found, length = HEADER.unpack_from(datagram)
    return bool(found == frame_type and length == len(datagram) - HEADER_BYTES)


def cut(frames: bytes | memoryview, max_datagram_bytes: int = DATAGRAM_BYTES) -> tuple[list[bytes], list[bytes]]:
    """Whole frames one after the other, as datagrams and as pieces of the stream.  0: everything into the stream, where
    also goes what is no frame (the request of a fast start)."""
    view = memoryview(frames)
    datagrams: list[bytes] = []
    pieces: list[bytes] = []
    at = begin = 0
    while len(view) - at >= HEADER_BYTES:
        frame_type, length = HEADER.unpack_from(view, at)
        end = at + HEADER_BYTES + length
        if frame_type in _PACKETS and end - at <= max_datagram_bytes:
            if begin < at:
                pieces.append(bytes(view[begin:at]))
            datagrams.append(bytes(view[at:end]))
            begin = end
        at = end
    if begin < len(view):
        pieces.append(bytes(view[begin:]))
    return datagrams, pieces


class StreamFrames:
    """The client's end of the stream: gives out whole frames, so that datagrams may come between them.

    Packets count only from ServerInfo on, which is the first frame that a client may see.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._is_refusal: bool | None = None
        self._kept = b""

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes of the stream; return the whole frames that there are."""
        if self._is_refusal is None and data:
            self._is_refusal = data[:1] == b"H"  # of HTTP, after a fast start: no frame type is that high
        if self._is_refusal:
            return data
        data = self._kept + data
        at = 0
        while len(data) - at >= HEADER_BYTES:
            frame_type, length = HEADER.unpack_from(data, at)
            if length > MAX_CLIENT_FRAME_BYTES:
                at = len(data)  # nobody waits for that: connection.py says what is wrong with it
                break
            if len(data) - at - HEADER_BYTES < length:
                break
            self.is_open |= frame_type == FrameType.SERVER_INFO
            at += HEADER_BYTES + length
        self._kept = data[at:]
        return data[:at]
