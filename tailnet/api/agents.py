"""One agent as its owner sees it (layer L3): GET /api/v2/workspaceagents/{id}.

The body is the API's WorkspaceAgent, key by key.  What a control plane knows and we do not (resource, troubleshooting
URL, display apps) has its empty value.  Rows come from store/, latencies from the agent's last node.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from fastapi import APIRouter
from google.protobuf.message import DecodeError
from starlette.responses import Response

from derp.map import DERPMap
from tailnet import refusals
from tailnet.api.answers import GoJsonResponse
from tailnet.api.services import ReadableAgent, ServicesOf
from tailnet.go_json import go_time
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.store.rows import AgentRow, AgentStatus, App, Definitions, LifecycleState, LogSource, Script

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])

# Resources are the control plane's; an id that is none is the only honest one.
_NO_ID: Final = "00000000-0000-0000-0000-000000000000"
# Of an app.
_OMITTED_WHEN_EMPTY: Final = frozenset({"command", "icon", "subdomain_name"})
_LEAVING: Final = frozenset(
    {
        LifecycleState.SHUTTING_DOWN,
        LifecycleState.SHUTDOWN_TIMEOUT,
        LifecycleState.SHUTDOWN_ERROR,
        LifecycleState.OFF,
    }
)
_ABSENT: Final = {
    AgentStatus.CONNECTING: "agent has not yet connected",
    AgentStatus.TIMEOUT: "agent is taking too long to connect",
    AgentStatus.DISCONNECTED: "agent has lost connection",
}


@router.get("/{workspaceagent}")
async def workspace_agent(services: ServicesOf, agent: ReadableAgent) -> Response:
    """Everything that is known of an agent."""
    store = services.store
    row = await store.run(store.get_agent, agent.id)
    if row is None:
        raise refusals.agent_not_found()
    sources = await store.run(store.list_log_sources, agent.id)
    definitions = await store.run(store.definitions, agent.id)
    status = row.status(services.clock(), services.config.inactive_seconds)
    body = _described(row) | _presence(row, status) | _defined(row, definitions)
    body["log_sources"] = [_log_source(each) for each in sources]
    latency = latencies(services.tailnet.node(agent.id), services.derp_maps.current.map)
    if latency:
        body["latency"] = latency
    return GoJsonResponse(body)


def latencies(raw_node: bytes | None, derp_map: DERPMap) -> dict[str, dict[str, object]]:
    """Milliseconds by the name of a region, as an agent's last node says them."""
    try:
        node = tailnet.Node.FromString(raw_node or b"")
    except DecodeError:
        return {}
    found: dict[str, dict[str, object]] = {}
    for key, seconds in sorted(node.derp_latency.items()):
        # Keys are `<region>-v4` and `-v6`.  One that is not would cost the whole answer elsewhere; here it costs
        # itself, and so does a number that JSON does not have.
        digits = key.partition("-")[0]
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 19 and math.isfinite(seconds)):
            continue
        region = derp_map.regions.get(int(digits))
        name = region.region_name if region is not None else f"Unnamed {int(digits)}"
        found[name] = {"preferred": node.preferred_derp == int(digits), "latency_ms": seconds * 1000}
    return found


def _described(row: AgentRow) -> dict[str, object]:
    body: dict[str, object] = {
        "id": str(row.id),
        "parent_id": str(row.parent_id) if row.parent_id is not None else None,
        "created_at": go_time(row.created_at),
        "updated_at": go_time(row.updated_at),
        "lifecycle_state": row.lifecycle_state.name.lower(),
        "name": row.name,
        "resource_id": _NO_ID,
        "architecture": row.architecture,
        "operating_system": row.operating_system,
        "environment_variables": dict(row.environment) or None,
        "logs_length": row.logs_bytes,
        "logs_overflowed": row.logs_overflowed,
        "version": row.version,
        "api_version": row.api_version,
        "connection_timeout_seconds": row.connection_timeout_seconds,
        "troubleshooting_url": "",
        "subsystems": [each.lower() for each in row.subsystems],
        "display_apps": [],
        "display_order": 0,
    }
    for key, text in (("directory", row.directory), ("expanded_directory", row.expanded_directory)):
        if text:
            body[key] = text
    return body


def _defined(row: AgentRow, definitions: Definitions) -> dict[str, object]:
    blocking = any(
        each.definition["run_on_start"] and each.definition["start_blocks_login"] for each in definitions.scripts
    )
    return {
        "apps": [_app(row, each) for each in definitions.apps],
        "scripts": [_script(each) for each in definitions.scripts],
        "startup_script_behavior": "blocking" if blocking else "non-blocking",
    }


def _app(row: AgentRow, app: App) -> dict[str, object]:
    body: dict[str, object] = {
        key: value for key, value in app.definition.items() if value or key not in _OMITTED_WHEN_EMPTY
    }
    statuses = [
        {
            "id": str(each.id),
            "created_at": go_time(each.created_at),
            "workspace_id": str(row.workspace_id),
            "agent_id": str(row.id),
            "app_id": str(app.id),
            "state": each.state.name.lower(),
            "message": each.message,
            "uri": each.uri,
            "icon": "",
            "needs_user_attention": False,
        }
        for each in app.statuses
    ]
    return {"id": str(app.id)} | body | {"health": app.health.name.lower(), "statuses": statuses}


def _script(script: Script) -> dict[str, object]:
    body: dict[str, object] = {"id": str(script.id), **script.definition}
    if script.runs:
        last = script.runs[0]
        body |= {"exit_code": last.exit_code, "status": last.status.name.lower()}
    return body


def _presence(row: AgentRow, status: AgentStatus) -> dict[str, object]:
    disconnected_at = row.disconnected_at
    if status is AgentStatus.DISCONNECTED and (disconnected_at is None or disconnected_at < _last(row)):
        # Silence said it, and the last sign of life is all that is known of when.
        disconnected_at = row.last_connected_at
    times = {
        "first_connected_at": row.first_connected_at,
        "last_connected_at": row.last_connected_at,
        "disconnected_at": disconnected_at,
        "started_at": row.started_at,
        "ready_at": row.ready_at,
    }
    body: dict[str, object] = {key: go_time(moment) for key, moment in times.items() if moment is not None}
    return body | {"status": status.value, "health": _health(row, status)}


def _last(row: AgentRow) -> datetime:
    assert row.last_connected_at is not None, "who was never connected is not disconnected"
    return row.last_connected_at


def _health(row: AgentRow, status: AgentStatus) -> Mapping[str, object]:
    reason = ""
    if status is not AgentStatus.CONNECTED and row.lifecycle_state is LifecycleState.OFF:
        reason = "agent is not running"
    elif status in _ABSENT:
        reason = _ABSENT[status]
    elif row.lifecycle_state is LifecycleState.START_ERROR:
        reason = "agent startup script exited with an error"
    elif row.lifecycle_state in _LEAVING:
        reason = "agent is shutting down"
    return {"healthy": False, "reason": reason} if reason else {"healthy": True}


def _log_source(source: LogSource) -> dict[str, object]:
    return {
        "workspace_agent_id": str(source.agent_id),
        "id": str(source.id),
        "created_at": go_time(source.created_at),
        "display_name": source.display_name,
        "icon": source.icon,
    }
