"""POST /api/v2/auth/changed: the control plane says that who may do what is another matter now (layer L3).

Its signature proves who calls, made as this server's own questions are signed (auth/call_out_wire.py).  What it had
answered before is forgotten, and everybody whom it vouched for is asked about anew: auth/call_out.py.
"""

import time
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tailnet import refusals
from tailnet.api.bodies import read_body
from tailnet.api.guards import ServicesOf, headers_of
from tailnet.auth.call_out_wire import is_signed

router = APIRouter(prefix="/api/v2/auth", tags=["auth"])

# Whatever it says, it is `{}` today.
MAX_BODY_BYTES: Final = 64 * 1024


@router.post("/changed", status_code=204, response_class=Response)
async def changed(services: ServicesOf, asked: Request) -> Response:
    """Ask the control plane anew about everybody whom it vouched for."""
    if services.forget_answers is None:
        raise refusals.route_not_found()
    body = await read_body(asked, MAX_BODY_BYTES)
    if not is_signed(services.config.auth_secret, headers_of(asked), body, time.time()):
        raise refusals.not_signed()
    services.forget_answers()
    return Response(status_code=204)
