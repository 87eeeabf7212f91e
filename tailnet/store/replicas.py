"""The replicas that share this store (layer L2).  bus/store.py reads and writes them."""

from collections.abc import Sequence

import sqlalchemy as sa

from tailnet.store.part import Part, notes
from tailnet.store.schema import replicas


class ReplicaTables(Part):
    """The part of the store that says which coordinators serve as one."""

    @notes
    def renew(
        self, connection: sa.Connection, replica: str, record: bytes, beat: int, dead: Sequence[str]
    ) -> list[tuple[str, int, bytes]]:
        """Write one's own row and take away those of `dead`.  Returns all rows: id, number, record."""
        put = self.database.dialect.upsert(replicas, key=("id",), replaced=("beat", "record"))
        connection.execute(put, {"id": replica, "beat": beat, "record": record})
        if dead:
            connection.execute(replicas.delete().where(replicas.c.id.in_(dead)))
        found = connection.execute(sa.select(replicas.c.id, replicas.c.beat, replicas.c.record).order_by(replicas.c.id))
        return [(row.id, row.beat, row.record) for row in found]

    @notes
    def leave(self, connection: sa.Connection, replica: str) -> None:
        """This replica has ended."""
        connection.execute(replicas.delete().where(replicas.c.id == replica))
