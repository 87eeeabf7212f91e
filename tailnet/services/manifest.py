"""A manifest: what an agent is told about itself when it starts, and what it says of a sub-agent.  Layer L3.

Turns values of the store into messages, for agent_rpc.py.  The store has the numbers of the API's JSON, whose units are
not those of the wire: intervals of health checks are seconds there and durations here, time-outs of scripts are
nanoseconds there.  Numbers of metadata pass unscaled, as nanoseconds, since agents read them back so.
"""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from tailnet.config import CoordinatorConfig
from tailnet.proto import convert
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.store.rows import AgentIdentity, AgentRow, App, Definitions, Script

_SHARING: Final = {
    "owner": agent.WorkspaceApp.OWNER,
    "authenticated": agent.WorkspaceApp.AUTHENTICATED,
    "public": agent.WorkspaceApp.PUBLIC,
    "organization": agent.WorkspaceApp.ORGANIZATION,
}
_OPEN_IN: Final = {
    agent.CreateSubAgentRequest.App.SLIM_WINDOW: "slim-window",
    agent.CreateSubAgentRequest.App.TAB: "tab",
}
_SHARE: Final = {
    agent.CreateSubAgentRequest.App.OWNER: "owner",
    agent.CreateSubAgentRequest.App.AUTHENTICATED: "authenticated",
    agent.CreateSubAgentRequest.App.PUBLIC: "public",
    agent.CreateSubAgentRequest.App.ORGANIZATION: "organization",
}


def manifest(
    identity: AgentIdentity, row: AgentRow, definitions: Definitions, config: CoordinatorConfig, derp_map: bytes
) -> agent.Manifest:
    """The manifest of an agent.  `derp_map`: the current map, serialized."""
    made = agent.Manifest(
        agent_id=bytes(identity.id),
        agent_name=identity.name,
        owner_username=identity.owner_name,
        workspace_id=identity.workspace_id.bytes,
        workspace_name=identity.workspace_name,
        git_auth_configs=len(config.external_auth),
        directory=row.directory,
        motd_path=row.motd_path,
        environment_variables=dict(row.environment),
        disable_direct_connections=config.disable_direct_connections,
        derp_force_websockets=config.derp_force_websockets,
        apps=[_app(each) for each in definitions.apps],
        scripts=[_script(each) for each in definitions.scripts],
        metadata=[_description(each) for each in definitions.metadata],
    )
    made.derp_map.ParseFromString(derp_map)
    # Agents read home_params without looking whether the map has any.
    made.derp_map.home_params.SetInParent()
    if identity.parent_id is not None:
        made.parent_id = bytes(identity.parent_id)
    return made


def app_of_sub_agent(said: Any) -> dict[str, Any]:
    """An app of CreateSubAgent in the API's spelling, only what was said; store/definitions.py checks it."""
    names = ("slug", "command", "display_name", "external", "group", "hidden", "icon", "subdomain", "url")
    found = {name: getattr(said, name) for name in names if name == "slug" or said.HasField(name)}
    if said.HasField("healthcheck"):
        check = said.healthcheck
        found["healthcheck"] = {"url": check.url, "interval": check.interval, "threshold": check.threshold}
    if said.HasField("open_in"):
        found["open_in"] = _OPEN_IN.get(said.open_in, "")
    if said.HasField("share"):
        found["sharing_level"] = _SHARE.get(said.share, "")
    return found


def _app(app: App) -> agent.WorkspaceApp:
    given, check = app.definition, app.definition["healthcheck"]
    names = (
        "url",
        "external",
        "slug",
        "display_name",
        "command",
        "icon",
        "subdomain",
        "subdomain_name",
        "hidden",
    )
    return agent.WorkspaceApp(
        id=app.id.bytes,
        sharing_level=_SHARING[given["sharing_level"]],
        healthcheck=agent.WorkspaceApp.Healthcheck(
            url=check["url"], interval=convert.duration(check["interval"]), threshold=check["threshold"]
        ),
        health=agent.WorkspaceApp.Health.Name(int(app.health)),
        **{name: given[name] for name in names},
    )


def _script(script: Script) -> agent.WorkspaceAgentScript:
    given = script.definition
    names = ("log_path", "script", "cron", "run_on_start", "run_on_stop", "start_blocks_login", "display_name")
    return agent.WorkspaceAgentScript(
        id=script.id.bytes,
        log_source_id=UUID(given["log_source_id"]).bytes,
        timeout=convert.duration_from_nanos(given["timeout"]),
        **{name: given[name] for name in names},
    )


def _description(given: Mapping[str, Any]) -> agent.WorkspaceAgentMetadata.Description:
    return agent.WorkspaceAgentMetadata.Description(
        display_name=given["display_name"],
        key=given["key"],
        script=given["script"],
        interval=convert.duration_from_nanos(given["interval"]),
        timeout=convert.duration_from_nanos(given["timeout"]),
    )
