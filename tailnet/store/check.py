"""Is a store whole, how large is it, and who uses it (layer L2).  Called by cli/admin_store.py; changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa

from tailnet.store.database import Database
from tailnet.store.reports import line_size
from tailnet.store.rows import ServerRow
from tailnet.store.schema import HEAD_REVISION, agent_logs, agents, servers

# As services/store_watch.py has it: who was not heard of for so long has ended.
_SILENT: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What a check found.  `problems`: one sentence each; an empty list is a store that is whole."""

    store: str
    kind: str  # SQLite or PostgreSQL, with its version
    schema: str
    size_bytes: int
    rows: dict[str, int]  # by table
    servers: Sequence[ServerRow]  # that use it now
    problems: Sequence[str]


def check(database: Database, now: datetime | None = None) -> StoreReport:
    """Read all of a store, of whatever schema.  Raises StoreError when it cannot be read at all."""
    problems: list[str] = []
    with database.reading() as connection:
        dialect = database.dialect
        dialect.begin_long(connection)
        schema = database.schema_revision(connection)
        problems += dialect.find_damage(connection)
        tables = sorted(dialect.table_names(connection))
        rows = {name: _count(connection, name) for name in tables}
        online: list[ServerRow] = []
        if schema == HEAD_REVISION:
            problems += _wrong_sums(database, connection)
            heard_since = (now or datetime.now(UTC)) - _SILENT
            query = sa.select(servers).where(servers.c.seen_at > heard_since).order_by(servers.c.started_at)
            online = [ServerRow(*row) for row in connection.execute(query)]
        elif schema is None:
            problems.append("it has no schema: tailnet serve makes it")
        return StoreReport(
            store=database.shown,
            kind=f"{dialect.name} {dialect.version(connection)}",
            schema=schema or "none",
            size_bytes=dialect.size_bytes(connection),
            rows=rows,
            servers=online,
            problems=problems,
        )


def _count(connection: sa.Connection, name: str) -> int:
    # It reads every row of a table, so a page that is damaged is found.
    return int(connection.execute(sa.select(sa.func.count()).select_from(sa.table(name))).scalar_one())


def _wrong_sums(database: Database, connection: sa.Connection) -> list[str]:
    """The bytes of logs are counted at each agent, for its limit: they must be those of its lines."""
    size = sa.func.coalesce(sa.func.sum(sa.case((agent_logs.c.id.is_(None), 0), else_=line_size(database.dialect))), 0)
    query = (
        sa.select(agents.c.id, agents.c.logs_bytes, size)
        .outerjoin(agent_logs, agent_logs.c.agent_id == agents.c.id)
        .group_by(agents.c.id, agents.c.logs_bytes)
        .having(agents.c.logs_bytes != size)
    )
    return [
        f"agent {agent_id}: {counted:,} bytes of logs are counted, {there:,} are there"
        for agent_id, counted, there in connection.execute(query)
    ]
