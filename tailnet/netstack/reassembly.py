"""What a connection has received: bytes in order for the reader, pieces ahead of a gap, and SACK blocks.  Layer L1.

RFC 9293 section 3.10.7.4 (trimming), RFC 2018 section 4 (which blocks), RFC 2883 (a duplicate is told).  What came
first stays: a forged overlap cannot change it.  Absolute sequence numbers.  Called by receiving.py.
"""

from bisect import bisect_right
from collections import deque
from typing import Final

from tailnet.netstack.ip import Packet
from tailnet.netstack.segment import MAX_SACK_BLOCKS

# Chunks smaller than this are put together: a segment of one byte would cost 34 of overhead.
_SMALL_BYTES: Final = 256
_GATHERED_BYTES: Final = 8192


class Piece:
    """Bytes [start, end) that came ahead of a gap, in the order of their numbers."""

    __slots__ = ("chunks", "end", "start")

    def __init__(self, start: int, end: int, chunk: bytes) -> None:
        self.start = start
        self.end = end
        self.chunks: list[bytes | bytearray] = [chunk]


def _gather(chunks: deque[bytes | bytearray] | list[bytes | bytearray], chunk: bytes) -> None:
    """Append a chunk; small ones are put together."""
    if chunks and len(chunk) < _SMALL_BYTES:
        last = chunks[-1]
        if isinstance(last, bytearray):
            if len(last) < _GATHERED_BYTES:
                last += chunk
                return
        elif len(last) < _SMALL_BYTES:
            chunks[-1] = bytearray(last) + chunk
            return
    chunks.append(chunk)


class Reassembly:
    """`nxt` is the next number that is missing; `waiting` is what the reader may take."""

    __slots__ = ("_chunks", "_max_pieces", "_recent", "_starts", "nxt", "pieces", "waiting")

    def __init__(self, nxt: int, max_pieces: int) -> None:
        self.nxt = nxt
        self.waiting = 0
        self._chunks: deque[bytes | bytearray] = deque()
        self.pieces: list[Piece] = []
        """What came ahead of a gap; empty where there is none."""
        self._starts: list[int] = []
        self._recent: list[Piece] = []  # newest first
        self._max_pieces = max_pieces

    def append(self, data: Packet) -> None:
        """The bytes at `nxt`, and there is no gap."""
        size = len(data)
        self.nxt += size
        self.waiting += size
        if size < _SMALL_BYTES:
            _gather(self._chunks, bytes(data))
        else:
            self._chunks.append(bytes(data))

    def add(self, start: int, data: Packet) -> bool:
        """Bytes anywhere from `nxt` on, within the window.  False where there would be too many pieces."""
        end = start + len(data)
        if start < self.nxt:
            data = data[self.nxt - start :]
            start = self.nxt
        if start >= end:
            return True
        if start == self.nxt:
            first = self.pieces[0].start if self.pieces else end
            self.append(data[: first - start] if first < end else data)
            if first < end:
                self._take_pieces()
                # What lies behind the pieces that were met is new as well.
                return self.nxt >= end or self.add(self.nxt, data[self.nxt - start :])
            if first == end:
                self._take_pieces()
            return True
        return self._add_ahead(start, end, data)

    def _add_ahead(self, start: int, end: int, data: Packet) -> bool:
        """Fill every gap between the pieces that [start, end) covers."""
        pieces, starts = self.pieces, self._starts
        at, origin = start, start
        while at < end:
            place = bisect_right(starts, at)
            before = pieces[place - 1] if place else None
            if before is not None and at < before.end:
                self._touch(before)
                at = before.end
                continue
            after = pieces[place] if place < len(pieces) else None
            stop = min(end, after.start) if after is not None else end
            chunk = bytes(data[at - origin : stop - origin])
            if before is not None and before.end == at:
                _gather(before.chunks, chunk)
                before.end = stop
                if after is not None and after.start == stop:
                    before.chunks += after.chunks
                    before.end = after.end
                    self._remove(place)
                self._touch(before)
            elif after is not None and after.start == stop:
                if len(chunk) < _SMALL_BYTES and len(after.chunks[0]) < _GATHERED_BYTES:
                    after.chunks[0] = chunk + after.chunks[0]
                else:
                    after.chunks.insert(0, chunk)
                after.start = starts[place] = at
                self._touch(after)
            elif len(pieces) >= self._max_pieces:
                return False
            else:
                piece = Piece(at, stop, chunk)
                pieces.insert(place, piece)
                starts.insert(place, at)
                self._touch(piece)
            at = stop
        return True

    def _remove(self, place: int) -> None:
        piece = self.pieces.pop(place)
        del self._starts[place]
        if piece in self._recent:
            self._recent.remove(piece)

    def _touch(self, piece: Piece) -> None:
        recent = self._recent
        if recent and recent[0] is piece:
            return
        if piece in recent:
            recent.remove(piece)
        recent.insert(0, piece)
        del recent[MAX_SACK_BLOCKS:]

    def _take_pieces(self) -> None:
        """The gap is filled: what lies behind it is in order now."""
        while self.pieces and self.pieces[0].start == self.nxt:
            piece = self.pieces[0]
            self._remove(0)
            self._chunks += piece.chunks
            self.waiting += piece.end - piece.start
            self.nxt = piece.end

    def blocks(self) -> list[tuple[int, int]]:
        """SACK blocks, that of the newest segment first."""
        return [(piece.start, piece.end) for piece in self._recent]

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes in order; b"" when there are none."""
        chunks = self._chunks
        if not chunks:
            return b""
        if len(chunks) == 1 and len(chunks[0]) <= limit:
            self.waiting -= len(chunks[0])
            return bytes(chunks.popleft())
        if self.waiting <= limit:
            self.waiting = 0
            data = b"".join(chunks)
            chunks.clear()
            return data
        taken: list[bytes | bytearray] = []
        left = limit
        while left > 0:
            chunk = chunks.popleft()
            if len(chunk) > left:
                chunks.appendleft(chunk[left:])
                chunk = chunk[:left]
            taken.append(chunk)
            left -= len(chunk)
        self.waiting -= limit
        return b"".join(taken)
