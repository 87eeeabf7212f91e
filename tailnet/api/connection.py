"""What a client needs to know before it dials (layer L3): GET .../connection, with and without an agent."""

from fastapi import APIRouter
from starlette.responses import Response

from tailnet.api.answers import GoJsonResponse
from tailnet.api.services import ReadableAgent, Services, ServicesOf, UserOfAgentRoute

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])


@router.get("/connection")
async def connection(services: ServicesOf, user: UserOfAgentRoute) -> Response:
    """Connection info for any agent."""
    return GoJsonResponse(_body(services))


@router.get("/{workspaceagent}/connection")
async def connection_of_agent(services: ServicesOf, agent: ReadableAgent) -> Response:
    """Connection info for one agent: today the same as for any."""
    return GoJsonResponse(_body(services))


def _body(services: Services) -> dict[str, object]:
    config = services.config
    body: dict[str, object] = {
        "derp_map": services.derp_maps.current.map.to_json(),
        "derp_force_websockets": config.derp_force_websockets,
        "disable_direct_connections": config.disable_direct_connections,
    }
    if config.hostname_suffix:
        body["hostname_suffix"] = config.hostname_suffix
    return body
