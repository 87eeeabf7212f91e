"""The store: all durable state, its parts behind one object (layer L2).

`Store.open(url)`, then `await store.run(store.callers.get_agent, ...)` from trio, and `close()` when no thread uses it
any more.  What each part does is in its own file: callers.py, issued.py, outside.py, credentials.py,
apps.py, reports.py, presence.py, replicas.py, events.py, retention.py, keys.py, relay_keys.py, and for administrators
in administration/; seed.py reads files that importing.py writes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Self, TypeVar
from uuid import UUID

import sqlalchemy as sa

from tailnet.store.administration.audit import AuditTables
from tailnet.store.administration.reading import ReadingTables
from tailnet.store.apps import AppTables
from tailnet.store.callers import CallerTables
from tailnet.store.credentials import CredentialTables
from tailnet.store.database import Database
from tailnet.store.events import EventTables
from tailnet.store.issued import IssuedTokenTables
from tailnet.store.keys import KeyTables
from tailnet.store.outside import OutsideTables
from tailnet.store.presence import PresenceTables
from tailnet.store.relay_keys import RelayKeyTables
from tailnet.store.replicas import ReplicaTables
from tailnet.store.reports import ReportTables
from tailnet.store.retention import RetentionTables
from tailnet.store.rows import AgentIdentity
from tailnet.store.sqlite import BUSY_TIMEOUT_SECONDS
from tailnet.tokens import agent_token_digest

P = ParamSpec("P")
T = TypeVar("T")


class Store:
    """All of the durable state.  Thread-safe; what its parts do raises StoreError."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.callers = CallerTables(database)
        self.issued = IssuedTokenTables(database)
        self.credentials = CredentialTables(database)
        self.outside = OutsideTables(database)
        self.apps = AppTables(database)
        self.reports = ReportTables(database)
        self.keys = KeyTables(database)
        self.relay_keys = RelayKeyTables(database)
        self.presence = PresenceTables(database)
        self.replicas = ReplicaTables(database)
        self.events = EventTables(database)
        self.retention = RetentionTables(database)
        self.administration = ReadingTables(database)
        self.audit = AuditTables(database)

    @classmethod
    def open(cls, url: str, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> Self:
        """Open, create or migrate the store at `url`.  Blocks.  Raises StoreError, StoreVersionError."""
        return cls(Database.open(url, busy_timeout_seconds=busy_timeout_seconds))

    def close(self) -> None:
        """Write what tasks still wait for, and close every connection."""
        self.database.close()

    @property
    def shown(self) -> str:
        """Which store this is, for people; without any password."""
        return self.database.shown

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work on this store beside the tasks: see Database.run."""
        return await self.database.run(work, *args, **kwargs)

    def reading(self) -> AbstractContextManager[sa.Connection]:
        """A snapshot: see Database.reading."""
        return self.database.reading()

    def writing(self) -> AbstractContextManager[sa.Connection]:
        """A write transaction: see Database.writing."""
        return self.database.writing()

    def get_agent_by_token(self, token: UUID) -> AgentIdentity | None:
        """One agent by its token, past every cache.  Servers ask auth/chain.py instead."""
        digest = agent_token_digest(token)
        return self.callers.agents_by_token_digests([digest]).get(digest)
