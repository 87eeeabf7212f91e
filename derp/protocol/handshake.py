"""The DERP handshake's three frames: the greeting and the two sealed boxes.  Layer L1: no I/O.

ServerKey is 8 B magic + 32 B key.  ClientInfo is 32 B key + box, ServerInfo is a box; a box is 24 B nonce + NaCl
crypto_box(JSON).  JSON is read as Go's encoding/json reads it: that is what the clients in service were tested on.
Relay side: server_key_frame, open_client_info, then .seal_server_info.  Client side: parse_server_key (or the key from
the meta certificate), seal_client_info, open_server_info.  Next hop: protocol/connection.py, server/session.py.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from nacl.bindings import crypto_box_beforenm, crypto_box_easy_afternm, crypto_box_open_easy_afternm
from nacl.exceptions import CryptoError
from nacl.exceptions import RuntimeError as SodiumError

from derp.errors import KeyFormatError, LocalProtocolError, RemoteProtocolError
from derp.keys import MeshKey, NodePrivate, short_key
from derp.protocol.frames import (
    KEY_BYTES,
    MAGIC,
    MAX_CLIENT_INFO_BYTES,
    MAX_SERVER_INFO_BYTES,
    MAX_SERVER_KEY_BYTES,
    MIN_CLIENT_INFO_BYTES,
    NONCE_BYTES,
    FrameType,
    encode_frame,
)
from derp.protocol.messages import ClientInfo, Payload, ServerInfo, ServerKey, encode
from derp.text import without_halves

_INT64: Final = range(-(1 << 63), 1 << 63)
_NO_MESH_KEY: Final = MeshKey(bytes(KEY_BYTES))


def server_key_frame(public: bytes) -> bytes:
    """The relay's greeting: 45 bytes, the same for every client."""
    return encode(ServerKey(public))


def parse_server_key(payload: Payload) -> bytes:
    """The 32 bytes of the relay's key.  Bytes after it are for the future and are ignored."""
    if not len(MAGIC) + KEY_BYTES <= len(payload) <= MAX_SERVER_KEY_BYTES or payload[: len(MAGIC)] != MAGIC:
        raise RemoteProtocolError("the greeting is not a DERP ServerKey: is the URL that of a DERP relay?")
    return bytes(payload[len(MAGIC) : len(MAGIC) + KEY_BYTES])


@dataclass(frozen=True, slots=True)
class OpenedClientInfo:
    """A client that proved it holds the private half of `key`."""

    key: bytes
    info: ClientInfo
    _shared: bytes = field(repr=False)

    def seal_server_info(self, info: ServerInfo, nonce: bytes) -> bytes:
        """The frame that ends the handshake.  `nonce`: 24 fresh random bytes."""
        return encode_frame(FrameType.SERVER_INFO, _seal(self._shared, _server_info_json(info), nonce))


def open_client_info(private: NodePrivate, payload: Payload) -> OpenedClientInfo:
    """Open what a client sent first.  RemoteProtocolError: length, box or JSON is wrong; the client is unproven."""
    if not MIN_CLIENT_INFO_BYTES <= len(payload) <= MAX_CLIENT_INFO_BYTES:
        raise RemoteProtocolError(
            f"ClientInfo of {len(payload)} bytes, must be {MIN_CLIENT_INFO_BYTES} to {MAX_CLIENT_INFO_BYTES}"
        )
    key = bytes(payload[:KEY_BYTES])
    shared = _agree(private, key)
    text = _open(shared, payload[KEY_BYTES:], "ClientInfo", key)
    return OpenedClientInfo(key, parse_client_info_json(text), shared)


def seal_client_info(private: NodePrivate, server_key: bytes, info: ClientInfo, nonce: bytes) -> bytes:
    """The client's first frame.  `nonce`: 24 fresh random bytes."""
    box = _seal(_agree(private, server_key), _client_info_json(info), nonce)
    payload = private.public().raw + box
    if len(payload) > MAX_CLIENT_INFO_BYTES:
        raise LocalProtocolError(
            f"ClientInfo of {len(payload)} bytes, limit {MAX_CLIENT_INFO_BYTES}: shorten the app name"
        )
    return encode_frame(FrameType.CLIENT_INFO, payload)


def open_server_info(private: NodePrivate, server_key: bytes, payload: Payload) -> ServerInfo:
    """Open the relay's answer.  RemoteProtocolError: length, box or JSON is wrong, or the relay lacks its key."""
    if not NONCE_BYTES <= len(payload) <= MAX_SERVER_INFO_BYTES:
        raise RemoteProtocolError(
            f"ServerInfo of {len(payload)} bytes, must be {NONCE_BYTES} to {MAX_SERVER_INFO_BYTES}"
        )
    return parse_server_info_json(_open(_agree(private, server_key), payload, "ServerInfo", server_key))


# --- boxes ---


def _agree(private: NodePrivate, public: bytes) -> bytes:
    # The curve computation dwarfs the rest of a handshake: a relay does it once per client and keeps the result.
    try:
        return crypto_box_beforenm(public, private.raw)
    except SodiumError:
        # libsodium refuses the few points of small order, for which everybody knows the shared secret.
        raise RemoteProtocolError(f"key {short_key(public)} is not a usable curve25519 public key") from None


def _seal(shared: bytes, text: bytes, nonce: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise LocalProtocolError(f"a nonce has {NONCE_BYTES} bytes, got {len(nonce)}")
    return nonce + crypto_box_easy_afternm(text, nonce, shared)


def _open(shared: bytes, box: Payload, what: str, key: bytes) -> bytes:
    try:
        return crypto_box_open_easy_afternm(bytes(box[NONCE_BYTES:]), bytes(box[:NONCE_BYTES]), shared)
    except CryptoError:
        # Also what a box shorter than its tag ends in.
        raise RemoteProtocolError(
            f"the box of {what} does not open with key {short_key(key)}: sealed for another key, or damaged"
        ) from None


# --- JSON, as Go's encoding/json reads and writes it ---


class _Fields(tuple[tuple[str, Any], ...]):
    """A JSON object in the order written: Go applies members one by one, whatever their letter case."""

    __slots__ = ()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_Fields, parse_constant=_no_constant)


def parse_client_info_json(text: bytes) -> ClientInfo:
    """Read the JSON of a ClientInfo: what is absent is zero, not the default of the dataclass."""
    mesh_key: MeshKey | None = None
    version, can_ack_pings, is_prober, app_name = 0, False, False, ""
    for name, value in _members(text, "ClientInfo"):
        if name == "meshkey":
            mesh_key = _mesh_key(value)
        elif value is None:  # Go leaves a field alone that is given as null; a mesh key alone must be a string
            continue
        elif name == "version":
            version = _int(value, "version")
        elif name == "canackpings":
            can_ack_pings = _bool(value, "CanAckPings")
        elif name == "isprober":
            is_prober = _bool(value, "IsProber")
        elif name == "appname":
            app_name = _str(value, "AppName")
    return ClientInfo(mesh_key, version, can_ack_pings, is_prober, app_name)


def parse_server_info_json(text: bytes) -> ServerInfo:
    """Read the JSON of a ServerInfo: what is absent is zero."""
    version = per_second = burst = queue_depth = 0
    for name, value in _members(text, "ServerInfo"):
        if value is None:
            continue
        if name == "version":
            version = _int(value, "version")
        elif name == "tokenbucketbytespersecond":
            per_second = _int(value, "TokenBucketBytesPerSecond")
        elif name == "tokenbucketbytesburst":
            burst = _int(value, "TokenBucketBytesBurst")
        elif name == "queuedepth":
            queue_depth = _int(value, "QueueDepth")
    return ServerInfo(version, per_second, burst, queue_depth)


def _client_info_json(info: ClientInfo) -> bytes:
    members: dict[str, object] = {}
    if info.mesh_key is not None and info.mesh_key != _NO_MESH_KEY:
        members["meshKey"] = info.mesh_key.text()
    if info.version:
        members["version"] = info.version
    members["CanAckPings"] = info.can_ack_pings
    if info.is_prober:
        members["IsProber"] = True
    if info.app_name:
        members["AppName"] = info.app_name
    return _dump(members)


def _server_info_json(info: ServerInfo) -> bytes:
    members = {
        "version": info.version,
        "TokenBucketBytesPerSecond": info.token_bucket_bytes_per_second,
        "TokenBucketBytesBurst": info.token_bucket_bytes_burst,
        "QueueDepth": info.queue_depth,
    }
    return _dump({name: value for name, value in members.items() if value})


def _dump(members: dict[str, Any]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def _members(text: bytes, what: str) -> list[tuple[str, Any]]:
    """The members of a JSON object with folded names; none for null."""
    try:
        # Go turns bad UTF-8 into U+FFFD and goes on; json.loads of bytes would guess at UTF-16 instead.
        value = _DECODER.decode(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"the JSON of {what} is malformed: {_reason(error)}") from None
    if value is None:
        return []
    if not isinstance(value, _Fields):
        raise RemoteProtocolError(f"the JSON of {what} must be an object")
    return [(name.casefold(), member) for name, member in value]


def _reason(error: Exception) -> str:
    # The text of a JSON error holds nothing of the document; that of other errors might.
    return str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__


def _mesh_key(value: object) -> MeshKey | None:
    # No blanks around it here, unlike in a key file.
    if not isinstance(value, str) or len(value) != 2 * KEY_BYTES or not value.isascii():
        raise RemoteProtocolError(f"meshKey must be {2 * KEY_BYTES} hex digits")
    try:
        key = MeshKey.parse(value)
    except KeyFormatError:
        raise RemoteProtocolError(f"meshKey must be {2 * KEY_BYTES} hex digits") from None
    # All zeros is how the genuine implementation says "none".
    return None if key == _NO_MESH_KEY else key


def _int(value: object, name: str) -> int:
    if type(value) is not int or value not in _INT64:  # bool is an int in Python, not in JSON
        raise RemoteProtocolError(f"{name} must be a 64-bit integer")
    return value


def _bool(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise RemoteProtocolError(f"{name} must be true or false")
    return value


def _str(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RemoteProtocolError(f"{name} must be a string")
    return without_halves(value)
