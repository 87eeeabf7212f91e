"""What happened to agents, for whoever runs the control plane: kept for a while, read by number (layer L2).

Numbers rise in the order in which events became visible, so whoever remembers one has seen all up to it.  A reader
that servers have together, as the webhook is, has its position here, and one server at a time holds it.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa

from tailnet.store.callers import pieces
from tailnet.store.part import Part, reads
from tailnet.store.rows import EventPage, Happening, StoredEvent
from tailnet.store.schema import agents, event_readers, events, users, workspaces
from tailnet.types import PeerID

_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)
# In one answer and one delivery's batch: some 100 KB.
PAGE_EVENTS: Final = 200


class EventTables(Part):
    """The part of the store with events.  Every method raises StoreError.

    What writes has transactions of its own, never a group's: whoever waits here for another server's events holds
    nothing that the other one may want.
    """

    def add(self, happenings: Sequence[Happening]) -> int:
        """Number them, with the names that their agents have now.  Returns the highest number."""
        with self.database.writing(durable=False) as connection:
            # A number that becomes visible after a higher one would be passed over.
            self.database.dialect.lock(connection, "events")
            names = _names(connection, {each.agent_id for each in happenings})
            rows = [
                {
                    "event_id": uuid4(),
                    "type": each.type.value,
                    "at": each.at,
                    "data": {**names.get(each.agent_id, _unnamed(each.agent_id)), **each.details},
                }
                for each in happenings
            ]
            connection.execute(events.insert(), rows)
            return int(connection.execute(sa.select(sa.func.max(events.c.id))).scalar_one())

    @reads
    def page(self, connection: sa.Connection, after: int, limit: int = PAGE_EVENTS) -> EventPage:
        """Events with a number above `after`, the oldest first."""
        query = sa.select(events).where(events.c.id > after).order_by(events.c.id).limit(limit)
        found = [StoredEvent(*row) for row in connection.execute(query)]
        oldest, newest = connection.execute(sa.select(sa.func.min(events.c.id), sa.func.max(events.c.id))).one()
        return EventPage(found, oldest or 0, newest or 0)

    def hold_reader(self, name: str, holder: str, now: datetime, until: datetime) -> int | None:
        """Have a reader until then; a new one begins with what comes next.  Returns its position.

        None: another server has it.
        """
        mine = (event_readers.c.held_by == holder) | (event_readers.c.held_until < now)
        with self.database.writing(durable=False) as connection:
            put = self.database.dialect.upsert(event_readers, key=("name",), replaced=())
            newest = sa.select(sa.func.coalesce(sa.func.max(events.c.id), 0)).scalar_subquery()
            connection.execute(put.values(name=name, position=newest, held_by=holder, held_until=until))
            change = event_readers.update().where(event_readers.c.name == name, mine)
            if not connection.execute(change.values(held_by=holder, held_until=until)).rowcount:
                return None
            position = sa.select(event_readers.c.position).where(event_readers.c.name == name)
            return int(connection.execute(position).scalar_one())

    def move_reader(self, name: str, holder: str, position: int, until: datetime) -> bool:
        """All events up to `position` are done with.  False: another server has the reader meanwhile."""
        mine = event_readers.c.name == name, event_readers.c.held_by == holder
        with self.database.writing(durable=False) as connection:
            change = event_readers.update().where(*mine).values(position=position, held_until=until)
            return bool(connection.execute(change).rowcount)

    def release_reader(self, name: str, holder: str) -> None:
        """Let another server have the reader now."""
        with self.database.writing(durable=False) as connection:
            change = event_readers.update().where(event_readers.c.name == name, event_readers.c.held_by == holder)
            connection.execute(change.values(held_until=_LONG_AGO))


def _names(connection: sa.Connection, agent_ids: set[PeerID]) -> dict[PeerID, Mapping[str, Any]]:
    query = (
        sa.select(agents.c.id, agents.c.name, workspaces.c.id, workspaces.c.name, users.c.id, users.c.username)
        .join(workspaces, agents.c.workspace_id == workspaces.c.id)
        .join(users, workspaces.c.owner_id == users.c.id)
    )
    return {
        agent_id: {
            "agent_id": str(agent_id),
            "agent_name": name,
            "workspace_id": str(workspace_id),
            "workspace_name": workspace,
            "owner_id": str(owner_id),
            "owner_name": owner,
        }
        for piece in pieces(agent_ids)
        for agent_id, name, workspace_id, workspace, owner_id, owner in connection.execute(
            query.where(agents.c.id.in_(piece))
        )
    }


def _unnamed(agent_id: PeerID) -> Mapping[str, Any]:
    """Of an agent that was deleted meanwhile only its id is known."""
    others = "agent_name", "workspace_id", "workspace_name", "owner_id", "owner_name"
    return {"agent_id": str(agent_id), **dict.fromkeys(others)}
