"""What administrators see of the store: one thing, a page of many, and all of it for an export (layer L2).

Pages go by id: what is added or deleted meanwhile moves nothing, and page 1,000 costs what page 1 costs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from tailnet.store.administration.kinds import AGENT, GRANT, TOKEN, USER, WORKSPACE, Kind
from tailnet.store.callers import pieces
from tailnet.store.importing_definitions import DEFINITION_TABLES
from tailnet.store.part import Part, reads
from tailnet.store.schema import agents

# Rows that an export holds in memory at a time.
_ROWS_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Exported:
    """One thing of an export: its row with its digest, and of an agent its definitions as a seed has them."""

    kind: Kind
    row: Mapping[str, Any]
    definitions: Mapping[str, Sequence[Mapping[str, Any]]]


class ReadingTables(Part):
    """Reads for administrators.  Every method raises StoreError."""

    @reads
    def get(self, connection: sa.Connection, kind: Kind, ident: Any) -> Mapping[str, Any] | None:
        """One row, with its digest, which is for ETags alone."""
        return read_row(connection, kind, ident)

    @reads
    def page(
        self, connection: sa.Connection, kind: Kind, filters: Mapping[str, Any], after: Any, limit: int
    ) -> list[Mapping[str, Any]]:
        """Rows by their ids, those behind `after` if that is not None."""
        query = kind.query.order_by(*kind.key_columns).limit(limit)
        for name, value in filters.items():
            query = query.where(kind.filters[name](value))
        if after is not None:
            query = query.where(kind.is_behind(after))
        return [dict(row._mapping) for row in connection.execute(query)]

    def everything(self) -> Iterator[Exported]:
        """All that administrators set, of one moment, each thing behind those it refers to.  Holds a reader."""
        with self.database.reading() as connection:
            self.database.dialect.begin_long(connection)
            for kind in (USER, TOKEN, WORKSPACE, GRANT):
                for row in _rows(connection, sa.select(kind.table).order_by(*kind.key_columns)):
                    yield Exported(kind, row, {})
            yield from _all_agents(connection)


def read_row(connection: sa.Connection, kind: Kind, ident: Any) -> Mapping[str, Any] | None:
    """One row, inside a transaction."""
    found = connection.execute(kind.query.where(kind.is_one(ident))).first()
    return None if found is None else dict(found._mapping)


def _all_agents(connection: sa.Connection) -> Iterator[Exported]:
    # Parents first, generation by generation; there are one or two.
    queries = [sa.select(agents).where(agents.c.parent_id.is_(None)).order_by(agents.c.id)]
    while queries:
        parents: list[Any] = []
        for query in queries:
            for part in _pieces_of_rows(connection, query):
                ids = [row["id"] for row in part]
                lists = _definitions(connection, ids)
                yield from (Exported(AGENT, row, lists.get(row["id"], {})) for row in part)
                parents += ids
        # Sub-agents of one generation by their parents, which came in the order of their ids.
        queries = [
            sa.select(agents).where(agents.c.parent_id.in_(piece)).order_by(agents.c.id) for piece in pieces(parents)
        ]


def _definitions(connection: sa.Connection, ids: Sequence[Any]) -> dict[Any, dict[str, list[Mapping[str, Any]]]]:
    found: dict[Any, dict[str, list[Mapping[str, Any]]]] = {}
    for sort, (table, key) in DEFINITION_TABLES.items():
        query = sa.select(table.c.agent_id, table.c[key], table.c.definition)
        for agent_id, name, definition in connection.execute(
            query.where(table.c.agent_id.in_(ids)).order_by(table.c.agent_id, table.c.position, table.c[key])
        ):
            named = {"id": str(name), **definition} if key == "id" else definition
            found.setdefault(agent_id, {}).setdefault(sort, []).append(named)
    return found


def _rows(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Mapping[str, Any]]:
    for part in _pieces_of_rows(connection, query):
        yield from part


def _pieces_of_rows(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[list[Mapping[str, Any]]]:
    rows = connection.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE})
    for part in rows.partitions():
        yield [dict(row._mapping) for row in part]
