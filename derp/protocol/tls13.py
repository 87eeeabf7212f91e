"""TLS 1.3 records after the handshake, opened and sealed by ourselves.  Layer L1; RFC 8446 sections 4.6.3, 5, 6, 7.

OpenSSL shakes hands; then the two traffic secrets are all that a connection is, and a RecordLayer made of them takes
400 bytes where an SSL object takes 16 KiB, and can go to another process.  transport/tls_records.py joins it to a
socket.  What a reviewer should look at is in docs/tls-records.md.
"""

import hmac
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

MAX_CONTENT_BYTES: Final = 16_384
HEADER_BYTES: Final = 5
_TAG_BYTES: Final = 16
_NONCE_BYTES: Final = 12
# What a record is larger than its content: header, type, tag.
RECORD_OVERHEAD_BYTES: Final = HEADER_BYTES + 1 + _TAG_BYTES
# Content, its type and the tag: all suites have one length, so nothing needs the 255 bytes that TLS leaves for it.
_MAX_SEALED_BYTES: Final = MAX_CONTENT_BYTES + 1 + _TAG_BYTES
_LEAST_SEALED_BYTES: Final = 1 + _TAG_BYTES
# AES-GCM is safe for 2^24.5 full records under one key (RFC 8446 5.5); ChaCha20 for more, but one rule is simpler.
RECORDS_PER_KEY: Final = 1 << 24
# Records that carry nothing for the session (empty ones, KeyUpdates, warnings), in one receive, or in several that
# bring nothing else.  New keys are the dearest: 9 us.  OpenSSL takes 32 in succession.
MAX_USELESS_RECORDS: Final = 32
# What may go before application data in one sealing: a KeyUpdate.
UPDATE_BYTES: Final = RECORD_OVERHEAD_BYTES + 5
# Ciphers that are ready at a time, 2.5 KB each.  Whoever has none makes it in 0.75 us, a tenth of a packet: so half a
# thousand busy connections never do, and a hundred thousand idle ones take 2.5 MB together and not 500.
READY_CIPHERS: Final = 1_024

_APPLICATION_HEAD: Final = b"\x17\x03\x03"

Piece = bytes | bytearray | memoryview
Cipher = AESGCM | ChaCha20Poly1305


class ContentType(IntEnum):
    """RFC 8446 5.1."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23


class Alert(IntEnum):
    """Those we send, and those that clients are likely to (RFC 8446 6)."""

    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    BAD_RECORD_MAC = 20
    RECORD_OVERFLOW = 22
    BAD_CERTIFICATE = 42
    CERTIFICATE_EXPIRED = 45
    CERTIFICATE_UNKNOWN = 46
    ILLEGAL_PARAMETER = 47
    UNKNOWN_CA = 48
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    DECRYPT_ERROR = 51
    INTERNAL_ERROR = 80
    USER_CANCELED = 90


_KEY_UPDATE: Final = 24
_KEY_UPDATE_HEAD: Final = bytes((_KEY_UPDATE, 0, 0, 1))
_KEY_UPDATE_BYTES: Final = 5
_WARNING: Final = 1
_FATAL: Final = 2


@dataclass(frozen=True, slots=True)
class Suite:
    """A cipher suite of TLS 1.3, under OpenSSL's name of it."""

    name: str
    digest: str
    secret_bytes: int
    key_bytes: int
    cipher: type[AESGCM] | type[ChaCha20Poly1305]


SUITES: Final = {
    suite.name: suite
    for suite in (
        Suite("TLS_AES_128_GCM_SHA256", "sha256", 32, 16, AESGCM),
        Suite("TLS_AES_256_GCM_SHA384", "sha384", 48, 32, AESGCM),
        Suite("TLS_CHACHA20_POLY1305_SHA256", "sha256", 32, 32, ChaCha20Poly1305),
    )
}


class Secrets(NamedTuple):
    """What a handshake left: the application traffic secrets of both sides, under one suite."""

    suite: Suite
    client: bytes
    server: bytes


class Ended(NamedTuple):
    """Why nothing more is read: the alert that the peer is to be sent, if any, and a sentence for the log."""

    alert: Alert | None
    text: str
    is_clean: bool = False
    """The peer said that it has nothing more to say."""


def expand_label(secret: bytes, label: bytes, length: int, digest: str) -> bytes:
    """HKDF-Expand-Label of RFC 8446 7.1 with an empty context, for what one block of the digest holds."""
    label = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes((len(label),)) + label + b"\0"
    return hmac.digest(secret, info + b"\1", digest)[:length]


class Keys:
    """One direction: the secret, what follows from it, and how many records it has served."""

    __slots__ = ("cipher", "iv", "key", "secret", "sequence", "suite")

    def __init__(self, suite: Suite, secret: bytes, sequence: int = 0) -> None:
        self.suite = suite
        self.sequence = sequence
        self.secret = secret
        self.cipher: Cipher | None = None  # CipherShelf gives and takes it
        self.key = expand_label(secret, b"key", suite.key_bytes, suite.digest)
        self.iv = int.from_bytes(expand_label(secret, b"iv", _NONCE_BYTES, suite.digest), "big")

    def next(self) -> "Keys":
        """After a KeyUpdate (RFC 8446 7.2)."""
        suite = self.suite
        return Keys(suite, expand_label(self.secret, b"traffic upd", suite.secret_bytes, suite.digest))


class CipherShelf:
    """The ciphers of a server that are ready: those made last.  One is shared by all connections of a thread."""

    def __init__(self, room: int = READY_CIPHERS) -> None:
        self._room = room
        self._ready = deque[Keys]()

    def cipher_of(self, keys: Keys) -> Cipher:
        """The cipher of `keys`, made if it has none; whose was made first then loses its own."""
        cipher = keys.cipher
        if cipher is None:
            if len(self._ready) >= self._room:
                self._ready.popleft().cipher = None
            cipher = keys.cipher = keys.suite.cipher(keys.key)
            self._ready.append(keys)
        return cipher


class RecordLayer:
    """The server's side of one connection.  `receive_records` as bytes come, `seal` what is to go.

    Nothing is raised for what a peer does: `ended` says that no more is read, and which alert to send.
    """

    __slots__ = ("_asks", "_handshake", "_reading", "_shelf", "_update_at", "_useless", "_writing", "ended", "is_shut")

    def __init__(self, shelf: CipherShelf, reading: Keys, writing: Keys) -> None:
        self._shelf = shelf
        self._reading = reading
        self._writing = writing
        self._handshake = b""  # the beginning of a message that goes on in the next record
        self._useless = 0
        self._update_at = RECORDS_PER_KEY  # our KeyUpdate goes before this record; 0: the peer waits for one
        self._asks = False  # that KeyUpdate wants one of the peer as well
        self.ended: Ended | None = None
        self.is_shut = False
        """We said that nothing more comes."""

    @classmethod
    def of_server(cls, shelf: CipherShelf, secrets: Secrets) -> "RecordLayer":
        """At the moment the handshake is over: neither side has sent a record under these secrets."""
        return cls(shelf, Keys(secrets.suite, secrets.client), Keys(secrets.suite, secrets.server))

    def export(self) -> list[str | bytes | int | bool]:
        """All of it, for `restore` in another process.  This one must seal and open nothing more."""
        reading, writing = self._reading, self._writing
        return [
            *(reading.suite.name, reading.secret, reading.sequence, writing.secret, writing.sequence),
            *(self._handshake, self._useless, self._update_at, self._asks),
        ]

    @classmethod
    def restore(cls, shelf: CipherShelf, exported: Sequence[Any]) -> "RecordLayer":
        """What `export` gave."""
        name, read_secret, read_count, write_secret, written_count, handshake, useless, update_at, asks = exported
        suite = SUITES[name]
        layer = cls(shelf, Keys(suite, read_secret, read_count), Keys(suite, write_secret, written_count))
        layer._handshake, layer._useless, layer._update_at, layer._asks = handshake, useless, update_at, asks
        return layer

    # --- receiving

    def receive_records(self, sealed: memoryview, end: int, into: memoryview, at: int) -> tuple[int, int, int]:
        """Open the whole records of `sealed[:end]` into `into[at:]`, which has room for as many bytes.

        Returns where the unfinished record begins, the new `at`, and how many records were opened.  Bytes of `into`
        behind the new `at` mean nothing: a record that is refused may have left some there.
        """
        keys = self._reading
        open_into = self._shelf.cipher_of(keys).decrypt_into
        iv, sequence = keys.iv, keys.sequence
        is_whole = not self._handshake
        start = records = 0
        first = at
        while end - start >= HEADER_BYTES:
            length = sealed[start + 3] << 8 | sealed[start + 4]
            if sealed[start] != 23 or not _LEAST_SEALED_BYTES <= length <= _MAX_SEALED_BYTES:
                self._refuse_head(sealed[start], length)
                break
            body = start + HEADER_BYTES
            stop = body + length
            if stop > end:
                break
            last = at + length - _LEAST_SEALED_BYTES
            nonce = (iv ^ sequence).to_bytes(12, "big")
            try:
                open_into(nonce, sealed[body:stop], sealed[start:body], into[at : last + 1])
            except InvalidTag:
                self._fail(Alert.BAD_RECORD_MAC, "a record that is not the peer's, or was changed on its way")
                break
            sequence += 1
            records += 1
            start = stop
            if into[last] == 23 and last > at and is_whole:
                at = last
                continue
            keys.sequence = sequence
            at = self._receive_other(into, at, last + 1)
            if self.ended is not None:
                break
            is_whole = not self._handshake
            if keys is not self._reading:
                keys = self._reading
                open_into = self._shelf.cipher_of(keys).decrypt_into
                iv, sequence = keys.iv, keys.sequence
        keys.sequence = sequence
        if at > first:
            self._useless = 0
        if sequence >= RECORDS_PER_KEY and self._update_at and not self._asks:
            self._update_at, self._asks = 0, True
        return start, at, records

    def _receive_other(self, into: memoryview, at: int, end: int) -> int:
        """A record that is not plain application data: padded, empty, an alert or a message.  The new `at`."""
        inner = bytes(into[at:end]).rstrip(b"\0")  # the padding
        if not inner:
            self._fail(Alert.UNEXPECTED_MESSAGE, "a record without a type")
            return at
        kind, content = inner[-1], inner[:-1]
        if self._handshake and kind != ContentType.HANDSHAKE:
            self._fail(Alert.UNEXPECTED_MESSAGE, f"a record of type {kind} in the middle of a message")
            return at
        if kind == ContentType.APPLICATION_DATA and content:
            return at + len(content)
        self._useless += 1
        if self._useless > MAX_USELESS_RECORDS:
            self._fail(Alert.UNEXPECTED_MESSAGE, f"{self._useless} records in succession that carry nothing")
        elif kind == ContentType.ALERT:
            self._receive_alert(content)
        elif kind == ContentType.HANDSHAKE:
            self._receive_handshake(content)
        elif kind != ContentType.APPLICATION_DATA:
            self._fail(Alert.UNEXPECTED_MESSAGE, f"a record of type {kind}")
        return at

    def _receive_alert(self, content: bytes) -> None:
        if len(content) != 2:
            self._fail(Alert.DECODE_ERROR, f"an alert of {len(content)} bytes")
        elif content[1] == Alert.CLOSE_NOTIFY:
            self.ended = Ended(None, "closed by the peer", is_clean=True)
        elif content[1] != Alert.USER_CANCELED:  # which a close_notify follows
            name = Alert(content[1]).name.lower() if content[1] in Alert.__members__.values() else str(content[1])
            self.ended = Ended(None, f"alert of the peer: {name}")

    def _receive_handshake(self, content: bytes) -> None:
        """KeyUpdate is all that a client may send after its Finished: it has no tickets, and we ask for nothing."""
        message = self._handshake + content
        if not content or not _KEY_UPDATE_HEAD.startswith(message[:4]):
            what = f"a message of type {message[0]}" if message else "an empty part of a message"
            self._fail(Alert.UNEXPECTED_MESSAGE, f"{what} after the handshake")
            return
        if len(message) < _KEY_UPDATE_BYTES:
            self._handshake = message
            return
        self._handshake = b""
        if len(message) > _KEY_UPDATE_BYTES:
            self._fail(Alert.UNEXPECTED_MESSAGE, "a message behind a KeyUpdate, under keys that have ended")
        elif message[4] > 1:
            self._fail(Alert.ILLEGAL_PARAMETER, f"a KeyUpdate that asks for {message[4]}")
        else:
            self._reading = self._reading.next()
            self._asks = False
            if message[4]:
                # Answered with what we say next: who asks a hundred times meanwhile gets one answer (RFC 8446 4.6.3).
                self._update_at = 0

    def _refuse_head(self, kind: int, length: int) -> None:
        if kind != ContentType.APPLICATION_DATA:
            self._fail(Alert.UNEXPECTED_MESSAGE, f"a record of type {kind} in the clear")
        elif length > _MAX_SEALED_BYTES:
            self._fail(Alert.RECORD_OVERFLOW, f"a record of {length} bytes")
        else:
            self._fail(Alert.BAD_RECORD_MAC, f"a record of {length} bytes, which cannot be sealed")

    def _fail(self, alert: Alert, text: str) -> None:
        self.ended = Ended(alert, text)

    # --- sending

    def seal(self, pieces: Sequence[Piece], size: int, out: memoryview) -> int:
        """Seal application data, `size` bytes in all, into the beginning of `out`; how many bytes that are.

        `out` has room for `sealed_bytes(size)`.
        """
        filled = 0
        keys = self._writing
        if keys.sequence >= self._update_at:
            filled = self._seal_update(out)
            keys = self._writing
        seal_into = self._shelf.cipher_of(keys).encrypt_into
        iv, sequence = keys.iv, keys.sequence
        if size <= MAX_CONTENT_BYTES:
            contents: Sequence[bytes] = (b"".join((*pieces, b"\x17")),)
        else:
            view = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            starts = range(0, size, MAX_CONTENT_BYTES)
            contents = [b"".join((view[start : start + MAX_CONTENT_BYTES], b"\x17")) for start in starts]
        for content in contents:
            length = len(content) + _TAG_BYTES
            head = _APPLICATION_HEAD + length.to_bytes(2, "big")
            body = filled + HEADER_BYTES
            out[filled:body] = head
            filled = body + length
            seal_into((iv ^ sequence).to_bytes(12, "big"), content, head, out[body:filled])
            sequence += 1
        keys.sequence = sequence
        return filled

    def _seal_update(self, out: memoryview) -> int:
        """Our KeyUpdate; what follows is under the new keys."""
        record = self._seal_one(ContentType.HANDSHAKE, _KEY_UPDATE_HEAD + bytes((self._asks,)))
        out[: len(record)] = record
        self._writing = self._writing.next()
        self._update_at = RECORDS_PER_KEY
        return len(record)

    def seal_alert(self, alert: Alert) -> bytes:
        """The record of an alert, after which nothing more may be sealed."""
        self.is_shut = True
        return self._seal_one(ContentType.ALERT, bytes((_FATAL if alert else _WARNING, alert)))

    def _seal_one(self, kind: ContentType, content: bytes) -> bytes:
        keys = self._writing
        head = _APPLICATION_HEAD + (len(content) + _LEAST_SEALED_BYTES).to_bytes(2, "big")
        nonce = (keys.iv ^ keys.sequence).to_bytes(12, "big")
        sealed = self._shelf.cipher_of(keys).encrypt(nonce, content + bytes((kind,)), head)
        keys.sequence += 1
        return head + sealed


def sealed_bytes(size: int) -> int:
    """How much room `seal` wants for `size` bytes."""
    return size + (size // MAX_CONTENT_BYTES + 1) * RECORD_OVERHEAD_BYTES + UPDATE_BYTES
