"""TCP segments on the wire: headers, options (RFC 9293 section 3.1, RFC 2018, RFC 7323), numbers.  Layer L1.

Source port u16, destination port u16, sequence u32, acknowledgement u32, 4 bits of length in words and 9 flags u16,
window u16, checksum u16, urgent u16, options.  No object per segment: what is received is unpacked in stack.py, what is
sent is one call of `SegmentWriter.build`.  Next hop: connection.py.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tailnet.netstack.ip import HEADER_BYTES, HOP_LIMIT, TCP, VERSION_6, Packet, checksum_sum

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10

TCP_HEADER_BYTES: Final = 20
PAYLOAD_AT: Final = HEADER_BYTES + TCP_HEADER_BYTES
"""Of a segment without options: the bytes of both headers."""
DEFAULT_MSS: Final = 1220
"""RFC 9293 section 3.7.1, of a SYN without the option over IPv6."""
MIN_MSS: Final = 216
"""What a peer may ask for: below this a megabyte would be cut into more packets than its bytes are worth."""
MAX_WINDOW_SCALE: Final = 14
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000

# Version u32 and payload length u16, protocol; addresses and ports lie together: source, destination, ports.
_WHOLE: Final = struct.Struct("!IHBB36sIIHHHH")
RECEIVED: Final = struct.Struct("!BxxxHB37xIIHH")
"""Version byte, payload length, protocol, sequence, acknowledgement, length and flags, window."""
FLOW: Final = slice(8, 44)
"""Source, destination and ports of a packet without extension headers: what tells a connection."""

_END: Final = 0
_NOP: Final = 1
_MSS: Final = 2
_WINDOW_SCALE: Final = 3
_SACK_PERMITTED: Final = 4
_SACK: Final = 5
_BLOCK: Final = struct.Struct("!II")
MAX_SACK_BLOCKS: Final = 4


@dataclass(slots=True)
class SynOptions:
    """What a SYN says.  Timestamps are never offered: a peer that sees none sends none."""

    mss: int = DEFAULT_MSS
    window_scale: int | None = None
    sack_permitted: bool = False


def encode_syn_options(options: SynOptions) -> bytes:
    """MSS first, as everybody writes them; padded to words."""
    parts = [struct.pack("!BBH", _MSS, 4, options.mss)]
    if options.sack_permitted:
        parts.append(bytes((_NOP, _NOP, _SACK_PERMITTED, 2)))
    if options.window_scale is not None:
        parts.append(bytes((_NOP, _WINDOW_SCALE, 3, options.window_scale)))
    return b"".join(parts)


def encode_sack(blocks: Sequence[tuple[int, int]]) -> bytes:
    """Up to four blocks, of absolute numbers."""
    packed = b"".join(_BLOCK.pack(start & _MASK, end & _MASK) for start, end in blocks)
    return bytes((_NOP, _NOP, _SACK, 2 + len(packed))) + packed


def parse_syn_options(options: Packet) -> SynOptions | None:
    """None where they are malformed.  Unknown ones are passed over (RFC 9293 section 3.1: MUST-6)."""
    found = SynOptions()
    at, length = 0, len(options)
    while at < length:
        kind = options[at]
        if kind == _END:
            break
        if kind == _NOP:
            at += 1
            continue
        if at + 2 > length or options[at + 1] < 2 or at + options[at + 1] > length:
            return None
        size = options[at + 1]
        if kind == _MSS and size == 4:
            found.mss = max(options[at + 2] << 8 | options[at + 3], MIN_MSS)
        elif kind == _WINDOW_SCALE and size == 3:
            found.window_scale = min(options[at + 2], MAX_WINDOW_SCALE)
        elif kind == _SACK_PERMITTED and size == 2:
            found.sack_permitted = True
        at += size
    return found


def parse_sack(options: Packet) -> list[tuple[int, int]]:
    """The blocks of a segment's options as they stand there; [] without any, or where the options are malformed."""
    at, length = 0, len(options)
    while at < length:
        kind = options[at]
        if kind == _NOP:
            at += 1
            continue
        if kind == _END or at + 2 > length:
            break
        size = options[at + 1]
        if size < 2 or at + size > length:
            break
        if kind == _SACK:
            whole = (size - 2) // _BLOCK.size * _BLOCK.size
            return [(first, last) for first, last in _BLOCK.iter_unpack(options[at + 2 : at + 2 + whole])]
        at += size
    return []


def unwrap(number: int, near: int) -> int:
    """The absolute number of what stands on the wire, within 2^31 of the absolute number `near`."""
    distance = (number - near) & _MASK
    return near + (distance - 0x100000000 if distance >= _HALF else distance)


class SegmentWriter:
    """Builds the segments of one direction of one connection; what never changes is packed and summed once."""

    __slots__ = ("_base", "_flow")

    def __init__(self, source: bytes, destination: bytes, source_port: int, destination_port: int) -> None:
        self._flow = source + destination + source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")
        self._base = checksum_sum(self._flow, TCP)

    def build(self, seq: int, ack: int, flags: int, window: int, payload: bytes = b"", options: bytes = b"") -> bytes:
        """A whole packet.  Absolute numbers; `window` as it stands on the wire; `options` in whole words."""
        seq &= _MASK
        ack &= _MASK
        data = options + payload if options else payload
        length = TCP_HEADER_BYTES + len(data)
        flags |= (TCP_HEADER_BYTES + len(options)) << 10
        total = checksum_sum(data, self._base + length + seq + ack + flags + window)
        return (
            _WHOLE.pack(VERSION_6, length, TCP, HOP_LIMIT, self._flow, seq, ack, flags, window, 65535 - total, 0) + data
        )


def build_reset(packet: Packet, offset: int, end: int) -> bytes | None:
    """The RST that answers a segment of no connection (RFC 9293 section 3.10.7.1); None to an RST, or to nonsense.

    `offset`: where the TCP header begins; `end`: where the payload does.
    """
    if end - offset < TCP_HEADER_BYTES:
        return None
    source_port, destination_port, seq, ack, flags = struct.unpack_from("!HHIIH", packet, offset)
    if flags & RST:
        return None
    writer = SegmentWriter(bytes(packet[24:HEADER_BYTES]), bytes(packet[8:24]), destination_port, source_port)
    if flags & ACK:
        return writer.build(ack, 0, RST, 0)
    length = end - offset - (flags >> 12) * 4 + bool(flags & SYN) + bool(flags & FIN)
    return writer.build(0, seq + length, RST | ACK, 0)
