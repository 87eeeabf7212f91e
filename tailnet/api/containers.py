"""Containers on an agent's machine (layer L3): GET .../containers, POST .../containers/devcontainers/{id}/recreate.

The agent knows, and does it; its errors are passed on.  `label` leaves those containers out that have not all of the
labels asked for.  Next hop: into_agent.py.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.requests import Request

from tailnet.api.answers import OmitEmpty
from tailnet.api.guards import ChangeableAgent, ReadableAgent
from tailnet.api.into_agent import LISTED, MAPPED, FromAgent, ask_agent
from tailnet.refusals import Refused

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])

FETCHING: Final = "Internal error fetching containers."
RECREATING: Final = "Internal error recreating devcontainer."
CONTAINERS_PATH: Final = "/api/v0/containers"
_NO_ID: Final = UUID(int=0)
_NO_TIME: Final = "0001-01-01T00:00:00Z"
_Port = Annotated[int, Field(ge=0, le=65535)]


class ContainerPort(FromAgent):
    """A port of a container, and where it is on the machine, if it is."""

    port: _Port = 0
    network: str = ""
    host_ip: OmitEmpty[str] = ""
    host_port: OmitEmpty[_Port] = 0


class Container(FromAgent):
    """One container."""

    created_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] = _NO_TIME
    id: str = ""
    name: str = ""
    image: str = ""
    labels: Annotated[Mapping[str, str], MAPPED] = {}
    running: bool = False
    ports: Annotated[Sequence[ContainerPort], LISTED] = ()
    status: str = ""
    volumes: Annotated[Mapping[str, str], MAPPED] = {}


class DevcontainerAgent(FromAgent):
    """The agent inside a devcontainer."""

    id: UUID = _NO_ID
    name: str = ""
    directory: str = ""


class Devcontainer(FromAgent):
    """One devcontainer."""

    id: UUID = _NO_ID
    name: str = ""
    workspace_folder: str = ""
    config_path: OmitEmpty[str] = ""
    subagent_id: UUID | None = None
    status: str = ""
    dirty: bool = False
    container: OmitEmpty[Container | None] = None
    agent: OmitEmpty[DevcontainerAgent | None] = None
    error: OmitEmpty[str] = ""


class Containers(FromAgent):
    """All of them, and what the agent could not find out."""

    devcontainers: Sequence[Devcontainer] | None = None
    containers: Annotated[Sequence[Container], LISTED] = ()
    warnings: OmitEmpty[Annotated[Sequence[str], LISTED]] = ()


class Remark(FromAgent):
    """What an agent has to say to a field."""

    field: str = ""
    detail: str = ""


class Accepted(FromAgent):
    """What the agent does now."""

    message: str = ""
    detail: OmitEmpty[str] = ""
    validations: OmitEmpty[Annotated[Sequence[Remark], LISTED]] = ()


@router.get("/{workspaceagent}/containers")
async def containers(
    request: Request,
    agent: ReadableAgent,
    label: Annotated[list[str] | None, Query(description="key=value that a container must have; may repeat")] = None,
) -> Containers:
    """The containers on an agent's machine."""
    wanted = parse_labels(label or ())
    found = await ask_agent(request, agent, CONTAINERS_PATH, Containers, failed=FETCHING)
    kept = [each for each in found.containers if wanted.items() <= each.labels.items()]
    return found.model_copy(update={"containers": kept})


def parse_labels(texts: Sequence[str]) -> Mapping[str, str]:
    """The labels asked for.  Raises Refused."""
    found: dict[str, str] = {}
    for text in texts:
        parts = text.split("=")
        if len(parts) != 2:
            raise Refused(400, "Invalid label format", "Labels must be in the format key=value")
        found[parts[0]] = parts[1]
    return found


@router.post("/{workspaceagent}/containers/devcontainers/{devcontainer}/recreate", status_code=202)
async def recreate(
    request: Request,
    agent: ChangeableAgent,
    devcontainer: Annotated[str, Path(description="Devcontainer ID", min_length=1, max_length=128)],
) -> Accepted:
    """Begin to build a devcontainer anew."""
    path = f"{CONTAINERS_PATH}/devcontainers/{quote(devcontainer, safe='')}/recreate"
    return await ask_agent(request, agent, path, Accepted, "POST", failed=RECREATING)
