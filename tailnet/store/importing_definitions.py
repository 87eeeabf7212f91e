"""The apps, scripts and metadata descriptions of a seed, written where they differ (layer L2).

Part of importing.py and of administration/changes.py, inside their transactions.  A list that is given is the whole
list of that agent: what it leaves out is deleted with what agents reported of it; what stays keeps its reports.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol
from uuid import UUID

import sqlalchemy as sa

from tailnet.store.callers import pieces
from tailnet.store.definitions import SeedDefinitions, SeedItem
from tailnet.store.rows import first_health
from tailnet.store.schema import agent_apps, agent_metadata_descriptions, agent_scripts
from tailnet.types import PeerID

# Sort -> its table, and the column that tells an agent's definitions apart.
DEFINITION_TABLES: Final[Mapping[str, tuple[sa.Table, str]]] = {
    "apps": (agent_apps, "id"),
    "scripts": (agent_scripts, "id"),
    "metadata": (agent_metadata_descriptions, "key"),
}
# Sorts whose ids are one agent's only.
ID_TABLES: Final = {sort: table for sort, (table, key) in DEFINITION_TABLES.items() if key == "id"}

Stored = dict[UUID | str, tuple[int, Any, int]]  # position, definition, health by key


class Defined(Protocol):
    """An agent with what it should run and show."""

    @property
    def id(self) -> PeerID: ...

    @property
    def definitions(self) -> SeedDefinitions: ...


def put_definitions(connection: sa.Connection, agents: Sequence[Defined]) -> set[PeerID]:
    """Write what differs.  Returns the agents of which something did."""
    changed: set[PeerID] = set()
    for sort, (table, key) in DEFINITION_TABLES.items():
        lists = {
            agent.id: getattr(agent.definitions, sort)
            for agent in agents
            if getattr(agent.definitions, sort) is not None
        }
        stored = _stored(connection, table, key, lists)
        writes = _Writes(table, key)
        for agent_id, items in lists.items():
            had = stored.get(agent_id, {})
            if _differs(had, items):
                changed.add(agent_id)
                writes.gather(agent_id, items, had)
        writes.carry_out(connection)
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


class _Writes:
    """What is to be written of one sort, in one statement of each kind: row by row 10,000 agents would take long enough
    for a server beside us to give up its own writes."""

    def __init__(self, table: sa.Table, key: str) -> None:
        self._table = table
        self._key = key
        self._gone: list[dict[str, object]] = []
        self._new: list[dict[str, object]] = []
        self._changed: list[dict[str, object]] = []

    def gather(self, agent_id: PeerID, items: Sequence[SeedItem], had: Stored) -> None:
        gone = had.keys() - {item.key for item in items}
        self._gone += [{"of_agent": agent_id, "named": each} for each in gone]
        for position, item in enumerate(items):
            values: dict[str, object] = {"position": position, "definition": dict(item.definition)}
            before = had.get(item.key)
            if "health" in self._table.c:
                values["health"] = _health(item, before)
            if before is None:
                self._new.append({"agent_id": agent_id, self._key: item.key, **values})
            else:
                named = {f"new_{name}": value for name, value in values.items()}
                self._changed.append({"of_agent": agent_id, "named": item.key, **named})

    def carry_out(self, connection: sa.Connection) -> None:
        table = self._table
        mine = sa.and_(
            table.c.agent_id == sa.bindparam("of_agent", type_=table.c.agent_id.type),
            table.c[self._key] == sa.bindparam("named", type_=table.c[self._key].type),
        )
        if self._gone:
            connection.execute(table.delete().where(mine), self._gone)
        if self._changed:
            names = [name.removeprefix("new_") for name in self._changed[0] if name.startswith("new_")]
            values = {name: sa.bindparam(f"new_{name}", type_=table.c[name].type) for name in names}
            connection.execute(table.update().where(mine).values(values), self._changed)
        if self._new:
            connection.execute(table.insert(), self._new)


def _health(item: SeedItem, before: tuple[int, Any, int] | None) -> int:
    # What an agent found out holds for as long as it is asked the same.
    if before is not None and before[1]["healthcheck"] == item.definition["healthcheck"]:
        return before[2]
    return int(first_health(item.definition))
