"""The operator's pages of the parts below the API (layer L3): /debug/ and what it links to.

/debug/why, /debug/clients, /debug/check and the rest are what derp/server/debug.py makes of the embedded relay; they
answer here to whoever may see /debug/tailnet: by address, or with an administrator's token.
"""

import platform
import ssl
from importlib.metadata import version
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from derp.server.pages import Question, read_query
from tailnet.api.guards import OperatorOnly, ServicesOf
from tailnet.api.health import REFUSED
from tailnet.api.pages import index_html
from tailnet.refusals import Refused
from tailnet.services.why import SlowQuestion

# As the relay sends them with its own pages: nothing on them runs, loads or is kept.
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
}
# What other resources answer.
_OTHERS: Final = {
    "/debug/tailnet": "peers, tunnels and the DERP map",
    "/health?format=text": "what is wrong, and what to do",
    "/metrics": "metrics",
    "/debug/log": "the log's last lines",
    "/debug/settings": "the settings in effect, without secrets",
    "/debug/derp-map": "the DERP map that peers get, JSON",
    "/api/v2/openapi.json": "the API",
}

router = APIRouter(
    prefix="/debug", dependencies=[OperatorOnly], tags=["debug"], responses={"4XX": REFUSED, "5XX": REFUSED}
)


@router.get("", include_in_schema=False)
async def without_slash() -> Response:
    """Where people arrive who leave the last character out."""
    return RedirectResponse("/debug/", 302)


@router.get("/", response_class=HTMLResponse)
async def index(services: ServicesOf) -> Response:
    """All pages for operators, what runs here, and whether it is well."""
    titles = _OTHERS | {path: each.title for path, each in services.pages.items()}
    versions = (("Python", platform.python_version()), ("OpenSSL", ssl.OPENSSL_VERSION), ("trio", version("trio")))
    return HTMLResponse(index_html(titles, versions, services.inspection.not_ready()), headers=_HEADERS)


@router.get("/{name:path}", response_class=PlainTextResponse)
async def page(name: str, request: Request, services: ServicesOf) -> Response:
    """One page of the relay, or why something does not arrive."""
    found = services.pages.get(f"/debug/{name}")
    if found is None:
        raise Refused(404, "There is no such page.", "There are: " + ", ".join(sorted({*services.pages, *_OTHERS})))
    if isinstance(found, Question | SlowQuestion):
        asked = read_query(request.scope.get("query_string", b"").decode("latin-1"))
        if asked is None:
            raise Refused(400, "The query has too many parts.")
        reply = found.reply(asked) if isinstance(found, Question) else await found.reply(asked)
        return Response(reply.body, reply.status, media_type=reply.content_type, headers=_HEADERS)
    body = found.render()
    return Response(body, 500 if found.is_fault(body) else 200, media_type=found.content_type, headers=_HEADERS)
