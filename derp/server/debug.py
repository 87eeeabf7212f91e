"""What the operator sees of a relay: the debug page, and its twins for programs.  Layer L3; pages.py closes them to
strangers, and so does the coordinator's API.
"""

import heapq
import json
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from derp import __version__
from derp.keys import short_key
from derp.relay.clients import Client
from derp.relay.counters import DropReason, PacketKind
from derp.relay.mesh import MeshPeerState
from derp.server import markup
from derp.server.clients_page import BUSIEST_COUNT, BUSIEST_FIRST, CLIENTS_PATH, ClientsPage, search_form, span
from derp.server.explain import MIN_PREFIX_DIGITS, explain_key, explain_pair, find_keys
from derp.server.markup import HTML_TYPE, Column, Html
from derp.server.pages import Page, Query, Question, Reply
from derp.server.relay import Relay
from derp.server.siblings import Siblings
from derp.text import fit_to_show

WHY_PATH: Final = "/debug/why"
BUSIEST_PATH: Final = "/debug/clients"
# More rows than anybody reads; the JSON twin is cut at the same place.
_MAX_ROWS: Final = 1000
_TEXT: Final = "text/plain; charset=utf-8"

Places = Sequence[tuple[str, str]]
"""(path, name) of the pages that stand above each page."""


def debug_pages(
    relay: Relay, others: Mapping[str, Page | Question], *, overview: str = "/debug/", around: Places = ()
) -> dict[str, Page | Question]:
    """The pages of one relay by path, with `others` beside them.  The page at `overview` has links to all.

    `around`: pages of whoever has the relay inside, which stand before ours above each page.
    """
    brand = relay.config.hostname or "DERP relay"
    named = {path: path.rpartition("/")[2] for path in others}
    places = (*around, (overview, "relay"), (CLIENTS_PATH, "clients"), (WHY_PATH + "?format=html", "why"))
    places += (("/debug/check", "check"), *sorted(named.items()))
    clients = ClientsPage(relay, brand=brand, places=places)
    pages: dict[str, Page | Question] = {
        **others,
        WHY_PATH: why_question(lambda asked: why(relay, asked), brand=brand, places=places),
        CLIENTS_PATH: Question("clients: filtered, sorted, page by page, as JSON too", clients.reply),
        BUSIEST_PATH: Page("the busiest clients as JSON", "application/json", lambda: clients_page(relay)),
        "/debug/check": Page(
            "consistency check",
            _TEXT,
            lambda: consistency(relay).encode(),
            is_fault=lambda body: not body.endswith(b" okay\n"),
        ),
    }

    def show() -> bytes:
        body = _overview(relay, clients)
        return markup.document(f"DERP: {brand}", body, brand=brand, places=places, here=overview)

    pages[overview] = Page("what is going on", HTML_TYPE, show)
    return pages


def why_question(answer: Callable[[Mapping[str, str]], str], *, brand: str, places: Places) -> Question:
    """/debug/why as text, and as a page with its form for who asks with `format=html`, as the form does.

    `answer`: a sentence a line, for the query's `from` and `to`, or `key`.
    """

    def reply(asked: Query) -> Reply:
        given = {name: values[-1] for name, values in asked.items() if values[-1]}
        if given.get("format") != "html":
            return Reply(200, _TEXT, answer(given).encode())
        body = [Html("<h1>Why does it not arrive?</h1>"), why_form(given)]
        if given.keys() - {"format"}:
            sentences = answer({name: text for name, text in given.items() if name != "format"}).splitlines()
            body.append(Html("".join(f"<p>{markup.text(sentence)}</p>" for sentence in sentences)))
        page = markup.document("why", body, brand=brand, places=places, here=WHY_PATH + "?format=html")
        return Reply(200, HTML_TYPE, page)

    return Question("why something does not arrive: ?from=KEY&to=KEY, or ?key=KEY", reply)


def why_form(given: Mapping[str, str]) -> Html:
    """Two forms: from whom to whom, and one alone."""
    pair = (
        markup.field("from", "from", given.get("from", ""), hint="nodekey:..., or its first 8 digits"),
        markup.field("to", "to", given.get("to", ""), hint="nodekey:..."),
    )
    one = (markup.field("key", "or what is known of one", given.get("key", ""), hint="nodekey:..., [short], digits"),)
    asked = {"format": "html"}
    return Html(markup.form(WHY_PATH, pair, "Why?", asked) + markup.form(WHY_PATH, one, "Look", asked))


def why(relay: Relay, asked: Mapping[str, str]) -> str:
    """The answer to /debug/why, a sentence a line."""
    router, departures, now = relay.router, relay.sessions.departures, relay.host.tick()
    theirs = "".join(f"{fit_to_show(line)}\n" for other in relay.others for line in other.text.splitlines())
    names = ("from", "to") if "from" in asked or "to" in asked else ("key",)
    keys = []
    for name in names:
        found = find_keys(asked.get(name, ""), router, departures)
        if len(found) != 1 and theirs:
            return theirs
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
    return "\n".join(map(fit_to_show, lines)) + "\n" + theirs


def why_here(relay: Relay, asked: Mapping[str, str], number: int) -> str:
    """The same for another worker: what we, worker `number`, know of keys that are connected here; else nothing."""
    router = relay.router
    found = [key for text in asked.values() for key in find_keys(text, router, relay.sessions.departures)]
    if not any((member := router.members.get(key)) is not None and member.connections for key in found):
        return ""
    return "".join(f"Worker {number}: {line}\n" for line in why(relay, asked).splitlines())


def clients_page(relay: Relay) -> bytes:
    """The answer to /debug/clients."""
    return json.dumps(client_rows(relay), indent=1).encode()


def client_rows(relay: Relay) -> list[dict[str, Any]]:
    """One object per connection, the busiest first, at most 1,000."""
    elsewhere = (client for other in relay.others for client in other.clients)
    return [_row(client, relay.host.now) for client in busiest((*relay.router.clients.values(), *elsewhere))]


def busiest(clients: Iterable[Client]) -> list[Client]:
    """Those of some clients that /debug/clients has a row for, in its order."""
    return heapq.nlargest(_MAX_ROWS, clients, key=lambda client: client.bytes_in + client.bytes_out)


def _row(client: Client, now: float) -> dict[str, Any]:
    queue = client.queue
    return {
        "number": client.number,
        "key": f"nodekey:{client.key.hex()}",
        "address": f"{client.address}:{client.port}",
        "app": client.app_name,
        "tenant": client.tenant,
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
    problems = inconsistencies(relay)
    problems += [line for other in relay.others for line in other.text.splitlines()]
    if problems:
        return "derp.Server ConsistencyCheck failed:\n" + "\n".join(map(fit_to_show, problems[:100])) + "\n"
    return "derp.Server ConsistencyCheck okay\n"


def inconsistencies(relay: Relay) -> list[str]:
    """What that check finds in this process."""
    router = relay.router
    problems = []
    for key, member in router.members.items():
        if (
            member.connections
            and key not in router.elsewhere  # where one of them is active
            and router.routes.get(key) is not member.connections[-1]
        ):
            problems.append(f"{short_key(key)}: the route is not the active connection")
        problems += [
            f"{short_key(key)}: connection {client.number} is not in the registry"
            for client in member.connections
            if router.clients.get(client.number) is not client
        ]
        if not (member.connections or member.forwarders or member.mailbox or key in router.elsewhere):
            problems.append(f"{short_key(key)}: a key without a connection")
    problems += [f"{short_key(key)}: a route without a key" for key in router.routes if key not in router.members]
    if relay.sessions.admission.problem:
        problems.append(f"admission: {relay.sessions.admission.problem}")
    return problems


def _overview(relay: Relay, clients: ClientsPage) -> list[Html]:
    router, counters = relay.router, relay.router.counters
    drops = [
        (reason.name.lower(), kind.name.lower(), f"{counters.packets_dropped[reason * 2 + kind]:,}")
        for reason in DropReason
        for kind in PacketKind
        if counters.packets_dropped[reason * 2 + kind]
    ]
    ended = [(reason.value, f"{count:,}") for reason, count in relay.sessions.lobby.closed_count.items() if count]
    mesh = [(state.name, _mesh_line(state)) for state in relay.mesh_states()]
    busiest = clients.select(BUSIEST_FIRST).clients
    connections = len(router.clients) + sum(other.connection_count for other in relay.others)
    count = f"{min(connections, BUSIEST_COUNT)} of {connections:,}"
    everybody = markup.link(f"{CLIENTS_PATH}?all=1&sort=-rx", "all of them")
    body = [Html(f"<h1>{markup.text(relay.config.hostname or 'DERP relay')}</h1>"), _state(relay), _numbers(relay)]
    if relay.siblings is not None:
        body += _workers(relay, relay.siblings)
    if mesh:
        columns = (Column("relay"), Column("state"))
        body += [Html("<h2>Relays of the region</h2>"), markup.table(columns, mesh, empty="")]
    return [
        *body,
        Html("<h2>Why does it not arrive?</h2>"),
        why_form({}),
        Html(f"<h2>Clients</h2><p>The busiest {markup.text(count)}: {everybody}</p>"),
        search_form(),
        clients.table(busiest, BUSIEST_FIRST),
        Html("<h2>Packets dropped</h2>"),
        markup.table((Column("reason"), Column("kind"), Column("packets", is_number=True)), drops, empty="None."),
        Html("<h2>Connections ended</h2>"),
        markup.table((Column("reason"), Column("connections", is_number=True)), ended, empty="None."),
    ]


def _workers(relay: Relay, siblings: Siblings) -> list[Html]:
    """Each of several workers; the other numbers of the page are of the one that made it."""
    router = relay.router
    rows = [(siblings.number, len(router.clients), router.counters.packets_received, router.counters.bytes_received)]
    for other in relay.others:
        counted = other.reading["counters"] if other.reading is not None else {}
        received = counted.get("packets_received", 0), counted.get("bytes_received", 0)
        rows.append((other.number, other.connection_count, *received))
    columns = (Column("worker", True), *(Column(name, True) for name in ("connections", "packets in", "bytes in")))
    shown = [tuple(f"{number:,}" for number in row) for row in sorted(rows)]
    text = f"Worker {siblings.number} made this page; clients are those of all, all else is its own."
    return [Html(f"<h2>Workers</h2><p>{markup.text(text)}</p>"), markup.table(columns, shown, empty="")]


def _state(relay: Relay) -> Html:
    """Is it well, in a sentence."""
    if relay.is_draining:
        return Html(f"<p>{markup.state(False, 'draining: this relay is about to stop')}</p>")
    trouble = relay.sessions.admission.problem
    if trouble:
        return Html(f"<p>{markup.state(False, f'admission: {trouble}')}</p>")
    down = [state.name for state in relay.mesh_states() if not state.is_up and not state.is_ourselves]
    if down:
        return Html(f"<p>{markup.state(False, 'not connected to ' + ', '.join(down))}</p>")
    return Html(f"<p>{markup.state(True, 'well')}</p>")


def _numbers(relay: Relay) -> Html:
    router, counters = relay.router, relay.router.counters
    python = ".".join(map(str, sys.version_info[:3]))
    return markup.facts(
        (
            ("key", markup.code(f"nodekey:{router.own_key.hex()}")),
            ("version", f"{__version__}, Python {python}, {ssl.OPENSSL_VERSION}, trio {version('trio')}"),
            ("up", span(relay.host.now - relay.started_at)),
            ("connections", f"{len(router.clients):,}"),
            ("keys with several", f"{router.duplicate_keys:,}"),
            ("home here", f"{router.home_clients:,}"),
            ("not greeted yet", f"{len(relay.sessions.lobby.waiting):,}"),
            ("slow readers now", f"{len(relay.host.blocked):,}"),
            ("packets received", f"{counters.packets_received:,}"),
            ("bytes received", f"{counters.bytes_received:,}"),
        )
    )


def _mesh_line(state: MeshPeerState) -> Html:
    if state.is_ourselves:
        return markup.text("this relay itself")
    if state.is_up and state.route is not None:
        return markup.state(True, f"connected for the {state.connects}. time, {len(state.route.keys)} keys")
    return markup.state(False, f"NOT CONNECTED: {state.trouble or 'being dialled'}")
