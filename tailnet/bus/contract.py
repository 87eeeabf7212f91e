"""What a bus is to a replica: who else is there, and perhaps a carrier of frames; and what all kinds share.  Layer L2.

services/replicas.py runs one Bus and is its Watcher; the kinds are its neighbours here.  A bus may pause, forget
everything or lose what it carries: sessions (replica/pair.py) notice, and nobody's connection ends for it.
"""

import logging
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import msgpack
import trio

from derp.log import Rarely, and_more
from derp.text import host_port
from tailnet.errors import MalformedField, RemoteProtocolError
from tailnet.replica.codec import MAX_FRAME_BYTES
from tailnet.replica.messages import ReplicaID

_log = logging.getLogger("tailnet.replicas")

# A record that is not renewed for so long is gone: three renewals, of which two may fail.
LEASE_SECONDS: Final = 6.0
RENEW_SECONDS: Final = 2.0
# A name, an address and a version; what is longer was not written by a replica.
MAX_RECORD_BYTES: Final = 4096
# The full mesh is 2,016 links then; beyond it agents have to be sharded.
MAX_REPLICAS: Final = 64
_LENGTH_BYTES: Final = 4
_TELL_SECONDS: Final = 60.0

Address: TypeAlias = tuple[str, int]
"""Host and port, or the path of a Unix socket on this machine and 0."""


@dataclass(frozen=True, slots=True)
class Record:
    """One replica as others find it.  `address`: where it takes direct links; None: nowhere."""

    replica: ReplicaID
    name: str
    address: Address | None
    version: str  # of the program
    started_at: float  # Unix time
    hears: set[ReplicaID] = field(default_factory=set, compare=False)
    """Others whom it hears and has no session with: they may not know that.  Written as it is at each renewal."""


class Watcher(Protocol):
    """Who runs a bus.  Everything is called from trio's thread."""

    def see_records(self, records: Mapping[ReplicaID, Record]) -> None:
        """All replicas that have a record now, ourselves among them."""
        ...

    def see_addresses(self, addresses: Collection[Address]) -> None:
        """Where replicas may be, which one is found out by dialling."""
        ...

    def hear_frame(self, sender: ReplicaID, frame: bytes) -> None:
        """A frame that the bus carried; claimed to be of `sender`."""
        ...

    def see_carrier(self, is_well: bool) -> None:
        """Whether the bus brings back what we give it."""
        ...


class Bus(Protocol):
    """One kind of bus."""

    kind: str
    trouble: str
    """Why it cannot be used now, for people; empty when it can."""
    can_carry: bool
    """Whether `send` ever takes frames."""

    async def run(self, own: Record, watcher: Watcher) -> None:
        """Say that we are there, and tell the watcher who else is, until cancelled; the record is gone then.

        What ails the bus is never raised: it stands in `trouble`, and is tried again.
        """
        ...

    async def leave(self) -> None:
        """While it runs: take the record away, so that nobody finds us any more.  What is carried goes on."""
        ...

    async def send(self, receiver: ReplicaID, frames: Sequence[bytes]) -> bool:
        """Carry frames to a replica, in order; False when they are lost."""
        ...


def is_path(address: Address) -> bool:
    return address[0].startswith("/")


def place_text(address: Address) -> str:
    """A place for people, as settings have it."""
    return f"unix:{address[0]}" if is_path(address) else host_port(*address)


def place_of_socket(sock: socket.socket) -> Address:
    """Where a listener is."""
    name = sock.getsockname()
    return (name, 0) if isinstance(name, str) else name[:2]


def join_frames(frames: Iterable[bytes]) -> bytes:
    """Frames behind each other, each after its length."""
    return b"".join(part for frame in frames for part in (len(frame).to_bytes(_LENGTH_BYTES, "big"), frame))


def split_frames(data: bytes | bytearray) -> Iterator[tuple[bytes, int]]:
    """The whole frames at the beginning of some bytes, each with where it ends.  Raises RemoteProtocolError for one
    that is too long."""
    at = 0
    while len(data) - at >= _LENGTH_BYTES:
        length = int.from_bytes(data[at : at + _LENGTH_BYTES], "big")
        if length > MAX_FRAME_BYTES:
            raise RemoteProtocolError(f"a frame of {length:,} bytes, limit {MAX_FRAME_BYTES:,}")
        start, at = at + _LENGTH_BYTES, at + _LENGTH_BYTES + length
        if at > len(data):
            return
        yield bytes(data[start:at]), at


def encode_record(record: Record) -> bytes:
    """A record as buses keep it: msgpack `[version, id, name, host, port, program, started, [heard id, ...]]`."""
    host, port = record.address or ("", 0)
    fields = [1, record.replica, record.name, host, port, record.version, record.started_at, sorted(record.hears)]
    encoded: bytes = msgpack.packb(fields)
    return encoded


def decode_record(encoded: bytes) -> Record:
    """Raises MalformedField for what is no record; fields that a later version adds behind these are skipped."""
    if len(encoded) > MAX_RECORD_BYTES:
        raise MalformedField(f"a replica's record has {len(encoded)} bytes, limit {MAX_RECORD_BYTES}")
    try:
        fields: Any = msgpack.unpackb(encoded)
    except ValueError as error:
        raise MalformedField(f"a replica's record is no msgpack ({type(error).__name__})") from error
    match fields:
        case [int(), bytes(replica), str(name), str(host), int(port), str(version), float(started_at), *more]:
            if not 0 <= port < 65536:
                raise MalformedField("a replica's record has no port of TCP")
            address = (host, port) if host else None
            return Record(ReplicaID(replica), name, address, version, started_at, _ids(more[0]) if more else set())
        case _:
            raise MalformedField("a replica's record has other fields")


def _ids(field: Any) -> set[ReplicaID]:
    if not isinstance(field, list) or not all(isinstance(each, bytes) for each in field):
        raise MalformedField("a replica's record has other fields")
    return {ReplicaID(each) for each in field}


class RecordReader:
    """Reads what a bus holds; what no replica wrote is left out, and told once a minute."""

    def __init__(self, bus: str) -> None:
        """`bus`: what holds it, for people."""
        self._bus = bus
        self._rarely = Rarely(_TELL_SECONDS)

    def read(self, encoded: Iterable[bytes]) -> dict[ReplicaID, Record]:
        """MAX_REPLICAS of them at the most."""
        found: dict[ReplicaID, Record] = {}
        for each in encoded:
            try:
                record = decode_record(each)
            except MalformedField as error:
                more = self._rarely.held_back("record", trio.current_time())
                if more is not None:
                    _log.warning("! %s has a record that no replica wrote: %s%s", self._bus, error, and_more(more))
                continue
            if len(found) < MAX_REPLICAS:
                found[record.replica] = record
        return found
