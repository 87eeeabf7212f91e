"""A virtual link between two cores, and the recorded bytes of genuine peers."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

TRANSCRIPT = Path(__file__).parents[2] / "vectors" / "rpc_transcript.txt"


class Receiver(Protocol):
    def receive_data(self, data: bytes, /) -> list[Any]: ...


class Core(Receiver, Protocol):
    def data_to_send(self) -> list[Any]: ...


def sent(core: Core) -> bytes:
    """All that a core wants to send, as one string of bytes."""
    return b"".join(core.data_to_send())


def cuts(data: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    """`data` in pieces of the given sizes; what the sizes do not cover comes last."""
    at = 0
    while at < len(data):
        size = next(sizes, len(data))
        yield data[at : at + size]
        at += size


def one_byte_each() -> Iterator[int]:
    while True:
        yield 1


def whole() -> Iterator[int]:
    return iter(())


def feed(core: Receiver, data: bytes, sizes: Iterator[int] | None = None) -> list[Any]:
    """Give a core bytes, cut as told; its events, with views frozen since every piece is a buffer of its own."""
    return [
        tuple(bytes(part) if isinstance(part, memoryview) else part for part in event)
        for piece in cuts(data, whole() if sizes is None else sizes)
        for event in core.receive_data(piece)
    ]


def settle(
    one: Core, other: Core, on_event: Callable[[Core, Any], None] | None = None, max_rounds: int = 1000
) -> tuple[list[Any], list[Any]]:
    """Carry bytes both ways until both are quiet; the events of both.  `on_event` may answer."""
    events: tuple[list[Any], list[Any]] = ([], [])
    for _ in range(max_rounds):
        quiet = True
        for source, sink, seen in ((one, other, events[1]), (other, one, events[0])):
            data = sent(source)
            if data:
                quiet = False
                got = feed(sink, data)
                seen += got
                for event in got if on_event else ():
                    assert on_event is not None
                    on_event(sink, event)
        if quiet:
            return events
    raise AssertionError("the two sides never fell silent")


def transcript() -> dict[str, list[tuple[str, bytes]]]:
    """The recording by section: (direction, bytes) per write, directions "C>S" and "S>C"."""
    sections: dict[str, list[tuple[str, bytes]]] = {}
    for line in TRANSCRIPT.read_text().splitlines()[1:]:
        if line.startswith("# "):
            section = sections.setdefault(line[2:], [])
        elif line.startswith(("C>S", "S>C")):
            direction, length, digits = line.split()
            data = bytes.fromhex(digits)
            assert len(data) == int(length)
            section.append((direction, data))
    return sections


def joined(writes: Iterable[tuple[str, bytes]], direction: str) -> bytes:
    return b"".join(data for way, data in writes if way == direction)
