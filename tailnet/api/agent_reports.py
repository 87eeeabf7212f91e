"""What agents report over HTTP (layer L3): below /api/v2/workspaceagents/me, where they POST and PATCH.

Newer agents say the same over their RPC connection.  Both spellings of older and newer bodies are read; answers and
refusals are the reference's, `null` included.  Next hop: services/agent_requests.py.
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import AliasChoices, Field
from starlette.requests import Request

from tailnet.api.answers import Body, GoTime, Null
from tailnet.api.bodies import Sent, parse_body, read_body, takes
from tailnet.api.guards import ReportingAgent, Services, ServicesOf
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.refusals import Refused, Validation, too_many_reports
from tailnet.services.agent_requests import Connections
from tailnet.store.rows import AgentIdentity, AppHealth, AppState

router = APIRouter(prefix="/api/v2/workspaceagents/me", tags=["agents"])

M = TypeVar("M", bound=Sent)

# The reference's number for what an app says it does, in bytes; the other bounds a row.
MAX_STATUS_BYTES: Final = 160
MAX_URI_CHARS: Final = 4096
MAX_NAME_CHARS: Final = 256
_NOBODY: Final = UUID(int=0)
_REPORTED: Final = {
    each.name.lower(): each for each in (AppHealth.INITIALIZING, AppHealth.HEALTHY, AppHealth.UNHEALTHY)
}
_STATES: Final = {each.name.lower(): each for each in AppState}
_LEVELS: Final = {
    "": agent.Log.INFO,
    **{name.lower(): number for name, number in agent.Log.Level.items() if number != agent.Log.LEVEL_UNSPECIFIED},
}
_WRONG_HEALTH: Final = "Error setting workspace app health"


def _one_of(values: Iterable[str]) -> Callable[[dict[str, Any]], None]:
    """What the description says of a text that is looked at later, where refusals are the reference's."""

    def tell(schema: dict[str, Any]) -> None:
        schema.pop("default", None)
        schema["enum"] = [value for value in values if value]

    return tell


def report_of(model: type[M]) -> Callable[..., Awaitable[M]]:
    """What to give to Depends: reads the body as `model`, and charges the agent's account for it, whatever it is."""

    async def read(request: Request, services: ServicesOf, caller: ReportingAgent) -> M:
        content = await read_body(request)
        wait_seconds = await services.requests.pay(caller, len(content))
        if wait_seconds:
            raise too_many_reports(math.ceil(wait_seconds))
        return parse_body(model, content)

    return read


class Healths(Sent):
    """How apps are, by their id: initializing, healthy or unhealthy."""

    healths: dict[UUID, Annotated[str, Field(json_schema_extra=_one_of(_REPORTED))]] = Field(
        default={}, validation_alias=AliasChoices("healths", "Healths")
    )


class Status(Sent):
    """What an app says it does.  `icon` and `needs_user_attention` are of older agents and are not kept."""

    app_slug: str
    state: str = Field(default="", json_schema_extra=_one_of(_STATES))
    message: str = ""
    uri: str = ""


class NewLogSource(Sent):
    """Where lines will come from."""

    id: UUID
    display_name: str = Field(max_length=MAX_NAME_CHARS)
    icon: str = Field(default="", max_length=MAX_URI_CHARS)


class LogSourceAdded(Body):
    """A source of log lines."""

    workspace_agent_id: UUID
    id: UUID
    created_at: GoTime
    display_name: str
    icon: str


class Line(Sent):
    """One line.  `created_at` is the agent's clock and is not kept: the server's counts."""

    created_at: datetime | None = None
    output: str = ""
    level: str = Field(default="", json_schema_extra=_one_of(_LEVELS))


class Lines(Sent):
    """Lines of one source; without one they are from outside."""

    log_source_id: UUID = _NOBODY
    logs: Sequence[Line] = ()


class Stats(Sent):
    """Connections since the last report, as older and newer agents spell it."""

    connections_by_proto: dict[str, int] | None = Field(
        default=None, validation_alias=AliasChoices("connections_by_proto", "conns_by_proto")
    )
    connection_count: int = Field(default=0, validation_alias=AliasChoices("connection_count", "num_comms"))
    connection_median_latency_ms: float = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    session_count_vscode: int = 0
    session_count_jetbrains: int = 0
    session_count_reconnecting_pty: int = 0
    session_count_ssh: int = 0
    metrics: list[dict[str, Any]] | None = None

    def only_asks(self) -> bool:
        """Whether it reports nothing and only asks for the interval, in the old way or in the new."""
        return self.connections_by_proto is None or (not self.rx_bytes and not self.tx_bytes)


class StatsTaken(Body):
    """When to report again, in nanoseconds."""

    report_interval: int


@router.post("/app-health", response_model=Null, openapi_extra=takes(Healths))
async def app_health(
    services: ServicesOf, caller: ReportingAgent, sent: Annotated[Healths, Depends(report_of(Healths))]
) -> None:
    """Say how apps are.  All are checked before any is taken."""
    if not sent.healths:
        raise Refused(400, "Health field is empty")
    wrong = next((state for state in sent.healths.values() if state not in _REPORTED), None)
    if wrong is not None:
        raise Refused(400, _WRONG_HEALTH, f"workspace app health state {wrong[:64]!r} is invalid")
    problem = await services.requests.set_healths(
        caller, {app_id: _REPORTED[state] for app_id, state in sent.healths.items()}
    )
    if problem:
        raise Refused(404, _WRONG_HEALTH, problem)


@router.patch("/app-status", response_model=Null, openapi_extra=takes(Status))
async def app_status(
    services: ServicesOf, caller: ReportingAgent, sent: Annotated[Status, Depends(report_of(Status))]
) -> None:
    """Say what an app does: working, idle, complete or failure."""
    if len(sent.message.encode("utf-8", "replace")) > MAX_STATUS_BYTES:
        text = f"Message must be less than {MAX_STATUS_BYTES} characters."
        raise Refused(400, "Message is too long.", validations=(Validation("message", text),))
    if len(sent.uri) > MAX_URI_CHARS:
        text = f"URI must be less than {MAX_URI_CHARS} characters."
        raise Refused(400, "URI is too long.", validations=(Validation("uri", text),))
    if sent.state not in _STATES:
        raise Refused(400, "Failed to parse request.", f"the state is one of {', '.join(_STATES)}")
    if not await services.requests.add_status(caller, sent.app_slug, _STATES[sent.state], sent.message, sent.uri):
        raise Refused(400, "Failed to get workspace app.", f'No app found with slug "{sent.app_slug[:64]}"')


@router.post("/log-source", status_code=201, openapi_extra=takes(NewLogSource))
async def log_source(
    services: ServicesOf, caller: ReportingAgent, sent: Annotated[NewLogSource, Depends(report_of(NewLogSource))]
) -> LogSourceAdded:
    """Announce a source of log lines; doing so twice is no conflict, agents do at each start."""
    source = await services.requests.add_log_source(caller, sent.id, sent.display_name, sent.icon)
    return LogSourceAdded(
        workspace_agent_id=UUID(bytes=caller.id),
        id=source.id,
        created_at=source.created_at,
        display_name=source.display_name,
        icon=source.icon,
    )


@router.patch("/logs", response_model=Null, openapi_extra=takes(Lines))
async def logs(services: ServicesOf, caller: ReportingAgent, sent: Annotated[Lines, Depends(report_of(Lines))]) -> None:
    """Add log lines; over the limit of all lines of an agent none of the batch is taken."""
    if not sent.logs:
        raise Refused(400, "No logs provided.")
    wrong = next((line.level for line in sent.logs if line.level not in _LEVELS), None)
    if wrong is not None:
        raise Refused(400, "Invalid log level provided.", f'invalid log level: "{wrong[:64]}"')
    lines = [(int(_LEVELS[line.level]), line.output) for line in sent.logs]
    if services.requests.note_logs(caller, sent.log_source_id, lines):
        raise Refused(413, "Logs limit exceeded")


@router.post("/report-stats", openapi_extra=takes(Stats))
async def report_stats(
    services: ServicesOf, caller: ReportingAgent, sent: Annotated[Stats, Depends(report_of(Stats))]
) -> StatsTaken:
    """Report connections, or ask only how often to."""
    note_stats(services, caller, sent)
    return StatsTaken(report_interval=round(services.config.stats_interval_seconds * 1_000_000_000))


def note_stats(services: Services, caller: AgentIdentity, sent: Stats) -> None:
    """Take a report, if it is one."""
    if not sent.only_asks():
        services.requests.note_connections(
            caller, Connections(sent.connection_count, sent.rx_bytes, sent.tx_bytes, sent.model_dump())
        )
