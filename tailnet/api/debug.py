"""The page for the person on call (layer L3): /debug/tailnet, and as JSON with ?format=json.

Who is connected, which tunnels there are, who was told what and when, how the DERP map is doing; `?a=ID&b=ID` says why
A does not know B.  /debug/agent?id=ID is what one agent reported.  For operators only.  The sentences come from
coordinator/explain.py.
"""

import html
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tailnet.api.answers import GoJsonResponse
from tailnet.api.services import OperatorOnly, Services, ServicesOf, query_of
from tailnet.refusals import Refused
from tailnet.store.rows import AgentRow, AgentStatus, ConnectionReport, Definitions
from tailnet.types import PeerID

# More rows than anybody reads; the page says how many there are.
MAX_ROWS: Final = 1_000
# Ids named in one cell.
MAX_IDS: Final = 20

_STYLE: Final = (
    "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}"
    "input{width:24em}.bad{color:#b00}"
)
# Nothing on the page runs or loads anything, whatever names peers gave themselves.
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
}

router = APIRouter(prefix="/debug", dependencies=[OperatorOnly], tags=["debug"])


@router.get("/tailnet")
async def tailnet(request: Request, services: ServicesOf) -> Response:
    """Who is connected, tunnels, last updates, and why not."""
    query = query_of(request)
    picture = _picture(services)
    if "a" in query or "b" in query:
        picture["explanation"] = services.tailnet.explain(_peer_id(query, "a"), _peer_id(query, "b"))
    if query.get("format") == "json":
        return GoJsonResponse(picture, headers=_HEADERS)
    return HTMLResponse(_page(picture, query.get("a", ""), query.get("b", "")), headers=_HEADERS)


@router.get("/agent")
async def agent(request: Request, services: ServicesOf) -> Response:
    """One agent: what it said when it started, who was on it, what its scripts and apps did."""
    query, store = query_of(request), services.store
    agent_id = _peer_id(query, "id")
    row = await store.run(store.get_agent, agent_id)
    if row is None:
        raise Refused(404, "There is no such agent.", str(agent_id))
    status = row.status(services.clock(), services.config.inactive_seconds)
    connections = await store.run(store.list_connections, agent_id)
    picture = _agent_picture(row, status, connections, await store.run(store.definitions, agent_id))
    if query.get("format") == "json":
        return GoJsonResponse(picture, headers=_HEADERS)
    return HTMLResponse(_agent_page(picture), headers=_HEADERS)


def _agent_picture(
    row: AgentRow, status: AgentStatus, connections: Sequence[ConnectionReport], definitions: Definitions
) -> dict[str, Any]:
    shown = {
        "id": str(row.id),
        "name": row.name,
        "workspace_id": str(row.workspace_id),
        "parent_id": str(row.parent_id) if row.parent_id is not None else None,
        "status": status.value,
        "lifecycle": row.lifecycle_state.name,
        "version": row.version,
        "api_version": row.api_version,
        "expanded_directory": row.expanded_directory,
        "subsystems": list(row.subsystems),
        "logs_bytes": row.logs_bytes,
        "logs_overflowed": row.logs_overflowed,
    }
    times = ("first_connected_at", "last_connected_at", "disconnected_at", "started_at", "ready_at")
    shown |= {name: _plain(getattr(row, name)) for name in times}
    runs = [
        {"script": script.definition["display_name"], **_plain(asdict(run))}
        for script in definitions.scripts
        for run in script.runs
    ]
    apps = [
        {
            "slug": app.definition["slug"],
            "health": app.health.name,
            "said": [f"{each.created_at} {each.state.name}: {each.message}" for each in app.statuses],
        }
        for app in definitions.apps
    ]
    connected = [_plain(asdict(each)) for each in connections]
    for each in connected:
        del each["agent_id"]
    return {"agent": shown, "connections": connected, "apps": apps, "script_runs": runs}


def _agent_page(picture: dict[str, Any]) -> str:
    shown = picture["agent"]
    body = [
        f"<h1>Agent {html.escape(shown['name'])}</h1>",
        _table([{"what": name.replace("_", " "), "value": value} for name, value in shown.items()], ""),
        "<h2>Who was on it, by its own account</h2>",
        _table(picture["connections"], "It reported no session."),
        "<h2>Apps</h2>",
        _table(picture["apps"], "It has none."),
        "<h2>What its scripts did</h2>",
        _table(picture["script_runs"], "None has run."),
        f'<p><a href="?id={shown["id"]}&amp;format=json">as JSON</a>, <a href="tailnet">everybody</a></p>',
    ]
    return _document(f"Agent {shown['name']}", body)


def _peer_id(query: dict[str, str], name: str) -> PeerID:
    try:
        return PeerID.parse(query.get(name, "").strip().lower())
    except ValueError as error:
        message = "id has to be an agent's." if name == "id" else "Both a and b have to be peer ids."
        raise Refused(400, message, f"{name}: {error}") from None


def _picture(services: Services) -> dict[str, Any]:
    snapshot = services.tailnet.snapshot()
    published = services.derp_maps.current
    return {
        "peers_count": len(snapshot.peers),
        "connected_count": sum(peer.connected for peer in snapshot.peers),
        "peers": [_plain(asdict(peer)) for peer in snapshot.peers[:MAX_ROWS]],
        "departures": [
            {
                "peer_id": str(each.peer_id),
                "left_seconds": round(services.tailnet.now() - each.at, 1),
                "kind": each.kind.name,
                "reason": each.reason,
                "refusal": each.refusal,
            }
            for each in snapshot.departures[:MAX_ROWS]
        ],
        "derp_map": {
            "version": published.version,
            "regions": [
                {"id": each.region_id, "code": each.region_code, "name": each.region_name, "avoid": each.avoid}
                for each in published.map.regions.values()
            ],
            "warnings": list(published.warnings),
            "sources": [_plain(asdict(status)) for status in services.derp_maps.statuses],
        },
        "not_ready": list(services.not_ready()),
    }


def _plain(value: Any) -> Any:
    """Ids and times as JSON can carry them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, PeerID):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 1)
    if isinstance(value, Enum):
        return value.name
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _page(picture: dict[str, Any], a: str, b: str) -> str:
    body = ["<h1>Tailnet</h1>"]
    if picture["not_ready"]:
        body.append(f"<p class=bad>Not ready: {html.escape('; '.join(picture['not_ready']))}</p>")
    body.append(
        "<form><p>Why does A not know B? "
        f'<input name=a placeholder="A: a peer id" value="{html.escape(a)}"> '
        f'<input name=b placeholder="B: a peer id" value="{html.escape(b)}"> '
        "<button>Explain</button></p></form>"
        '<form action=agent><p>What did an agent report? <input name=id placeholder="an agent\'s id"> '
        "<button>Show</button></p></form>"
    )
    if "explanation" in picture:
        body.append("<ul>" + "".join(f"<li>{html.escape(each)}</li>" for each in picture["explanation"]) + "</ul>")
    derp_map = picture["derp_map"]
    body.append(f"<h2>DERP map, version {derp_map['version']}</h2>")
    body += [f"<p class=bad>{html.escape(each)}</p>" for each in derp_map["warnings"]]
    body.append(_table(derp_map["regions"], "There are no regions."))
    body.append(_table(derp_map["sources"], "It has no sources beside the embedded relay."))
    body.append(f"<h2>{picture['connected_count']} connected of {picture['peers_count']} known</h2>")
    body.append(_table(picture["peers"], "Nobody is here."))
    body.append("<h2>Last who left</h2>")
    body.append(_table(picture["departures"], "Nobody has left."))
    body.append('<p><a href="?format=json">as JSON</a></p>')
    return _document("Tailnet", body)


def _document(title: str, body: Sequence[str]) -> str:
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return head + "".join(body)


def _table(rows: Sequence[dict[str, Any]], nothing: str) -> str:
    if not rows:
        return f"<p>{nothing}</p>"
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in rows[0])
    lines = ("".join(f"<td>{_cell(value)}</td>" for value in row.values()) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        more = f"<br>and {len(value) - MAX_IDS} more" if len(value) > MAX_IDS else ""
        return "<br>".join(html.escape(str(each)) for each in value[:MAX_IDS]) + more
    return html.escape(str(value))
