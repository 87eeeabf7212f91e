"""What programs on an agent's machine listen on (layer L3): GET /api/v2/workspaceagents/{id}/listening-ports.

For people who want to open one: what is an app already, and what no browser can speak with, is left out.  Next hop:
into_agent.py.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request

from tailnet.api.guards import ReadableAgent, ServicesOf
from tailnet.api.into_agent import LISTED, FromAgent, ask_agent

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])

_PATH: Final = "/api/v0/listening-ports"
FETCHING: Final = "Internal error fetching listening ports."
# Those below are the agent's own.
FIRST_PORT: Final = 9
# FTP, SSH, telnet, mail, DNS, LDAP, databases, remote desktops.
NOT_FOR_BROWSERS: Final = frozenset(
    {20, 21, 22, 23, 25, 53, 110, 143, 179, 389, 465, 587, 636, 989, 990, 993, 995}
    | {3306, 3389, 5432, 27017, 27018, 27019, 28017}
)


class ListeningPort(FromAgent):
    """One port; `process_name` is empty where the agent may not know it."""

    process_name: str = ""
    network: str = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0


class ListeningPorts(FromAgent):
    """All of them."""

    ports: Annotated[Sequence[ListeningPort], LISTED] = ()


@router.get("/{workspaceagent}/listening-ports")
async def listening_ports(request: Request, services: ServicesOf, agent: ReadableAgent) -> ListeningPorts:
    """The ports on which programs of an agent's machine listen."""
    found = await ask_agent(request, agent, _PATH, ListeningPorts, failed=FETCHING, passes_errors=False)
    view = await services.agents.describe(agent.id)
    hidden = NOT_FOR_BROWSERS | app_ports(each.url for each in view.apps) if view is not None else NOT_FOR_BROWSERS
    return ListeningPorts(ports=[each for each in found.ports if each.port >= FIRST_PORT and each.port not in hidden])


def app_ports(urls: Iterable[str]) -> frozenset[int]:
    """The ports that stand in the URLs of apps."""
    found = set()
    for url in urls:
        try:
            port = urlsplit(url).port
        except ValueError:
            continue
        if port is not None:
            found.add(port)
    return frozenset(found)
