"""What agents report over a real channel is where operators look for it: on /metrics, on the pages, in the API."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from google.protobuf.empty_pb2 import Empty

from tailnet.config import Banner, CoordinatorConfig
from tailnet.errors import ConfigError, RpcError
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer, serve_coordinator
from tests.support.seeds import agent_token, defined_document, fill, make_id, peer_id, user_token
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, TAILNET, open_connection, open_peer, read_answer

pytestmark = pytest.mark.stores

Serve = Callable[..., Awaitable[CoordinatorServer]]
ALICE = user_token("alice")


async def get(server: CoordinatorServer, target: str, token: str = "") -> Any:
    """The body of an answer, as text or as what its JSON says."""
    async with open_connection(server) as stream:
        lines = [f"GET {target} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"Coder-Session-Token: {token}"] if token else []
        await stream.send_all(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = await read_answer(stream)
    assert answer.status == 200, answer.body
    return answer.json() if "json" in answer.headers["content-type"] else answer.body.decode()


async def test_everything_counted_is_on_the_metrics_page(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        report = {"id": make_id("a connection").bytes, "action": agent.Connection.CONNECT}
        for connection in (report, {}, {}):
            await peer.call(AGENT + "ReportConnection", agent.ReportConnectionRequest(connection=connection), Empty)
        lines = agent.ReportBoundaryLogsRequest(logs=[{}] * 4)
        await peer.call(AGENT + "ReportBoundaryLogs", lines, agent.ReportBoundaryLogsResponse)
        events = tailnet.TelemetryRequest(events=[{}] * 5)
        await peer.call(TAILNET + "PostTelemetry", events, tailnet.TelemetryResponse)
        # An event that is not one: its only tag has no end.
        unreadable = Empty.FromString(b"\x0a\x02\xff\xff")
        for _ in range(6):
            await peer.call(TAILNET + "PostTelemetry", unreadable, tailnet.TelemetryResponse)
        page = dict(line.rsplit(" ", 1) for line in (await get(server, "/metrics")).splitlines())
    counted = {
        "tailnet_connection_reports_total": 1,
        "tailnet_connection_reports_unreadable_total": 2,
        "tailnet_boundary_logs_total": 4,
        "tailnet_telemetry_events_total": 5,
        "tailnet_telemetry_unreadable_total": 6,
    }
    assert {name: float(page[name]) for name in counted} == counted


async def test_banners_follow_the_settings(
    filled_url: str, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    config = CoordinatorConfig(
        listen=(("127.0.0.1", 0),), stun_listen=(), store=filled_url, announcement_banners=(Banner("one", "#004852"),)
    )
    settings: list[CoordinatorConfig | ConfigError] = []

    def reread() -> CoordinatorConfig:
        found = settings.pop()
        if isinstance(found, ConfigError):
            raise found
        return found

    server: CoordinatorServer = await nursery.start(serve_coordinator, config, reread)
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:

        async def shown() -> list[str]:
            old = await peer.call(AGENT + "GetServiceBanner", agent.GetServiceBannerRequest(), agent.ServiceBanner)
            asked = AGENT + "GetAnnouncementBanners", agent.GetAnnouncementBannersRequest()
            new = (await peer.call(*asked, agent.GetAnnouncementBannersResponse)).announcement_banners
            assert (old.enabled, old.message) == ((True, new[0].message) if new else (False, ""))
            return [each.message for each in new]

        assert await shown() == ["one"]
        settings.append(
            replace(
                config,
                announcement_banners=(Banner("two"), Banner("three")),
                region_scores=((999, 2.0),),
                avoid_regions=(999,),
            )
        )
        server.reload()
        assert await shown() == ["two", "three"]
        derp_map = server.maps.current.map
        assert derp_map.home_params is not None
        assert (derp_map.home_params.region_score, derp_map.regions[999].avoid) == ({999: 2.0}, True)
        assert not [record for record in caplog.records if "next start" in record.getMessage()]
        settings.append(ConfigError("tailnet.toml: is not TOML"))
        server.reload()
        assert await shown() == ["two", "three"]
        assert "stay as they were: tailnet.toml" in caplog.text
        settings.append(replace(config, announcement_banners=(), browser_only=True))
        server.reload()
        assert await shown() == []
        assert "next start on: --browser-only" in caplog.text


async def test_what_is_reported_of_apps_and_scripts_outlives_the_server(serve: Serve) -> None:
    editor, start = make_id("editor of main").bytes, make_id("start of main").bytes
    reports: list[tuple[str, Any, Any]] = [
        (
            "BatchUpdateAppHealths",
            agent.BatchUpdateAppHealthRequest(updates=[{"id": editor, "health": agent.UNHEALTHY}]),
            agent.BatchUpdateAppHealthResponse,
        ),
        (
            "UpdateAppStatus",
            agent.UpdateAppStatusRequest(slug="editor", message="thinking"),
            agent.UpdateAppStatusResponse,
        ),
        (
            "ScriptCompleted",
            agent.WorkspaceAgentScriptCompletedRequest(timing={"script_id": start, "exit_code": 4, "status": 1}),
            agent.WorkspaceAgentScriptCompletedResponse,
        ),
        (
            "ReportConnection",
            agent.ReportConnectionRequest(
                connection={"id": make_id("session").bytes, "action": agent.Connection.CONNECT, "ip": "192.0.2.7"}
            ),
            Empty,
        ),
    ]
    first = await serve()
    fill(first.store, defined_document())
    async with open_peer(first, AGENT_DOOR, agent_token("main")) as peer:
        manifest = await peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
        assert (manifest.apps[0].id, manifest.scripts[0].id) == (editor, start)
        for name, request, response in reports:
            await peer.call(AGENT + name, request, response)
        wrong = agent.BatchUpdateAppHealthRequest(updates=[{"id": start, "health": agent.HEALTHY}])
        with pytest.raises(RpcError, match="app health"):
            await peer.call(AGENT + "BatchUpdateAppHealths", wrong, agent.BatchUpdateAppHealthResponse)
        await peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
    await first.drain()
    second = await serve()
    body = await get(second, f"/api/v2/workspaceagents/{peer_id('main')}", ALICE)
    shown = body["apps"][0]
    assert (shown["health"], [each["message"] for each in shown["statuses"]]) == ("unhealthy", ["thinking"])
    assert (body["scripts"][0]["exit_code"], body["scripts"][0]["status"]) == (4, "exit_failure")
    page = await get(second, f"/debug/agent?id={peer_id('main')}&format=json")
    assert [(each["action"], each["ip"]) for each in page["connections"]] == [("CONNECT", "192.0.2.7")]
