"""HTML of the operators' pages (layer L3): tables of what api/debug.py gives as JSON.

The look, and that names which peers gave themselves cannot bite, is derp/server/markup.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from derp.server import markup
from derp.server.markup import Column, Html
from tailnet import __version__

# Ids named in one cell.
MAX_IDS: Final = 20
# What stands above all pages for operators.
OPERATORS_PLACES: Final = (("/debug/", "all pages"), ("/debug/tailnet", "tailnet"))
_BRAND: Final = "tailnet"
# What is text for programs, and a page for people.
_AS_PAGES: Final = {"/debug/why": "/debug/why?format=html"}
_NUMBERS: Final = frozenset(
    {"connected_seconds", "updated_seconds", "left_seconds", "preferred_derp", "node_bytes"}
) | {*("overtaken_count", "failures", "id", "exit_code", "status_code")}
# Columns of peers that can be sorted; the rest are lists of ids.
PEER_SORTS: Final = (
    *("peer_id", "connected", "policy", "connected_seconds", "updated_seconds", "preferred_derp", "node_bytes"),
    *("overtaken_count", "tunnels_to", "tunnels_from", "told"),
)


def index_html(titles: Mapping[str, str], versions: Sequence[tuple[str, object]], well: Sequence[str]) -> bytes:
    """/debug/: is it well, what runs here, all pages.  `titles`: by path; `well`: why it is not."""
    body = (
        Html("<h1>For operators</h1>"),
        Html(f"<p>{markup.state(not well, 'not ready: ' + '; '.join(well) if well else 'well')}</p>"),
        markup.facts([("version", __version__), *versions]),
        Html("<h2>Pages</h2>"),
        markup.facts([(path, markup.link(_AS_PAGES.get(path, path), title)) for path, title in sorted(titles.items())]),
    )
    return markup.document("tailnet: for operators", body, brand=_BRAND, places=OPERATORS_PLACES, here="/debug/")


def tailnet_html(page: Mapping[str, Any], a: str, b: str, *, find: str = "", sort: str = "") -> bytes:
    """Everybody, with a form for the question why A does not know B.  `page`: a TailnetPage as JSON; `find` and `sort`
    as they were asked for."""
    body = [Html("<h1>Tailnet</h1>")]
    if page["not_ready"]:
        body.append(Html(f"<p>{markup.state(False, 'Not ready: ' + '; '.join(page['not_ready']))}</p>"))
    ids = (markup.field("a", "A", a, hint="a peer id"), markup.field("b", "B", b, hint="a peer id"))
    agent = (markup.field("id", "an agent", hint="its id"),)
    body += [Html("<h2>Why does A not know B?</h2>"), markup.form("tailnet", ids, "Explain")]
    if "explanation" in page:
        lines = "".join(f"<li>{markup.text(each)}</li>" for each in page["explanation"])
        body.append(Html(f"<ul>{lines}</ul>"))
    body += [Html("<h2>What did an agent report?</h2>"), markup.form("agent", agent, "Show")]
    derp_map = page["derp_map"]
    body.append(Html(f"<h2>DERP map, version {markup.text(derp_map['version'])}</h2>"))
    body += [Html(f"<p>{markup.state(False, each)}</p>") for each in derp_map["warnings"]]
    body.append(_table(derp_map["regions"], "There are no regions."))
    body.append(_table(derp_map["sources"], "It has no sources beside the embedded relay."))
    count = f"{page['connected_count']} connected of {page['peers_count']} known"
    searched = (
        markup.field("find", "part of an id, or a kind (agent, client)", find),
        markup.choice("sort", "sorted by", _sort_names(), sort or "peer_id"),
    )
    body += [Html(f"<h2>{markup.text(count)}</h2>"), markup.form("tailnet", searched, "Find")]
    if find:
        body.append(Html(f"<p>With {markup.text(find)}: {markup.text(page['found_count'])}.</p>"))
    body.append(_table(page["peers"], "Nobody is here." if not find else "Nobody.", find=find, sort=sort))
    body += [Html("<h2>Last who left</h2>"), _table(page["departures"], "Nobody has left.")]
    body.append(Html(f"<p>{markup.link(markup.query('', find=find, sort=sort, format='json'), 'as JSON')}</p>"))
    return markup.document("Tailnet", body, brand=_BRAND, places=OPERATORS_PLACES, here="/debug/tailnet")


def agent_html(page: Mapping[str, Any]) -> bytes:
    """One agent.  `page`: an AgentPage as JSON."""
    shown = page["agent"]
    body = (
        Html(f"<h1>Agent {markup.text(shown['name'])}</h1>"),
        markup.facts([(name.replace("_", " "), _cell(value)) for name, value in shown.items()]),
        Html("<h2>Who was on it, by its own account</h2>"),
        _table(page["connections"], "It reported no session."),
        Html("<h2>Apps</h2>"),
        _table(page["apps"], "It has none."),
        Html("<h2>What its scripts did</h2>"),
        _table(page["script_runs"], "None has run."),
        Html(f"<p>{markup.link(markup.query('', id=shown['id'], format='json'), 'as JSON')}</p>"),
    )
    return markup.document(f"Agent {shown['name']}", body, brand=_BRAND, places=OPERATORS_PLACES)


def _sort_names() -> dict[str, str]:
    names = {name: name.replace("_", " ") for name in PEER_SORTS}
    return names | {f"-{name}": f"{shown}, most first" for name, shown in names.items() if name in _NUMBERS}


def _table(rows: Sequence[Mapping[str, Any]], nothing: str, *, find: str = "", sort: str | None = None) -> Html:
    """With `sort` the names of columns are links that sort."""
    names = list(rows[0]) if rows else []
    columns = [
        Column(
            name.replace("_", " "), name in _NUMBERS, *(_sorted_by(name, find, sort) if sort is not None else ("", ""))
        )
        for name in names
    ]
    return markup.table(columns, [[_cell(value) for value in row.values()] for row in rows], empty=nothing)


def _sorted_by(name: str, find: str, sort: str) -> tuple[str, str]:
    if name not in PEER_SORTS:
        return "", ""
    is_sorted, is_down = sort.removeprefix("-") == name, sort.startswith("-")
    order = (name if is_down else f"-{name}") if is_sorted else f"-{name}" if name in _NUMBERS else name
    mark = ("\N{BLACK DOWN-POINTING TRIANGLE}" if is_down else "\N{BLACK UP-POINTING TRIANGLE}") if is_sorted else ""
    return markup.query("tailnet", find=find, sort=order), mark


def _cell(value: Any) -> Html:
    if value is None:
        return Html("-")
    if isinstance(value, list):
        more = f"<br>and {len(value) - MAX_IDS} more" if len(value) > MAX_IDS else ""
        return Html("<br>".join(markup.text(each) for each in value[:MAX_IDS]) + more)
    if isinstance(value, bool):
        return Html("yes" if value else "no")
    return markup.text(value)
