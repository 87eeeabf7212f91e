"""DERP frames: the numbers, the limits, and cutting a byte stream.  Layer L1: no I/O.

A frame is type u8, length u32 big endian, then length bytes.  What a login looks like:
  1. HTTP upgrade (protocol/upgrade.py)             2. server: ServerKey
  3. client: ClientInfo, boxed to the server's key  4. server registers the client, then sends ServerInfo
  5. either side: any of the frames below.
Packets are forwarded in place by relay/forward.py; every other frame goes to protocol/messages.py.
"""

import enum
import struct
from typing import Final

from derp.errors import RemoteProtocolError

HEADER: Final = struct.Struct("!BI")
HEADER_BYTES: Final = 5
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24

PROTOCOL_VERSION: Final = 2
MAGIC: Final = b"DERP\xf0\x9f\x94\x91"

# A packet never exceeds what a UDP datagram could have carried; the genuine limit, to the byte.
MAX_PACKET_BYTES: Final = 65536
MAX_SEND_BYTES: Final = KEY_BYTES + MAX_PACKET_BYTES
MAX_FORWARD_BYTES: Final = 2 * KEY_BYTES + MAX_PACKET_BYTES
# What each side accepts of the boxed JSON of the handshake: genuine limits again.
MIN_CLIENT_INFO_BYTES: Final = KEY_BYTES + NONCE_BYTES
MAX_CLIENT_INFO_BYTES: Final = 256 * 1024
MAX_SERVER_INFO_BYTES: Final = NONCE_BYTES + (1 << 20)
MAX_SERVER_KEY_BYTES: Final = 1024
# A genuine client refuses any frame above 1 MiB, whatever its type.
MAX_CLIENT_FRAME_BYTES: Final = 1 << 20
MIN_PING_BYTES: Final = 8
MAX_PING_BYTES: Final = 1000
# The genuine relay discards unknown frames of up to 4 GiB.  Nobody needs more than the largest known frame
# for a frame we ignore; a stranger who sends more only burns our receive path.
MAX_UNKNOWN_BYTES: Final = 1 << 20


class FrameType(enum.IntEnum):
    """Every frame of DERP v2.  c>s: client to server.  All integers big endian."""

    SERVER_KEY = 0x01  # s>c  8 B magic + 32 B server public key + bytes for the future
    CLIENT_INFO = 0x02  # c>s  32 B client public key + 24 B nonce + naclbox(JSON)
    SERVER_INFO = 0x03  # s>c  24 B nonce + naclbox(JSON)
    SEND_PACKET = 0x04  # c>s  32 B destination key + packet
    RECV_PACKET = 0x05  # s>c  32 B source key + packet; same length as SendPacket, so relaying rewrites in place
    KEEP_ALIVE = 0x06  # s>c  empty; clients give up after 120 s without any frame
    NOTE_PREFERRED = 0x07  # c>s  1 B, 0 or not 0: is this relay the client's home
    PEER_GONE = 0x08  # s>c  32 B key + 1 B reason
    PEER_PRESENT = 0x09  # s>c  32 B key + 16 B IP + 2 B port + 1 B flags; only to watchers
    FORWARD_PACKET = 0x0A  # mesh c>s  32 B source + 32 B destination + packet; never forwarded twice
    WATCH_CONNS = 0x10  # mesh c>s  empty: tell me who is here, now and from now on
    CLOSE_PEER = 0x11  # mesh c>s  32 B key: close that client
    PING = 0x12  # both  8 B echoed in Pong
    PONG = 0x13  # both  8 B
    HEALTH = 0x14  # s>c  UTF-8 sentence, empty = well again; stock clients show it to their user
    RESTARTING = 0x15  # s>c  u32 ms until reconnect + u32 ms to keep trying


class PeerGoneReason(enum.IntEnum):
    """Why a PeerGone was sent."""

    DISCONNECTED = 0x00
    NOT_HERE = 0x01
    # Never on the wire: a mesh client tells itself that all keys it learnt are void.
    MESH_CONNECTION_BROKE = 0xF0


class PeerPresentFlags(enum.IntFlag):
    """What kind of client a PeerPresent announces; REGULAR only when no other bit is set."""

    REGULAR = 1
    MESH_PEER = 2
    PROBER = 4
    NOT_IDEAL = 8


def encode_frame(frame_type: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return HEADER.pack(frame_type, len(payload)) + payload


class FrameReader:
    """Cuts received bytes into (type, payload) frames: the value level, for handshakes, clients and tests.

    Raises RemoteProtocolError when the peer announces a frame above `max_frame_bytes`; the reader is dead
    after that.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._needed = HEADER_BYTES  # do not look again before we hold this much

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[tuple[int, memoryview]]:
        """Take bytes off the stream; return the frames they complete, payloads as read-only views."""
        # Views must not pin a bytearray that grows, so it is frozen: one copy per wake-up, never one per frame, linear
        # however the peer cuts its bytes, and none where nothing was kept.
        if self._buffer or not isinstance(data, bytes) or len(data) < self._needed:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return []
            frozen = bytes(self._buffer)
        else:
            frozen = data
        view, frames, start = memoryview(frozen), [], 0
        self._needed = HEADER_BYTES
        while len(frozen) - start >= HEADER_BYTES:
            frame_type, length = HEADER.unpack_from(frozen, start)
            if length > self.max_frame_bytes:
                raise RemoteProtocolError(
                    f"frame of type 0x{frame_type:02x} announces {length} bytes, limit {self.max_frame_bytes}"
                )
            end = start + HEADER_BYTES + length
            if end > len(frozen):
                self._needed = end - start
                break
            frames.append((frame_type, view[start + HEADER_BYTES : end]))
            start = end
        self._buffer = bytearray(view[start:])
        return frames

    def trailing_data(self) -> bytes:
        """What was received and belongs to no complete frame yet."""
        return bytes(self._buffer)
