"""What agents report, on its way into the store: which kinds there are, and how much of each may wait.  Layer L3.

Every method answers at once, since store/outbox.py writes behind: the store is never between an agent and its answer.
What the store finds out later (an app that is not the agent's, a limit that is passed), the agent hears with its next
report.  agent_rpc.py and presence.py report.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from tailnet.store.outbox import Outbox
from tailnet.store.outbox_queue import Kind
from tailnet.store.reports import (
    MAX_CONNECTION_REPORTS_PER_AGENT,
    MAX_LOG_BYTES_PER_AGENT,
    MAX_METADATA_KEYS_PER_AGENT,
)
from tailnet.store.rows import (
    AppHealths,
    AppStatusReport,
    ConnectionReport,
    EventType,
    HealthsTaken,
    LifecycleChange,
    LifecycleState,
    LogBatch,
    MetadataValue,
    PresenceChange,
    ScriptRun,
    Startup,
    StatsReport,
)
from tailnet.store.store import Store
from tailnet.types import PeerID

T = TypeVar("T")

KIB: Final = 1024
# A report of some words and ids.
SMALL: Final = 300
# Agents about which something is remembered: some hundred bytes each.
MAX_REMEMBERED: Final = 50_000
# An agent whose limit is passed, and marked so in the store.
_OVER: Final = MAX_LOG_BYTES_PER_AGENT + 1
# Rows that are read at a time: some 2 ms in which the reactor may have to wait for the interpreter.
_HELD_ROWS: Final = 1000


# States of an agent that the control plane is told of.
_TOLD: Final[Mapping[LifecycleState, tuple[EventType, Mapping[str, object]]]] = {
    LifecycleState.READY: (EventType.READY, {}),
    LifecycleState.START_ERROR: (EventType.START_FAILED, {"reason": "a script failed"}),
    LifecycleState.START_TIMEOUT: (EventType.START_FAILED, {"reason": "scripts take too long"}),
}


def presence_kind(write: Callable[..., Any], arguments: Callable[[], tuple[Any, ...]]) -> Kind[PresenceChange]:
    """Who came and left: what happened to an agent's connection lately is one change."""
    return Kind[PresenceChange](
        name="presence",
        write=write,
        arguments=arguments,
        agent_of=_agent_of,
        size_of=lambda _: SMALL,
        max_items=1,
        max_bytes=4 * KIB,
        key_of=_only_one,
        merge=PresenceChange.then,
    )


class AgentReports:
    """The kinds of reports of one server.  `server_id` says which server it is that saw an agent.

    `logs_written`, `metadata_written`: told of whose lines and values are in the store now, for those who follow them.
    `happened`: told of what the control plane may want to know.
    """

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        *,
        server_id: str = "",
        inactive_seconds: float = 30.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        logs_written: Callable[[Collection[PeerID]], None] = lambda agent_ids: None,
        metadata_written: Callable[[Collection[PeerID]], None] = lambda agent_ids: None,
        happened: Callable[[PeerID, EventType, Mapping[str, object]], None] = lambda agent_id, kind, details: None,
    ) -> None:
        self.outbox = outbox
        self._store = store
        self._server_id = server_id
        self._happened = happened
        self._logs_written = logs_written
        self._metadata_written = metadata_written
        self._log_bytes = _Remembered[int]()  # of an agent, as far as it is known here
        self._unfit_healths = _Remembered[str]()  # why, until its agent is told
        inactive = timedelta(seconds=inactive_seconds)
        self._presence = self._add(presence_kind(store.presence.record, lambda: (server_id, clock(), inactive)))
        self._add_what_describes(store)
        self._add_what_happened(store, clock)

    def _add_what_describes(self, store: Store) -> None:
        """Kinds of which the latest counts."""
        self._startups = self._add(
            Kind[Startup](
                name="startup",
                write=store.reports.update_startups,
                agent_of=_agent_of,
                size_of=lambda startup: SMALL + len(startup.expanded_directory),
                max_items=1,
                max_bytes=32 * KIB,
                key_of=_only_one,
            )
        )
        self._metadata = self._add(
            Kind[MetadataValue](
                name="metadata",
                write=store.reports.put_metadata,
                agent_of=_agent_of,
                size_of=lambda value: SMALL + len(value.value) + len(value.error),
                max_items=MAX_METADATA_KEYS_PER_AGENT,
                max_bytes=1024 * KIB,
                key_of=lambda value: value.key,
                written=lambda values, _: self._metadata_written({value.agent_id for value in values}),
            )
        )
        self._healths = self._add(
            Kind[AppHealths](
                name="health",
                write=store.apps.update_app_healths,
                agent_of=_agent_of,
                size_of=lambda batch: SMALL + 150 * len(batch.healths),
                max_items=1,
                max_bytes=256 * KIB,
                key_of=_only_one,
                merge=_merge_healths,
                written=self._note_healths,
            )
        )

    def _add_what_happened(self, store: Store, clock: Callable[[], datetime]) -> None:
        """Kinds of which each counts; an agent that reports too much loses its oldest."""
        # A start-up is some ten changes; of an agent that crashes for an hour the last ones tell.
        self._lifecycles = self._add(
            Kind[LifecycleChange](
                name="lifecycle",
                write=store.reports.update_lifecycles,
                agent_of=_agent_of,
                size_of=lambda _: SMALL,
                max_items=64,
                max_bytes=64 * KIB,
            )
        )
        # An hour at one report in five minutes.
        self._stats = self._add(
            Kind[StatsReport](
                name="stats",
                write=store.reports.insert_stats,
                agent_of=_agent_of,
                size_of=lambda report: SMALL + len(str(report.report)),
                max_items=12,
                max_bytes=256 * KIB,
            )
        )
        # All that the store takes of an agent, and the objects around short lines.
        self._logs = self._add(
            Kind[LogBatch](
                name="logs",
                write=store.reports.insert_logs,
                agent_of=_agent_of,
                size_of=lambda batch: batch.size + 100 * len(batch.lines),
                max_items=2_000,
                max_bytes=2 * MAX_LOG_BYTES_PER_AGENT,
                written=self._note_logs,
            )
        )
        self._app_statuses = self._add(
            Kind[AppStatusReport](
                name="app_status",
                write=store.apps.add_app_statuses,
                agent_of=_agent_of,
                size_of=lambda report: SMALL + len(report.status.message) + len(report.status.uri),
                max_items=50,
                max_bytes=256 * KIB,
            )
        )
        self._script_runs = self._add(
            Kind[tuple[PeerID, ScriptRun]](
                name="script",
                write=store.apps.add_script_runs,
                agent_of=lambda pair: pair[0],
                size_of=lambda _: SMALL,
                max_items=100,
                max_bytes=128 * KIB,
            )
        )
        self._sessions = self._add(
            Kind[ConnectionReport](
                name="session",
                write=store.reports.insert_connections,
                agent_of=_agent_of,
                size_of=lambda report: SMALL + len(report.reason) + len(report.app_name),
                max_items=MAX_CONNECTION_REPORTS_PER_AGENT,
                max_bytes=128 * KIB,
                arguments=lambda: (clock(),),
            )
        )

    def _add(self, kind: Kind[T]) -> Kind[T]:
        self.outbox.add_kind(kind)
        return kind

    # --- reports

    def note_presence(self, change: PresenceChange) -> None:
        """What was seen of an agent's connection."""
        self.outbox.put(self._presence, change)

    async def list_held(self) -> dict[PeerID, datetime]:
        """The agents that this server holds by the store, and when each one's row says that it was there last.

        Raises StoreError.
        """
        held: dict[PeerID, datetime] = {}
        page: list[tuple[PeerID, datetime]] = []
        while True:
            after = page[-1][0] if page else None
            page = await self._store.run(self._store.presence.list_held, self._server_id, after, _HELD_ROWS)
            held.update(page)
            if len(page) < _HELD_ROWS:
                return held

    def note_startup(self, startup: Startup) -> None:
        # A new start may find the logs of before deleted.
        self._log_bytes.forget(startup.agent_id)
        self.outbox.put(self._startups, startup)

    def note_lifecycle(self, change: LifecycleChange) -> None:
        self.outbox.put(self._lifecycles, change)
        if change.state in _TOLD:
            kind, details = _TOLD[change.state]
            self._happened(change.agent_id, kind, details)

    def note_stats(self, report: StatsReport) -> None:
        self.outbox.put(self._stats, report)
        counts = {name: getattr(report, name) for name in ("connection_count", "rx_bytes", "tx_bytes")}
        self._happened(report.agent_id, EventType.STATS, counts)

    def note_metadata(self, values: Sequence[MetadataValue]) -> None:
        for value in values:
            self.outbox.put(self._metadata, value)

    def note_healths(self, healths: AppHealths) -> str:
        """Returns why an earlier report was not stored, once; "" if all is well."""
        self.outbox.put(self._healths, healths)
        return self._unfit_healths.pop(healths.agent_id) or ""

    def note_logs(self, batch: LogBatch) -> bool:
        """Returns whether the agent's limit is passed, as far as is known: of such a batch nothing is kept.

        Where the logs are from before this server's start, it knows after the first batch that the store refuses.
        """
        used = self._log_bytes.get(batch.agent_id) or 0
        if used + batch.size > MAX_LOG_BYTES_PER_AGENT:
            if used <= MAX_LOG_BYTES_PER_AGENT:
                # The first of them: the store marks the agent.
                self.outbox.put(self._logs, replace(batch, lines=(), refused=True))
                self._log_bytes.put(batch.agent_id, _OVER)
            return True
        self._log_bytes.put(batch.agent_id, used + batch.size)
        self.outbox.put(self._logs, batch)
        return False

    def note_app_status(self, report: AppStatusReport) -> None:
        self.outbox.put(self._app_statuses, report)

    def note_script_run(self, agent_id: PeerID, run: ScriptRun) -> None:
        self.outbox.put(self._script_runs, (agent_id, run))

    def note_session(self, report: ConnectionReport) -> None:
        self.outbox.put(self._sessions, report)

    # --- what the store answered

    def _note_logs(self, batches: Sequence[LogBatch], overflows: Sequence[bool]) -> None:
        for batch, overflow in zip(batches, overflows, strict=True):
            if overflow:
                self._log_bytes.put(batch.agent_id, _OVER)
        self._logs_written({batch.agent_id for batch in batches})

    def _note_healths(self, batches: Sequence[AppHealths], taken: HealthsTaken) -> None:
        for batch, problem in zip(batches, taken.problems, strict=True):
            if problem:
                self._unfit_healths.put(batch.agent_id, problem)
        for change in taken.changed:
            details = {
                "app_id": str(change.app_id),
                "app_slug": change.slug,
                "health": change.health.name.lower(),
                "health_before": change.before.name.lower(),
            }
            self._happened(change.agent_id, EventType.APP_HEALTH, details)


class _Remembered(Generic[T]):
    """Something about each of many agents.  What was put longest ago is forgotten first."""

    def __init__(self) -> None:
        self._values: OrderedDict[PeerID, T] = OrderedDict()

    def get(self, agent_id: PeerID) -> T | None:
        return self._values.get(agent_id)

    def put(self, agent_id: PeerID, value: T) -> None:
        self._values[agent_id] = value
        self._values.move_to_end(agent_id)
        if len(self._values) > MAX_REMEMBERED:
            self._values.popitem(last=False)

    def pop(self, agent_id: PeerID) -> T | None:
        return self._values.pop(agent_id, None)

    def forget(self, agent_id: PeerID) -> None:
        self._values.pop(agent_id, None)


def _agent_of(item: Any) -> PeerID:
    agent_id: PeerID = item.agent_id
    return agent_id


def _only_one(_: object) -> Hashable:
    return None


def _merge_healths(older: AppHealths, newer: AppHealths) -> AppHealths:
    return AppHealths(newer.agent_id, {**older.healths, **newer.healths})
