"""How long what agents report is kept, by age and by size, and its removal in small steps (layer L2).

Rows are numbered in the order in which they came, so the oldest are those with the lowest numbers: what is due is found
by a reader, and removed by transactions of some milliseconds that let others in between.  Of sessions, runs and
statuses each agent, script and app has its last few anyway (reports.py, apps.py).  Next hop: services/upkeep.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from tailnet.store.administration.audit import AuditTables
from tailnet.store.database import Database
from tailnet.store.part import Part, notes, reads
from tailnet.store.reports import line_size
from tailnet.store.schema import agent_connections, agent_logs, agent_stats, agents, events, revocations, user_tokens

# Rows of one step: some five milliseconds of the writer's time, with their three indexes.
STEP_ROWS: Final = 1_000
# An expired token is told so, and by whom that was, for as long as somebody may still wonder.
TOKENS_KEPT: Final = timedelta(days=30)
# Servers look for changes each second; one that was stopped for longer forgets everybody.
REVOCATIONS_KEPT: Final = timedelta(hours=1)


# What is removed, by the names of its steps.
REMOVED: Final = ("stats", "logs", "sessions", "events", "tokens", "audit", "revocations")


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept.  The defaults are argued in config/coordinator.py."""

    stats: timedelta = timedelta(hours=24)
    logs: timedelta = timedelta(days=14)
    sessions: timedelta = timedelta(days=90)
    events: timedelta = timedelta(days=3)
    audit: timedelta = timedelta(days=366)
    max_stats: int = 5_000_000  # rows
    max_log_bytes: int = 4 * 1024**3
    max_events: int = 500_000  # rows, some 250 MB: two hours of 10,000 agents that all reconnect each minute


@dataclass(frozen=True, slots=True)
class Step:
    """One way to find what is due of one sort, and to remove what was found."""

    name: str
    find: Callable[[], Sequence[Any]]
    remove: Callable[[Sequence[Any]], int]


class RetentionTables(Part):
    """Finds what is due and removes it.  Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._audit = AuditTables(database)

    def steps(self, limits: Retention, now: datetime) -> list[Step]:
        """What there is to remove.  Each step is to be taken until it finds nothing."""
        return [
            Step("stats", partial(self.due_stats, now - limits.stats, limits.max_stats), self.remove_stats),
            Step("logs", partial(self.due_logs, now - limits.logs, limits.max_log_bytes), self.remove_logs),
            Step("sessions", partial(self.due_sessions, now - limits.sessions), self.remove_sessions),
            Step("events", partial(self.due_events, now - limits.events, limits.max_events), self.remove_events),
            Step("audit", partial(self._audit.due, now - limits.audit), self._audit.remove),
            Step("revocations", partial(self.due_revocations, now - REVOCATIONS_KEPT), self.remove_revocations),
            Step("tokens", partial(self.due_tokens, now - TOKENS_KEPT), self.remove_tokens),
        ]

    @reads
    def due_stats(self, connection: sa.Connection, before: datetime, most: int) -> list[int]:
        """Numbers of the oldest rows that are too old, or too many."""
        table = agent_stats
        newest = connection.execute(sa.select(sa.func.max(table.c.id))).scalar_one()
        oldest = sa.select(table.c.id, table.c.created_at).order_by(table.c.id).limit(STEP_ROWS)
        return [
            number
            for number, created_at in connection.execute(oldest)
            if created_at < before or number <= newest - most  # numbers have gaps, so this is the bound or fewer
        ]

    @notes
    def remove_stats(self, connection: sa.Connection, numbers: Sequence[int]) -> int:
        """Returns how many there were."""
        return connection.execute(agent_stats.delete().where(agent_stats.c.id.in_(numbers))).rowcount

    @reads
    def due_logs(self, connection: sa.Connection, before: datetime, most_bytes: int) -> list[int]:
        """Numbers of the oldest lines that are too old, or that make all logs too large."""
        table = agent_logs
        total = connection.execute(sa.select(sa.func.sum(agents.c.logs_bytes))).scalar_one() or 0
        size = line_size(self.database.dialect)
        oldest = sa.select(table.c.id, table.c.created_at, size).order_by(table.c.id).limit(STEP_ROWS)
        due: list[int] = []
        for number, created_at, length in connection.execute(oldest):
            if created_at < before or total > most_bytes:
                due.append(number)
                total -= length
        return due

    @notes
    def remove_logs(self, connection: sa.Connection, numbers: Sequence[int]) -> int:
        """Returns how many lines there were.  Their agents may log as much again."""
        table = agent_logs
        size = line_size(self.database.dialect)
        freed = connection.execute(
            sa.select(table.c.agent_id, sa.func.sum(size)).where(table.c.id.in_(numbers)).group_by(table.c.agent_id)
        ).all()
        removed = connection.execute(table.delete().where(table.c.id.in_(numbers))).rowcount
        for agent_id, length in sorted(freed, key=lambda row: str(row[0])):
            left = agents.c.logs_bytes - int(length)
            connection.execute(
                agents.update().where(agents.c.id == agent_id).values(logs_bytes=sa.case((left < 0, 0), else_=left))
            )
        return removed

    @reads
    def due_sessions(self, connection: sa.Connection, before: datetime) -> list[int]:
        """Numbers of reports of sessions that are too old, by the clock of the server that stored them."""
        table = agent_connections
        query = sa.select(table.c.id).where(table.c.stored_at < before).order_by(table.c.id).limit(STEP_ROWS)
        return list(connection.execute(query).scalars())

    @notes
    def remove_sessions(self, connection: sa.Connection, numbers: Sequence[int]) -> int:
        """Returns how many there were."""
        return connection.execute(agent_connections.delete().where(agent_connections.c.id.in_(numbers))).rowcount

    @reads
    def due_events(self, connection: sa.Connection, before: datetime, most: int) -> list[int]:
        """Numbers of the oldest events that are too old, or too many; the newest stays, as readers count from it."""
        table = events
        newest = connection.execute(sa.select(sa.func.max(table.c.id))).scalar_one()
        oldest = sa.select(table.c.id, table.c.at).order_by(table.c.id).limit(STEP_ROWS)
        return [
            number
            for number, at in connection.execute(oldest)
            if number < newest and (at < before or number <= newest - most)
        ]

    @notes
    def remove_events(self, connection: sa.Connection, numbers: Sequence[int]) -> int:
        """Returns how many there were."""
        return connection.execute(events.delete().where(events.c.id.in_(numbers))).rowcount

    @reads
    def due_revocations(self, connection: sa.Connection, before: datetime) -> list[int]:
        """Numbers of changes of callers that every server has heard of."""
        table = revocations.c
        oldest = sa.select(table.serial).where(table.at < before).order_by(table.serial).distinct().limit(STEP_ROWS)
        return list(connection.execute(oldest).scalars())

    @notes
    def remove_revocations(self, connection: sa.Connection, serials: Sequence[int]) -> int:
        """Returns how many rows there were."""
        return connection.execute(revocations.delete().where(revocations.c.serial.in_(serials))).rowcount

    @reads
    def due_tokens(self, connection: sa.Connection, before: datetime) -> list[str]:
        """Session tokens that expired by then."""
        expired = sa.select(user_tokens.c.id).where(user_tokens.c.expires_at < before).limit(STEP_ROWS)
        return list(connection.execute(expired).scalars())

    @notes
    def remove_tokens(self, connection: sa.Connection, ids: Sequence[str]) -> int:
        """Returns how many there were."""
        return connection.execute(user_tokens.delete().where(user_tokens.c.id.in_(ids))).rowcount
