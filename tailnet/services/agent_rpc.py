"""The Agent service: what a workspace agent asks and reports over its RPC connection.  Layer L3.

One method per RPC.  An agent answers any error by ending its whole connection and starting again, so only what is truly
wrong is one.  tailnet_rpc.py calls each method as a task.  Reports go through reports.py; what must not be lost
(sub-agents) is in the store before the answer.
"""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from tailnet.config import Banner, CoordinatorConfig
from tailnet.errors import MalformedField, RpcError, StoreError, Unimplemented
from tailnet.proto import convert
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.services import AGENT
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.known_agents import KnownAgents
from tailnet.services.manifest import app_of_sub_agent, manifest
from tailnet.services.reports import AgentReports
from tailnet.services.tailnet_rpc import Caller, Unary
from tailnet.store.definitions import MAX_ITEMS, read_app
from tailnet.store.reports import EXTERNAL_LOG_SOURCE
from tailnet.store.rows import (
    AgentIdentity,
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
    LogBatch,
    MetadataValue,
    RunStage,
    RunStatus,
    ScriptRun,
    Startup,
    StatsReport,
)
from tailnet.store.store import Store
from tailnet.tokens import agent_token_digest
from tailnet.transport.accounts import DEFAULT_ACCOUNT_LIMITS, AccountLimits
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.server")

T = TypeVar("T")

# Of the value and of the error of a metadata script so much is kept: the reference's number.
MAX_METADATA_BYTES: Final = 2048
# A version is some ten characters, of a development build some fifty; a path on Linux ends at 4096.
MAX_VERSION_CHARS: Final = 256
MAX_DIRECTORY_CHARS: Final = 4096
# A semantic version as Go's module tools read it: with a leading v, minor and patch may be left out.
_NUMBER: Final = r"(0|[1-9][0-9]*)"
_PRE: Final = r"(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_SEMVER: Final = re.compile(
    rf"v{_NUMBER}(\.{_NUMBER}(\.{_NUMBER}(-{_PRE}(\.{_PRE})*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?)?)?"
)
# The reference's number for what an app says it does.  The others only bound what a row takes.
MAX_STATUS_BYTES: Final = 160
MAX_URI_CHARS: Final = 4096
MAX_REASON_CHARS: Final = 1024
# Five minutes in all: until somebody has looked at a full disk, or a store is restored.
STORE_RETRY_SECONDS: Final = 5.0
STORE_TRIES: Final = 60
# Go's zero time: the agent did not say when.
_NEVER: Final = datetime(1, 1, 1, tzinfo=UTC)
_UNKNOWN_LIFECYCLE: Final = frozenset({agent.Lifecycle.STATE_UNSPECIFIED})


# RPCs of which every call is a row or more, and those that are counted or kept.
_WRITTEN: Final = (
    "UpdateStats",
    "UpdateLifecycle",
    "UpdateStartup",
    "BatchUpdateAppHealths",
    "BatchUpdateMetadata",
    "BatchCreateLogs",
    "ScriptCompleted",
    "ReportConnection",
    "CreateSubAgent",
    "DeleteSubAgent",
    "ReportBoundaryLogs",
    "UpdateAppStatus",
)
# An agent that waits this long is in trouble of its own making, and what it sends fills memory meanwhile.
MAX_REPORT_WAIT_SECONDS: Final = 60.0


class AgentService:
    """Answers agents.  `unary()` is the table that tailnet_rpc.py wants."""

    def __init__(
        self,
        store: Store,
        reports: AgentReports,
        maps: DerpMaps,
        config: CoordinatorConfig,
        *,
        changed: Callable[[UUID], None],
        limits: AccountLimits = DEFAULT_ACCOUNT_LIMITS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._limits = limits
        self._reports = reports
        self._known = KnownAgents(store)
        self._maps = maps
        self._config = config
        self._changed = changed  # called when something of an owner's workspaces changed
        self._clock = clock
        self.reports_delayed = self.reports_refused = 0
        self.connection_reports = 0
        self.connection_reports_unreadable = 0
        self.boundary_logs = 0

    def reconfigure(self, config: CoordinatorConfig) -> None:
        """Go by these settings from the next call on."""
        self._config = config

    def unary(self) -> Mapping[str, Unary]:
        """RPC path to method, for every RPC of the Agent service that this server has."""
        methods: dict[str, Unary] = {
            "GetManifest": self.get_manifest,
            "GetServiceBanner": self.get_service_banner,
            "GetAnnouncementBanners": self.get_announcement_banners,
            "UpdateStats": self.update_stats,
            "UpdateLifecycle": self.update_lifecycle,
            "UpdateStartup": self.update_startup,
            "BatchUpdateAppHealths": self.batch_update_app_healths,
            "BatchUpdateMetadata": self.batch_update_metadata,
            "BatchCreateLogs": self.batch_create_logs,
            "ScriptCompleted": self.script_completed,
            "GetResourcesMonitoringConfiguration": self.get_resources_monitoring_configuration,
            "PushResourcesMonitoringUsage": self.push_resources_monitoring_usage,
            "ReportConnection": self.report_connection,
            "CreateSubAgent": self.create_sub_agent,
            "DeleteSubAgent": self.delete_sub_agent,
            "ListSubAgents": self.list_sub_agents,
            "ReportBoundaryLogs": self.report_boundary_logs,
            "UpdateAppStatus": self.update_app_status,
            "PushContextState": self.push_context_state,
        }
        for name in _WRITTEN:
            methods[name] = self._in_turn(methods[name])
        return {path: methods[path.rpartition("/")[2]] for path in AGENT}

    def _in_turn(self, method: Unary) -> Unary:
        """Reports end in the store, which all agents share.  One that reports more than its share is answered later,
        which slows it down and costs it nothing else."""

        async def answer(caller: Caller, request: Any) -> Message:
            if caller.account is not None:
                wait = caller.account.pay(request.ByteSize(), self._limits, trio.current_time())
                if wait > MAX_REPORT_WAIT_SECONDS:
                    self.reports_refused += 1
                    raise RpcError("this agent reports much more than it may: see --max-report-bytes, --max-reports")
                if wait:
                    self.reports_delayed += 1
                    await trio.sleep(wait)
            return await method(caller, request)

        return answer

    async def get_manifest(self, caller: Caller, request: Any) -> Message:
        identity = _identity(caller)
        known = await _insist(lambda: self._known.read(identity.id))
        if known is None:
            raise RpcError("this agent was deleted")
        return manifest(identity, known.row, known.definitions, self._config, self._maps.current.message)

    async def get_service_banner(self, caller: Caller, request: Any) -> Message:
        # The one banner that agents before API 2.1 can show.
        for each in self._shown():
            return agent.ServiceBanner(enabled=True, message=each.message, background_color=each.background_color)
        return agent.ServiceBanner()

    async def get_announcement_banners(self, caller: Caller, request: Any) -> Message:
        banners = [
            agent.BannerConfig(enabled=True, message=each.message, background_color=each.background_color)
            for each in self._shown()
        ]
        return agent.GetAnnouncementBannersResponse(announcement_banners=banners)

    def _shown(self) -> list[Banner]:
        # A banner that is switched off is not sent: an agent might show it.
        return [each for each in self._config.announcement_banners if each.enabled]

    async def update_stats(self, caller: Caller, request: Any) -> Message:
        # An agent's first call has no stats: it asks for the interval, and takes whatever it is told.
        if request.HasField("stats"):
            stats = request.stats
            report = MessageToDict(stats, preserving_proto_field_name=True)
            counts = stats.connection_count, stats.rx_bytes, stats.tx_bytes
            self._reports.note_stats(StatsReport(caller.peer_id, *counts, report, self._clock()))
        response = agent.UpdateStatsResponse()
        response.report_interval.CopyFrom(convert.duration(self._config.stats_interval_seconds))
        return response

    async def update_lifecycle(self, caller: Caller, request: Any) -> Message:
        lifecycle = request.lifecycle
        if lifecycle.state in _UNKNOWN_LIFECYCLE or lifecycle.state not in LifecycleState._value2member_map_:
            raise RpcError(f"unknown lifecycle state {lifecycle.state}")
        try:
            moment = convert.moment(lifecycle.changed_at) if lifecycle.HasField("changed_at") else self._clock()
        except MalformedField as error:
            raise RpcError(f"lifecycle: changed_at: {error}") from error
        if moment == _NEVER:
            moment = self._clock()
        self._reports.note_lifecycle(LifecycleChange(caller.peer_id, LifecycleState(lifecycle.state), moment))
        self._changed(_identity(caller).owner_id)
        return agent.Lifecycle.FromString(lifecycle.SerializeToString())

    async def update_startup(self, caller: Caller, request: Any) -> Message:
        startup = request.startup
        if len(startup.version) > MAX_VERSION_CHARS or not _SEMVER.fullmatch(startup.version):
            raise RpcError(f"startup: version wants the form v1.2.3, got {startup.version[:MAX_VERSION_CHARS]!r}")
        if agent.Startup.SUBSYSTEM_UNSPECIFIED in startup.subsystems:
            raise RpcError("startup: a subsystem is unspecified: leave it out")
        # A subsystem without a name here is one of newer agents, and no reason to turn them away.
        names = sorted({agent.Startup.Subsystem.Name(each) for each in startup.subsystems if each in _SUBSYSTEMS})
        row = Startup(
            caller.peer_id,
            startup.version,
            startup.expanded_directory[:MAX_DIRECTORY_CHARS],
            names,
            caller.api_version,
        )
        self._reports.note_startup(row)
        return agent.Startup.FromString(startup.SerializeToString())

    async def batch_update_app_healths(self, caller: Caller, request: Any) -> Message:
        healths: dict[UUID, AppHealth] = {}
        for update in request.updates:
            if len(update.id) != 16 or update.health not in AppHealth._value2member_map_:
                raise RpcError(f"app health: {update.id.hex()[:64]} with health {update.health} is no app's")
            healths[UUID(bytes=update.id)] = AppHealth(update.health)
        if healths:
            known = self._known.last_known(caller.peer_id)
            wrong = healths.keys() - known.checked_apps() if known is not None else ()
            problem = next((f"app {each} is none of this agent's that has a health check" for each in wrong), "")
            if not wrong:
                problem = self._reports.note_healths(AppHealths(caller.peer_id, healths))
            if problem:
                # The agent has an older manifest: the error makes it start again, and ask for the one of today.
                raise RpcError(f"app health: {problem}")
        return agent.BatchUpdateAppHealthResponse()

    async def batch_update_metadata(self, caller: Caller, request: Any) -> Message:
        now = self._clock()
        values = [
            MetadataValue(
                caller.peer_id,
                each.key[:256],
                each.result.value[:MAX_METADATA_BYTES],
                each.result.error[:MAX_METADATA_BYTES],
                now,
            )
            for each in request.metadata
        ]
        self._reports.note_metadata(values)
        return agent.BatchUpdateMetadataResponse()

    async def batch_create_logs(self, caller: Caller, request: Any) -> Message:
        if not request.logs:
            return agent.BatchCreateLogsResponse()
        source = UUID(bytes=request.log_source_id) if len(request.log_source_id) == 16 else UUID(int=0)
        if source.int == 0:
            source = EXTERNAL_LOG_SOURCE
        lines = [(_level(line.level), line.output) for line in request.logs]
        exceeded = self._reports.note_logs(LogBatch(caller.peer_id, source, lines, self._clock()))
        # An error would end the agent's connection; this answer ends only its logs.
        return agent.BatchCreateLogsResponse(log_limit_exceeded=exceeded)

    async def script_completed(self, caller: Caller, request: Any) -> Message:
        run = self._script_run(request.timing)
        if run is not None:
            self._reports.note_script_run(caller.peer_id, run)
        return agent.WorkspaceAgentScriptCompletedResponse()

    def _script_run(self, timing: Any) -> ScriptRun | None:
        if len(timing.script_id) != 16 or not (
            timing.stage in RunStage._value2member_map_ and timing.status in RunStatus._value2member_map_
        ):
            return None
        try:
            started = convert.moment(timing.start) if timing.HasField("start") else self._clock()
            ended = convert.moment(timing.end) if timing.HasField("end") else self._clock()
        except MalformedField:
            return None
        script_id, stage, status = UUID(bytes=timing.script_id), RunStage(timing.stage), RunStatus(timing.status)
        return ScriptRun(script_id, started, ended, timing.exit_code, stage, status)

    async def get_resources_monitoring_configuration(self, caller: Caller, request: Any) -> Message:
        """Nothing is monitored: thresholds and whom to tell are the control plane's, and no setting of ours says them.

        Agents then push no usage.  It is an answer all the same: an error would have them start over for ever.
        """
        response = agent.GetResourcesMonitoringConfigurationResponse()
        # Memory and volumes are absent, so nothing is monitored; but an agent divides by these two numbers.
        response.config.num_datapoints = 20
        response.config.collection_interval_seconds = 10
        return response

    async def push_resources_monitoring_usage(self, caller: Caller, request: Any) -> Message:
        """Only from an agent that another server configured; there is nothing here to compare it with."""
        return agent.PushResourcesMonitoringUsageResponse()

    async def report_connection(self, caller: Caller, request: Any) -> Message:
        report = self._connection_report(caller.peer_id, request.connection)
        if report is None:
            # The session that it reports may be over; an error would cost the agent its connection.
            self.connection_reports_unreadable += 1
            return Empty()
        self.connection_reports += 1
        self._reports.note_session(report)
        return Empty()

    def _connection_report(self, agent_id: PeerID, said: Any) -> ConnectionReport | None:
        if len(said.id) != 16 or said.action not in ConnectionAction._value2member_map_:
            return None
        try:
            at = convert.moment(said.timestamp) if said.HasField("timestamp") else self._clock()
        except MalformedField:
            return None
        # Newer agents know more sorts, which count as none here; they say the name of the app besides.
        known = said.type in ConnectionType._value2member_map_
        return ConnectionReport(
            agent_id,
            UUID(bytes=said.id),
            ConnectionAction(said.action),
            ConnectionType(said.type) if known else ConnectionType.UNSPECIFIED,
            at,
            _printable(said.ip, 64),
            said.status_code,
            _printable(said.reason, MAX_REASON_CHARS),
            _printable(said.app_name, 256),
        )

    async def create_sub_agent(self, caller: Caller, request: Any) -> Message:
        if not request.name:
            raise RpcError("a sub-agent needs a name")
        token = uuid4()
        # The agent may have planned a sub-agent and chosen its id; any other gets one here.
        sub_id = PeerID(request.id) if len(request.id) == 16 else PeerID(secrets.token_bytes(16))
        response = agent.CreateSubAgentResponse()
        apps = _apps_of_sub_agent(request.apps, response)
        architecture, system = request.architecture[:64], request.operating_system[:64]
        try:
            added = await self._store.run(
                self._store.callers.add_sub_agent,
                caller.peer_id,
                sub_id,
                agent_token_digest(token),
                request.name[:128],
                self._clock(),
                directory=request.directory[:4096],
                architecture=architecture,
                operating_system=system,
                apps=apps,
            )
        except StoreError as error:
            raise RpcError(f"cannot add sub-agent {request.name[:128]!r}: {error}") from error
        if not added:
            raise RpcError("this agent was deleted")
        self._changed(_identity(caller).owner_id)
        response.agent.name = request.name[:128]
        response.agent.id = bytes(sub_id)
        response.agent.auth_token = token.bytes
        return response

    async def delete_sub_agent(self, caller: Caller, request: Any) -> Message:
        if len(request.id) != 16:
            raise RpcError("a sub-agent's id has 16 bytes")
        try:
            deleted = await self._store.run(self._store.callers.delete_sub_agent, caller.peer_id, PeerID(request.id))
        except StoreError as error:
            raise RpcError(f"cannot delete the sub-agent: {error}") from error
        if not deleted:
            raise RpcError("no such sub-agent of this agent")
        self._changed(_identity(caller).owner_id)
        return agent.DeleteSubAgentResponse()

    async def list_sub_agents(self, caller: Caller, request: Any) -> Message:
        rows = await _insist(lambda: self._store.run(self._store.callers.list_sub_agents, caller.peer_id))
        # Tokens are hashed in the store, so only the call that made a sub-agent can tell its token.
        return agent.ListSubAgentsResponse(agents=[agent.SubAgent(name=row.name, id=bytes(row.id)) for row in rows])

    async def report_boundary_logs(self, caller: Caller, request: Any) -> Message:
        self.boundary_logs += len(request.logs)
        return agent.ReportBoundaryLogsResponse()

    async def update_app_status(self, caller: Caller, request: Any) -> Message:
        if len(request.message.encode("utf-8", "replace")) > MAX_STATUS_BYTES:
            raise RpcError(f"Message is too long. Message must be less than {MAX_STATUS_BYTES} characters.")
        if len(request.uri) > MAX_URI_CHARS:
            raise RpcError(f"URI is too long: it may have {MAX_URI_CHARS} characters.")
        if request.state not in AppState._value2member_map_:
            raise RpcError("Invalid state provided.")
        status = AppStatus(
            uuid4(),
            self._clock(),
            AppState(request.state),
            _printable(request.message, MAX_STATUS_BYTES),
            _printable(request.uri, MAX_URI_CHARS),
        )
        report = AppStatusReport(caller.peer_id, request.slug, status)
        known = self._known.last_known(caller.peer_id)
        if known is not None and request.slug in known.slugs():
            self._reports.note_app_status(report)
            return agent.UpdateAppStatusResponse()
        # An app that its manifest does not name may be newer than that.
        try:
            [taken] = await self._store.run(self._store.apps.add_app_statuses, [report])
        except StoreError as error:
            raise RpcError(f"cannot store the status of app {request.slug[:64]!r}: {error}") from error
        if not taken:
            raise RpcError(f'Failed to get workspace app. No app found with slug "{request.slug[:64]}"')
        return agent.UpdateAppStatusResponse()

    async def push_context_state(self, caller: Caller, request: Any) -> Message:
        # Code 12 makes an agent stop pushing, cleanly; accepting and forgetting would be a lie.
        raise Unimplemented


async def _insist(work: Callable[[], Awaitable[T]]) -> T:
    """Try until the store does it.

    An agent waits for an answer as long as it takes.  An error would end its connection, and with it its part in the
    tailnet, and it could not come back before the store does.
    """
    for left in range(STORE_TRIES - 1, -1, -1):
        try:
            return await work()
        except StoreError as error:
            if not left:
                raise RpcError("the server's store failed; its log says more") from error
            _log.warning("! the store failed an agent, again in %.0f s: %s", STORE_RETRY_SECONDS, error)
        await trio.sleep(STORE_RETRY_SECONDS)
    raise AssertionError("the last try answers or raises")


def _apps_of_sub_agent(said: Sequence[Any], response: Any) -> dict[UUID, Mapping[str, Any]]:
    """The apps that can be made, in their order; the response says why the others cannot."""
    if len(said) > MAX_ITEMS:
        raise RpcError(f"a sub-agent may have {MAX_ITEMS} apps")
    made: list[tuple[int, Mapping[str, Any]]] = []
    for index, each in enumerate(said):
        definition = read_app(app_of_sub_agent(each))
        if not isinstance(definition, tuple) and any(definition["slug"] == other["slug"] for _, other in made):
            definition = "slug", f"{definition['slug']!r:.80} is taken by another app"
        if isinstance(definition, tuple):
            field, reason = definition
            response.app_creation_errors.add(index=index, field=field, error=reason)
        else:
            made.append((each.order, definition))
    return {uuid4(): definition for _, definition in sorted(made, key=lambda pair: pair[0])}


def _printable(text: str, limit: int) -> str:
    """Text for a page: control characters become blanks."""
    return "".join(each if each.isprintable() else " " for each in text[:limit])


def _identity(caller: Caller) -> AgentIdentity:
    assert isinstance(caller.identity, AgentIdentity), "the Agent service is served to agents only"
    return caller.identity


def _level(said: int) -> int:
    """A line's level as the wire numbers it; unspecified, and one that we do not know, is information."""
    return said if said in _LEVELS else int(agent.Log.INFO)


_LEVELS: Final = frozenset(agent.Log.Level.values()) - {agent.Log.LEVEL_UNSPECIFIED}
_SUBSYSTEMS: Final = frozenset(agent.Startup.Subsystem.values()) - {agent.Startup.SUBSYSTEM_UNSPECIFIED}
