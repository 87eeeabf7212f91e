"""What agents report over a real channel is where operators look for it: on /metrics, on the pages, in the API."""

from dataclasses import replace
from typing import Any

import pytest
import trio
from google.protobuf.empty_pb2 import Empty

from tailnet.config import Banner, CoordinatorConfig
from tailnet.errors import ConfigError
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer, serve_coordinator
from tests.support.seeds import agent_token, make_id, user_token
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, TAILNET, open_connection, open_peer, read_answer

ALICE = user_token("alice")


async def get(server: CoordinatorServer, target: str, token: str = "") -> Any:
    """The body of an answer, as text or as what its JSON says."""
    async with open_connection(server) as stream:
        lines = [f"GET {target} HTTP/1.1", "Host: x", "Connection: close"]
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
        settings.append(replace(config, announcement_banners=(Banner("two"), Banner("three"))))
        server.reload()
        assert await shown() == ["two", "three"]
        assert not caplog.records
        settings.append(ConfigError("tailnet.toml: is not TOML"))
        server.reload()
        assert await shown() == ["two", "three"]
        assert "stay as they were: tailnet.toml" in caplog.text
        settings.append(replace(config, announcement_banners=(), browser_only=True))
        server.reload()
        assert await shown() == []
        assert "next start on: --browser-only" in caplog.text
