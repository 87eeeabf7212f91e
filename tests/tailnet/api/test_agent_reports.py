"""What agents report over HTTP, read back from the store: both generations of bodies, and every refusal."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.services.agent_requests import MAX_WAIT_SECONDS, AgentRequests
from tailnet.store.reports import EXTERNAL_LOG_SOURCE, MAX_LOG_BYTES_PER_AGENT
from tailnet.store.rows import AppHealth, AppState
from tailnet.store.store import Store
from tailnet.transport.accounts import AccountLimits, Accounts
from tests.support.api_world import World, make_world
from tests.support.seeds import NOW, agent_token, defined_document, fill, make_id, peer_id, user_token

pytestmark = pytest.mark.stores

MAIN = peer_id("main")
ME = "/api/v2/workspaceagents/me"
EDITOR, SHELL = str(make_id("editor of main")), str(make_id("shell of main"))


@pytest.fixture
def world(store: Store) -> World:
    made = make_world(store)
    fill(store, defined_document())
    return made


async def send(world: World, method: str, path: str, body: Any, token: str = "") -> httpx.Response:
    async with world.client(token=token or agent_token("main")) as client:
        answer = await client.request(method, f"{ME}/{path}", json=body)
    await world.outbox.flush()
    return answer


async def test_health_of_apps(world: World) -> None:
    for spelling, state in (("healths", "unhealthy"), ("Healths", "healthy")):
        answer = await send(world, "POST", "app-health", {spelling: {EDITOR: state}})
        assert (answer.status_code, answer.content) == (200, b"null\n")
        [editor, _] = world.store.apps.definitions(MAIN).apps
        assert editor.health is AppHealth[state.upper()]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "Health field is empty"),
        ({"healths": {}}, 400, "Health field is empty"),
        ({"healths": {EDITOR: "healthy", SHELL: "healthy"}}, 404, "Error setting workspace app health"),
        ({"healths": {str(make_id("nobody")): "healthy"}}, 404, "Error setting workspace app health"),
        ({"healths": {EDITOR: "disabled"}}, 400, "Error setting workspace app health"),
        ({"healths": {EDITOR: "well"}}, 400, "Error setting workspace app health"),
        ({"healths": {"x": "healthy"}}, 400, "Validation failed."),
    ],
)
async def test_healths_that_are_refused(world: World, body: Any, status: int, message: str) -> None:
    answer = await send(world, "POST", "app-health", body)
    assert (answer.status_code, answer.json()["message"]) == (status, message)
    [editor, _] = world.store.apps.definitions(MAIN).apps
    assert editor.health is AppHealth.INITIALIZING


async def test_what_an_app_does(world: World) -> None:
    body = {"app_slug": "editor", "state": "working", "message": "com\x1bpiling", "uri": "https://x", "icon": "i"}
    answer = await send(world, "PATCH", "app-status", body)
    assert (answer.status_code, answer.content) == (200, b"null\n")
    [status] = world.store.apps.definitions(MAIN).apps[0].statuses
    assert (status.state, status.uri, status.created_at) == (AppState.WORKING, "https://x", NOW)
    assert status.message.isprintable()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"app_slug": "nobody"}, "Failed to get workspace app."),
        ({"state": "thinking"}, "Failed to parse request."),
        ({"state": ""}, "Failed to parse request."),
        ({"message": "x" * 161}, "Message is too long."),
        ({"message": "\u00e4" * 81}, "Message is too long."),
        ({"uri": "x" * 4097}, "URI is too long."),
        ({"app_slug": 7}, "Validation failed."),
    ],
)
async def test_statuses_that_are_refused(world: World, changes: dict[str, Any], message: str) -> None:
    answer = await send(world, "PATCH", "app-status", {"app_slug": "editor", "state": "idle", **changes})
    assert (answer.status_code, answer.json()["message"]) == (400, message)
    assert world.store.apps.definitions(MAIN).apps[0].statuses == ()


async def test_a_log_source_twice(world: World) -> None:
    source = {"id": str(make_id("source")), "display_name": "Start", "icon": "/i.png"}
    for _ in range(2):
        answer = await send(world, "POST", "log-source", source)
        assert answer.status_code == 201
        assert answer.json() == {
            "workspace_agent_id": str(make_id("main")),
            "created_at": "2026-01-02T03:04:05.678901Z",
            **source,
        }
    assert [each.display_name for each in world.store.reports.list_log_sources(MAIN)] == ["Start"]


async def test_lines_of_a_source_and_from_outside(world: World) -> None:
    lines = [{"created_at": "2001-01-01T00:00:00Z", "output": "a", "level": "warn"}, {"output": "b"}]
    source = str(make_id("source"))
    for body in ({"log_source_id": source, "logs": lines}, {"logs": [{"output": "c", "level": "trace"}]}):
        answer = await send(world, "PATCH", "logs", body)
        assert (answer.status_code, answer.content) == (200, b"null\n")
    kept = world.store.reports.list_logs(MAIN)
    assert [(each.output, each.level, each.created_at) for each in kept] == [
        ("a", 4, NOW),
        ("b", 3, NOW),
        ("c", 1, NOW),
    ]
    assert [each.source_id for each in kept] == [make_id("source")] * 2 + [EXTERNAL_LOG_SOURCE]


async def test_lines_that_are_refused(world: World) -> None:
    answer = await send(world, "PATCH", "logs", {"logs": []})
    assert (answer.status_code, answer.json()["message"]) == (400, "No logs provided.")
    answer = await send(world, "PATCH", "logs", {"logs": [{"output": "a"}, {"output": "b", "level": "loud"}]})
    assert (answer.status_code, answer.json()["detail"]) == (400, 'invalid log level: "loud"')
    assert list(world.store.reports.list_logs(MAIN)) == []


async def test_more_lines_than_an_agent_may_have(world: World) -> None:
    half = {"logs": [{"output": "x" * (MAX_LOG_BYTES_PER_AGENT // 2 - 8)}]}
    for expected in (200, 200, 413, 413):
        answer = await send(world, "PATCH", "logs", half)
        assert answer.status_code == expected
    assert answer.json()["message"] == "Logs limit exceeded"
    row = world.store.callers.get_agent(MAIN)
    assert row is not None
    assert row.logs_overflowed
    assert len(world.store.reports.list_logs(MAIN)) == 2


NEW_STATS = {
    "connections_by_proto": {"tcp": 2},
    "connection_count": 2,
    "connection_median_latency_ms": 1.5,
    "rx_packets": 1,
    "rx_bytes": 10,
    "tx_packets": 2,
    "tx_bytes": 20,
    "session_count_ssh": 1,
    "metrics": [{"name": "m", "type": "counter", "value": 1, "labels": [{"name": "a", "value": "b"}]}],
}
OLD_STATS = {
    "conns_by_proto": {"TCP": 2},
    "num_comms": 2,
    "rx_packets": 1,
    "rx_bytes": 10,
    "tx_packets": 2,
    "tx_bytes": 20,
}


@pytest.mark.parametrize("body", [NEW_STATS, OLD_STATS])
async def test_stats_of_both_generations(world: World, body: Any) -> None:
    answer = await send(world, "POST", "report-stats", body)
    assert (answer.status_code, answer.json()) == (200, {"report_interval": 300_000_000_000})
    kept = world.store.reports.latest_stats(MAIN)
    assert kept is not None
    assert (kept.connection_count, kept.rx_bytes, kept.tx_bytes) == (2, 10, 20)
    assert list(kept.report["connections_by_proto"].values()) == [2]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "body", [{}, {"connections_by_proto": None, "rx_bytes": 3}, {"conns_by_proto": {}, "rx_bytes": 0, "tx_bytes": 0}]
)
async def test_who_only_asks_for_the_interval(world: World, body: Any) -> None:
    answer = await send(world, "POST", "report-stats", body)
    assert (answer.status_code, answer.json()) == (200, {"report_interval": 300_000_000_000})
    assert world.store.reports.latest_stats(MAIN) is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "app-health"),
        ("PATCH", "app-status"),
        ("POST", "log-source"),
        ("PATCH", "logs"),
        ("POST", "report-stats"),
        ("GET", "manifest"),
        ("GET", "metadata"),
        ("GET", "reinit"),
    ],
)
async def test_only_agents_may(world: World, method: str, path: str) -> None:
    async with world.client() as client:
        answer = await client.request(method, f"{ME}/{path}", json={})
        assert (answer.status_code, answer.json()["message"]) == (
            401,
            'Cookie "coder_session_token" must be provided.',
        )
    for token in (user_token("alice"), str(make_id("no agent's"))):
        answer = await send(world, method, path, {}, token)
        assert answer.status_code == 401
        assert token not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "app-health", {"healths": {EDITOR: "healthy"}}),
        ("PATCH", "app-status", {"app_slug": "editor", "state": "idle"}),
        ("POST", "log-source", {"id": str(make_id("a source")), "display_name": "Start"}),
        ("PATCH", "logs", {"logs": [{"output": "a"}]}),
        ("POST", "report-stats", {"connections_by_proto": {}, "rx_bytes": 1}),
        ("PATCH", "logs", {"logs": "no lines"}),
    ],
)
async def test_reports_count_for_the_account(
    world: World, method: str, path: str, body: Any, mock_clock: MockClock
) -> None:
    # The clock stands still but for its jumps here: however long the store's thread writes, no second goes by.
    limits = AccountLimits(reports_per_minute=60)
    requests = AgentRequests(world.store, world.reports, accounts=Accounts(limits), clock=lambda: NOW)
    world = World(
        world.store, replace(world.services, requests=requests), world.coordinator, world.outbox, world.reports, []
    )
    for _ in range(60):
        assert (await send(world, method, path, body)).status_code != 429
    began = trio.current_time()
    late: list[httpx.Response] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_collect, late, world, method, path, body)
        await _until(lambda: requests.delayed == 1)
        mock_clock.jump(0.9)
        await wait_all_tasks_blocked()
        assert late == [], "not before its second is over"
        mock_clock.jump(0.1)
    assert late[0].status_code != 429
    assert (round(trio.current_time() - began), requests.delayed) == (1, 1), "answered later, and taken"
    many: list[httpx.Response] = []
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(_collect, many, world, method, path, body)
        await _until(lambda: requests.delayed + requests.refused == 21)
        mock_clock.jump(MAX_WAIT_SECONDS)
    refused = [answer for answer in many if answer.status_code == 429]
    assert len(refused) == requests.refused > 10
    # One a second is taken, of those that wait up to five.
    assert (len(refused), requests.delayed) == (15, 6)
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].json()["message"] == "This agent reports more than it may."
    answer = await send(world, method, path, body, agent_token("gpu"))
    assert answer.status_code != 429, "another agent is not held back"


async def _collect(found: list[httpx.Response], world: World, method: str, path: str, body: Any) -> None:
    found.append(await send(world, method, path, body))


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        await wait_all_tasks_blocked()


async def test_empty_lines_cost_something(world: World) -> None:
    batch = {"logs": [{"output": ""}] * 20_000}
    statuses = [(await send(world, "PATCH", "logs", batch)).status_code for _ in range(53)]
    assert statuses == [200] * (MAX_LOG_BYTES_PER_AGENT // 20_000) + [413]
