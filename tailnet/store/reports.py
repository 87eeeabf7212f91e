"""What agents report: lifecycle, start-up, stats, metadata, logs, sessions (layer L2).

Every method takes a batch and is one transaction: a server gathers the reports of many agents and writes them behind,
because SQLite pays per transaction and hardly per row.  Reports of agents that no longer exist are dropped in silence:
an agent may be deleted while its last report is on its way.
"""

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from tailnet.store.callers import pieces
from tailnet.store.dialect import Dialect
from tailnet.store.part import Part, notes, reads
from tailnet.store.rows import (
    ConnectionAction,
    ConnectionReport,
    ConnectionType,
    LifecycleChange,
    LifecycleState,
    LogBatch,
    LogLine,
    LogSource,
    MetadataValue,
    Startup,
    StatsReport,
)
from tailnet.store.schema import (
    PeerIdText,
    UtcTime,
    agent_connections,
    agent_log_sources,
    agent_logs,
    agent_metadata,
    agent_stats,
    agents,
    as_microseconds,
    storable,
)
from tailnet.types import PeerID

# The field's limit for all logs of an agent: enough for any start-up, too little to fill a disk with a loop.
MAX_LOG_BYTES_PER_AGENT: Final = 1024 * 1024

# Keys come from templates, which have a handful; the bound keeps a confused agent from filling the table.
MAX_METADATA_KEYS_PER_AGENT: Final = 256

# Some days of one person's sessions.  10,000 agents that are never left alone have half a million rows, some 80 MB.
MAX_CONNECTION_REPORTS_PER_AGENT: Final = 50

# Lines of one statement: to make its text takes 0.3 ms, in which no other thread gets on.
ROWS_AT_ONCE: Final = 250
_LOG_COLUMNS: Final = ("agent_id", "source_id", "created_at", "level", "output")

# Where lines without a source belong; the same id everywhere in the field.
EXTERNAL_LOG_SOURCE: Final = UUID("3b579bf4-1ed8-4b99-87a8-e9a1e3410410")
EXTERNAL_NAME: Final = "External"
EXTERNAL_ICON: Final = "/emojis/1f310.png"


_at: Final = sa.bindparam("at", type_=UtcTime)
_state: Final = sa.bindparam("state", type_=sa.Integer)
_agent: Final = sa.bindparam("agent", type_=PeerIdText)
# Spelt out, since a list for IN cannot be part of a statement that is executed for many rows.
_ends_startup: Final = sa.or_(
    *(_state == state for state in (LifecycleState.START_TIMEOUT, LifecycleState.START_ERROR, LifecycleState.READY))
)
# Any order of states is accepted.  STARTING begins anew; READY and its failures end the start-up, also one whose
# beginning was never reported; the others leave both times alone.
_LIFECYCLE: Final = (
    agents.update()
    .where(agents.c.id == _agent)
    .values(
        lifecycle_state=_state,
        started_at=sa.case(
            (_state == LifecycleState.STARTING, _at),
            (_ends_startup, sa.func.coalesce(agents.c.started_at, _at)),
            else_=agents.c.started_at,
        ),
        ready_at=sa.case(
            (_state == LifecycleState.STARTING, sa.null()),
            (_ends_startup, _at),
            else_=agents.c.ready_at,
        ),
    )
)
_STARTUP: Final = (
    agents.update()
    .where(agents.c.id == _agent)
    .values(
        version=sa.bindparam("new_version"),
        api_version=sa.bindparam("new_api_version"),
        expanded_directory=sa.bindparam("new_directory"),
        subsystems=sa.bindparam("new_subsystems", type_=sa.JSON),
    )
)


class ReportTables(Part):
    """The part of the store that agents fill.  Every method raises StoreError."""

    @notes
    def update_lifecycles(self, connection: sa.Connection, changes: Sequence[LifecycleChange]) -> None:
        """Several changes of one agent are applied in the order given."""
        _execute_many(
            connection,
            _LIFECYCLE,
            [{"agent": change.agent_id, "state": int(change.state), "at": change.changed_at} for change in changes],
        )

    @notes
    def update_startups(self, connection: sa.Connection, startups: Sequence[Startup]) -> None:
        _execute_many(
            connection,
            _STARTUP,
            [
                {
                    "agent": startup.agent_id,
                    "new_version": startup.version,
                    "new_api_version": startup.api_version,
                    "new_directory": startup.expanded_directory,
                    "new_subsystems": list(startup.subsystems),
                }
                for startup in startups
            ],
        )

    @notes
    def insert_stats(self, connection: sa.Connection, reports: Sequence[StatsReport]) -> None:
        known = _known_agents(connection, [report.agent_id for report in reports])
        rows = [
            {
                "agent_id": report.agent_id,
                "created_at": report.at,
                "connection_count": report.connection_count,
                "rx_bytes": report.rx_bytes,
                "tx_bytes": report.tx_bytes,
                "report": dict(report.report),
            }
            for report in reports
            if report.agent_id in known
        ]
        if rows:
            connection.execute(agent_stats.insert(), rows)

    @reads
    def latest_stats(self, connection: sa.Connection, agent_id: PeerID) -> StatsReport | None:
        query = sa.select(agent_stats).where(agent_stats.c.agent_id == agent_id).order_by(agent_stats.c.id.desc())
        row = connection.execute(query.limit(1)).first()
        if row is None:
            return None
        return StatsReport(row.agent_id, row.connection_count, row.rx_bytes, row.tx_bytes, row.report, row.created_at)

    @notes
    def put_metadata(self, connection: sa.Connection, values: Sequence[MetadataValue]) -> None:
        """Keep the latest value of each key.  New keys over the limit of an agent are dropped."""
        wanted = {value.agent_id for value in values}
        known = _known_agents(connection, list(wanted))
        keys: dict[PeerID, set[str]] = {agent_id: set() for agent_id in known}
        for piece in pieces(known):
            query = sa.select(agent_metadata.c.agent_id, agent_metadata.c.key)
            for agent_id, key in connection.execute(query.where(agent_metadata.c.agent_id.in_(piece))):
                keys[agent_id].add(key)
        rows = {}
        for value in values:
            have = keys.get(value.agent_id)
            if have is None or (value.key not in have and len(have) >= MAX_METADATA_KEYS_PER_AGENT):
                continue
            have.add(value.key)
            rows[value.agent_id, value.key] = {
                "agent_id": value.agent_id,
                "key": value.key,
                "value": value.value,
                "error": value.error,
                "collected_at": value.collected_at,
            }
        if rows:
            put = self.database.dialect.upsert(
                agent_metadata, key=("agent_id", "key"), replaced=("value", "error", "collected_at")
            )
            # In one order everywhere, so that servers that write at once never wait for each other in a circle.
            connection.execute(put, [rows[key] for key in sorted(rows)])

    @reads
    def list_metadata(self, connection: sa.Connection, agent_id: PeerID) -> list[MetadataValue]:
        query = sa.select(agent_metadata).where(agent_metadata.c.agent_id == agent_id).order_by(agent_metadata.c.key)
        return [MetadataValue(*row) for row in connection.execute(query)]

    @notes
    def add_log_source(self, connection: sa.Connection, source: LogSource) -> None:
        """A source that exists already stays as it is: that is no error to agents, which announce it at each start."""
        if _known_agents(connection, [source.agent_id]):
            add = self.database.dialect.upsert(agent_log_sources, key=("agent_id", "id"), replaced=())
            connection.execute(add, {field.name: getattr(source, field.name) for field in fields(source)})

    @reads
    def list_log_sources(self, connection: sa.Connection, agent_id: PeerID) -> list[LogSource]:
        table = agent_log_sources
        query = sa.select(table.c.agent_id, table.c.id, table.c.display_name, table.c.icon, table.c.created_at)
        rows = connection.execute(query.where(table.c.agent_id == agent_id).order_by(table.c.created_at, table.c.id))
        return [LogSource(*row) for row in rows]

    @notes
    def insert_logs(self, connection: sa.Connection, batches: Sequence[LogBatch]) -> list[bool]:
        """Store batches of lines.  For each: whether it was refused because the agent's limit would be passed.

        Of a refused batch nothing is stored, and the agent is marked.  The source of lines that have none of their own
        is made with the first of them.
        """
        overflows = []
        self._add_external_sources(connection, batches)
        used = _log_bytes(connection, [batch.agent_id for batch in batches])
        rows: list[tuple[object, ...]] = []
        changed: dict[PeerID, bool] = {}
        for batch in batches:
            before = used.get(batch.agent_id)
            overflow = before is not None and (batch.refused or before + batch.size > MAX_LOG_BYTES_PER_AGENT)
            overflows.append(overflow)
            if before is None:
                continue
            changed[batch.agent_id] = changed.get(batch.agent_id, False) or overflow
            if not overflow:
                used[batch.agent_id] = before + batch.size
                rows += _log_rows(batch)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            piece = rows[start : start + ROWS_AT_ONCE]
            self.database.dialect.insert_rows(connection, agent_logs, _LOG_COLUMNS, piece)
        for agent_id, overflowed in sorted(changed.items()):
            change = agents.update().where(agents.c.id == agent_id).values(logs_bytes=used[agent_id])
            connection.execute(change.values(logs_overflowed=True) if overflowed else change)
        return overflows

    def _add_external_sources(self, connection: sa.Connection, batches: Sequence[LogBatch]) -> None:
        first = {batch.agent_id: batch.at for batch in batches if batch.source_id == EXTERNAL_LOG_SOURCE}
        external = {"id": EXTERNAL_LOG_SOURCE, "display_name": EXTERNAL_NAME, "icon": EXTERNAL_ICON}
        rows = [
            {"agent_id": agent_id, "created_at": first[agent_id], **external}
            for agent_id in sorted(_known_agents(connection, list(first)))
        ]
        if rows:
            add = self.database.dialect.upsert(agent_log_sources, key=("agent_id", "id"), replaced=())
            connection.execute(add, rows)

    @reads
    def list_logs(
        self, connection: sa.Connection, agent_id: PeerID, after: int = 0, limit: int = 1_000
    ) -> list[LogLine]:
        """Lines with an id above `after`, oldest first."""
        table = agent_logs
        query = sa.select(table.c.id, table.c.source_id, table.c.level, table.c.created_at, table.c.output)
        query = query.where(table.c.agent_id == agent_id, table.c.id > after).order_by(table.c.id).limit(limit)
        return [LogLine(*row) for row in connection.execute(query)]

    @reads
    def list_last_logs(self, connection: sa.Connection, agent_id: PeerID, count: int) -> list[LogLine]:
        """The last lines, at most `count`, oldest first."""
        table = agent_logs
        query = sa.select(table.c.id, table.c.source_id, table.c.level, table.c.created_at, table.c.output)
        query = query.where(table.c.agent_id == agent_id).order_by(table.c.id.desc()).limit(count)
        return [LogLine(*row) for row in connection.execute(query)][::-1]

    @notes
    def insert_connections(self, connection: sa.Connection, reports: Sequence[ConnectionReport], now: datetime) -> None:
        """Keep reports of sessions, of each agent the last ones."""
        known = _known_agents(connection, [report.agent_id for report in reports])
        rows = [
            {field.name: getattr(report, field.name) for field in fields(report)}
            | {"action": int(report.action), "type": int(report.type), "stored_at": now}
            for report in reports
            if report.agent_id in known
        ]
        if rows:
            connection.execute(agent_connections.insert(), rows)
        table = agent_connections
        for agent_id in known:
            keep_last(connection, table.c.agent_id, agent_id, MAX_CONNECTION_REPORTS_PER_AGENT)

    @reads
    def list_connections(self, connection: sa.Connection, agent_id: PeerID) -> list[ConnectionReport]:
        """The last reports, newest first."""
        table = agent_connections
        query = sa.select(*[table.c[field.name] for field in fields(ConnectionReport)])
        rows = connection.execute(query.where(table.c.agent_id == agent_id).order_by(table.c.id.desc())).all()
        return [
            ConnectionReport(agent, which, ConnectionAction(action), ConnectionType(type_), *rest)
            for agent, which, action, type_, *rest in rows
        ]


def _execute_many(connection: sa.Connection, statement: sa.UpdateBase, parameters: Sequence[dict[str, object]]) -> None:
    # Of one agent in the order given; agents in one order everywhere, so that servers that write at once never wait for
    # each other in a circle.
    if parameters:
        connection.execute(statement, sorted(parameters, key=lambda each: str(each["agent"])))


def line_size(dialect: Dialect) -> sa.ColumnElement[int]:
    """What a line counts against the limit of its agent, as LogBatch.size has it."""
    return sa.case((agent_logs.c.output == "", 1), else_=dialect.byte_length(agent_logs.c.output))


def keep_last(connection: sa.Connection, column: sa.Column[Any], value: object, count: int) -> None:
    """Delete all but the newest rows of those with that value; the table's `id` is their order."""
    table = column.table
    newest_to_go = sa.select(table.c.id).where(column == value).order_by(table.c.id.desc()).offset(count).limit(1)
    assert isinstance(table, sa.Table)
    connection.execute(table.delete().where(column == value, table.c.id <= newest_to_go.scalar_subquery()))


def _known_agents(connection: sa.Connection, agent_ids: Sequence[PeerID]) -> set[PeerID]:
    # Checked by hand: SQLite's OR IGNORE does not cover foreign keys, and one stray row must not sink the batch.  Where
    # others write too, nobody deletes these agents until we are done.
    known = sa.select(agents.c.id).order_by(agents.c.id).with_for_update(read=True, key_share=True)
    return {
        agent_id
        for piece in pieces(sorted(set(agent_ids)))
        for agent_id in connection.execute(known.where(agents.c.id.in_(piece))).scalars()
    }


def _log_bytes(connection: sa.Connection, agent_ids: Sequence[PeerID]) -> dict[PeerID, int]:
    used: dict[PeerID, int] = {}
    counts = sa.select(agents.c.id, agents.c.logs_bytes).order_by(agents.c.id).with_for_update(key_share=True)
    for piece in pieces(sorted(set(agent_ids))):
        for agent_id, count in connection.execute(counts.where(agents.c.id.in_(piece))):
            used[agent_id] = count
    return used


def _log_rows(batch: LogBatch) -> list[tuple[object, ...]]:
    """Rows as the database has them: what all lines share is converted once."""
    agent_id, source_id, at = str(batch.agent_id), str(batch.source_id), as_microseconds(batch.at)
    return [(agent_id, source_id, at, level, storable(output)) for level, output in batch.lines]
