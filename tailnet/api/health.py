"""Is it alive, should it get requests, and its numbers (layer L3): /healthz, /readyz, /metrics.

The first two are for load balancers, which may ask by HEAD, and say little, so they are open; /metrics is for
operators only.
"""

from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from tailnet.api.answers import refusal_response
from tailnet.api.guards import OperatorOnly, ServicesOf
from tailnet.refusals import Refused

METRICS_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# For the schema, which would otherwise take refusals for plain text too.
REFUSED: Final[dict[str, Any]] = {
    "description": "Refused, and why",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}},
}

router = APIRouter(tags=["health"], responses={"4XX": REFUSED, "5XX": REFUSED})


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> Response:
    """200 for as long as the process answers at all."""
    return PlainTextResponse("OK\n")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_class=PlainTextResponse)
async def readyz(services: ServicesOf) -> Response:
    """200 when requests should come here, else 503 with the reasons."""
    reasons = services.inspection.not_ready()
    if reasons:
        return refusal_response(Refused(503, "Not ready.", "; ".join(reasons)))
    return PlainTextResponse("OK\n")


@router.get("/metrics", dependencies=[OperatorOnly], response_class=PlainTextResponse)
async def metrics(services: ServicesOf) -> Response:
    """Numbers in Prometheus' text format."""
    return Response(services.metrics(), media_type=METRICS_CONTENT_TYPE)
