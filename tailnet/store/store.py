"""The store: every table behind one object (layer L2).

`Store.open(url)`, then `await store.run(store.method, ...)` from trio, and `close()` when no thread uses it any more.
What each part does is in its own file: callers.py, apps.py, reports.py, keys.py; seed.py imports files into it.
"""

from uuid import UUID

from tailnet.store.apps import AppTables
from tailnet.store.callers import CallerTables
from tailnet.store.keys import KeyTables
from tailnet.store.reports import ReportTables
from tailnet.store.rows import AgentIdentity
from tailnet.tokens import agent_token_digest


class Store(CallerTables, AppTables, ReportTables, KeyTables):
    """All of the durable state.  Thread-safe; every method blocks and raises StoreError."""

    def get_agent_by_token(self, token: UUID) -> AgentIdentity | None:
        """One agent by its token, past every cache.  Servers ask auth/backends.py instead."""
        digest = agent_token_digest(token)
        return self.agents_by_token_digests([digest]).get(digest)
