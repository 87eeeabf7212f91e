"""A user story over a client that openapi-python-client made of docs/openapi.json, as the package `made`.

PYTHONPATH=<where made/ is> python story.py URL SESSION_TOKEN AGENT_ID AGENT_TOKEN APP_ID
"""

import sys
import time
from typing import Any
from uuid import UUID, uuid4

from made.api.agents import (  # type: ignore[import-not-found]  # it is made by the test
    agent_reports_app_health,
    agent_reports_log_source,
    agent_reports_logs,
    agent_reports_report_stats,
    agents_workspace_agent,
    connection_connection_of_agent,
    logs,
)
from made.api.general import buildinfo  # type: ignore[import-not-found]
from made.api.users import users_user_by_name  # type: ignore[import-not-found]
from made.api.workspaces import workspaces, workspaces_workspace_by_name  # type: ignore[import-not-found]
from made.client import AuthenticatedClient, Client  # type: ignore[import-not-found]
from made.models.agent_reports_app_health_healths import (  # type: ignore[import-not-found]
    AgentReportsAppHealthHealths,
)
from made.models.agent_reports_log_source_new_log_source import (  # type: ignore[import-not-found]
    AgentReportsLogSourceNewLogSource,
)
from made.models.agent_reports_logs_lines import AgentReportsLogsLines  # type: ignore[import-not-found]
from made.models.agent_reports_report_stats_stats import (  # type: ignore[import-not-found]
    AgentReportsReportStatsStats,
)
from made.models.refusal import Refusal  # type: ignore[import-not-found]

WAIT_SECONDS = 20.0


def client_of(url: str, token: str) -> Any:
    return AuthenticatedClient(url, token, prefix="", auth_header_name="Coder-Session-Token")


def main(url: str, token: str, agent_text: str, agent_token: str, app_id: str) -> None:
    agent_id = UUID(agent_text)
    user, agent = client_of(url, token), client_of(url, agent_token)
    assert buildinfo.sync(client=Client(url)).version.startswith("v")
    refused = agents_workspace_agent.sync_detailed(agent_id, client=Client(url))
    assert (refused.status_code, isinstance(refused.parsed, Refusal)) == (401, True)
    nobody = agents_workspace_agent.sync_detailed(uuid4(), client=user)
    assert (nobody.status_code, isinstance(nobody.parsed, Refusal)) == (404, True)
    me = users_user_by_name.sync("me", client=user)
    listed = workspaces.sync(client=user, limit=10)
    assert listed.count >= 1
    named = workspaces_workspace_by_name.sync(me.username, listed.workspaces[0].name, client=user)
    assert named.id == listed.workspaces[0].id
    assert connection_connection_of_agent.sync(agent_id, client=user).derp_map.regions.additional_properties

    healths = AgentReportsAppHealthHealths.from_dict({"healths": {app_id: "healthy"}})
    assert agent_reports_app_health.sync_detailed(client=agent, body=healths).status_code == 200
    source = AgentReportsLogSourceNewLogSource(id=uuid4(), display_name="a generated client")
    assert agent_reports_log_source.sync(client=agent, body=source).id == source.id
    lines = {"log_source_id": str(source.id), "logs": [{"output": "told by Python", "level": "warn"}]}
    assert (
        agent_reports_logs.sync_detailed(client=agent, body=AgentReportsLogsLines.from_dict(lines)).status_code == 200
    )
    assert agent_reports_report_stats.sync(client=agent, body=AgentReportsReportStatsStats()).report_interval > 0

    # Agents are answered before the store has what they say.
    ends_at = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < ends_at:
        shown = agents_workspace_agent.sync(agent_id, client=user)
        last = logs.sync(agent_id, client=user)[-1:]
        health = next(app.health for app in shown.apps if str(app.id) == app_id)
        if health == "healthy" and [(line.output, line.level) for line in last] == [("told by Python", "warn")]:
            print("the story is told")
            return
        time.sleep(0.05)
    raise AssertionError("what was reported never came")


if __name__ == "__main__":
    main(*sys.argv[1:])
