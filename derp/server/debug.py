"""What the operator sees of a relay: the debug page, and its twins for programs.  Layer L3; pages.py closes them to
strangers, and so does the coordinator's API.
"""

import html
import json
from collections.abc import Mapping
from typing import Any, Final

from derp.keys import short_key
from derp.relay.clients import Client
from derp.relay.counters import DropReason, PacketKind
from derp.relay.mesh import MeshPeerState
from derp.server.explain import MIN_PREFIX_DIGITS, explain_key, explain_pair, find_keys
from derp.server.pages import Page, Question
from derp.server.relay import Relay
from derp.text import fit_to_show

# More rows than anybody reads.  Both the page and its JSON twin end there.
_MAX_ROWS: Final = 1000
_TEXT: Final = "text/plain; charset=utf-8"
_STYLE: Final = (
    "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
)


def debug_pages(
    relay: Relay, others: Mapping[str, Page | Question], *, overview: str = "/debug/"
) -> dict[str, Page | Question]:
    """The pages of one relay by path, with `others` beside them.  The page at `overview` has links to all."""
    pages: dict[str, Page | Question] = {
        **others,
        "/debug/why": Question(
            "why a packet does not arrive: ?from=KEY&to=KEY, or ?key=KEY",
            _TEXT,
            lambda asked: why(relay, asked).encode(),
        ),
        "/debug/clients": Page("clients as JSON", "application/json", lambda: clients_page(relay)),
        "/debug/check": Page(
            "consistency check",
            _TEXT,
            lambda: consistency(relay).encode(),
            is_fault=lambda body: not body.endswith(b" okay\n"),
        ),
    }
    pages[overview] = Page("what is going on", "text/html; charset=utf-8", lambda: _overview(relay, pages).encode())
    return pages


def why(relay: Relay, asked: Mapping[str, str]) -> str:
    """The answer to /debug/why, a sentence a line."""
    router, departures, now = relay.router, relay.sessions.departures, relay.host.tick()
    names = ("from", "to") if "from" in asked or "to" in asked else ("key",)
    keys = []
    for name in names:
        found = find_keys(asked.get(name, ""), router, departures)
        if len(found) != 1:
            trouble = f"means {len(found)} keys" if found else "is no key that this relay knows"
            return (
                f"{name}={asked.get(name, '')[:100]!r} {trouble}: ask for ?from=KEY&to=KEY or ?key=KEY, where KEY is "
                f"nodekey:<64 hex digits>, or of one that was here the first {MIN_PREFIX_DIGITS} or more digits or the "
                "[short] form of log lines\n"
            )
        keys += found
    if len(keys) == 2:
        lines = explain_pair(keys[0], keys[1], router, departures, relay.mesh_states(), now)
    else:
        lines = explain_key(keys[0], router, departures, relay.mesh_states(), now)
    if relay.is_draining:
        lines.append("This relay is draining: its clients are being sent away.")
    return "\n".join(map(fit_to_show, lines)) + "\n"


def clients_page(relay: Relay) -> bytes:
    """The answer to /debug/clients."""
    return json.dumps(client_rows(relay), indent=1).encode()


def client_rows(relay: Relay) -> list[dict[str, Any]]:
    """One object per connection, the busiest first, at most 1,000."""
    now = relay.host.now
    clients = sorted(relay.router.clients.values(), key=lambda c: c.bytes_in + c.bytes_out, reverse=True)
    return [_row(client, now) for client in clients[:_MAX_ROWS]]


def _row(client: Client, now: float) -> dict[str, Any]:
    queue = client.queue
    return {
        "number": client.number,
        "key": f"nodekey:{client.key.hex()}",
        "address": f"{client.address}:{client.port}",
        "app": client.app_name,
        "home": client.is_preferred,
        "mesh": client.is_mesh_peer,
        "duplicate": client.is_duplicate,
        "connected_seconds": round(now - client.connected_at, 1),
        "packets_in": client.packets_in,
        "bytes_in": client.bytes_in,
        "packets_out": client.packets_out,
        "bytes_out": client.bytes_out,
        "queued_packets": queue.packets if queue is not None else 0,
        "queued_bytes": queue.held_bytes if queue is not None else 0,
        "queue_delay_ms": round(queue.oldest_seconds(now) * 1000, 1) if queue is not None else 0.0,
        "queue_dropped": queue.dropped if queue is not None else 0,
    }


def consistency(relay: Relay) -> str:
    """Check the registry against itself, and that admission can ask; the text says what is wrong, if anything."""
    router = relay.router
    problems = []
    for key, member in router.members.items():
        if member.connections and router.routes.get(key) is not member.connections[-1]:
            problems.append(f"{short_key(key)}: the route is not the active connection")
        problems += [
            f"{short_key(key)}: connection {client.number} is not in the registry"
            for client in member.connections
            if router.clients.get(client.number) is not client
        ]
        if not member.connections and not member.forwarders:
            problems.append(f"{short_key(key)}: a key without a connection")
    problems += [f"{short_key(key)}: a route without a key" for key in router.routes if key not in router.members]
    if relay.sessions.admission.problem:
        problems.append(f"admission: {relay.sessions.admission.problem}")
    if problems:
        return "derp.Server ConsistencyCheck failed:\n" + "\n".join(map(fit_to_show, problems[:100])) + "\n"
    return "derp.Server ConsistencyCheck okay\n"


def _overview(relay: Relay, pages: Mapping[str, Page | Question]) -> str:
    router, counters = relay.router, relay.router.counters
    minutes = (relay.host.now - relay.started_at) / 60
    totals = [
        ("key", f"nodekey:{router.own_key.hex()}"),
        ("state", "draining: this relay is about to stop" if relay.is_draining else "well"),
        ("up", f"{minutes:.0f} min"),
        ("connections", str(len(router.clients))),
        ("keys with several connections", str(router.duplicate_keys)),
        ("home here", str(router.home_clients)),
        ("not greeted yet", str(len(relay.sessions.lobby.waiting))),
        ("slow readers now", str(len(relay.host.blocked))),
        ("packets received", f"{counters.packets_received:,}"),
        ("bytes received", f"{counters.bytes_received:,}"),
    ]
    drops = [
        (f"{reason.name.lower()}, {kind.name.lower()}", f"{counters.packets_dropped[reason * 2 + kind]:,}")
        for reason in DropReason
        for kind in PacketKind
        if counters.packets_dropped[reason * 2 + kind]
    ]
    mesh = [(state.name, _mesh_line(state)) for state in relay.mesh_states()]
    ended = [(reason.value, f"{count:,}") for reason, count in relay.sessions.lobby.closed_count.items() if count]
    rows = client_rows(relay)
    body = [f"<h1>{html.escape(relay.config.hostname or 'DERP relay')}</h1>", _table(("", ""), totals)]
    if mesh:
        body += ["<h2>Relays of the region</h2>", _table(("relay", "state"), mesh)]
    body += ["<h2>Packets dropped, by reason</h2>", _table(("reason, kind", "packets"), drops or [("none", "")])]
    body += ["<h2>Connections ended, by reason</h2>", _table(("reason", "connections"), ended or [("none", "")])]
    body += [f"<h2>Clients, the busiest {min(len(rows), _MAX_ROWS)} of {len(router.clients)}</h2>"]
    columns = tuple(rows[0]) if rows else ()
    body += [_table(columns, [tuple(str(row[column]) for column in columns) for row in rows])]
    links = (f'<a href="{path}">{html.escape(page.title)}</a>' for path, page in sorted(pages.items()))
    body += ["<p>" + " ".join(links) + "</p>"]
    return f'<!doctype html><meta charset="utf-8"><title>DERP</title><style>{_STYLE}</style>' + "".join(body)


def _mesh_line(state: MeshPeerState) -> str:
    if state.is_ourselves:
        return "this relay itself"
    if state.is_up and state.route is not None:
        return f"connected for the {state.connects}. time, {len(state.route.keys)} keys"
    return f"NOT CONNECTED: {state.trouble or 'being dialled'}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]] | list[tuple[str, str]]) -> str:
    cells = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    cleaned = ([html.escape(fit_to_show(cell)) for cell in row] for row in rows)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cleaned)
    return f"<table><tr>{cells}</tr>{lines}</table>"
