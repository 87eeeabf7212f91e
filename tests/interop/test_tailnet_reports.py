"""What our server tells genuine agents and keeps of what they report.  The baseline keeps nothing: it is not asked."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.interop.conftest import make_seed
from tests.support.seeds import definitions, make_id
from tests.support.tailnet_peers import AGENT, PeerError, TailnetPeer, TailnetPeers, unwire, wire
from tests.support.tailnet_servers import Agent, Server, User, running_server

pytestmark = pytest.mark.interop

EDITOR, SHELL, START = make_id("editor of main"), make_id("shell of main"), make_id("start of main")
# Lately, to the second: sessions of long ago are removed when a server starts.
SESSION_AT = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)


async def shown(server: Server, owner: User, agent: Agent) -> tuple[Any, Any]:
    """The agent in the API and on the debug page."""
    headers = {"Coder-Session-Token": owner.token}
    async with httpx.AsyncClient(base_url=server.url) as client:
        api = await client.get(f"/api/v2/workspaceagents/{agent.id}", headers=headers)
        page = await client.get(f"/debug/agent?id={agent.id}&format=json")
    assert (api.status_code, page.status_code) == (200, 200)
    return api.json(), page.json()


async def written(server: Server, owner: User, agent: Agent) -> tuple[Any, Any]:
    """The same as soon as the store has the last of the reports: agents are answered before it."""
    with trio.fail_after(60):
        while True:
            api, page = await shown(server, owner, agent)
            has_sessions = [each["reason"] for each in page["connections"]][:1] == ["bye"]
            is_healthy = api["apps"][0]["health"] == "healthy"
            if has_sessions and is_healthy and api["scripts"][0].get("status") and api.get("expanded_directory"):
                return api, page


async def test_apps_and_scripts_from_the_seed_to_the_agent_and_back(program: TailnetPeers, tmp_path: Path) -> None:
    seed = make_seed()
    alice, target = seed.users[0], seed.agents[1]
    seed.definitions[target.id] = definitions()
    with running_server("ours", tmp_path, seed) as server:
        agent = program.peer("agent")
        await agent.dial_agent(server, target, version="2.11")
        booted = await agent.boot(minor=11)
        manifest = booted["manifest"]
        assert [unwire(app["id"]) for app in manifest["apps"]] == [EDITOR, SHELL]
        assert manifest["apps"][0]["healthcheck"] == {
            "url": "http://localhost:13337/healthz",
            "interval": "5s",
            "threshold": 6,
        }
        assert manifest["apps"][0]["health"] == "INITIALIZING"
        assert manifest["scripts"][0]["script"] == "#!/bin/sh\nset -e\n\techo started\n"
        assert manifest["scripts"][0]["timeout"] == "30s"
        assert [each["key"] for each in manifest["metadata"]] == ["cpu", "disk"]
        # The program runs the first script as agents do, and says so.
        assert "ScriptCompleted" in booted["answered"]
        await report(agent)
        before = await written(server, alice, target)
        check(*before)
    with running_server("ours", tmp_path, seed) as server:  # seeded again: what was reported stays
        api, page = await shown(server, alice, target)
        check(api, page)
        assert api["apps"] == before[0]["apps"]
        assert page["connections"] == before[1]["connections"]


async def report(agent: TailnetPeer) -> None:
    healthy = {"updates": [{"id": wire(EDITOR), "health": "HEALTHY"}]}
    await agent.call(AGENT + "BatchUpdateAppHealths", healthy)
    status = {"slug": "shell", "state": "COMPLETE", "message": "done", "uri": "http://localhost/1"}
    await agent.call(AGENT + "UpdateAppStatus", status)
    session = {
        "id": wire(make_id("session")),
        "type": "SSH",
        "ip": "192.0.2.7",
        "timestamp": SESSION_AT.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    for action in ({"action": "CONNECT"}, {"action": "DISCONNECT", "status_code": 7, "reason": "bye"}):
        await agent.call(AGENT + "ReportConnection", {"connection": session | action})
    # What is refused ends the call and not the agent.
    for rpc, request, said in (
        ("BatchUpdateAppHealths", {"updates": [{"id": wire(SHELL), "health": "HEALTHY"}]}, str(SHELL)),
        ("UpdateAppStatus", {"slug": "none"}, 'No app found with slug "none"'),
        ("UpdateAppStatus", {"slug": "shell", "message": "x" * 161}, "too long"),
        ("UpdateStartup", {"startup": {"version": "2.20"}}, "v1.2.3"),
    ):
        with pytest.raises(PeerError, match=said):
            await agent.call(AGENT + rpc, request)
    assert (await agent.ask("ping"))["seconds"] >= 0


def check(api: Any, page: Any) -> None:
    assert (api["version"], api["api_version"], api["expanded_directory"]) == ("v2.20.0", "2.11", "/home/agent")
    editor, shell = api["apps"]
    assert (editor["health"], shell["health"]) == ("healthy", "disabled")
    assert [(each["state"], each["message"]) for each in shell["statuses"]] == [("complete", "done")]
    start, nightly = api["scripts"]
    assert (start["id"], start["exit_code"], start["status"]) == (str(START), 0, "ok")
    assert "status" not in nightly
    newest, older = page["connections"][:2]
    assert (newest["action"], newest["status_code"], newest["reason"]) == ("DISCONNECT", 7, "bye")
    assert (older["action"], older["ip"], older["at"]) == ("CONNECT", "192.0.2.7", str(SESSION_AT))
    assert len(page["script_runs"]) == 1


async def test_agents_are_shown_the_banners_of_today(program: TailnetPeers, tmp_path: Path) -> None:
    seed, settings = make_seed(), tmp_path / "tailnet.toml"

    def write(*banners: dict[str, Any]) -> None:
        tables = ("".join(f"{key} = {json.dumps(value)}\n" for key, value in each.items()) for each in banners)
        settings.write_text("".join(f"[[announcement_banners]]\n{table}" for table in tables))

    async def asked(agent: TailnetPeer) -> list[Any]:
        answer = await agent.call(AGENT + "GetAnnouncementBanners")
        return list(answer.get("announcement_banners", []))

    write({"message": "Down on Sunday", "background_color": "#004852"}, {"message": "draft", "enabled": False})
    with running_server("ours", tmp_path, seed, environment={"TAILNET_CONFIG": str(settings)}) as server:
        agent = program.peer("agent")
        await agent.dial_agent(server, seed.agents[1])
        first = {"enabled": True, "message": "Down on Sunday", "background_color": "#004852"}
        assert await asked(agent) == [first]
        assert await agent.call(AGENT + "GetServiceBanner") == first
        write({"message": "Up again"})
        server.reload()
        with trio.fail_after(60):
            while await asked(agent) == [first]:
                pass
        assert await asked(agent) == [{"enabled": True, "message": "Up again"}]
