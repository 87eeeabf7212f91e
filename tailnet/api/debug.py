"""The page for the person on call (layer L3): /debug/tailnet, and as JSON with ?format=json.

Who is connected, which tunnels there are, who was told what and when, how the DERP map is doing; `?a=ID&b=ID` says why
A does not know B.  For operators only.  The sentences come from coordinator/explain.py.
"""

import html
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tailnet.api.answers import GoJsonResponse
from tailnet.api.services import OperatorOnly, Services, ServicesOf, query_of
from tailnet.auth.refusals import Refused
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


def _peer_id(query: dict[str, str], name: str) -> PeerID:
    try:
        return PeerID.parse(query.get(name, "").strip().lower())
    except ValueError as error:
        raise Refused(400, "Both a and b have to be peer ids.", f"{name}: {error}") from None


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
    return f'<!doctype html><meta charset="utf-8"><title>Tailnet</title><style>{_STYLE}</style>{"".join(body)}'


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
