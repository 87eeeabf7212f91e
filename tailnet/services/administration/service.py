"""Administration itself (layer L3): what API and commands ask for, each change with its line in the account.

A change is an `Operation`, made by operations.py: it runs inside one transaction, all of it or nothing, and returns its
`Answer`.  Commands carry it out where they are (`do`), the API hands it to the store's writer (`run`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from tailnet.services.administration import models
from tailnet.services.administration.idempotency import Answer, IdempotencyKey
from tailnet.services.administration.operations import Operation, keys_shown
from tailnet.services.administration.resources import Resource
from tailnet.store.administration.answers import find_answer, keep_answer
from tailnet.store.administration.changes import Changes, count_dependents, not_found
from tailnet.store.administration.values import ANY, Actor, Match, etag_of
from tailnet.store.store import Store

DEFAULT_PAGE: Final = 100
# An agent with a large environment is some ten kilobytes.
MAX_PAGE: Final = 1_000

__all__ = ["ANY", "DEFAULT_PAGE", "MAX_PAGE", "Actor", "Administration", "Match", "Operation", "Page"]


@dataclass(frozen=True, slots=True)
class Page:
    """Some things, and the id of the last of them if there are more."""

    items: Sequence[dict[str, Any]]
    last: str = ""


class Administration:
    """One per store.  What changes raises AdministrationError, with nothing done, and StoreError."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`changed` is called when a change over HTTP is done: of a server, whose caches shall not lag behind."""
        self.store = store
        self.clock = clock
        self.changed = changed

    def do(self, actor: Actor, operation: Operation) -> Answer:
        """Carry out an operation here and now.  Blocks."""
        with self.store.writing() as connection:
            return self.work(actor, operation)(connection)

    async def run(self, actor: Actor, operation: Operation, key: IdempotencyKey | None = None) -> Answer:
        """The same from a task, in the store's writer.  With a key that was seen before, the answer of then."""
        answer = await self.store.database.writer.run(self.work(actor, operation, key))
        self.changed()
        return answer

    def work(
        self, actor: Actor, operation: Operation, key: IdempotencyKey | None = None
    ) -> Callable[[sa.Connection], Answer]:
        """An operation as what a transaction does."""

        def carry_out(connection: sa.Connection) -> Answer:
            changes = Changes(self.store.database, connection, actor, self.clock())
            kept = find_answer(connection, key.digest, changes.now) if key is not None else None
            if key is not None and kept is not None:
                return key.open(kept)
            answer = operation(changes)
            changes.finish()
            if key is not None:
                keep_answer(connection, key.digest, key.seal(answer), changes.now)
            return answer

        return carry_out

    def get(self, resource: Resource, ident: Any) -> tuple[dict[str, Any], str]:
        """One thing and its ETag.  Blocks.  Raises AdministrationError when it is not there."""
        row = self.store.administration.get(resource.kind, ident)
        if row is None:
            raise not_found(resource.kind, ident)
        return resource.show(row), etag_of(resource.kind, row)

    def dependents(self, resource: Resource, ident: Any) -> dict[str, int]:
        """What would go with a thing that is deleted, by sort.  Blocks."""
        with self.store.reading() as connection:
            return count_dependents(connection, resource.kind, ident)

    def page(
        self, resource: Resource, filters: Mapping[str, Any], after: Any = None, limit: int = DEFAULT_PAGE
    ) -> Page:
        """Things by their ids, those behind `after`.  Blocks."""
        rows = self.store.administration.page(resource.kind, filters, after, limit + 1)
        shown = [resource.show(row) for row in rows[:limit]]
        return Page(shown, shown[-1]["id"] if len(rows) > limit else "")

    def list_keys(self) -> list[dict[str, Any]]:
        """All keys without their secrets, the newest of each purpose first.  Blocks."""
        found = self.store.keys.all_keys()
        now = self.clock()
        return [shown for purpose, keys in found.items() for shown in keys_shown(purpose, keys, now)]

    def audit(self, filters: Mapping[str, Any], before: int | None = None, limit: int = DEFAULT_PAGE) -> Page:
        """The account, the newest first; `before`: rows with lower numbers alone.  Blocks."""
        rows = self.store.audit.page(filters, before, limit + 1)
        shown = [models.AuditShown.model_validate(row).model_dump(mode="json") for row in rows[:limit]]
        return Page(shown, str(shown[-1]["id"]) if len(rows) > limit else "")
