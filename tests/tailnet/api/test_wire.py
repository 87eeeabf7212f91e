"""Whole answers, byte by byte, as they were before response models made them: order of keys, what is absent, times."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from derp.keys import NodePrivate
from tailnet.coordinator.messages import Request
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy
from tailnet.proto import convert
from tailnet.proto.coordination import node_value
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.store.rows import (
    AppHealth,
    AppHealths,
    AppState,
    AppStatus,
    AppStatusReport,
    ConnectionAction,
    ConnectionReport,
    ConnectionType,
    LifecycleChange,
    LifecycleState,
    LogSource,
    RunStage,
    RunStatus,
    ScriptRun,
    Startup,
)
from tailnet.types import TAILSCALE_SERVICE_PREFIX
from tests.support.api_world import LOCAL, World
from tests.support.seeds import NOW, came, defined_document, fill, make_id, peer_id, user_token

MAIN, GPU, CLIENT = peer_id("main"), peer_id("gpu"), peer_id("a client")
VECTORS = Path(__file__).parents[2] / "vectors" / "api"


def report_everything(world: World) -> None:
    """All that an agent can have said, and a client that knows it."""
    store = world.store
    fill(store, defined_document())
    store.reports.update_startups([Startup(MAIN, "v2.20.0", "/home/<me>", ["ENVBOX", "EXECTRACE"], "2.4")])
    came(store, MAIN, NOW - timedelta(seconds=3.5))
    store.reports.update_lifecycles(
        [
            LifecycleChange(MAIN, LifecycleState.STARTING, NOW.replace(microsecond=0)),
            LifecycleChange(MAIN, LifecycleState.START_ERROR, NOW),
        ]
    )
    store.reports.add_log_source(LogSource(MAIN, make_id("source"), "Start & go", "/icon.png", NOW))
    assert store.apps.add_app_statuses(
        [
            AppStatusReport(
                MAIN,
                "editor",
                AppStatus(make_id("status"), NOW, AppState.COMPLETE, "built \u2028", "http://localhost/1"),
            )
        ]
    )
    assert store.apps.add_app_statuses(
        [AppStatusReport(MAIN, "editor", AppStatus(make_id("next"), NOW, AppState.WORKING, "é", ""))]
    ) == [True]
    store.apps.update_app_healths([AppHealths(MAIN, {make_id("editor of main"): AppHealth.UNHEALTHY})])
    run = ScriptRun(make_id("start of main"), NOW, NOW, 7, RunStage.START, RunStatus.EXIT_FAILURE)
    store.apps.add_script_runs([(MAIN, run), (MAIN, replace(run, exit_code=0, status=RunStatus.OK))])
    connect, ssh = ConnectionAction.CONNECT, ConnectionType.SSH
    store.reports.insert_connections(
        [ConnectionReport(MAIN, make_id("session"), connect, ssh, NOW, "::1", 0, "<b>", "ssh")], NOW
    )
    core = world.coordinator
    agent, client = object(), object()
    core.handle_connect(MAIN, AgentPolicy(MAIN), agent, 1.0)
    core.handle_connect(CLIENT, ClientPolicy(MAIN), client, 2.0)
    node = tailnet.Node(
        key=convert.node_key_bytes(NodePrivate(bytes(range(32))).public()),
        disco="discokey:" + "ab" * 32,
        preferred_derp=999,
        addresses=[f"{MAIN.address(TAILSCALE_SERVICE_PREFIX)}/128"],
        derp_latency={"999-v4": 0.025, "7-v6": 0.5, "8-v4": float("nan")},
    )
    core.handle_request(agent, Request(node=node_value(node)), 3.0)
    core.handle_request(client, Request(add_tunnel=bytes(MAIN)), 4.0)
    core.handle_connect(GPU, AgentPolicy(GPU), gone := object(), 5.0)
    core.handle_disconnect(gone, False, 6.0)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("agent", f"/api/v2/workspaceagents/{MAIN}"),
        ("agent_unseen", f"/api/v2/workspaceagents/{GPU}"),
        ("connection", f"/api/v2/workspaceagents/{MAIN}/connection"),
        ("debug_agent", f"/debug/agent?id={MAIN}&format=json"),
        ("debug_tailnet", f"/debug/tailnet?a={CLIENT}&b={MAIN}&format=json"),
    ],
)
async def test_the_bytes(world: World, name: str, target: str) -> None:
    report_everything(world)
    world.services.derp_maps.steer(scores={999: 1.5}, avoid=[999])
    async with world.client(LOCAL, user_token("alice")) as client:
        response = await client.get(target)
    assert response.status_code == 200, response.text
    assert response.content == (VECTORS / f"{name}.json").read_bytes()
