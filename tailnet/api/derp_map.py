"""The DERP map as a stream (layer L3): GET /api/v2/derp-map, a websocket.

Binary messages, each one map as JSON and a newline: the first at once, then one per change.  Hypercorn pings; nothing
is expected from the client, and whatever it sends is dropped.  Ends with 1001 when the server leaves, with 1008 when
the caller's token is withdrawn.
"""

from typing import Final

import trio
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from tailnet import refusals
from tailnet.api.authorise import check_origin
from tailnet.api.guards import ServicesOf, User, headers_of, token_of

GOING_AWAY: Final = 1001
POLICY_VIOLATION: Final = 1008

router = APIRouter(prefix="/api/v2", tags=["tailnet"])


@router.get("/derp-map", include_in_schema=False)
async def derp_map_without_upgrade(user: User) -> None:
    """A request that lost its upgrade on the way is told so."""
    raise refusals.upgrade_missing()


@router.websocket("/derp-map")
async def derp_map(websocket: WebSocket, services: ServicesOf, user: User) -> None:
    check_origin(headers_of(websocket), services.access_url)
    await websocket.accept()

    async def send_maps() -> None:
        published = services.derp_maps.current
        while True:
            await websocket.send_bytes(published.json)
            # A client that reads slowly skips versions: only the newest map is of use.
            published = await services.derp_maps.wait_changed(published.version)

    async def watch_client(scope: trio.CancelScope) -> None:
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass
        scope.cancel()

    async def watch_token(scope: trio.CancelScope) -> None:
        await services.callers.wait_withdrawn(token_of(websocket))
        await websocket.close(POLICY_VIOLATION, "authorization withdrawn")
        scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_maps)
            nursery.start_soon(watch_client, nursery.cancel_scope)
            nursery.start_soon(watch_token, nursery.cancel_scope)
            await services.closing.wait()
            await websocket.close(GOING_AWAY, "canceled")
            nursery.cancel_scope.cancel()
    except* WebSocketDisconnect:
        pass  # it left while a map was on its way
