"""/debug/clients/: the connections of a relay as a table and as JSON, filtered, sorted, page by page.  Layer L3.

The JSON is the genuine relay's (1.104), field by field, with what ours knows of queues behind it.  The query is
clients_query.py's; debug.py puts the page among the others.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from derp.protocol.frames import PROTOCOL_VERSION
from derp.relay.clients import Client
from derp.server import markup
from derp.server.clients_query import (
    MAX_LIMIT,
    SORTS,
    ClientsQuery,
    QueryError,
    Selection,
    parse_query,
    remote_of,
    select,
)
from derp.server.markup import HTML_TYPE, Column, Html
from derp.server.pages import Query, Reply
from derp.server.relay import Relay

CLIENTS_PATH: Final = "/debug/clients/"
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
# Of a key in a table: enough to tell it from all others, and to ask /debug/why about it.
_SHOWN_DIGITS: Final = 16
# Of clients on the overview; the rest is one click away.
BUSIEST_COUNT: Final = 20
BUSIEST_FIRST: Final = ClientsQuery(is_all=True, sort="rx", is_descending=True, limit=BUSIEST_COUNT)
# Name of a column -> what it is sorted by.
_COLUMNS: Final = (
    ("conn#", "conn"),
    ("node key", "key"),
    ("remote", "ip"),
    ("connected", "connected"),
    ("flags", ""),
    ("ver", ""),
    ("app", ""),
    ("rx pkts", "rxpkts"),
    ("rx bytes", "rx"),
    ("tx pkts", "txpkts"),
    ("tx bytes", "tx"),
    ("queued", "queued"),
    ("senders", ""),
)
_NUMBERS: Final = frozenset({"conn#", "rx pkts", "rx bytes", "tx pkts", "tx bytes", "queued", "senders"})
# What one looks for the most of: their first click sorts downwards.
_MOST_FIRST: Final = frozenset({"rx", "tx", "rxpkts", "txpkts", "queued"})
_UP: Final = "\N{BLACK UP-POINTING TRIANGLE}"
_SORT_NAMES: Final = {
    "key": "key",
    "ip": "address",
    "conn": "first come",
    "-conn": "last come",
    "connected": "longest here",
    "-rx": "most sent to us",
    "-tx": "most sent to them",
    "-queued": "most waiting",
}


class ClientsPage:
    """The page of one relay.  `places`: what stands above all pages, as in markup.document."""

    def __init__(self, relay: Relay, *, brand: str, places: Sequence[tuple[str, str]]) -> None:
        self._relay = relay
        self._brand = brand
        self._places = places
        # Constant, so that a cursor of one page means the same on the next.
        self._wall_offset = time.time_ns() - round(relay.host.tick() * 1e9)

    def reply(self, asked: Query) -> Reply:
        """The answer to a query."""
        router = self._relay.router
        asked = _as_found(asked)
        try:
            query = parse_query(asked, self._relay.host.tick(), self.wall)
        except QueryError as error:
            return Reply(400, _TEXT, f"{error}\n".encode())
        wants_json = "json" in asked.get("format", ())
        if query is None:
            if wants_json:
                return _as_json({"conns": self._connection_count(), "keys": len(router.routes)})
            return Reply(200, HTML_TYPE, self._document("Clients", self._index()))
        selection = self.select(query)
        if query.is_json:
            return _as_json(self._json(query, selection))
        return Reply(200, HTML_TYPE, self._document(query.describe(), self._results(query, selection)))

    def select(self, query: ClientsQuery) -> Selection:
        """The connections that a query means."""
        router, others = self._relay.router, self._relay.others
        clients: Iterable[Client] = router.clients.values()
        if query.key is not None:
            member = router.members.get(query.key)
            clients = member.connections if member is not None else ()
        if not others:
            return select(query, clients, self.wall)
        rows = [client for other in others for client in other.clients]
        found = select(query, (*clients, *rows), self.wall, more=sum(other.remaining for other in others))
        return replace(
            found,
            connections=found.connections - len(rows) + sum(other.matching for other in others),
            keys=found.keys - len({row.key for row in rows}) + sum(other.matching_keys for other in others),
        )

    def selected(self, asked: Query | None) -> Selection | None:
        """The same for a query as it was asked, or for the busiest (None); None where it asks for no rows."""
        if asked is None:
            return self.select(BUSIEST_FIRST)
        try:
            query = parse_query(_as_found(asked), self._relay.host.tick(), self.wall)
        except QueryError:
            return None
        return self.select(query) if query is not None else None

    def table(self, clients: Sequence[Client], query: ClientsQuery) -> Html:
        """The rows of some clients; the names of columns lead to `query` in another order."""
        columns = [Column(name, name in _NUMBERS, *self._sorted_by(name, sort, query)) for name, sort in _COLUMNS]
        return markup.table(columns, [self._row(client) for client in clients], empty="Nobody.")

    def wall(self, moment: float) -> int:
        """Unix nanoseconds of a moment of the relay's clock."""
        return round(moment * 1e9) + self._wall_offset

    # --- JSON

    def _json(self, query: ClientsQuery, selection: Selection) -> dict[str, Any]:
        document: dict[str, Any] = {
            "query": query.describe(),
            "conns": selection.connections,
            "keys": selection.keys,
            "remaining": selection.remaining,
        }
        if selection.next_after is not None:
            document["next"] = query.link(query.order, *selection.next_after)
        return document | {"clients": [self._document_of(client) for client in selection.clients]}

    def _document_of(self, client: Client) -> dict[str, Any]:
        now, queue = self._relay.host.now, client.queue
        return {
            "connNum": client.number,
            "key": f"nodekey:{client.key.hex()}",
            "remote": remote_of(client),
            "connectedAt": _rfc3339(self.wall(client.connected_at)),
            "connected": round(now - client.connected_at) * 10**9,
            "active": client.is_active,
            "dup": client.is_duplicate,
            "disabled": False,  # ours never stops sending to one of two connections
            "home": client.is_preferred,
            "meshPeer": client.is_mesh_peer,
            "notIdeal": not client.is_ideal,
            "prober": client.is_prober,
            "version": PROTOCOL_VERSION,
            "appName": client.app_name,
            "rxPkts": client.packets_in,
            "rxBytes": client.bytes_in,
            "txPkts": client.packets_out,
            "txBytes": client.bytes_out,
            "senders": client.sender_count,
            "queuedPkts": queue.packets if queue is not None else 0,
            "queuedBytes": queue.held_bytes if queue is not None else 0,
            "queueDelay": round(queue.oldest_seconds(now) * 1e9) if queue is not None else 0,
            "queueDropped": queue.dropped if queue is not None else 0,
        }

    def _connection_count(self) -> int:
        return len(self._relay.router.clients) + sum(other.connection_count for other in self._relay.others)

    # --- HTML

    def _document(self, title: str, body: Sequence[Html]) -> bytes:
        return markup.document(title, body, brand=self._brand, places=self._places, here=CLIENTS_PATH)

    def _index(self) -> list[Html]:
        router = self._relay.router
        count = f"{self._connection_count():,} connections for {len(router.routes):,} keys."
        return [
            Html("<h1>Clients</h1>"),
            Html(f"<p>{markup.text(count)} {markup.link('?all=1&sort=-rx', 'All, the busiest first')}</p>"),
            search_form(),
            Html(
                "<p class=dim>By hand: app=NAME (again for another one; empty: without a name), "
                f"sort= one of {markup.text(', '.join(SORTS))} (with a leading - downwards), "
                f"limit=N (at most {MAX_LIMIT:,}), "
                "after=X (a value of that column to go on behind; of connected Unix nanoseconds or a duration such as "
                "30m), format=json.</p>"
            ),
        ]

    def _results(self, query: ClientsQuery, selection: Selection) -> list[Html]:
        shown = f"{len(selection.clients):,} of {selection.connections:,} connections ({selection.keys:,} keys)"
        links = [markup.link("./", "another search"), markup.link(query.link(query.order, format="json"), "as JSON")]
        if selection.next_after is not None:
            onward = query.link(query.order, *selection.next_after)
            links.append(markup.link(onward, f"next page ({selection.remaining:,} more)"))
        around = Html(f"<p>{markup.text(shown)} &middot; {' &middot; '.join(links)}</p>")
        after = [around] if selection.next_after is not None else []
        head = Html(f"<h1>{markup.text(query.describe().capitalize())}</h1>")
        return [head, around, self.table(selection.clients, query), *after]

    def _sorted_by(self, name: str, sort: str, query: ClientsQuery) -> tuple[str, str]:
        """Where a click on the name of a column leads, and the arrow beside it."""
        if not sort:
            return "", ""
        if sort == query.sort:
            order = sort if query.is_descending else f"-{sort}"
            return CLIENTS_PATH + query.link(order), "\N{BLACK DOWN-POINTING TRIANGLE}" if query.is_descending else _UP
        return CLIENTS_PATH + query.link(f"-{sort}" if sort in _MOST_FIRST else sort), ""

    def _row(self, client: Client) -> tuple[object, ...]:
        key = f"nodekey:{client.key.hex()}"
        queue = client.queue
        waits = f"{queue.held_bytes:,}" if queue is not None else ""
        return (
            client.number,
            markup.code(markup.link(f"{CLIENTS_PATH}?key={key}", key[: len("nodekey:") + _SHOWN_DIGITS], title=key)),
            markup.link(markup.query(CLIENTS_PATH, ip=client.address), remote_of(client)),
            span(self._relay.host.now - client.connected_at),
            _flags(client),
            PROTOCOL_VERSION,
            markup.link(markup.query(CLIENTS_PATH, app=client.app_name), client.app_name) if client.app_name else "",
            f"{client.packets_in:,}",
            f"{client.bytes_in:,}",
            f"{client.packets_out:,}",
            f"{client.bytes_out:,}",
            waits,
            client.sender_count,
        )


def _as_found(asked: Query) -> Query:
    """Our form sends all of its fields, those that were left empty too."""
    if "find" not in asked:
        return asked
    asked = {name: kept for name, values in asked.items() if (kept := [value for value in values if value])}
    return asked if asked.keys() & {"all", "ip", "cidr", "key", "app"} else {**asked, "all": ["1"]}


def search_form() -> Html:
    """What to look for, for this page and the overview: one filter, and an order."""
    fields = (
        markup.field("key", "node key", hint="nodekey:..."),
        markup.field("ip", "or address", hint="192.0.2.7", is_small=True),
        markup.field("cidr", "or network", hint="192.0.2.0/24", is_small=True),
        markup.field("app", "app name", is_small=True),
        markup.choice("sort", "sorted by", _SORT_NAMES, "-rx"),
    )
    return markup.form(CLIENTS_PATH, fields, "Find", hidden={"find": "1"})


def span(seconds: float) -> str:
    """A time that passed, in two units: 3d 4h, 5m 12s."""
    whole = max(0, round(seconds))
    parts = [(whole // size % limit, unit) for size, limit, unit in _UNITS]
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2])


_UNITS: Final = ((86_400, 10**9, "d"), (3_600, 24, "h"), (60, 60, "m"), (1, 60, "s"))


def _flags(client: Client) -> str:
    """The genuine relay's words."""
    words = [
        ("home", client.is_preferred),
        ("mesh", client.is_mesh_peer),
        ("prober", client.is_prober),
        ("notideal", not client.is_ideal),
        ("dup-active" if client.is_active else "dup", client.is_duplicate),
    ]
    return " ".join(word for word, holds in words if holds)


def _as_json(document: Mapping[str, Any]) -> Reply:
    return Reply(200, _JSON, f"{json.dumps(document, indent=chr(9))}\n".encode())


def _rfc3339(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"
