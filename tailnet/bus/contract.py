"""What a bus is to a replica: who else is there, and perhaps a carrier of frames.  Layer L2.

services/replicas.py runs one Bus and is its Watcher; the kinds are its neighbours here.  A bus may pause, forget
everything or lose what it carries: sessions (replica/pair.py) notice, and nobody's connection ends for it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import msgpack

from tailnet.errors import MalformedField
from tailnet.replica.messages import ReplicaID

# A record that is not renewed for so long is gone: three renewals, of which two may fail.
LEASE_SECONDS: Final = 6.0
RENEW_SECONDS: Final = 2.0
# A name, an address and a version; what is longer was not written by a replica.
MAX_RECORD_BYTES: Final = 4096
# The full mesh is 2,016 links then; beyond it agents have to be sharded.
MAX_REPLICAS: Final = 64

Address: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Record:
    """One replica as others find it.  `address`: where it takes direct links; None: nowhere."""

    replica: ReplicaID
    name: str
    address: Address | None
    version: str  # of the program
    started_at: float  # Unix time


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

    async def send(self, receiver: ReplicaID, frames: Sequence[bytes]) -> bool:
        """Carry frames to a replica, in order; False when they are lost."""
        ...


def encode_record(record: Record) -> bytes:
    """A record as buses keep it: msgpack `[version, id, name, host, port, program, started]`."""
    host, port = record.address or ("", 0)
    encoded: bytes = msgpack.packb([1, record.replica, record.name, host, port, record.version, record.started_at])
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
        case [int(), bytes(replica), str(name), str(host), int(port), str(version), float(started_at), *_]:
            if not 0 <= port < 65536:
                raise MalformedField("a replica's record has no port of TCP")
            return Record(ReplicaID(replica), name, (host, port) if host else None, version, started_at)
        case _:
            raise MalformedField("a replica's record has other fields")
