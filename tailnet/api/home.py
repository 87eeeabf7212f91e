"""`/` of a coordinator (layer L3): a page for whoever comes by with a browser.  pages.py makes it."""

from typing import Final

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from tailnet.api.guards import ServicesOf
from tailnet.api.health import REFUSED
from tailnet.api.pages import front_html

# Nothing on it runs or loads anything.
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}

router = APIRouter(tags=["health"], responses={"4XX": REFUSED, "5XX": REFUSED})


@router.head("/", include_in_schema=False)
@router.get("/", response_class=HTMLResponse)
async def home(services: ServicesOf) -> Response:
    """What this is, whether it is well, and where to look."""
    return HTMLResponse(front_html(services.inspection.not_ready()), headers=_HEADERS)
