"""The protocols that a TLS ClientHello offers (ALPN), read before TLS has begun.  Layer L1; RFC 8446, RFC 7301.

Only for the moments in which an authority may look at a proof by TLS-ALPN-01: Python's ssl chooses the certificate
before it says what was offered.  Whatever is no ClientHello offers nothing, and OpenSSL will say what is wrong with it.
Used by transport/tls_alpn.py.
"""

from typing import Final

_HANDSHAKE_RECORD: Final = 22
_CLIENT_HELLO: Final = 1
_ALPN_EXTENSION: Final = 16
_RECORD_HEAD_BYTES: Final = 5
_MAX_RECORD_BYTES: Final = 16_384
# OpenSSL takes no larger one: 128 KiB of extensions and some.  Ours decides about nobody else's, so less is enough.
_MAX_HELLO_BYTES: Final = 65_536
# Each receive begins anew.  Authorities send one record; a hello in thousands of them, byte by byte, would keep the
# relay busy for minutes, and nobody but an authority loses anything when we do not understand it.
_MAX_RECORDS: Final = 64


def offered_protocols(received: bytes) -> tuple[bytes, ...] | None:
    """The ALPN protocols of the ClientHello at the start of `received`; None when more bytes are needed to know."""
    hello = bytearray()
    at = 0
    for _ in range(_MAX_RECORDS):
        if len(received) - at < _RECORD_HEAD_BYTES:
            return None
        size = int.from_bytes(received[at + 3 : at + 5], "big")
        if received[at] != _HANDSHAKE_RECORD or not 0 < size <= _MAX_RECORD_BYTES:
            return ()
        at += _RECORD_HEAD_BYTES
        hello += received[at : at + size]
        if len(hello) >= 4:
            wanted = 4 + int.from_bytes(hello[1:4], "big")
            if hello[0] != _CLIENT_HELLO or wanted > _MAX_HELLO_BYTES:
                return ()
            if len(hello) >= wanted:
                return _protocols(_extension(bytes(hello[4:wanted])))
        if len(received) - at < size:
            return None
        at += size
    return ()


def _extension(hello: bytes) -> bytes:
    """The body of the ALPN extension, empty if there is none."""
    at = 2 + 32  # version, random
    for length_bytes in (1, 2, 1):  # session, cipher suites, compression
        _, at = _vector(hello, at, length_bytes)
    extensions, _ = _vector(hello, at, 2)
    at = 0
    while len(extensions) - at >= 4:
        number = int.from_bytes(extensions[at : at + 2], "big")
        body, at = _vector(extensions, at + 2, 2)
        if number == _ALPN_EXTENSION:
            return body
    return b""


def _protocols(extension: bytes) -> tuple[bytes, ...]:
    names, _ = _vector(extension, 0, 2)
    found = []
    at = 0
    while at < len(names):
        name, at = _vector(names, at, 1)
        found.append(name)
    return tuple(found)


def _vector(content: bytes, at: int, length_bytes: int) -> tuple[bytes, int]:
    """A vector behind its length, and where the next field begins; cut short where the content ends."""
    start = at + length_bytes
    stop = start + int.from_bytes(content[at:start], "big")
    return content[start:stop], stop
