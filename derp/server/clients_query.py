"""What is asked of /debug/clients/, and which connections that is.  Layer L3, a pure one; clients_page.py shows them.

The parameters of the genuine relay (1.104): a filter (`all`, `ip`, `cidr` or `key`, narrowed by `app`), `sort`,
`limit`, and a cursor (`after` and `afterconn`) that goes on exactly where the page before ended.
`sort=queued` is ours.
"""

import heapq
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlencode

from derp.config.relay import Network
from derp.errors import KeyFormatError
from derp.keys import KEY_BYTES, NodePublic
from derp.relay.clients import Client
from derp.text import host_port

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
# More filters by name than anybody types; each is compared with each connection.
_MAX_APPS: Final = 20
# As Go reads them: 1h30m, 90s, 1.5h.
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h))+")
_DURATION_PART: Final = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")
_NANOSECONDS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}")
_MAPPED: Final = bytes(10) + b"\xff\xff"  # IPv4 as a socket of both families shows it
# IPv4 before IPv6; what is no address (a Unix socket) before both.
Place = tuple[int, bytes, int]


class QueryError(ValueError):
    """The query makes no sense; the text is one line for whoever asked."""


@dataclass(frozen=True, slots=True)
class ClientsQuery:
    """A filter, an order, a page.  Exactly one of `is_all`, `ip`, `cidr` and `key` is set."""

    is_all: bool = False
    ip: IPv4Address | IPv6Address | None = None
    cidr: Network | None = None
    key: bytes | None = None
    apps: tuple[str, ...] | None = None  # "": connections without a name
    sort: str = "key"
    is_descending: bool = False
    limit: int = DEFAULT_LIMIT
    is_json: bool = False
    after: Any = None  # a value of the sorted column
    after_number: int | None = None  # None: all connections of that value are behind us

    def describe(self) -> str:
        """The filter in words, as the genuine relay's."""
        words = "all clients"
        if self.ip is not None or self.cidr is not None:
            words = f"clients from {self.ip if self.ip is not None else self.cidr}"
        elif self.key is not None:
            words = f"connections for nodekey:{self.key.hex()}"
        names = " or ".join(app or "(none)" for app in self.apps or ())
        return f"{words} with app {names}" if self.apps is not None else words

    def link(self, sort: str, after: str = "", after_number: str = "", *, format: str | None = None) -> str:
        """A relative URL with the same filter and size, another order or page."""
        pairs: list[tuple[str, str]] = [("app", app) for app in self.apps or ()]
        if self.ip is not None:
            pairs.append(("ip", str(self.ip)))
        elif self.cidr is not None:
            pairs.append(("cidr", str(self.cidr)))
        elif self.key is not None:
            pairs.append(("key", f"nodekey:{self.key.hex()}"))
        else:
            pairs.append(("all", "1"))
        pairs.append(("sort", sort))
        pairs += [(name, value) for name, value in (("after", after), ("afterconn", after_number)) if value]
        if self.limit != DEFAULT_LIMIT:
            pairs.append(("limit", str(self.limit)))
        if format or (format is None and self.is_json):
            pairs.append(("format", format or "json"))
        return "?" + urlencode(sorted(pairs))

    @property
    def order(self) -> str:
        """`sort` as the query has it."""
        return f"-{self.sort}" if self.is_descending else self.sort


@dataclass(frozen=True, slots=True)
class Selection:
    """One page.  `connections` and `keys` count all that the filter takes, `remaining` those behind this page."""

    clients: Sequence[Client]
    connections: int
    keys: int
    remaining: int
    next_after: tuple[str, str] | None  # the cursor behind the last one, if something remains


def parse_query(asked: Mapping[str, Sequence[str]], now: float, wall: Callable[[float], int]) -> ClientsQuery | None:
    """The query; None: nothing was asked for, so the index is wanted.  Raises QueryError.

    `now`: the clock of `Client.connected_at`; `wall` makes Unix nanoseconds of it.
    """
    given = {name: values[0] for name, values in asked.items() if values}
    form = given.get("format", "")
    if form not in ("", "json", "html"):
        raise QueryError(f"bad format {form!r:.80}; want json or html")
    filters = _filters(given)
    apps = tuple(asked["app"][:_MAX_APPS]) if "app" in asked else None
    if len(filters) > 1:
        raise QueryError("only one of all, ip, cidr, or key may be given")
    if not filters:
        if apps is None:
            return None
        filters = {"is_all": True}
    sort = given.get("sort", "")
    name = sort.removeprefix("-") or "key"
    if name not in _ORDERS:
        raise QueryError(f"bad sort {sort!r:.80}; want {', '.join(_ORDERS)}, optionally with a leading -")
    is_descending = sort.startswith("-")
    after = given.get("after", "")
    number = given.get("afterconn", "") if after and name != "conn" else ""
    if number and not _INTEGER.fullmatch(number):
        raise QueryError(f"bad afterconn {number!r:.80}")
    return ClientsQuery(
        **filters,
        apps=apps,
        sort=name,
        is_descending=is_descending,
        limit=_limit(given.get("limit", "")),
        is_json=form == "json",
        after=_cursor(name, after, is_descending, wall(now)) if after else None,
        after_number=int(number) if number else None,
    )


def select(query: ClientsQuery, clients: Iterable[Client], wall: Callable[[float], int], *, more: int = 0) -> Selection:
    """The connections of one page, in order; `more` further ones are not among `clients`.

    One pass, for packets wait meanwhile: 0.1 s for 100,000 connections."""
    value = _ORDERS[query.sort].value
    matches = _predicate(query)
    connections = past = 0
    keys = set()

    def entries() -> Iterator[tuple[Any, int, Client]]:
        nonlocal connections, past
        for client in clients:
            if matches is not None and not matches(client):
                continue
            connections += 1
            keys.add(client.key)
            # Counters change; each is read once, for the cursor and for the order.
            found = value(client, wall)
            if query.after is None or _is_past(query, found, client.number):
                past += 1
                yield found, client.number, client

    pick = heapq.nlargest if query.is_descending else heapq.nsmallest
    page = pick(query.limit, entries())
    remaining = past - len(page) + more
    cursor = None
    if remaining:
        last_value, last_number, last = page[-1]
        shown = _ORDERS[query.sort].show(last, last_value)
        cursor = (shown, "" if query.sort == "conn" else str(last_number))
    return Selection([client for _, _, client in page], connections, len(keys), remaining, cursor)


def remote_of(client: Client) -> str:
    """Address and port as one text."""
    return host_port(client.address, client.port)


# --- orders


@dataclass(frozen=True, slots=True)
class _Order:
    """How a column is read of a client, written into a link, and read from a query."""

    value: Callable[[Client, Callable[[float], int]], Any]
    show: Callable[[Client, Any], str]
    read: Callable[[str, bool, int], Any]


def _place(address: str, port: int) -> Place:
    # Not by ip_address, which takes ten times as long.
    try:
        if ":" not in address:
            return 4, socket.inet_pton(socket.AF_INET, address), port
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except (OSError, ValueError):
        return 0, address.encode(), port
    if packed.startswith(_MAPPED):
        return 4, packed[len(_MAPPED) :], port
    return 6, packed, port


def _read_place(text: str, is_descending: bool, now: int) -> Place:
    # Behind a zone (fe80::1%eth0) anything may stand, so what looks like a port is taken for one first.
    whole = None if "]:" in text else _address(text.strip("[]"))
    if whole is not None:
        return whole.version, whole.packed, -1 if is_descending else 1 << 16
    address, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or len(port) > 5:
        raise ValueError
    return _place(address.strip("[]"), int(port))


def _read_key(text: str, is_descending: bool, now: int) -> bytes:
    return NodePublic.parse(text).raw


def _read_number(text: str, is_descending: bool, now: int) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError
    return int(text)


def _read_moment(text: str, is_descending: bool, now: int) -> int:
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _DURATION.fullmatch(text) or len(text) > 40:
        raise ValueError
    return now - int(sum(float(number) * _NANOSECONDS[unit] for number, unit in _DURATION_PART.findall(text)))


def _counter(read: Callable[[Client], int]) -> _Order:
    return _Order(lambda client, wall: read(client), lambda client, value: str(value), _read_number)


_ORDERS: Final[Mapping[str, _Order]] = {
    "key": _Order(lambda c, wall: c.key, lambda c, value: f"nodekey:{c.key.hex()}", _read_key),
    "ip": _Order(lambda c, wall: _place(c.address, c.port), lambda c, value: remote_of(c), _read_place),
    "conn": _counter(lambda client: client.number),
    "connected": _Order(lambda c, wall: wall(c.connected_at), lambda c, value: str(value), _read_moment),
    "rx": _counter(lambda client: client.bytes_in),
    "tx": _counter(lambda client: client.bytes_out),
    "rxpkts": _counter(lambda client: client.packets_in),
    "txpkts": _counter(lambda client: client.packets_out),
    "queued": _counter(lambda client: client.queue.held_bytes if client.queue is not None else 0),
}
SORTS: Final = tuple(_ORDERS)


def _is_past(query: ClientsQuery, value: Any, number: int) -> bool:
    if value != query.after:
        return bool(value < query.after if query.is_descending else value > query.after)
    if query.after_number is None:
        return False
    return number < query.after_number if query.is_descending else number > query.after_number


# --- filters


def _filters(given: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "all" in given:
        found["is_all"] = True
    if text := given.get("ip", ""):
        found["ip"] = _address(text)
        if found["ip"] is None:
            raise QueryError(f"bad ip {text!r:.80}; want an address such as 192.0.2.1")
    if text := given.get("cidr", ""):
        try:
            found["cidr"] = _unmapped(ip_network(text, strict=False)) if "/" in text else None
        except ValueError:
            found["cidr"] = None
        if found["cidr"] is None:
            raise QueryError(f"bad cidr {text!r:.80}; want a network such as 192.0.2.0/24")
    if text := given.get("key", ""):
        try:
            key = NodePublic.parse(text.strip()).raw
        except KeyFormatError:
            raise QueryError(f"bad key {text!r:.80}; want nodekey:<64 hex digits>") from None
        # A key of noughts is what the genuine relay takes for none.
        found |= {"key": key} if key != bytes(KEY_BYTES) else {"is_all": True}
    return found


def _predicate(query: ClientsQuery) -> Callable[[Client], bool] | None:
    """Whether a connection is meant; None: each is."""
    tests: list[Callable[[Client], bool]] = []
    if query.key is not None:
        key = query.key
        tests.append(lambda client: client.key == key)
    if query.ip is not None:
        place = _place(str(query.ip), 0)
        tests.append(lambda client: _place(client.address, 0) == place)
    if query.cidr is not None:
        version, first, last = query.cidr.version, query.cidr[0].packed, query.cidr[-1].packed
        tests.append(lambda client: (place := _place(client.address, 0))[0] == version and first <= place[1] <= last)
    if query.apps is not None:
        apps = frozenset(query.apps)
        tests.append(lambda client: client.app_name in apps)
    if len(tests) < 2:
        return tests[0] if tests else None
    return lambda client: all(test(client) for test in tests)


def _limit(text: str) -> int:
    if not text:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) >= 1):
        raise QueryError(f"bad limit {text!r:.80}")
    return min(int(text), MAX_LIMIT)


def _cursor(sort: str, text: str, is_descending: bool, now: int) -> Any:
    try:
        return _ORDERS[sort].read(text, is_descending, now)
    except ValueError:  # KeyFormatError is one
        more = "; want Unix nanoseconds or a duration such as 30m" if sort == "connected" else ""
        raise QueryError(f"bad after {text!r:.80} for sort by {sort}{more}") from None


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped if mapped is not None else parsed


def _unmapped(network: Network) -> Network:
    """::ffff:192.0.2.0/120 as 192.0.2.0/24, which is how clients' addresses are written."""
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ip_network((mapped, network.prefixlen - 96))
    return network
