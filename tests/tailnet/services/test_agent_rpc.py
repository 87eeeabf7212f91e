"""The Agent service over a real store: what each call answers, what it leaves behind, and what a bad one is told."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import trio
from google.protobuf.timestamp_pb2 import Timestamp

from tailnet.config import Banner, CoordinatorConfig
from tailnet.coordinator.policy import AgentPolicy
from tailnet.errors import RpcError, StoreError, StoreTrouble, Unimplemented
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.services import AGENT
from tailnet.services import agent_rpc
from tailnet.services.agent_rpc import (
    MAX_METADATA_BYTES,
    MAX_REASON_CHARS,
    MAX_URI_CHARS,
    AgentService,
)
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.reports import AgentReports
from tailnet.services.tailnet_rpc import Caller
from tailnet.store.outbox import Loss, Outbox
from tailnet.store.reports import EXTERNAL_LOG_SOURCE, MAX_LOG_BYTES_PER_AGENT
from tailnet.store.rows import (
    AgentIdentity,
    AppHealth,
    AppState,
    ConnectionAction,
    ConnectionReport,
    ConnectionType,
    LifecycleState,
    RunStage,
    RunStatus,
    ScriptRun,
)
from tailnet.store.store import Store
from tests.support.bad_requests import requests_of
from tests.support.seeds import NOW, defined_document, fill, make_id, peer_id

pytestmark = pytest.mark.stores

MAIN, GPU = peer_id("main"), peer_id("gpu")


class World:
    def __init__(self, store: Store, **settings: Any) -> None:
        self.store = store
        self.changed: list[UUID] = []
        config = CoordinatorConfig(**settings)
        self.outbox = Outbox(store)
        reports = AgentReports(store, self.outbox, clock=lambda: NOW)
        self.service = AgentService(store, reports, DerpMaps(), config, changed=self.changed.append, clock=lambda: NOW)
        self.unary = self.service.unary()

    def caller(self, agent_id: bytes = MAIN) -> Caller:
        [identity] = self.store.callers.agent_identities([type(MAIN)(agent_id)]).values()
        return Caller(identity.id, AgentPolicy(identity.id), identity.name, identity, api_version="2.7")

    @property
    def caller_away(self) -> Caller:
        """The caller as the door knew it, without a look at the store."""
        identity = AgentIdentity(MAIN, "main", None, make_id("dev"), "dev", make_id("alice"), "alice")
        return Caller(MAIN, AgentPolicy(MAIN), "main", identity, api_version="2.7")

    async def call(self, name: str, request: Any, agent_id: bytes = MAIN) -> Any:
        """The answer, once what it reports is in the store too."""
        with trio.fail_after(60):
            answer = await self.unary[f"/coder.agent.v2.Agent/{name}"](self.caller(agent_id), request)
            await self.outbox.flush()
            return answer


@pytest.fixture
def world(store: Store) -> World:
    fill(store)
    return World(store)


@pytest.fixture
def defined(store: Store) -> World:
    """The same with apps, scripts and metadata."""
    fill(store, defined_document())
    return World(store)


def test_every_rpc_of_the_service_is_answered(store: Store) -> None:
    assert World(store).unary.keys() == AGENT.keys()


async def test_the_manifest_says_who_the_agent_is_and_what_the_settings_are(store: Store) -> None:
    fill(store)
    world = World(store, disable_direct_connections=True, derp_force_websockets=True)
    manifest = await world.call("GetManifest", agent.GetManifestRequest())
    assert (manifest.agent_id, manifest.agent_name) == (MAIN, "main")
    assert (manifest.workspace_id, manifest.workspace_name) == (make_id("dev").bytes, "dev")
    assert manifest.owner_username == "alice"
    assert manifest.derp_map.HasField("home_params")  # the agent reads it without looking
    assert not manifest.HasField("parent_id")
    assert manifest.disable_direct_connections
    assert manifest.derp_force_websockets


async def test_a_deleted_agent_is_told_so(world: World) -> None:
    caller = world.caller()
    world.store.callers.delete_agent(MAIN)
    requests = {"GetManifest": agent.GetManifestRequest(), "CreateSubAgent": agent.CreateSubAgentRequest(name="x")}
    for name, request in requests.items():
        with pytest.raises(RpcError, match="deleted"):
            await world.unary[f"/coder.agent.v2.Agent/{name}"](caller, request)


@pytest.mark.parametrize("path", AGENT)
async def test_what_a_deleted_agent_still_says_takes_nothing_of_others_along(world: World, path: str) -> None:
    """An agent of an older build says its last, while its row is gone and its connection is not yet."""
    deleted, outcomes = world.caller(), 0
    world.store.callers.delete_agent(MAIN)
    for _, request in requests_of(AGENT[path].request):
        with suppress(RpcError):  # which it is told instead
            await world.unary[path](deleted, request)
        outcomes += 1
    assert outcomes > len(AGENT[path].request.DESCRIPTOR.fields)
    await world.call("BatchUpdateMetadata", metadata_of("a", "b"), GPU)
    assert [each.value for each in world.store.reports.list_metadata(GPU)] == ["b"]
    assert world.store.callers.get_agent(MAIN) is None
    assert world.store.callers.list_sub_agents(MAIN) == []
    counts = world.outbox.readings().values()
    assert not any(each.waiting or each.lost[Loss.UNFIT] for each in counts)


def metadata_of(key: str, value: str) -> agent.BatchUpdateMetadataRequest:
    return agent.BatchUpdateMetadataRequest(metadata=[{"key": key, "result": {"value": value}}])


async def test_banners_that_are_switched_on(store: Store) -> None:
    fill(store)
    banners = Banner("draft", enabled=False), Banner("one", "#004852"), Banner("two")
    world = World(store, announcement_banners=banners)
    old = await world.call("GetServiceBanner", agent.GetServiceBannerRequest())
    assert old == agent.ServiceBanner(enabled=True, message="one", background_color="#004852")
    new = await world.call("GetAnnouncementBanners", agent.GetAnnouncementBannersRequest())
    assert [(each.enabled, each.message, each.background_color) for each in new.announcement_banners] == [
        (True, "one", "#004852"),
        (True, "two", ""),
    ]


async def test_without_banners_there_is_nothing_to_show(world: World) -> None:
    assert not (await world.call("GetServiceBanner", agent.GetServiceBannerRequest())).enabled
    new = await world.call("GetAnnouncementBanners", agent.GetAnnouncementBannersRequest())
    assert len(new.announcement_banners) == 0


async def test_the_interval_of_stats_is_never_zero_and_only_stats_are_stored(world: World) -> None:
    answer = await world.call("UpdateStats", agent.UpdateStatsRequest())
    assert answer.report_interval.seconds == 300
    assert world.store.reports.latest_stats(MAIN) is None
    stats = {"connection_count": 3, "rx_bytes": 2**62, "tx_bytes": 5, "connection_median_latency_ms": float("nan")}
    await world.call("UpdateStats", agent.UpdateStatsRequest(stats=stats))
    stored = world.store.reports.latest_stats(MAIN)
    assert stored is not None
    assert (stored.connection_count, stored.rx_bytes, stored.tx_bytes) == (3, 2**62, 5)


async def test_lifecycles(world: World) -> None:
    at = Timestamp()
    at.FromDatetime(datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC))
    request = agent.UpdateLifecycleRequest(lifecycle={"state": agent.Lifecycle.READY, "changed_at": at})
    assert await world.call("UpdateLifecycle", request) == request.lifecycle
    row = world.store.callers.get_agent(MAIN)
    assert row is not None
    assert (row.lifecycle_state, row.ready_at) == (LifecycleState.READY, datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC))
    assert world.changed == [make_id("alice")]
    never = Timestamp(seconds=-62135596800)  # Go's zero time
    await world.call("UpdateLifecycle", agent.UpdateLifecycleRequest(lifecycle={"state": 2, "changed_at": never}))
    row = world.store.callers.get_agent(MAIN)
    assert row is not None
    assert row.started_at == NOW
    await world.call("UpdateLifecycle", agent.UpdateLifecycleRequest(lifecycle={"state": agent.Lifecycle.OFF}))
    for bad in ({}, {"state": 99}, {"state": agent.Lifecycle.READY, "changed_at": Timestamp(seconds=1 << 60)}):
        with pytest.raises(RpcError, match="lifecycle"):
            await world.call("UpdateLifecycle", agent.UpdateLifecycleRequest(lifecycle=bad))
    row = world.store.callers.get_agent(MAIN)
    assert row is not None
    assert row.lifecycle_state is LifecycleState.OFF


async def test_startup(world: World) -> None:
    startup = {"version": "v2.20.0", "expanded_directory": "/home/me", "subsystems": [3, 1, 77, 3]}
    request = agent.UpdateStartupRequest(startup=startup)
    assert await world.call("UpdateStartup", request) == request.startup
    row = world.store.callers.get_agent(MAIN)
    assert row is not None
    assert (row.version, row.expanded_directory) == ("v2.20.0", "/home/me")
    assert list(row.subsystems) == ["ENVBOX", "EXECTRACE"]  # each once, in order; one of the future is no error
    assert row.api_version == "2.7"  # as dialled


@pytest.mark.parametrize("version", ["v2.20.0", "v0.0.0-devel+5ec1a7b9c", "v2", "v2.20", "v2.20.0-rc.1"])
async def test_versions_of_agents(world: World, version: str) -> None:
    await world.call("UpdateStartup", agent.UpdateStartupRequest(startup={"version": version}))
    row = world.store.callers.get_agent(MAIN)
    assert row is not None
    assert row.version == version


@pytest.mark.parametrize(
    ("startup", "said"),
    [
        ({}, "form v1.2.3"),
        *(({"version": bad}, "form v1.2.3") for bad in ("2.20.0", "v02.1.0", "v2.20.0-01", "v2.1-rc", "v1.2.3\n")),
        ({"version": "v1.0.0-" + "a" * 300}, "form v1.2.3"),
        ({"version": "v2.20.0", "subsystems": [1, 0]}, "unspecified"),
    ],
)
async def test_start_ups_that_are_refused_change_nothing(world: World, startup: dict[str, Any], said: str) -> None:
    with pytest.raises(RpcError, match=said):
        await world.call("UpdateStartup", agent.UpdateStartupRequest(startup=startup))
    row = world.store.callers.get_agent(MAIN)
    assert row is not None
    assert (row.version, row.api_version) == ("", "")


async def test_metadata_is_field_2_and_cut(world: World) -> None:
    long = "ü" * MAX_METADATA_BYTES
    request = agent.BatchUpdateMetadataRequest(
        metadata=[{"key": "cpu", "result": {"value": long}}, {"key": "disk", "result": {"error": "no disk"}}]
    )
    await world.call("BatchUpdateMetadata", request)
    await world.call("BatchUpdateMetadata", agent.BatchUpdateMetadataRequest())
    cpu, disk = world.store.reports.list_metadata(MAIN)
    assert (cpu.value, disk.error) == (long[:MAX_METADATA_BYTES], "no disk")


async def test_logs_and_their_limit(world: World) -> None:
    lines = [{"output": "one"}, {"output": "two", "level": agent.Log.ERROR}]
    assert not (await world.call("BatchCreateLogs", agent.BatchCreateLogsRequest(logs=lines))).log_limit_exceeded
    stored = world.store.reports.list_logs(MAIN)
    assert [(line.output, line.level, line.source_id) for line in stored] == [
        ("one", agent.Log.INFO, EXTERNAL_LOG_SOURCE),
        ("two", agent.Log.ERROR, EXTERNAL_LOG_SOURCE),
    ]
    assert [source.id for source in world.store.reports.list_log_sources(MAIN)] == [EXTERNAL_LOG_SOURCE]
    own = UUID(int=7)
    await world.call("BatchCreateLogs", agent.BatchCreateLogsRequest(log_source_id=own.bytes, logs=[{"output": "x"}]))
    assert world.store.reports.list_logs(MAIN)[-1].source_id == own
    flood = agent.BatchCreateLogsRequest(logs=[{"output": "y" * MAX_LOG_BYTES_PER_AGENT}])
    assert (await world.call("BatchCreateLogs", flood)).log_limit_exceeded
    assert not (await world.call("BatchCreateLogs", agent.BatchCreateLogsRequest())).log_limit_exceeded
    # Another agent's logs are its own.
    assert not (await world.call("BatchCreateLogs", agent.BatchCreateLogsRequest(logs=lines), GPU)).log_limit_exceeded


async def test_sub_agents(world: World) -> None:
    made = (await world.call("CreateSubAgent", agent.CreateSubAgentRequest(name="nested", directory="/src"))).agent
    assert world.store.get_agent_by_token(UUID(bytes=made.auth_token)) is not None
    [listed] = (await world.call("ListSubAgents", agent.ListSubAgentsRequest())).agents
    assert (listed.id, listed.name, listed.auth_token) == (made.id, "nested", b"")
    planned = agent.CreateSubAgentRequest(name="planned", id=bytes(range(16)))
    assert (await world.call("CreateSubAgent", planned)).agent.id == bytes(range(16))
    with pytest.raises(RpcError, match="cannot add sub-agent 'planned'"):
        await world.call("CreateSubAgent", planned)  # the id is taken
    with pytest.raises(RpcError, match="cannot add sub-agent"):
        await world.call("CreateSubAgent", agent.CreateSubAgentRequest(name="theft", id=GPU))
    with pytest.raises(RpcError, match="name"):
        await world.call("CreateSubAgent", agent.CreateSubAgentRequest())
    # Only its parent deletes it, and no parent deletes anything else.
    for owner, victim, said in ((GPU, made.id, "no such"), (MAIN, GPU, "no such"), (MAIN, b"short", "16 bytes")):
        with pytest.raises(RpcError, match=said):
            await world.call("DeleteSubAgent", agent.DeleteSubAgentRequest(id=victim), owner)
    world.changed.clear()
    await world.call("DeleteSubAgent", agent.DeleteSubAgentRequest(id=made.id))
    assert world.changed == [make_id("alice")]
    assert world.store.callers.get_agent(type(MAIN)(made.id)) is None
    assert world.store.callers.get_agent(GPU) is not None


async def test_apps_of_sub_agents(world: World) -> None:
    request = agent.CreateSubAgentRequest(
        name="nested",
        apps=[
            {
                "slug": "second",
                "order": 2,
                "share": agent.CreateSubAgentRequest.App.PUBLIC,
                "open_in": agent.CreateSubAgentRequest.App.TAB,
                "healthcheck": {"url": "http://localhost:1", "interval": 3, "threshold": 4},
                "display_name": "Second",
                "group": "tools",
            },
            {"slug": ""},
            {"slug": "first", "order": 1, "command": "top", "hidden": True},
            {"slug": "first"},
            {"slug": "checked", "healthcheck": {"url": "http://localhost:1"}},
            {"slug": "shared", "share": 9},
        ],
    )
    response = await world.call("CreateSubAgent", request)
    assert [(each.index, each.field) for each in response.app_creation_errors] == [
        (1, "slug"),
        (3, "slug"),
        (4, "healthcheck.interval"),
        (5, "sharing_level"),
    ]
    assert all(each.error for each in response.app_creation_errors)
    first, second = (await world.call("GetManifest", agent.GetManifestRequest(), response.agent.id)).apps
    assert (first.slug, first.command, first.hidden, first.health) == ("first", "top", True, AppHealth.DISABLED)
    assert (second.slug, second.display_name) == ("second", "Second")
    assert second.sharing_level == agent.WorkspaceApp.PUBLIC
    assert (second.healthcheck.interval.seconds, second.health) == (3, AppHealth.INITIALIZING)
    assert len({first.id, second.id}) == 2
    definition = world.store.apps.definitions(type(MAIN)(response.agent.id)).apps[1].definition
    assert (definition["open_in"], definition["group"]) == ("tab", "tools")
    with pytest.raises(RpcError, match="may have 256 apps"):
        await world.call("CreateSubAgent", agent.CreateSubAgentRequest(name="many", apps=[{}] * 257))


async def test_what_is_counted_or_declined(world: World) -> None:
    report = {"id": bytes(16), "action": agent.Connection.CONNECT}
    for connection in (report, report | {"id": b"short"}, report | {"action": 0}, report | {"action": 9}, {}):
        await world.call("ReportConnection", agent.ReportConnectionRequest(connection=connection))
    assert world.service.connection_reports_unreadable == 4
    await world.call("ReportBoundaryLogs", agent.ReportBoundaryLogsRequest(logs=[{}, {}]))
    assert (world.service.connection_reports, world.service.boundary_logs) == (1, 2)
    with pytest.raises(Unimplemented):
        await world.call("PushContextState", agent.PushContextStateRequest())
    config = (
        await world.call("GetResourcesMonitoringConfiguration", agent.GetResourcesMonitoringConfigurationRequest())
    ).config
    assert config.collection_interval_seconds > 0  # the agent makes a ticker of it
    assert config.num_datapoints > 0


def stamp(seconds: float) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(NOW + timedelta(seconds=seconds))
    return made


async def test_sessions_are_kept_as_they_were_reported(world: World) -> None:
    said = {
        "id": make_id("session").bytes,
        "action": agent.Connection.DISCONNECT,
        "type": agent.Connection.JETBRAINS,
        "timestamp": stamp(-5),
        "ip": "192.0.2.7",
        "status_code": 137,
        "reason": "killed\x1b[2J",
        "app_name": "idea",
    }
    later = said | {"action": agent.Connection.CONNECT, "type": 77, "reason": "x" * 5_000}
    del later["timestamp"]
    wrong = said | {"timestamp": Timestamp(seconds=1 << 60)}
    for each in (said, later, wrong):
        await world.call("ReportConnection", agent.ReportConnectionRequest(connection=each))
    assert (world.service.connection_reports, world.service.connection_reports_unreadable) == (2, 1)
    newer, older = world.store.reports.list_connections(MAIN)
    assert older == ConnectionReport(
        MAIN,
        make_id("session"),
        ConnectionAction.DISCONNECT,
        ConnectionType.JETBRAINS,
        NOW - timedelta(seconds=5),
        "192.0.2.7",
        137,
        "killed [2J",
        "idea",
    )
    assert (newer.type, newer.at, len(newer.reason)) == (ConnectionType.UNSPECIFIED, NOW, MAX_REASON_CHARS)


async def test_runs_of_scripts(defined: World) -> None:
    timing = {
        "script_id": make_id("start of main").bytes,
        "start": stamp(1),
        "end": stamp(3),
        "exit_code": -1,
        "stage": agent.Timing.STOP,
        "status": agent.Timing.PIPES_LEFT_OPEN,
    }
    strange = ({"script_id": b"short"}, {"stage": 9}, {"status": 9}, {"end": Timestamp(seconds=1 << 60)})
    for change in ({}, *strange, {"script_id": make_id("nobody").bytes}):
        request = agent.WorkspaceAgentScriptCompletedRequest(timing=timing | change)
        await defined.call("ScriptCompleted", request)
    await defined.call("ScriptCompleted", request, GPU)
    start, nightly = defined.store.apps.definitions(MAIN).scripts
    at = NOW + timedelta(seconds=1), NOW + timedelta(seconds=3)
    assert start.runs == [ScriptRun(start.id, *at, -1, RunStage.STOP, RunStatus.PIPES_LEFT_OPEN)]
    assert nightly.runs == ()


async def test_healths_of_apps(defined: World) -> None:
    for agent_id in (MAIN, GPU):
        await defined.call("GetManifest", agent.GetManifestRequest(), agent_id)  # as every agent does first
    editor, shell = make_id("editor of main").bytes, make_id("shell of main").bytes
    good = {"id": editor, "health": agent.HEALTHY}
    for bad in (
        {"id": b"short", "health": agent.HEALTHY},
        {"id": editor},
        {"id": editor, "health": 9},
        {"id": shell, "health": agent.HEALTHY},
        {"id": make_id("nobody").bytes, "health": agent.HEALTHY},
    ):
        with pytest.raises(RpcError, match="app health: "):
            await defined.call("BatchUpdateAppHealths", agent.BatchUpdateAppHealthRequest(updates=[good, bad]))
    with pytest.raises(RpcError, match="app health: "):
        await defined.call("BatchUpdateAppHealths", agent.BatchUpdateAppHealthRequest(updates=[good]), GPU)
    assert defined.store.apps.definitions(MAIN).apps[0].health is AppHealth.INITIALIZING
    await defined.call("BatchUpdateAppHealths", agent.BatchUpdateAppHealthRequest(updates=[good]))
    await defined.call("BatchUpdateAppHealths", agent.BatchUpdateAppHealthRequest())
    assert defined.store.apps.definitions(MAIN).apps[0].health is AppHealth.HEALTHY


async def test_what_an_app_says_it_does(defined: World) -> None:
    request = {"slug": "editor", "state": agent.UpdateAppStatusRequest.FAILURE, "message": "ü" * 80, "uri": "http://x"}
    await defined.call("UpdateAppStatus", agent.UpdateAppStatusRequest(**request))
    await defined.call("UpdateAppStatus", agent.UpdateAppStatusRequest(slug="editor", message="a\n\x07b"))
    for change, said in (
        ({"message": "ü" * 80 + "x"}, "Message is too long"),
        ({"uri": "x" * (MAX_URI_CHARS + 1)}, "URI is too long"),
        ({"state": 4}, "Invalid state provided"),
        ({"slug": "none"}, 'No app found with slug "none"'),
    ):
        with pytest.raises(RpcError, match=said):
            await defined.call("UpdateAppStatus", agent.UpdateAppStatusRequest(**request | change))
    with pytest.raises(RpcError, match="No app found"):
        await defined.call("UpdateAppStatus", agent.UpdateAppStatusRequest(**request), GPU)
    newer, older = defined.store.apps.definitions(MAIN).apps[0].statuses
    assert (newer.state, newer.message) == (AppState.WORKING, "a  b")
    assert (older.state, older.message, older.uri) == (AppState.FAILURE, "ü" * 80, "http://x")
    assert newer.id != older.id


async def test_an_app_that_is_not_in_any_manifest_we_gave_is_told_later(defined: World) -> None:
    """After a restart of the server the agent may report before it asks for its manifest: the store finds out."""
    wrong = agent.BatchUpdateAppHealthRequest(updates=[{"id": make_id("shell of main").bytes, "health": agent.HEALTHY}])
    await defined.call("BatchUpdateAppHealths", wrong)
    good = agent.BatchUpdateAppHealthRequest(updates=[{"id": make_id("editor of main").bytes, "health": agent.HEALTHY}])
    with pytest.raises(RpcError, match=r"app health: app .* is none of this agent's"):
        await defined.call("BatchUpdateAppHealths", good)
    await defined.call("BatchUpdateAppHealths", good)  # told once: by then the agent has come again


async def test_a_store_that_is_away_costs_no_answer(
    defined: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever an agent reports is answered; its manifest is the one it was given before."""
    monkeypatch.setattr(agent_rpc, "STORE_RETRY_SECONDS", 0.01)
    before = await defined.call("GetManifest", agent.GetManifestRequest())
    database = defined.store.database

    def away() -> None:
        raise StoreError("the disk is full", StoreTrouble.FULL)

    monkeypatch.setattr(database.dialect, "look", away)
    reports: list[tuple[str, Any]] = [
        ("UpdateLifecycle", agent.UpdateLifecycleRequest(lifecycle={"state": agent.Lifecycle.READY})),
        ("UpdateStartup", agent.UpdateStartupRequest(startup={"version": "v2.20.0"})),
        ("BatchCreateLogs", agent.BatchCreateLogsRequest(logs=[{"output": "kept"}])),
        ("UpdateStats", agent.UpdateStatsRequest(stats={"rx_bytes": 1})),
        ("BatchUpdateMetadata", agent.BatchUpdateMetadataRequest(metadata=[{"key": "a"}])),
        ("UpdateAppStatus", agent.UpdateAppStatusRequest(slug="editor", message="thinking")),
        (
            "ReportConnection",
            agent.ReportConnectionRequest(connection={"id": bytes(16), "action": agent.Connection.CONNECT}),
        ),
        (
            "ScriptCompleted",
            agent.WorkspaceAgentScriptCompletedRequest(timing={"script_id": make_id("start of main").bytes}),
        ),
        (
            "BatchUpdateAppHealths",
            agent.BatchUpdateAppHealthRequest(
                updates=[{"id": make_id("editor of main").bytes, "health": agent.UNHEALTHY}]
            ),
        ),
    ]
    with trio.fail_after(60):
        for name, request in reports:
            await defined.unary[f"/coder.agent.v2.Agent/{name}"](defined.caller_away, request)
        again = await defined.unary["/coder.agent.v2.Agent/GetManifest"](
            defined.caller_away, agent.GetManifestRequest()
        )
        assert again == before
        with pytest.raises(StoreError):
            await defined.outbox.flush()
        monkeypatch.undo()
        await defined.outbox.flush()
    row = defined.store.callers.get_agent(MAIN)
    assert row is not None
    assert (row.lifecycle_state, row.version) == (LifecycleState.READY, "v2.20.0")
    assert [line.output for line in defined.store.reports.list_logs(MAIN)] == ["kept"]
    assert defined.store.reports.latest_stats(MAIN) is not None
    assert [each.key for each in defined.store.reports.list_metadata(MAIN)] == ["a"]
    assert len(defined.store.reports.list_connections(MAIN)) == 1
    definitions = defined.store.apps.definitions(MAIN)
    assert (definitions.apps[0].health, len(definitions.apps[0].statuses)) == (AppHealth.UNHEALTHY, 1)
    assert len(definitions.scripts[0].runs) == 1
    assert caplog.text.count("the disk is full") == 1


async def test_what_must_not_be_lost_is_in_the_store_before_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await world.unary["/coder.agent.v2.Agent/CreateSubAgent"](
        world.caller(), agent.CreateSubAgentRequest(name="child")
    )
    child = type(MAIN)(made.agent.id)
    assert world.store.callers.get_agent(child) is not None
    caller = world.caller()

    def away() -> None:
        raise StoreError("the disk is full", StoreTrouble.FULL)

    monkeypatch.setattr(world.store.database.dialect, "look", away)
    for name, request in (
        ("CreateSubAgent", agent.CreateSubAgentRequest(name="second")),
        ("DeleteSubAgent", agent.DeleteSubAgentRequest(id=made.agent.id)),
    ):
        with pytest.raises(RpcError, match="the disk is full"):
            await world.unary[f"/coder.agent.v2.Agent/{name}"](caller, request)
    monkeypatch.undo()
    assert [row.id for row in world.store.callers.list_sub_agents(MAIN)] == [child]


async def test_a_manifest_that_nobody_knows_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_rpc, "STORE_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(agent_rpc, "STORE_TRIES", 3)
    caller = world.caller()
    tries = 0

    def away() -> None:
        nonlocal tries
        tries += 1
        raise StoreError("gone")

    monkeypatch.setattr(world.store.database.dialect, "look", away)
    with pytest.raises(RpcError, match="store failed"):
        await world.unary["/coder.agent.v2.Agent/GetManifest"](caller, agent.GetManifestRequest())
    assert tries == 3
