"""The one DNS question this relay asks: the TXT records of a name.  RFC 1035; layer L1.

Everything else about names is the operating system's resolver.  Sockets: transport/dns.py.
"""

import struct
from typing import Final

from derp.errors import LocalProtocolError, RemoteProtocolError

_HEADER: Final = struct.Struct("!6H")  # id, flags, and how many questions, answers, authorities, additions
_RECORD: Final = struct.Struct("!HHIH")  # type, class, time to live, length of what follows
_TXT_IN: Final = struct.pack("!HH", 16, 1)
_RECURSE: Final = 0x0100
_IS_ANSWER: Final = 0x8000
_IS_CUT: Final = 0x0200
_CODE: Final = 0x000F
_NO_SUCH_NAME: Final = 3
_HEADER_BYTES: Final = 12
# Two bits of a length that say that the rest of a name stands elsewhere in the message.
_POINTER: Final = 0xC0


def encode_txt_query(name: str, ident: int) -> bytes:
    """A question for the TXT records of `name`.  LocalProtocolError for what cannot be a name in DNS."""
    encoded = b""
    labels = name.removesuffix(".").split(".")
    if labels[-1].isdecimal():
        raise LocalProtocolError(f"{name!r} is no DNS name: it ends like an address")
    for label in labels:
        try:
            raw = label.encode("ascii")
        except UnicodeEncodeError:
            raise LocalProtocolError(f"{name!r} is no DNS name: write it in ASCII (xn--...)") from None
        if not 1 <= len(raw) <= 63:
            raise LocalProtocolError(f"{name!r} is no DNS name: a part of it has {len(raw)} characters")
        encoded += bytes((len(raw),)) + raw
    if len(encoded) > 254:
        raise LocalProtocolError(f"{name!r} is no DNS name: it is longer than 253 characters")
    return _HEADER.pack(ident, _RECURSE, 1, 0, 0, 0) + encoded + b"\0" + _TXT_IN


def parse_txt_answer(datagram: bytes, query: bytes) -> list[bytes] | None:
    """The records that answer `query`, each in one piece; none if there is no such name.  None when this is no answer
    to it at all.  RemoteProtocolError when the server will not say, or talks nonsense."""
    if len(datagram) < len(query) or datagram[:2] != query[:2]:
        return None
    # servers give the name back in the case they like
    if datagram[_HEADER_BYTES : len(query)].lower() != query[_HEADER_BYTES:].lower():
        return None
    _, flags, questions, answers, _, _ = _HEADER.unpack_from(datagram)
    if not flags & _IS_ANSWER or questions != 1:
        return None
    if flags & _CODE == _NO_SUCH_NAME:
        return []
    if flags & _CODE or flags & _IS_CUT:
        raise RemoteProtocolError(
            "the answer does not fit a datagram" if flags & _IS_CUT else f"the server's answer is error {flags & _CODE}"
        )
    found = []
    at = len(query)
    try:
        for _ in range(answers):
            at = _after_name(datagram, at)
            kind, _, _, size = _RECORD.unpack_from(datagram, at)
            start, at = at + _RECORD.size, at + _RECORD.size + size
            if at > len(datagram):
                raise IndexError
            if kind == 16:  # others are the aliases that led here
                found.append(_strings(datagram[start:at]))
    except (IndexError, struct.error):
        raise RemoteProtocolError("the server's answer is cut or malformed") from None
    return found


def _after_name(datagram: bytes, at: int) -> int:
    while size := datagram[at]:
        if size >= _POINTER:
            return at + 2
        at += 1 + size
    return at + 1


def _strings(record: bytes) -> bytes:
    """The strings of one record put together."""
    whole = b""
    at = 0
    while at < len(record):
        end = at + 1 + record[at]
        if end > len(record):
            raise IndexError
        whole += record[at + 1 : end]
        at = end
    return whole
