"""DERP messages as values: every frame but the boxed two of the handshake.  Layer L1: no I/O.

For handshakes, clients, the mesh and tests.  Relayed packets never come here: relay/forward.py rewrites them in place.
Facts: the genuine relay and client, release 1.102.5.  Next hop: protocol/connection.py.

The two sides judge a bad frame differently, and so do the parsers here: a relay closes on a client whose known frame
has a wrong length, a client skips such a frame from its relay (some relays in service send older, shorter forms).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple, TypeAlias, assert_never

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.keys import MeshKey
from derp.protocol.frames import (
    KEY_BYTES,
    MAGIC,
    MAX_CLIENT_FRAME_BYTES,
    MAX_FORWARD_BYTES,
    MAX_PACKET_BYTES,
    MAX_PING_BYTES,
    MAX_SEND_BYTES,
    MIN_PING_BYTES,
    PROTOCOL_VERSION,
    FrameType,
    encode_frame,
)

Payload: TypeAlias = bytes | bytearray | memoryview

PING_BYTES: Final = 8
# 16 B address (IPv4 as ::ffff:a.b.c.d) + 2 B port, then 1 B flags; every part after the key may be missing.
_ENDPOINT: Final = struct.Struct("!16sH")
_RESTARTING: Final = struct.Struct("!II")
_V4_PREFIX: Final = bytes(10) + b"\xff\xff"
_NO_ADDRESS: Final = bytes(16)
_U32_MAX: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ServerKey:
    """s>c, first of all: the relay's public key."""

    key: bytes


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """c>s: what a client says of itself, boxed (protocol/handshake.py).  `version` is told, and used by nobody."""

    mesh_key: MeshKey | None = None
    version: int = PROTOCOL_VERSION
    can_ack_pings: bool = False
    is_prober: bool = False
    app_name: str = ""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """s>c: the end of the handshake, boxed.  A token bucket of 0 bytes per second is none.

    queue_depth: packets that the relay keeps for a client which reads slowly.  Ours says so, in a member that others
    pass over; 0: not said, and 32 in a genuine relay.
    """

    version: int = PROTOCOL_VERSION
    token_bucket_bytes_per_second: int = 0
    token_bucket_bytes_burst: int = 0
    queue_depth: int = 0


@dataclass(frozen=True, slots=True)
class SendPacket:
    """c>s: relay `packet` (at most 65,536 B, may be empty) to the client whose key is `dst`."""

    dst: bytes
    packet: bytes


@dataclass(frozen=True, slots=True)
class RecvPacket:
    """s>c: a packet, and who sent it."""

    src: bytes
    packet: bytes


class RecvPackets(NamedTuple):
    """s>c: packets that one sender's frames brought one after the other, as views of what was received.  In place of
    RecvPacket, for whoever asked for it (ClientConnection.gathers_packets)."""

    src: bytes
    packets: list[memoryview]


@dataclass(frozen=True, slots=True)
class ForwardPacket:
    """Mesh c>s: deliver to a client of yours; never forwarded a second time."""

    src: bytes
    dst: bytes
    packet: bytes


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """s>c: nothing but a sign of life."""


@dataclass(frozen=True, slots=True)
class NotePreferred:
    """c>s: is this relay the client's home."""

    preferred: bool


@dataclass(frozen=True, slots=True)
class PeerGone:
    """s>c: `key` left, or was never here.  `reason` is a PeerGoneReason, or a number of the future."""

    key: bytes
    reason: int = 0


@dataclass(frozen=True, slots=True)
class PeerPresent:
    """s>c, to watchers: a client connected.  `address` None: the relay does not say."""

    key: bytes
    address: IPv4Address | IPv6Address | None = None
    port: int = 0
    flags: int = 0


@dataclass(frozen=True, slots=True)
class WatchConns:
    """Mesh c>s: tell me who is connected, now and from now on."""


@dataclass(frozen=True, slots=True)
class ClosePeer:
    """Mesh c>s: close every connection of this key."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """Both ways: 8 bytes to be echoed."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """Both ways: the 8 bytes of a ping."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Health:
    """s>c: a sentence about the client's connection; empty means well again."""

    text: str = ""


@dataclass(frozen=True, slots=True)
class Restarting:
    """s>c: the relay goes down; when to come back, and for how long to try before looking elsewhere."""

    reconnect_in_ms: int
    try_for_ms: int


@dataclass(frozen=True, slots=True)
class UnknownFrame:
    """A frame that the receiver skips: unknown type, not meant for this side, or too short for a tolerant client."""

    frame_type: int
    length: int


# What `encode` takes; ClientInfo and ServerInfo travel boxed, so protocol/handshake.py makes their frames.
PlainMessage: TypeAlias = (
    ServerKey
    | SendPacket
    | RecvPacket
    | ForwardPacket
    | KeepAlive
    | NotePreferred
    | PeerGone
    | PeerPresent
    | WatchConns
    | ClosePeer
    | Ping
    | Pong
    | Health
    | Restarting
)
# What the parsers return; a frame that is not skipped can be encoded again.
ParsedMessage: TypeAlias = PlainMessage | UnknownFrame
Message: TypeAlias = ParsedMessage | RecvPackets | ClientInfo | ServerInfo


def encode(message: PlainMessage) -> bytes:
    """One whole frame.  LocalProtocolError when a value does not fit its field."""
    match message:
        case SendPacket(dst, packet):
            return encode_frame(FrameType.SEND_PACKET, _key(dst) + _packet(packet))
        case RecvPacket(src, packet):
            return encode_frame(FrameType.RECV_PACKET, _key(src) + _packet(packet))
        case ForwardPacket(src, dst, packet):
            return encode_frame(FrameType.FORWARD_PACKET, _key(src) + _key(dst) + _packet(packet))
        case KeepAlive():
            return encode_frame(FrameType.KEEP_ALIVE)
        case NotePreferred(preferred):
            return encode_frame(FrameType.NOTE_PREFERRED, b"\x01" if preferred else b"\x00")
        case PeerGone(key, reason):
            return encode_frame(FrameType.PEER_GONE, _key(key) + _byte(reason, "reason"))
        case PeerPresent():
            return encode_frame(FrameType.PEER_PRESENT, _peer_present_payload(message))
        case WatchConns():
            return encode_frame(FrameType.WATCH_CONNS)
        case ClosePeer(key):
            return encode_frame(FrameType.CLOSE_PEER, _key(key))
        case Ping(payload):
            return encode_frame(FrameType.PING, _ping(payload))
        case Pong(payload):
            return encode_frame(FrameType.PONG, _ping(payload))
        case Health(text):
            return encode_frame(FrameType.HEALTH, _health(text))
        case Restarting(reconnect_in_ms, try_for_ms):
            if not (0 <= reconnect_in_ms <= _U32_MAX and 0 <= try_for_ms <= _U32_MAX):
                raise LocalProtocolError(f"restarting: {reconnect_in_ms} ms and {try_for_ms} ms must fit 32 bits")
            return encode_frame(FrameType.RESTARTING, _RESTARTING.pack(reconnect_in_ms, try_for_ms))
        case ServerKey(key):
            return encode_frame(FrameType.SERVER_KEY, MAGIC + _key(key))
    assert_never(message)


def parse_from_client(frame_type: int, payload: Payload) -> ParsedMessage:
    """What a relay reads after the handshake.  RemoteProtocolError where the genuine relay closes the connection."""
    parse = _FROM_CLIENT.get(frame_type)
    return parse(payload) if parse is not None else UnknownFrame(frame_type, len(payload))


def parse_from_server(frame_type: int, payload: Payload) -> ParsedMessage:
    """What a client reads.  ServerInfo is boxed, so it is unknown here: see handshake.open_server_info.

    RemoteProtocolError only for a frame above 1 MiB, which the genuine client refuses whatever its type.
    """
    if len(payload) > MAX_CLIENT_FRAME_BYTES:
        raise RemoteProtocolError(
            f"frame of type 0x{frame_type:02x} has {len(payload)} bytes, limit {MAX_CLIENT_FRAME_BYTES}"
        )
    entry = _FROM_SERVER.get(frame_type)
    if entry is None or len(payload) < entry[0]:
        return UnknownFrame(frame_type, len(payload))
    return entry[1](payload)


# --- encoding ---


def _key(raw: bytes) -> bytes:
    if len(raw) != KEY_BYTES:
        raise LocalProtocolError(f"a key has {KEY_BYTES} bytes, got {len(raw)}")
    return raw


def _packet(packet: bytes) -> bytes:
    if len(packet) > MAX_PACKET_BYTES:
        raise LocalProtocolError(f"a packet has at most {MAX_PACKET_BYTES} bytes, got {len(packet)}")
    return packet


def _ping(payload: bytes) -> bytes:
    if len(payload) != PING_BYTES:
        raise LocalProtocolError(f"a ping carries {PING_BYTES} bytes, got {len(payload)}")
    return payload


def _byte(value: int, field: str) -> bytes:
    if not 0 <= value <= 0xFF:
        raise LocalProtocolError(f"{field} must fit a byte, got {value}")
    return bytes((value,))


def _health(text: str) -> bytes:
    encoded = text.encode("utf-8", "replace")
    # Above this a genuine client would leave, for a notice about its health.
    if len(encoded) > MAX_CLIENT_FRAME_BYTES:
        raise LocalProtocolError(f"a health text has at most {MAX_CLIENT_FRAME_BYTES} bytes, got {len(encoded)}")
    return encoded


def _peer_present_payload(message: PeerPresent) -> bytes:
    if not 0 <= message.port <= 0xFFFF:
        raise LocalProtocolError(f"port must fit 16 bits, got {message.port}")
    address = message.address
    if address is None:
        packed = _NO_ADDRESS
    elif isinstance(address, IPv4Address):
        packed = _V4_PREFIX + address.packed
    else:
        packed = address.packed
    return _key(message.key) + _ENDPOINT.pack(packed, message.port) + _byte(message.flags, "flags")


# --- what a relay reads: a wrong length is an error ---


def _send_packet(payload: Payload) -> ParsedMessage:
    if not KEY_BYTES <= len(payload) <= MAX_SEND_BYTES:
        raise RemoteProtocolError(f"SendPacket of {len(payload)} bytes, must be {KEY_BYTES} to {MAX_SEND_BYTES}")
    return SendPacket(bytes(payload[:KEY_BYTES]), bytes(payload[KEY_BYTES:]))


def _forward_packet(payload: Payload) -> ParsedMessage:
    if not 2 * KEY_BYTES <= len(payload) <= MAX_FORWARD_BYTES:
        raise RemoteProtocolError(
            f"ForwardPacket of {len(payload)} bytes, must be {2 * KEY_BYTES} to {MAX_FORWARD_BYTES}"
        )
    return ForwardPacket(
        bytes(payload[:KEY_BYTES]), bytes(payload[KEY_BYTES : 2 * KEY_BYTES]), bytes(payload[2 * KEY_BYTES :])
    )


def _note_preferred(payload: Payload) -> ParsedMessage:
    if len(payload) != 1:
        raise RemoteProtocolError(f"NotePreferred of {len(payload)} bytes, must be 1")
    return NotePreferred(payload[0] != 0)


def _watch_conns(payload: Payload) -> ParsedMessage:
    if len(payload) != 0:
        raise RemoteProtocolError(f"WatchConns of {len(payload)} bytes, must be empty")
    return WatchConns()


def _close_peer(payload: Payload) -> ParsedMessage:
    if len(payload) != KEY_BYTES:
        raise RemoteProtocolError(f"ClosePeer of {len(payload)} bytes, must be {KEY_BYTES}")
    return ClosePeer(bytes(payload))


def _client_ping(payload: Payload) -> ParsedMessage:
    if not MIN_PING_BYTES <= len(payload) <= MAX_PING_BYTES:
        raise RemoteProtocolError(f"Ping of {len(payload)} bytes, must be {MIN_PING_BYTES} to {MAX_PING_BYTES}")
    return Ping(bytes(payload[:PING_BYTES]))


def _client_pong(payload: Payload) -> ParsedMessage:
    # The genuine relay never pings, so to it every Pong is an unknown frame of any length.
    if len(payload) < PING_BYTES:
        return UnknownFrame(FrameType.PONG, len(payload))
    return Pong(bytes(payload[:PING_BYTES]))


_FROM_CLIENT: Final[dict[int, Callable[[Payload], ParsedMessage]]] = {
    FrameType.SEND_PACKET: _send_packet,
    FrameType.FORWARD_PACKET: _forward_packet,
    FrameType.NOTE_PREFERRED: _note_preferred,
    FrameType.WATCH_CONNS: _watch_conns,
    FrameType.CLOSE_PEER: _close_peer,
    FrameType.PING: _client_ping,
    FrameType.PONG: _client_pong,
}


# --- what a client reads: too short is skipped, too long is the future ---


def _recv_packet(payload: Payload) -> ParsedMessage:
    return RecvPacket(bytes(payload[:KEY_BYTES]), bytes(payload[KEY_BYTES:]))


def _peer_gone(payload: Payload) -> ParsedMessage:
    # Relays before the reason byte sent the key alone, and meant "disconnected".
    return PeerGone(bytes(payload[:KEY_BYTES]), payload[KEY_BYTES] if len(payload) > KEY_BYTES else 0)


def _peer_present(payload: Payload) -> ParsedMessage:
    key = bytes(payload[:KEY_BYTES])
    flags_at = KEY_BYTES + _ENDPOINT.size
    if len(payload) < flags_at:
        return PeerPresent(key)
    packed, port = _ENDPOINT.unpack_from(payload, KEY_BYTES)
    flags = payload[flags_at] if len(payload) > flags_at else 0
    address: IPv4Address | IPv6Address | None
    if packed == _NO_ADDRESS:
        address = None
    elif packed.startswith(_V4_PREFIX):
        address = IPv4Address(packed[len(_V4_PREFIX) :])
    else:
        address = IPv6Address(packed)
    return PeerPresent(key, address, port, flags)


def _restarting(payload: Payload) -> ParsedMessage:
    return Restarting(*_RESTARTING.unpack_from(payload))


# Frame type: the shortest form a client takes, and its parser.
_FROM_SERVER: Final[dict[int, tuple[int, Callable[[Payload], ParsedMessage]]]] = {
    FrameType.RECV_PACKET: (KEY_BYTES, _recv_packet),
    FrameType.KEEP_ALIVE: (0, lambda _: KeepAlive()),
    FrameType.PEER_GONE: (KEY_BYTES, _peer_gone),
    FrameType.PEER_PRESENT: (KEY_BYTES, _peer_present),
    FrameType.PING: (PING_BYTES, lambda payload: Ping(bytes(payload[:PING_BYTES]))),
    FrameType.PONG: (PING_BYTES, lambda payload: Pong(bytes(payload[:PING_BYTES]))),
    FrameType.HEALTH: (0, lambda payload: Health(bytes(payload).decode("utf-8", "replace"))),
    FrameType.RESTARTING: (_RESTARTING.size, _restarting),
}
