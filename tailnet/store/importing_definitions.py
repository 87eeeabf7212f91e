"""The apps, scripts and metadata descriptions of a seed, written where they differ (layer L2).

Part of importing.py, inside its transaction.  A list that a seed gives is the whole list of that agent: what it leaves
out is deleted with what agents reported of it; what stays keeps its reports.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from tailnet.store.callers import pieces
from tailnet.store.definitions import SeedItem
from tailnet.store.rows import first_health
from tailnet.store.schema import agent_apps, agent_metadata_descriptions, agent_scripts
from tailnet.store.seed import SeedAgent
from tailnet.types import PeerID

# Sort -> its table, and the column that tells an agent's definitions apart.
_TABLES: Final[Mapping[str, tuple[sa.Table, str]]] = {
    "apps": (agent_apps, "id"),
    "scripts": (agent_scripts, "id"),
    "metadata": (agent_metadata_descriptions, "key"),
}

Stored = dict[UUID | str, tuple[int, Any, int]]  # position, definition, health by key


def put_definitions(connection: sa.Connection, agents: Sequence[SeedAgent]) -> set[PeerID]:
    """Write what differs.  Returns the agents of which something did."""
    changed: set[PeerID] = set()
    for sort, (table, key) in _TABLES.items():
        lists = {
            agent.id: getattr(agent.definitions, sort)
            for agent in agents
            if getattr(agent.definitions, sort) is not None
        }
        stored = _stored(connection, table, key, lists)
        for agent_id, items in lists.items():
            had = stored.get(agent_id, {})
            if _differs(had, items):
                changed.add(agent_id)
                _put(connection, table, key, agent_id, items, had)
    return changed


def _stored(connection: sa.Connection, table: sa.Table, key: str, agent_ids: Iterable[PeerID]) -> dict[PeerID, Stored]:
    found: dict[PeerID, Stored] = {}
    health = table.c.health if "health" in table.c else sa.literal(0)
    query = sa.select(table.c.agent_id, table.c[key], table.c.position, table.c.definition, health)
    for piece in pieces(agent_ids):
        for agent_id, name, *rest in connection.execute(query.where(table.c.agent_id.in_(piece))):
            found.setdefault(agent_id, {})[name] = tuple(rest)
    return found


def _differs(had: Stored, items: Sequence[SeedItem]) -> bool:
    wanted = {item.key: (position, item.definition) for position, item in enumerate(items)}
    return wanted != {key: (position, definition) for key, (position, definition, _) in had.items()}


def _put(
    connection: sa.Connection,
    table: sa.Table,
    key: str,
    agent_id: PeerID,
    items: Sequence[SeedItem],
    had: Stored,
) -> None:
    gone = had.keys() - {item.key for item in items}
    for piece in pieces(gone):
        connection.execute(table.delete().where(table.c.agent_id == agent_id, table.c[key].in_(piece)))
    for position, item in enumerate(items):
        values: dict[str, object] = {"position": position, "definition": dict(item.definition)}
        before = had.get(item.key)
        if "health" in table.c:
            values["health"] = _health(item, before)
        if before is None:
            connection.execute(table.insert().values({"agent_id": agent_id, key: item.key, **values}))
        else:
            mine = sa.and_(table.c.agent_id == agent_id, table.c[key] == item.key)
            connection.execute(table.update().where(mine).values(values))


def _health(item: SeedItem, before: tuple[int, Any, int] | None) -> int:
    # What an agent found out holds for as long as it is asked the same.
    if before is not None and before[1]["healthcheck"] == item.definition["healthcheck"]:
        return before[2]
    return int(first_health(item.definition))
