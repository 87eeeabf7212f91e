"""The store: all durable state, its parts behind one object (layer L2).

`Store.open(url)`, then `await store.run(store.callers.get_agent, ...)` from trio, and `close()` when no thread uses it
any more.  What each part does is in its own file: callers.py, apps.py, reports.py, keys.py; seed.py reads files that
importing.py writes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Self, TypeVar
from uuid import UUID

import sqlalchemy as sa

from tailnet.store.apps import AppTables
from tailnet.store.callers import CallerTables
from tailnet.store.database import Database
from tailnet.store.keys import KeyTables
from tailnet.store.reports import ReportTables
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
        self.apps = AppTables(database)
        self.reports = ReportTables(database)
        self.keys = KeyTables(database)
        # The names under which callers know them until they have moved to the parts.
        self.get_user = self.callers.get_user
        self.find_user = self.callers.find_user
        self.get_agent = self.callers.get_agent
        self.list_sub_agents = self.callers.list_sub_agents
        self.list_workspaces = self.callers.list_workspaces
        self.set_workspace_status = self.callers.set_workspace_status
        self.delete_workspace = self.callers.delete_workspace
        self.delete_agent = self.callers.delete_agent
        self.add_sub_agent = self.callers.add_sub_agent
        self.update_user = self.callers.update_user
        self.add_user_token = self.callers.add_user_token
        self.delete_user_token = self.callers.delete_user_token
        self.callers_generation = self.callers.callers_generation
        self.read_callers = self.callers.read_callers
        self.read_all_callers = self.callers.read_all_callers
        self.agents_by_token_digests = self.callers.agents_by_token_digests
        self.agent_identities = self.callers.agent_identities
        self.user_tokens = self.callers.user_tokens
        self.definitions = self.apps.definitions
        self.update_app_healths = self.apps.update_app_healths
        self.add_app_status = self.apps.add_app_status
        self.add_script_runs = self.apps.add_script_runs
        self.record_connected = self.reports.record_connected
        self.record_disconnected = self.reports.record_disconnected
        self.update_lifecycles = self.reports.update_lifecycles
        self.update_startups = self.reports.update_startups
        self.insert_stats = self.reports.insert_stats
        self.latest_stats = self.reports.latest_stats
        self.put_metadata = self.reports.put_metadata
        self.list_metadata = self.reports.list_metadata
        self.add_log_source = self.reports.add_log_source
        self.list_log_sources = self.reports.list_log_sources
        self.insert_logs = self.reports.insert_logs
        self.list_logs = self.reports.list_logs
        self.insert_connections = self.reports.insert_connections
        self.list_connections = self.reports.list_connections
        self.prune = self.reports.prune
        self.signing_keys = self.keys.signing_keys
        self.lasting_key = self.keys.lasting_key
        self.keep_map = self.keys.keep_map
        self.kept_map = self.keys.kept_map

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
        """One agent by its token, past every cache.  Servers ask auth/backends.py instead."""
        digest = agent_token_digest(token)
        return self.callers.agents_by_token_digests([digest]).get(digest)
