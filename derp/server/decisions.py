"""The file in which a relay says whom it let in, whom not, and why: admission/chain.py's lines, in bounds.  Layer L3.

session.py and guests.py note decisions; a task writes them each second, in a thread.  A file that is full is put aside
as `.1`, and older ones move up; the chain goes on from file to file and over restarts.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import trio

from derp.admission.chain import Link, append, check
from derp.errors import ConfigError
from derp.keys import NodePublic
from derp.text import error_text, utc

_log = logging.getLogger("derp.server")

WRITE_SECONDS: Final = 1.0
# Some 70,000 lines; with the nine before it 160 MiB at the most.
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
OLD_FILES: Final = 9
# Between two writes: more than a relay can decide in a second.  What comes beyond it is counted in the next line.
MAX_WAITING: Final = 20_000


class DecisionLog:
    """One file.  `open` it before the relay serves, `run` it as one task, and note from the reactor's thread."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._waiting: list[dict[str, Any]] = []
        self._lost_count = 0
        self._end = Link()
        self._size = 0

    def open(self) -> None:
        """Find the end of the chain.  Blocks.  Raises ConfigError: the file cannot be written."""
        try:
            with open(self._path, "ab"):
                os.chmod(self._path, 0o600)
            with open(self._path, encoding="utf-8", errors="replace") as file:
                found = check(file)
                self._size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot write the log of decisions: {error_text(error)}") from None
        self._end = found.end if found.lines else self._end_of(self._path.with_name(f"{self._path.name}.1"))
        if found.fault:
            # A power cut tears a line, and somebody may have changed one: whoever looks finds it in the file put aside.
            _log.error("! the log of decisions %s is broken, a new one begins: %s", self._path, found.fault)
            self._put_aside()
        self.note("started", because=found.fault)

    def note(self, event: str, key: bytes | None = None, address: str = "", because: str = "") -> None:
        """Something was decided."""
        if len(self._waiting) >= MAX_WAITING:
            self._lost_count += 1
            return
        fields = {"at": utc(self._clock()), "event": event}
        if key is not None:
            fields |= {"key": str(NodePublic(key)), "address": address}
        if because:
            fields["because"] = because
        self._waiting.append(fields)

    async def run(self) -> None:
        """Write until cancelled, and then what is left."""
        try:
            while True:
                await trio.sleep(WRITE_SECONDS)
                await trio.to_thread.run_sync(self.write)
        finally:
            self.write()
            _log.info("= the log of decisions ends with line %d, %s", self._end.number, self._end.hash)

    def write(self) -> None:
        """Write what waits.  Blocks; a disk that takes nothing is told, and tried again."""
        waiting, lost = tuple(self._waiting), self._lost_count
        if not waiting and not lost:
            return
        try:
            if self._size > MAX_FILE_BYTES:
                self._put_aside()
            with open(self._path, "a+b", opener=_private) as file:
                # A process that replaces another one, or is replaced, writes here too.
                fcntl.flock(file, fcntl.LOCK_EX)
                self._look_for_others(file.fileno())
                end, content = self._encode(waiting, lost)
                try:
                    file.write(content)
                    file.flush()
                except OSError:
                    os.ftruncate(file.fileno(), self._size)  # half a line would break the chain
                    raise
        except OSError as error:
            _log.error("! the log of decisions is not written: %s", error_text(error))
            return
        self._end = end
        self._size += len(content)
        self._lost_count -= lost
        del self._waiting[: len(waiting)]

    def _encode(self, waiting: Iterable[Mapping[str, Any]], lost: int) -> tuple[Link, bytes]:
        end, lines = self._end, []
        for fields in [*waiting, *([{"at": utc(self._clock()), "event": "lost", "count": lost}] if lost else [])]:
            end, line = append(end, fields)
            lines.append(line)
        return end, "".join(lines).encode()

    def _look_for_others(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if size != self._size:
            self._size, self._end = size, self._end_of(self._path) if size else self._end

    def _put_aside(self) -> None:
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, OLD_FILES + 1))]
        for newer, older in reversed(list(pairwise(names))):
            if newer.exists():
                os.replace(newer, older)
        self._size = 0
        _log.info("= the log of decisions goes on in a new file after line %d, %s", self._end.number, self._end.hash)

    def _end_of(self, path: Path) -> Link:
        """Where an older file ended, if there is one."""
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return check(file).end
        except OSError:
            return Link()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
