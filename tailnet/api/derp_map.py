"""The DERP map as a stream (layer L3): GET /api/v2/derp-map, a websocket.

Binary messages, each one map as JSON and a newline: the first at once, then one per change.  How it ends is in
api/streams.py, which follows the feed of services/derp_maps.py.
"""

from fastapi import APIRouter, WebSocket

from tailnet import refusals
from tailnet.api.authorise import check_origin
from tailnet.api.guards import ServicesOf, User, headers_of, token_of
from tailnet.api.streams import send_feed, user_permit

router = APIRouter(prefix="/api/v2", tags=["tailnet"])


@router.get("/derp-map", include_in_schema=False)
async def derp_map_without_upgrade(user: User) -> None:
    """A request that lost its upgrade on the way is told so."""
    raise refusals.upgrade_missing()


@router.websocket("/derp-map")
async def derp_map(websocket: WebSocket, services: ServicesOf, user: User) -> None:
    check_origin(headers_of(websocket), services.access_url, services.config.cors_origins)
    token = token_of(websocket)
    await send_feed(
        websocket,
        services.derp_maps.feed,
        # A client that reads slowly skips versions: only the newest map is of use.
        lambda events: events[-1].value.json,
        user_permit(services.callers, token),
    )
