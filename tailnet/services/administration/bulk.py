"""Many changes at once: JSON lines in, a result for each in the same order (layer L3).

Lines are carried out in transactions of some hundreds: one of all would keep everybody else from writing for seconds,
one for each would cost a commit each.  A line that is wrong is told so and skipped, whatever is wrong with it; those
around it are carried out.  Called by api/administration/transfer.py, and for files by importing.py.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa
import trio

from tailnet.errors import AdministrationError, StoreError, StoreTrouble
from tailnet.services.administration.lines import Line, LineCutter, read_line, too_long
from tailnet.services.administration.service import Administration
from tailnet.store.administration.changes import Changes
from tailnet.store.administration.values import Actor, Outcome, Result

_log = logging.getLogger("tailnet.server")

# 250 agents take some 30 ms of the writer's time, which is what others wait for at the most.
LINES_AT_ONCE: Final = 250
_TROUBLES_OF_ONE: Final = (StoreTrouble.UNFIT, StoreTrouble.CONFLICT, StoreTrouble.OTHER)


@dataclass(frozen=True, slots=True)
class LineResult:
    """What became of one line; `error` or the others.  `number` counts from 1, blank lines too."""

    number: int
    line: Line | None = None
    outcome: Outcome | None = None
    error: AdministrationError | StoreError | None = None


class BulkChange:
    """One stream of lines.  Feed it pieces as they come, `finish` it, and send each time what it returns."""

    def __init__(self, administration: Administration, actor: Actor) -> None:
        self._administration = administration
        self._actor = actor
        self._cutter = LineCutter()
        self._number = 0
        self._away: StoreError | None = None  # then what is left is refused at once, and the caller comes again
        self.counts: dict[str, int] = dict.fromkeys((*(each.value for each in Result), "refused"), 0)

    async def feed(self, data: bytes) -> list[LineResult]:
        """The results of the lines that ended in `data`."""
        return await self._take(self._cutter.feed(data))

    async def finish(self) -> list[LineResult]:
        """The results of what is left."""
        return await self._take(self._cutter.finish())

    async def _take(self, lines: Sequence[bytes | None]) -> list[LineResult]:
        results: list[LineResult] = []
        for start in range(0, len(lines), LINES_AT_ONCE):
            some = lines[start : start + LINES_AT_ONCE]
            # In a thread: to read 250 lines takes 10 ms, in which nobody would be served.
            read = await trio.to_thread.run_sync(read_lines, some, self._number)
            self._number += len(some)
            results += await self._carry_out(read)
        for result in results:
            outcome = result.outcome
            self.counts[outcome.result.value if outcome is not None and result.error is None else "refused"] += 1
        return results

    async def _carry_out(self, read: Sequence[LineResult]) -> list[LineResult]:
        wanted = [each for each in read if each.error is None]
        if self._away is not None:
            return _all_refused(read, self._away)
        try:
            outcomes = await self._write(wanted)
        except StoreError as error:
            if error.trouble in _TROUBLES_OF_ONE and len(wanted) > 1:
                # One line of them is what the store cannot hold: each by itself, so that only that one is told.
                return [result for each in read for result in await self._carry_out([each])]
            if error.trouble not in _TROUBLES_OF_ONE:
                self._away = error
            _log.error("! a bulk change: %s", error)
            return _all_refused(read, error)
        done = dict(zip((each.number for each in wanted), outcomes, strict=True))
        return [
            each if each.error is not None
            else LineResult(each.number, each.line, done[each.number], done[each.number].error)
            for each in read
        ]  # fmt: skip

    async def _write(self, wanted: Sequence[LineResult]) -> list[Outcome]:
        if not wanted:
            return []
        lines = [each.line for each in wanted if each.line is not None]
        outcomes = await self._administration.store.database.writer.run(self._work(lines))
        self._administration.changed()
        return outcomes

    def _work(self, lines: Sequence[Line]) -> Callable[[sa.Connection], list[Outcome]]:
        administration = self._administration

        def work(connection: sa.Connection) -> list[Outcome]:
            changes = Changes(administration.store.database, connection, self._actor, administration.clock())
            outcomes = put_lines(changes, lines)
            changes.finish()
            return outcomes

        return work


def _all_refused(read: Sequence[LineResult], error: StoreError) -> list[LineResult]:
    return [each if each.error is not None else LineResult(each.number, each.line, error=error) for each in read]


def read_lines(lines: Sequence[bytes | None], before: int = 0) -> list[LineResult]:
    """Lines as they are meant, or what is wrong with them; blank ones are passed over."""
    return list(_read(lines, before))


def put_lines(changes: Changes, lines: Sequence[Line]) -> list[Outcome]:
    """Carry lines out, those of one kind that follow each other together."""
    outcomes: list[Outcome] = []
    for resource, some in groupby(lines, lambda line: line.resource):
        outcomes += changes.put(resource.kind, [each.wanted for each in some])
    return outcomes


def _read(lines: Sequence[bytes | None], before: int) -> Iterator[LineResult]:
    for number, text in enumerate(lines, before + 1):
        if text is None:
            yield LineResult(number, error=too_long())
        elif text.strip():
            try:
                yield LineResult(number, read_line(text))
            except AdministrationError as error:
                yield LineResult(number, error=error)


def told(result: LineResult) -> dict[str, Any]:
    """A result without its error, as JSON."""
    said: dict[str, Any] = {"line": result.number}
    if result.line is not None:
        said |= {"kind": result.line.resource.name, "id": result.line.id}
    outcome = result.outcome
    if outcome is not None and result.error is None:
        said |= {"result": outcome.result.value, "etag": outcome.etag}
        if result.line is not None and result.line.token and outcome.result is Result.CREATED:
            said["token"] = result.line.token
    return said
