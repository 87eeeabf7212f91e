"""Imports of JSON lines, all or nothing (layer L3): the inverse of an export.  Called by cli/admin_transfer.py."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from tailnet.errors import AdministrationError, SeedError
from tailnet.services.administration.bulk import LINES_AT_ONCE, put_lines, read_lines
from tailnet.services.administration.lines import LineCutter
from tailnet.services.administration.service import Administration
from tailnet.store.administration.changes import Changes
from tailnet.store.administration.values import Actor
from tailnet.store.problems import MAX_PROBLEMS

# As json.dumps and people write the first line of an export; a seed begins with "users" or "agents".
_MARK: Final = '{"kind":'


def is_lines(text: bytes) -> bool:
    """Whether a file to import is one of JSON lines and no seed."""
    head = text[:1024].decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    return head.replace(" ", "").startswith(_MARK)


def import_lines(administration: Administration, actor: Actor, text: bytes, name: str) -> Mapping[str, Counter[str]]:
    """Carry out every line, or none.  Returns for each kind how many were created, changed and unchanged.

    Blocks.  Raises SeedError with every mistake, up to twenty, and StoreError.
    """
    cutter = LineCutter()
    read = read_lines(cutter.feed(text) + cutter.finish())
    problems = [_told(name, each.number, each.error) for each in read if isinstance(each.error, AdministrationError)]
    _raise_if_any(problems)
    counts: dict[str, Counter[str]] = {}
    with administration.store.writing() as connection:
        changes = Changes(administration.store.database, connection, actor, administration.clock())
        administration.store.database.dialect.begin_long(connection)
        for start in range(0, len(read), LINES_AT_ONCE):
            some = [(each.number, each.line) for each in read[start : start + LINES_AT_ONCE] if each.line is not None]
            outcomes = put_lines(changes, [line for _, line in some])
            for (number, line), outcome in zip(some, outcomes, strict=True):
                if outcome.error is not None:
                    problems.append(_told(name, number, outcome.error))
                else:
                    counts.setdefault(line.resource.name, Counter())[outcome.result.value] += 1
            _raise_if_any(problems)
        changes.finish()
    return counts


def _told(name: str, number: int, error: AdministrationError) -> str:
    fields = "; ".join(f"{field} {reason}" for field, reason in error.problems)
    return f"{name}: line {number}: {error.detail}" + (f" ({fields})" if fields else "")


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        raise SeedError(problems[:MAX_PROBLEMS])
