"""What the marks of a part's methods mean: a snapshot, a transaction by itself, or the writer's turn."""

import pytest
import sqlalchemy as sa

from tailnet.store.part import Part, notes, reads, writes
from tailnet.store.schema import counters
from tailnet.store.store import Store


class Counters(Part):
    @reads
    def value(self, connection: sa.Connection, name: str) -> int | None:
        """The number of that name."""
        return connection.execute(sa.select(counters.c.value).where(counters.c.name == name)).scalar_one_or_none()

    @writes
    def add(self, connection: sa.Connection, name: str, *, value: int = 1) -> str:
        connection.execute(counters.insert().values(name=name, value=value))
        return name

    @notes
    def note(self, connection: sa.Connection, name: str) -> None:
        connection.execute(counters.insert().values(name=name, value=0))

    def add_twice(self, first: str, second: str) -> None:
        self.add(first)
        self.add(second)


@pytest.fixture
def part(store: Store) -> Counters:
    return Counters(store.database)


def test_called_plainly_each_is_a_transaction(part: Counters) -> None:
    assert part.add("a", value=7) == "a"
    part.note("b")
    assert (part.value("a"), part.value("b"), part.value("c")) == (7, 0, None)
    assert part.database.writer.changes == 0  # no thread was needed


async def test_changes_of_tasks_go_to_the_writer(store: Store, part: Counters) -> None:
    assert await store.run(part.add, "a", value=7) == "a"
    await store.run(part.note, "b")
    assert part.database.writer.changes == 2
    assert await store.run(part.value, "a") == 7
    await store.run(part.add_twice, "c", "d")  # an ordinary method goes to a thread of readers, and blocks there
    assert part.database.writer.changes == 2
    assert part.value("d") == 1


async def test_what_waits_for_the_disk(store: Store, part: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []
    begin = store.database.dialect.begin_write

    def noted(connection: sa.Connection, *, durable: bool) -> None:
        begun.append(durable)
        begin(connection, durable=durable)

    monkeypatch.setattr(store.database.dialect, "begin_write", noted)
    part.add("a")
    part.note("b")
    await store.run(part.add, "c")
    await store.run(part.note, "d")
    assert begun == [True, False, True, False]


def test_what_is_said_of_a_method_stays(part: Counters) -> None:
    assert type(part).__dict__["value"].__doc__ == "The number of that name."
