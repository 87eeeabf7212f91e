"""The file in which a relay says whom it let in, whom not, and why: admission/chain.py's lines, in bounds.  Layer L3.

session.py and guests.py note decisions; a task writes them each second, in a thread.  A file that is full is put aside
as `.1`, and older ones move up; the chain goes on from file to file and over restarts.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import trio

from derp.admission.chain import Checked, Link, append, check
from derp.errors import ConfigError
from derp.keys import NodePublic
from derp.text import error_text, utc

_log = logging.getLogger("derp.server")

WRITE_SECONDS: Final = 1.0
# Some 70,000 lines; with the nine before it 160 MiB at the most.
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
OLD_FILES: Final = 9
# What is in a line, an address and why, has 300 bytes.
_LINE_BYTES: Final = 64 * 1024
# Between two writes: more than a relay can decide in a second.  What comes beyond it is counted in the next line.
MAX_WAITING: Final = 20_000


class _Mark(NamedTuple):
    """Which file, and how long it is: it only grows."""

    inode: int
    size: int


class DecisionLog:
    """One file.  `open` it before the relay serves, `run` it as one task, and note from the reactor's thread."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._waiting: list[dict[str, Any]] = []
        self._lost_count = 0
        self._end = Link()
        self._seen = _Mark(0, 0)  # the file as it was when `_end` was its end

    def open(self) -> None:
        """Find the end of the chain.  Blocks.  Raises ConfigError: the file cannot be written."""
        try:
            with self._locked() as file:
                os.chmod(self._path, 0o600)
                found = _check(file)
                if found.fault:
                    # A power cut tears a line, and somebody may have changed one: whoever looks finds it there.
                    text = "! the log of decisions %s is broken, a new one begins: %s"
                    _log.error(text, self._path, found.fault)
                    self._end = found.end
                    self._put_aside()
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot write the log of decisions: {error_text(error)}") from None
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
            # Without what says that it is none, the log would take a hash for a secret and mask it.
            _log.info("= the log of decisions ends with line %d, sha256:%s", self._end.number, self._end.hash)

    def write(self) -> None:
        """Write what waits.  Blocks; a disk that takes nothing is told, and tried again."""
        waiting, lost = tuple(self._waiting), self._lost_count
        if not waiting and not lost:
            return
        try:
            with self._locked() as file:
                end, content = self._encode(waiting, lost)
                try:
                    _write_all(file.fileno(), content)
                except OSError:
                    os.ftruncate(file.fileno(), self._seen.size)  # half a line would break the chain
                    raise
                self._end, self._seen = end, _mark(file)
        except OSError as error:
            _log.error("! the log of decisions is not written: %s", error_text(error))
            return
        self._lost_count -= lost
        del self._waiting[: len(waiting)]

    def _encode(self, waiting: Iterable[Mapping[str, Any]], lost: int) -> tuple[Link, bytes]:
        end, lines = self._end, []
        for fields in [*waiting, *([{"at": utc(self._clock()), "event": "lost", "count": lost}] if lost else [])]:
            end, line = append(end, fields)
            lines.append(line)
        return end, "".join(lines).encode()

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """The file, which has room and which nobody else writes meanwhile: another worker of this relay, or a process
        that replaces this one."""
        while True:
            with open(self._path, "a+b", opener=_private) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    is_there = os.path.samestat(os.stat(self._path), os.fstat(file.fileno()))
                except FileNotFoundError:
                    is_there = False
                if not is_there:
                    continue  # somebody put it aside while we waited
                self._find_end(file)
                if self._seen.size <= MAX_FILE_BYTES:
                    yield file
                    return
                self._put_aside()

    def _find_end(self, file: BinaryIO) -> None:
        """Where the chain ends, if others wrote since we did."""
        mark = _mark(file)
        if mark == self._seen:
            return
        self._seen = mark
        if mark.size:
            self._end = _end_of(file)
            return
        try:
            with open(self._path.with_name(f"{self._path.name}.1"), "rb") as older:
                before = _end_of(older)
        except OSError:
            before = Link()
        self._end = max(before, self._end, key=lambda end: end.number)

    def _put_aside(self) -> None:
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, OLD_FILES + 1))]
        for newer, older in reversed(list(pairwise(names))):
            if newer.exists():
                os.replace(newer, older)
        text = "= the log of decisions goes on in a new file after line %d, sha256:%s"
        _log.info(text, self._end.number, self._end.hash)


def _mark(file: BinaryIO) -> _Mark:
    status = os.fstat(file.fileno())
    return _Mark(status.st_ino, status.st_size)


def _check(file: BinaryIO) -> Checked:
    file.seek(0)
    return check(line.decode("utf-8", "replace") for line in file)


def _end_of(file: BinaryIO) -> Link:
    """Of a file that has lines.  Several writers look each second: the last line alone is read, if that holds."""
    file.seek(max(0, os.fstat(file.fileno()).st_size - _LINE_BYTES))
    last = file.read().splitlines(keepends=True)[-1:]
    found = check(line.decode("utf-8", "replace") for line in last)
    return found.end if found.lines and not found.fault else _check(file).end


def _write_all(descriptor: int, content: bytes) -> None:
    """Without a buffer, which would try its rest again when the file is closed: after it was made shorter."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
