"""Which agents are connected, as all servers see it, and which servers there are (layer L2).

Several servers write about the same agents, late and out of order; each agent's row says which of them holds its
connection, and only that one may say that it left.  Times are those of the servers' clocks, which may have been wrong:
a time to come is put right by the next word.  Written behind by services/presence.py, through the outbox.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from tailnet.store.callers import pieces
from tailnet.store.part import Part, notes, reads
from tailnet.store.rows import PresenceChange, ServerRow
from tailnet.store.schema import LAST_CONNECTED_AT, PeerIdText, Text, UtcTime, agents, servers
from tailnet.types import PeerID

# Clocks of servers that agree about nothing else agree within this.  A time further ahead is a clock's fault.
CLOCKS_DIFFER: Final = timedelta(seconds=60)
# A server that said nothing for so long has ended, whatever it did not say.
SERVERS_KEPT: Final = timedelta(days=1)

_agent: Final = sa.bindparam("agent", type_=PeerIdText)
_at: Final = sa.bindparam("at", type_=UtcTime)
_server: Final = sa.bindparam("server", type_=Text)
_ahead: Final = sa.bindparam("ahead", type_=UtcTime)  # times after this one are a clock's fault
_silent: Final = sa.bindparam("silent", type_=UtcTime)  # who was not seen since this one is nobody's any more
_last: Final = agents.c.last_connected_at
# Both keep an older disconnection, as the API shows it, and forget one that would be later than being here.
_HERE: Final = {
    "first_connected_at": sa.case(
        (agents.c.first_connected_at.is_(None) | (agents.c.first_connected_at > _at), _at),
        else_=agents.c.first_connected_at,
    ),
    "last_connected_at": _at,
    "disconnected_at": sa.case((agents.c.disconnected_at >= _at, sa.null()), else_=agents.c.disconnected_at),
    "seen_by": _server,
}
# Unless another server saw it later: then this word was late, and the agent has moved on.
_CAME: Final = (
    agents.update()
    .where(agents.c.id == _agent, sa.or_(agents.c.seen_by == _server, _last.is_(None), _last <= _at, _last > _ahead))
    .values(_HERE)
)
# A sign of life takes an agent from nobody but a server that is silent: it may come from the rest of a connection whose
# agent has moved on.
_SEEN: Final = (
    agents.update()
    .where(
        agents.c.id == _agent,
        sa.or_(
            agents.c.seen_by == _server,
            agents.c.seen_by.is_(None),
            sa.and_(
                _last < _silent, ~sa.exists().where(servers.c.id == agents.c.seen_by, servers.c.seen_at >= _silent)
            ),
            _last > _ahead,
        ),
    )
    .values(_HERE)
)
_LEFT: Final = (
    agents.update()
    .where(agents.c.id == _agent, agents.c.seen_by == _server)
    .values(
        disconnected_at=_at,
        last_connected_at=sa.case((_last > _at, _at), else_=_last),
        seen_by=sa.null(),
    )
)


class PresenceTables(Part):
    """The part of the store that says who is where.  Every method raises StoreError."""

    @notes
    def record(
        self,
        connection: sa.Connection,
        changes: Sequence[PresenceChange],
        server: str,
        now: datetime,
        inactive: timedelta,
    ) -> None:
        """What one server saw, each agent at most once.  `inactive`: after so long a silent server is no obstacle."""
        common = {"server": server, "ahead": now + CLOCKS_DIFFER, "silent": now - inactive}
        # In one order everywhere, so that servers that write at once never wait for each other in a circle.
        ordered = sorted(changes, key=lambda change: str(change.agent_id))
        for statement, moments in (
            (_CAME, [(change.agent_id, change.came_at) for change in ordered]),
            (_SEEN, [(change.agent_id, change.seen_at) for change in ordered]),
            (_LEFT, [(change.agent_id, change.left_at) for change in ordered]),
        ):
            rows = [{"agent": agent_id, "at": at, **common} for agent_id, at in moments if at is not None]
            if rows:
                connection.execute(statement, rows)

    @notes
    def release_forsaken(self, connection: sa.Connection, silent_since: datetime) -> list[PeerID]:
        """Take agents from servers that said nothing since then, and did not say that they end.  Returns which."""
        alive = sa.select(servers.c.id).where(servers.c.seen_at >= silent_since)
        forsaken = agents.c.seen_by.not_in(alive), agents.c.last_connected_at < silent_since
        found = connection.execute(
            sa.select(agents.c.id).where(*forsaken).order_by(agents.c.id).with_for_update(key_share=True)
        )
        agent_ids = list(found.scalars())
        for piece in pieces(agent_ids):
            connection.execute(
                agents.update()
                .where(agents.c.id.in_(piece))
                .values(seen_by=sa.null(), disconnected_at=LAST_CONNECTED_AT)
            )
        return agent_ids

    @notes
    def beat(self, connection: sa.Connection, server: ServerRow) -> None:
        """A server is there."""
        put = self.database.dialect.upsert(servers, key=("id",), replaced=("seen_at", "reads_beats"))
        row = {name: getattr(server, name) for name in ServerRow.__slots__}
        connection.execute(put, row)
        connection.execute(servers.delete().where(servers.c.seen_at < server.seen_at - SERVERS_KEPT))

    @notes
    def end(self, connection: sa.Connection, server_id: str) -> None:
        """A server has ended in order."""
        connection.execute(servers.delete().where(servers.c.id == server_id))

    @reads
    def list_held(
        self, connection: sa.Connection, server_id: str, after: PeerID | None, limit: int
    ) -> list[tuple[PeerID, datetime]]:
        """The agents that a server holds by their rows, and when each row says that it was there, by their ids."""
        query = sa.select(agents.c.id, _last).where(agents.c.seen_by == server_id).order_by(agents.c.id).limit(limit)
        found = connection.execute(query if after is None else query.where(agents.c.id > after))
        return [(agent_id, at) for agent_id, at in found]

    @reads
    def read_clocks(self, connection: sa.Connection) -> tuple[datetime | None, datetime | None]:
        """The database's own time of day, None where it has none, and the newest sign of life."""
        columns = _last, servers.c.seen_at
        found = [connection.execute(sa.select(sa.func.max(each))).scalar_one() for each in columns]
        newest = max((each for each in found if each is not None), default=None)
        return self.database.dialect.clock(connection), newest

    @reads
    def list_servers(self, connection: sa.Connection) -> list[ServerRow]:
        """All that are there, or ended without a word within a day; the oldest first."""
        return [ServerRow(*row) for row in connection.execute(sa.select(servers).order_by(servers.c.started_at))]
