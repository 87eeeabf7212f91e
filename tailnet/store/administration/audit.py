"""The account of what administrators changed: who, when, what, and what it was before (layer L2).

A row is written in the transaction of its change, so neither is there without the other.  No secret stands in it: of
tokens that they were replaced, of environment variables the names, of scripts and commands their length.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Final

import sqlalchemy as sa

from derp.text import fit_to_show
from tailnet.store.administration.kinds import NONE, Kind
from tailnet.store.administration.values import Actor, Result
from tailnet.store.part import Part, notes, reads
from tailnet.store.rows import WorkspaceStatus
from tailnet.store.schema import audit_log

# A day of a busy control plane is some thousand rows; a year of it fits a question "who did that".
ROWS_OF_A_STEP: Final = 1_000
# Longer texts are told by their length: 1,000 rows of a page stay below a megabyte or two.
MAX_TEXT_CHARS: Final = 256
# What people write passwords into.
_PROGRAMS: Final = frozenset({"script", "command"})
_ABSENT: Final = object()


FILTERS: Final = {
    "kind": lambda value: audit_log.c.kind == value,
    "target": lambda value: audit_log.c.target == value,
    "actor": lambda value: audit_log.c.actor == value,
    "action": lambda value: audit_log.c.action == value,
    "since": lambda value: audit_log.c.at >= value,
    "until": lambda value: audit_log.c.at < value,
}


class AuditTables(Part):
    """Reads the account.  Every method raises StoreError."""

    @reads
    def page(
        self, connection: sa.Connection, filters: Mapping[str, Any], before: int | None, limit: int
    ) -> list[Mapping[str, Any]]:
        """The newest rows first; `before`: those with lower numbers alone.

        `before` and `after` of a row: what differs, None where there was or is nothing.
        """
        query = sa.select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
        for name, value in filters.items():
            query = query.where(FILTERS[name](value))
        if before is not None:
            query = query.where(audit_log.c.id < before)
        return [dict(row._mapping) for row in connection.execute(query)]

    @reads
    def due(self, connection: sa.Connection, before: datetime) -> list[int]:
        """Numbers of the oldest rows that are kept no longer."""
        query = sa.select(audit_log.c.id).where(audit_log.c.at < before).order_by(audit_log.c.id)
        return list(connection.execute(query.limit(ROWS_OF_A_STEP)).scalars())

    @notes
    def remove(self, connection: sa.Connection, numbers: Sequence[int]) -> int:
        """Returns how many there were.  The database refuses to remove young ones."""
        return connection.execute(audit_log.delete().where(audit_log.c.id.in_(numbers))).rowcount


class Account:
    """What is done in one transaction by one actor; `write` puts it into the table."""

    def __init__(self, actor: Actor, now: datetime) -> None:
        self._actor = actor
        self._now = now
        self._rows: list[dict[str, Any]] = []

    def note(
        self,
        action: str,
        kind: str,
        target: object,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One change; both sides without secrets.  Returns the row, which may be completed until `write`."""
        row = {
            "at": self._now,
            "actor_kind": self._actor.kind,
            "actor": self._actor.name,
            "action": action,
            "kind": kind,
            "target": shown_id(target),
            "before": before,
            "after": after,
            "request_id": self._actor.request_id,
        }
        self._rows.append(row)
        return row

    def note_put(
        self, kind: Kind, target: object, result: Result, before: Mapping[str, Any] | None, after: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What changes.py did with one row: of one that is changed what differs."""
        names = [each for each in (*kind.columns, *([kind.digest] if kind.digest else [])) if each in after]
        if before is not None:
            names = [name for name in names if before[name] != after[name]]
        old = None if before is None else shown(kind, {name: before[name] for name in names})
        new = shown(kind, {name: after[name] for name in names}, before or NONE)
        return self.note("create" if result is Result.CREATED else "update", kind.name, target, old, new)

    def write(self, connection: sa.Connection) -> None:
        if self._rows:
            connection.execute(audit_log.insert(), self._rows)
            self._rows.clear()


def shown_id(ident: object) -> str:
    """An id as the account and messages have it."""
    return ":".join(str(part) for part in ident) if isinstance(ident, tuple) else str(ident)


def shown(kind: Kind, row: Mapping[str, Any], before: Mapping[str, Any] = NONE) -> dict[str, Any]:
    """What may stand in the account of a row's values."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name == kind.digest:
            found["token"] = "replaced" if before.get(name, _ABSENT) is not _ABSENT else "set"
        elif name == "status":
            found[name] = WorkspaceStatus(value).name.lower()
        elif name == "environment":
            found[name] = sorted(value)
        else:
            found[name] = _plain(name, value)
    return found


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {inner: _plain(inner, each) for inner, each in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, frozenset):
        return sorted(str(each.value) for each in value)
    if isinstance(value, Enum):
        return value.value
    text = str(value)
    return f"{len(text):,} characters" if name in _PROGRAMS or len(text) > MAX_TEXT_CHARS else fit_to_show(text)
