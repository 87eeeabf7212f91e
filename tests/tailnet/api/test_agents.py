"""An agent as its owner sees it: every key in every state, and who may look."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from derp.keys import NodePrivate
from tailnet.coordinator.messages import Request
from tailnet.coordinator.policy import AgentPolicy
from tailnet.proto import convert
from tailnet.proto.coordination import node_value
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.refusals import NO_SUCH_AGENT
from tailnet.store.rows import (
    AppHealth,
    AppHealths,
    AppState,
    AppStatus,
    AppStatusReport,
    LifecycleChange,
    LifecycleState,
    LogSource,
    RunStage,
    RunStatus,
    ScriptRun,
    Startup,
)
from tailnet.types import TAILSCALE_SERVICE_PREFIX
from tests.support.api_world import World
from tests.support.seeds import NOW, came, defined_document, fill, left, make_id, peer_id, user_token

pytestmark = pytest.mark.stores

MAIN = peer_id("main")
EPOCH_TEXT = "2026-01-02T03:04:05.678901Z"


async def shown(world: World, name: str = "main") -> dict[str, Any]:
    async with world.client(token=user_token("alice")) as client:
        response = await client.get(f"/api/v2/workspaceagents/{peer_id(name)}")
    assert response.status_code == 200
    body: dict[str, Any] = response.json()
    return body


async def test_an_agent_that_was_never_here(world: World) -> None:
    assert await shown(world) == {
        "id": str(MAIN),
        "parent_id": None,
        "created_at": EPOCH_TEXT,
        "updated_at": EPOCH_TEXT,
        "status": "connecting",
        "lifecycle_state": "created",
        "name": "main",
        "resource_id": "00000000-0000-0000-0000-000000000000",
        "architecture": "",
        "operating_system": "",
        "environment_variables": None,
        "logs_length": 0,
        "logs_overflowed": False,
        "version": "",
        "api_version": "",
        "apps": [],
        "connection_timeout_seconds": 120,
        "troubleshooting_url": "",
        "subsystems": [],
        "health": {"healthy": False, "reason": "agent has not yet connected"},
        "display_apps": [],
        "log_sources": [],
        "scripts": [],
        "startup_script_behavior": "non-blocking",
        "display_order": 0,
    }


async def test_what_an_agent_said_of_itself(world: World) -> None:
    store = world.store
    store.reports.update_startups([Startup(MAIN, "v2.20.0", "/home/me", ["ENVBOX", "EXECTRACE"], "2.4")])
    came(store, MAIN, NOW)
    store.reports.update_lifecycles([LifecycleChange(MAIN, LifecycleState.READY, NOW)])
    store.reports.add_log_source(LogSource(MAIN, make_id("source"), "Start", "/icon.png", NOW))
    body = await shown(world)
    expected = {
        "version": "v2.20.0",
        "api_version": "2.4",
        "expanded_directory": "/home/me",
        "subsystems": ["envbox", "exectrace"],
        "status": "connected",
        "lifecycle_state": "ready",
        "first_connected_at": EPOCH_TEXT,
        "last_connected_at": EPOCH_TEXT,
        "started_at": EPOCH_TEXT,
        "ready_at": EPOCH_TEXT,
        "health": {"healthy": True},
    }
    assert {key: body[key] for key in expected} == expected
    assert "disconnected_at" not in body
    assert body["log_sources"] == [
        {
            "workspace_agent_id": str(MAIN),
            "id": str(make_id("source")),
            "created_at": EPOCH_TEXT,
            "display_name": "Start",
            "icon": "/icon.png",
        }
    ]


async def test_what_it_should_run_and_what_became_of_it(world: World) -> None:
    store = world.store
    fill(store, defined_document())
    status = AppStatus(make_id("status"), NOW, AppState.COMPLETE, "built", "http://localhost/1")
    assert store.apps.add_app_statuses([AppStatusReport(MAIN, "editor", status)]) == [True]
    store.apps.update_app_healths([AppHealths(MAIN, {make_id("editor of main"): AppHealth.UNHEALTHY})])
    run = ScriptRun(make_id("start of main"), NOW, NOW, 7, RunStage.START, RunStatus.EXIT_FAILURE)
    store.apps.add_script_runs([(MAIN, run), (MAIN, replace(run, exit_code=9, status=RunStatus.TIMED_OUT))])
    body = await shown(world)
    editor, shell = body["apps"]
    assert editor == {
        "id": str(make_id("editor of main")),
        "url": "http://localhost:13337",
        "external": False,
        "slug": "editor",
        "display_name": "Editor",
        "icon": "/icon/code.svg",
        "subdomain": True,
        "subdomain_name": "editor--main--dev--alice",
        "sharing_level": "authenticated",
        "healthcheck": {"url": "http://localhost:13337/healthz", "interval": 5, "threshold": 6},
        "health": "unhealthy",
        "group": "",
        "hidden": False,
        "open_in": "tab",
        "tooltip": "Opens\nin a tab",
        "statuses": [
            {
                "id": str(make_id("status")),
                "created_at": EPOCH_TEXT,
                "workspace_id": str(make_id("dev")),
                "agent_id": str(MAIN),
                "app_id": str(make_id("editor of main")),
                "state": "complete",
                "message": "built",
                "uri": "http://localhost/1",
                "icon": "",
                "needs_user_attention": False,
            }
        ],
    }
    assert (shell["command"], shell["health"], shell["statuses"]) == ("htop\n", "disabled", [])
    assert not {"icon", "subdomain_name"} & shell.keys()
    start, nightly = body["scripts"]
    assert start["script"].startswith("#!/bin/sh\n")
    assert (start["timeout"], start["exit_code"], start["status"]) == (30_000_000_000, 9, "timed_out")
    assert not {"exit_code", "status"} & nightly.keys()
    assert body["startup_script_behavior"] == "blocking"


async def test_silence_is_shown_as_the_last_sign_of_life(world: World) -> None:
    before = NOW - timedelta(hours=1)
    left(world.store, MAIN, before - timedelta(hours=1))
    came(world.store, MAIN, before)
    body = await shown(world)
    assert body["status"] == "disconnected"
    assert body["disconnected_at"] == body["last_connected_at"] == "2026-01-02T02:04:05.678901Z"
    assert body["health"]["reason"] == "agent has lost connection"
    left(world.store, MAIN, NOW)
    assert (await shown(world))["disconnected_at"] == EPOCH_TEXT


@pytest.mark.parametrize(
    ("state", "connected", "reason"),
    [
        (LifecycleState.OFF, False, "agent is not running"),
        (LifecycleState.OFF, True, "agent is shutting down"),
        (LifecycleState.SHUTTING_DOWN, True, "agent is shutting down"),
        (LifecycleState.SHUTDOWN_ERROR, True, "agent is shutting down"),
        (LifecycleState.START_ERROR, True, "agent startup script exited with an error"),
        (LifecycleState.START_TIMEOUT, True, ""),
        (LifecycleState.STARTING, True, ""),
    ],
)
async def test_health(world: World, state: LifecycleState, connected: bool, reason: str) -> None:
    came(world.store, MAIN, NOW)
    world.store.reports.update_lifecycles([LifecycleChange(MAIN, state, NOW)])
    if not connected:
        left(world.store, MAIN, NOW)
    health = (await shown(world))["health"]
    assert health == ({"healthy": False, "reason": reason} if reason else {"healthy": True})


async def test_latencies_come_from_the_last_node(world: World) -> None:
    connection = object()
    world.coordinator.handle_connect(MAIN, AgentPolicy(MAIN), connection, 1.0)
    assert "latency" not in await shown(world)
    node = tailnet.Node(
        key=convert.node_key_bytes(NodePrivate.generate().public()),
        disco="discokey:" + "ab" * 32,
        preferred_derp=999,
        addresses=[f"{MAIN.address(TAILSCALE_SERVICE_PREFIX)}/128"],
        derp_latency={"999-v4": 0.025, "7-v6": 0.5, "no": 1.0, "8-v4": float("nan")},
    )
    world.coordinator.handle_request(connection, Request(node=node_value(node)), 2.0)
    assert (await shown(world))["latency"] == {
        "Embedded relay": {"preferred": True, "latency_ms": 25.0},
        "Unnamed 7": {"preferred": False, "latency_ms": 500.0},
    }


async def test_who_may_look(world: World) -> None:
    path = f"/api/v2/workspaceagents/{MAIN}"
    async with world.client() as client:
        assert (await client.get(path)).status_code == 401
    async with world.client(token=user_token("bob")) as client:
        stranger = await client.get(path)
    assert (stranger.status_code, stranger.json()["message"]) == (404, NO_SUCH_AGENT)
    world.store.callers.delete_agent(MAIN)
    async with world.client(token=user_token("alice")) as client:
        assert (await client.get(path)).status_code == 404
        assert (await client.get("/api/v2/workspaceagents/me")).status_code == 400


async def test_a_store_that_does_not_answer_is_no_riddle(world: World) -> None:
    with world.store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE agent_log_sources RENAME TO away")
    async with world.client(token=user_token("alice")) as client:
        response = await client.get(f"/api/v2/workspaceagents/{MAIN}")
    assert response.status_code == 503
    assert "retry-after" in response.headers
