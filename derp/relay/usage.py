"""What clients have carried, by tenant and key, from the counters that they have anyway.  Layer L1: no I/O.

server/ledger.py reads every client at intervals and at its end, and writes what `take` gives.
"""

from typing import Final, NamedTuple

from derp.relay.clients import Client
from derp.relay.limits import DEFAULT_TENANT, MAX_TENANTS

OTHERS: Final = b""
"""In place of a key: those for whom there was no room."""


class Usage(NamedTuple):
    """Packets, and their bytes without keys and headers: from clients, to clients, and those that did not arrive: for
    the client, or from it to a key that was not here."""

    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    packets_dropped: int = 0
    bytes_dropped: int = 0

    def plus(self, other: "Usage", sign: int = 1) -> "Usage":
        """The sum of both; with -1 what this one has more."""
        return Usage(*(mine + sign * its for mine, its in zip(self, other, strict=True)))


NOTHING: Final = Usage()


def usage_of(client: Client) -> Usage:
    """All of one connection until now.  What waits in its queue is not out yet."""
    queue = client.queue
    held, held_bytes = (queue.packets, queue.packet_bytes) if queue is not None else (0, 0)
    return Usage(
        client.packets_in,
        client.bytes_in,
        client.packets_out - client.packets_lost - held,
        client.bytes_out - client.bytes_lost - held_bytes,
        client.packets_lost + client.packets_nowhere,
        client.bytes_lost + client.bytes_nowhere,
    )


class Tally:
    """What was carried since the last `take`, in at most `most` rows; those beyond share one for each tenant, and
    tenants beyond MAX_TENANTS one together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: dict[Client, Usage] = {}  # of clients that had any traffic
        self._rows: dict[tuple[str, str, bytes], Usage] = {}

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def adopt(self, client: Client) -> None:
        """A client that another process had, which has counted all until now."""
        self._seen[client] = usage_of(client)

    def note(self, client: Client, tenant: str, day: str) -> int:
        """Read a client.  Returns how many bytes it has carried since it was last read, both ways."""
        before = self._seen.get(client)
        if before is None:
            if not client.packets_in and not client.packets_out:
                return 0
            before = NOTHING
        now = usage_of(client)
        if now == before:
            return 0
        self._seen[client] = now
        more = now.plus(before, -1)
        self.add(day, tenant, client.key, more)
        return more.bytes_in + more.bytes_out

    def depart(self, client: Client) -> None:
        """A client that was noted for the last time."""
        self._seen.pop(client, None)

    def add(self, day: str, tenant: str, key: bytes, usage: Usage) -> None:
        """Put so much into the row that it belongs to."""
        row = (day, tenant, key)
        if row not in self._rows and len(self._rows) >= self._most:
            row = (day, tenant, OTHERS)
            if row not in self._rows and len(self._rows) >= self._most + MAX_TENANTS:
                row = (day, DEFAULT_TENANT, OTHERS)
        self._rows[row] = self._rows.get(row, NOTHING).plus(usage)

    def take(self) -> dict[tuple[str, str, bytes], Usage]:
        """The rows by day, tenant and key; they are the caller's."""
        rows, self._rows = self._rows, {}
        return rows
