"""What several workers of one relay counted, as one: readings and rows of clients on their way between them.  Layer L3.

A reading is taken apart into numbers, names and lists, added up name by name, and put together again, so a new counter
needs no word here unless it cannot be added.  While one version replaces another, workers of both answer: what only the
other one knows is left out, and what it does not know is zero.  together.py asks; metrics.py and the pages show.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import zip_longest
from typing import Any, Final, TypeVar, cast

import msgpack

from derp.metrics import MeshReading, RelayStatistics, SelfCheckReading, TenantReading
from derp.relay.clients import Client
from derp.relay.counters import Counters, Histogram
from derp.relay.load import LoadReading
from derp.relay.queue import PacketQueue

Taken = dict[str, Any]
"""A reading taken apart."""

# What is no sum: every worker sees the same, or the worst of them counts.
_NO_SUMS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "clients_remote": max,
    "in_trios_place": min,
    "certificate_expires_at": min,
    "key_set_ends_at": min,
    "renewal_failures": max,
    "rate_bytes_per_second": max,
    "rate_burst_bytes": max,
    "node_limit_bytes_per_second": max,
    "limit_bytes_per_second": max,
    "weight": max,
    "quota_used_part": max,
    "bootstrap_domains": max,
    "queue_average_ms": max,
    "round_trip_seconds": max,
    "connections_share": max,
    "bytes_share": max,
    "packets_share": max,
    "memory_share": max,
    "loop_share": max,
    "delay_share": max,
    "name": max,
    "is_up": max,
    "keys": max,
}
# A part of which nothing was told.
_NO_MESH: Final = MeshReading("", False, 0, 0)
_NO_TENANT: Final = TenantReading(0.0, 0, 0, {}, 0, None)
_NO_CHECK: Final = SelfCheckReading({}, 0, 0, 0.0)
_Part = TypeVar("_Part", MeshReading, TenantReading, SelfCheckReading, LoadReading, RelayStatistics)
_ROW: Final = (
    "key",
    "number",
    "connected_at",
    "address",
    "port",
    "is_mesh_peer",
    "is_prober",
    "is_ideal",
    "is_preferred",
    "is_duplicate",
    "app_name",
    "tenant",
    "packets_in",
    "bytes_in",
    "packets_out",
    "bytes_out",
    "is_active",
    "sender_count",
)


def take_apart(reading: RelayStatistics) -> Taken:
    """What msgpack can carry."""
    taken: Taken = _plain(reading)
    return taken


def _plain(value: Any) -> Any:
    if isinstance(value, Counters):
        return {name: _plain(getattr(value, name)) for name in Counters.__slots__}
    if isinstance(value, Histogram):
        return {"bounds": list(value.bounds), "seen": value.seen, "beyond": [value.beyond, value.beyond_sum]}
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):  # relays of the region, by name
        return {each.name: _plain(each) for each in value}
    return value


def merge(own: RelayStatistics, others: Sequence[Taken]) -> RelayStatistics:
    """One reading of all: that of this process, and what others told."""
    taken = take_apart(own)
    for other in others:
        taken = _add(taken, other)
    counters = Counters()
    for name in Counters.__slots__:
        value = taken["counters"][name]
        setattr(counters, name, _histogram(value) if isinstance(value, dict) else value)
    check, load = taken["self_check"], taken["load"]
    parts = {
        "counters": counters,
        "mesh": tuple(_whole(_NO_MESH, each) for each in taken["mesh"].values()),
        "tenants": {name: _whole(_NO_TENANT, each) for name, each in taken["tenants"].items()},
        "self_check": _whole(_NO_CHECK, check) if check is not None else None,
        "load": _whole(LoadReading(), load) if load is not None else None,
    }
    return _whole(own, {**taken, **parts})


def _add(one: Any, other: Any, name: str = "") -> Any:
    if one is None or other is None:
        return other if one is None else one
    if _kind(one) is not _kind(other):  # another version tells it in another way
        return one
    if isinstance(one, dict):
        return {
            each: _add(one.get(each), other.get(each), each if isinstance(each, str) else "")
            for each in dict.fromkeys((*one, *other))
        }
    if name == "bounds":
        return one
    if isinstance(one, list):
        return [a + b for a, b in zip_longest(one, other, fillvalue=0)]
    if name in _NO_SUMS:
        return _NO_SUMS[name](one, other)
    return max(one, other) if isinstance(one, bool) else one + other


def _kind(value: Any) -> type:
    return float if isinstance(value, int) else type(value)


def _whole(blank: _Part, told: Taken) -> _Part:
    """`blank`, with what was told of it."""
    return replace(blank, **{each.name: told[each.name] for each in fields(blank) if each.name in told})


def _histogram(value: dict[str, list[int]]) -> Histogram:
    histogram = Histogram(*value["bounds"])
    histogram.seen = value["seen"]
    histogram.beyond, histogram.beyond_sum = value["beyond"]
    return histogram


# --- clients


class ClientElsewhere(Client):
    """A connection of another worker, for pages alone: nobody can send to it."""

    __slots__ = ("_is_active", "_sender_count")

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row["key"], row["number"], None, row["connected_at"])
        for name in _ROW[3:-2]:
            if name in row:
                setattr(self, name, row[name])
        self._is_active = bool(row.get("is_active"))
        self._sender_count = int(row.get("sender_count", 0))
        if row.get("queue") is not None:
            self.queue = cast(PacketQueue, _QueueElsewhere(*row["queue"][:4]))

    @property
    def is_active(self) -> bool:
        return self._is_active

    @property
    def sender_count(self) -> int:
        return self._sender_count


class _QueueElsewhere:
    def __init__(self, packets: int, held_bytes: int, dropped: int, seconds: float) -> None:
        self.packets = packets
        self.held_bytes = held_bytes
        self.dropped = dropped
        self._seconds = seconds

    def oldest_seconds(self, now: float) -> float:
        return self._seconds


def row_of(client: Client, now: float) -> dict[str, Any]:
    """What pages show of a connection; ClientElsewhere reads it."""
    row: dict[str, Any] = {name: getattr(client, name) for name in _ROW}
    queue = client.queue
    row["queue"] = (
        (queue.packets, queue.held_bytes, queue.dropped, queue.oldest_seconds(now)) if queue is not None else None
    )
    return row


class Other:
    """What another worker said for the page that is being made."""

    def __init__(self, number: int, answer: Mapping[str, Any]) -> None:
        self.number = number
        self.reading: Taken | None = answer.get("reading")
        self.text: str = answer.get("text", "")
        self.connection_count: int = answer.get("connections", 0)
        self.clients = [ClientElsewhere(row) for row in answer.get("clients", ())]
        """The first of those that match, in the order that the page wants."""
        self.matching, self.matching_keys, self.remaining = answer.get("matching", (0, 0, 0))


def encode(answer: Mapping[str, Any]) -> bytes:
    encoded: bytes = msgpack.packb(answer)
    return encoded


def decode(answer: bytes) -> dict[str, Any]:
    decoded: dict[str, Any] = msgpack.unpackb(answer, strict_map_key=False)
    return decoded
