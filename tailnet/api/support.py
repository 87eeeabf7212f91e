"""What a support bundle takes from a running server (layer L3): /debug/log, /debug/settings, /debug/derp-map.

For operators only, and without secrets all the same: whoever asks for help sends it on.  Collected by
cli/bundle.py together with the other pages for operators.
"""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from derp.log import recent_lines
from tailnet.api.answers import Body
from tailnet.api.connection import DerpMap, derp_map_body
from tailnet.api.guards import OperatorOnly, ServicesOf
from tailnet.api.health import REFUSED
from tailnet.config.shown import shown_settings

_HEADERS: Final = {"cache-control": "no-store"}

router = APIRouter(
    prefix="/debug", dependencies=[OperatorOnly], tags=["debug"], responses={"4XX": REFUSED, "5XX": REFUSED}
)


class SettingsPage(Body):
    """Settings by name."""

    settings: Mapping[str, Any]


@router.get("/log", response_class=PlainTextResponse)
async def log() -> Response:
    """The last lines of this server's log, the oldest first."""
    return PlainTextResponse("".join(f"{line}\n" for line in recent_lines()), headers=_HEADERS)


@router.get("/settings")
async def settings(services: ServicesOf) -> SettingsPage:
    """Every setting as it is in effect; what is secret is masked."""
    return SettingsPage(settings=shown_settings(services.config))


@router.get("/derp-map")
async def derp_map(services: ServicesOf) -> DerpMap:
    """The DERP map that agents and clients get."""
    return derp_map_body(services.derp_maps.current)
