"""A process on a terminal of its own, and the end of what it said.  Layer L3.

    terminal = await open_terminal(argv, environment, directory)
    nursery.start_soon(terminal.run)
    with terminal.attached() as reader:
        while data := await reader.receive(): ...
Readers share one ring: each has a place in it, so that a slow one costs no memory.  The fastest sets the pace, and the
process waits for it as for any terminal; who falls out of the ring goes on where it begins.
No `screen` is wanted for that: a ring outlives connections too, takes any number of readers, and is there everywhere.
"""

import os
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import trio

from tailnet.agent.terminals import groups_of, hang_up, on_terminal, set_size

RING_BYTES: Final = 64 * 1024
# How far the fastest reader may be behind the process: what is read meanwhile must not push it out of the ring.
LEAD_BYTES: Final = RING_BYTES // 2
READ_BYTES: Final = 16 * 1024
# What is read when the process is over, while its children write on; the system keeps less than this in a terminal.
_LAST_BYTES: Final = 256 * 1024
# What the process wrote last comes out of its terminal a moment after its end.
_LAST_SECONDS: Final = 0.25
_ROWS, _COLUMNS = 24, 80
_IUTF8: Final = 0o40000  # Linux: erasing takes a whole character.  The module termios does not know it.


class Scrollback:
    """The last RING_BYTES, numbered from the terminal's first byte."""

    def __init__(self) -> None:
        self.begin = 0
        self._bytes = bytearray()

    @property
    def end(self) -> int:
        return self.begin + len(self._bytes)

    def append(self, data: bytes) -> None:
        """Add bytes; the oldest go."""
        self._bytes += data
        excess = len(self._bytes) - RING_BYTES
        if excess > 0:
            del self._bytes[:excess]
            self.begin += excess

    def read(self, position: int, max_bytes: int) -> bytes:
        """From a position in the ring."""
        at = position - self.begin
        return bytes(self._bytes[at : at + max_bytes])


class Reader:
    """Somebody's place in the output of a terminal.  Made by `Terminal.attached`."""

    def __init__(self, terminal: "Terminal") -> None:
        self._terminal = terminal
        self.position = terminal.scrollback.begin

    async def receive(self) -> bytes:
        """What comes next; nothing when the terminal is over and all was read."""
        scrollback = self._terminal.scrollback
        while self.position == scrollback.end:
            if self._terminal.is_over:
                return b""
            await self._terminal.came.park()
        self.position = max(self.position, scrollback.begin)
        data = scrollback.read(self.position, READ_BYTES)
        self.position += len(data)
        self._terminal.taken.unpark_all()
        return data


class Terminal:
    """Made by `open_terminal`; `run` owns the process and the terminal, and closes both."""

    def __init__(self, master: int, process: trio.Process) -> None:
        self.scrollback = Scrollback()
        self.is_over = False
        self.readers: set[Reader] = set()
        self.came = trio.lowlevel.ParkingLot()
        """Woken when there is more to read, or nothing ever again."""
        self.taken = trio.lowlevel.ParkingLot()
        """Woken when a reader went on, came or left."""
        self._master = master
        self._process = process
        self._has_exited = False
        self._waiting = trio.CancelScope()

    @contextmanager
    def attached(self) -> Iterator[Reader]:
        """A reader that begins with what the ring has."""
        reader = Reader(self)
        self.readers.add(reader)
        self.taken.unpark_all()
        try:
            yield reader
        finally:
            self.readers.remove(reader)
            self.taken.unpark_all()

    def resize(self, height: int, width: int) -> None:
        """In rows and columns; the process hears of it.  Nought in either direction changes nothing."""
        if height and width and not self.is_over:
            set_size(self._master, height, width)

    async def send_all(self, data: bytes) -> None:
        """Type.  Raises trio.BrokenResourceError when the terminal is over."""
        view = memoryview(data)
        while view:
            if self.is_over:
                raise trio.BrokenResourceError("the terminal is over")
            try:
                view = view[os.write(self._master, view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._master)
            except OSError as error:
                raise trio.BrokenResourceError("the terminal is over") from error

    async def wait_left(self, seconds: float) -> None:
        """Until nobody has been attached for so long."""
        while True:
            while self.readers:
                await self.taken.park()
            with trio.move_on_after(seconds):
                while not self.readers:
                    await self.taken.park()
            if not self.readers:
                return

    async def run(self) -> None:
        """Until the process ends; if cancelled it is ended."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                await self._process.wait()
                self._has_exited = True
                self._waiting.deadline = trio.current_time() + _LAST_SECONDS
        finally:
            self.is_over = True
            self.came.unpark_all()
            try:
                if self._process.returncode is None:
                    await hang_up(groups_of(self._process.pid, self._master), self._process.wait)
            finally:
                trio.lowlevel.notify_closing(self._master)
                os.close(self._master)

    async def _read(self) -> None:
        last = _LAST_BYTES
        while last > 0:
            while self._is_ahead():
                await self.taken.park()
            try:
                data = os.read(self._master, READ_BYTES)
            except BlockingIOError:
                with trio.CancelScope() as self._waiting:
                    if self._has_exited:
                        self._waiting.deadline = trio.current_time() + _LAST_SECONDS
                    await trio.lowlevel.wait_readable(self._master)
                if self._waiting.cancelled_caught:
                    return
                continue
            except OSError:  # nobody has the other end open
                return
            if self._has_exited:
                last -= len(data)
            self.scrollback.append(data)
            self.came.unpark_all()
            await trio.lowlevel.checkpoint()

    def _is_ahead(self) -> bool:
        """Every reader is so far behind that the process has to wait."""
        farthest = max((reader.position for reader in self.readers), default=self.scrollback.end)
        return self.scrollback.end - farthest >= LEAD_BYTES


async def open_terminal(
    argv: Sequence[str], environment: Mapping[str, str], directory: str, height: int = 0, width: int = 0
) -> Terminal:
    """Start a process on a terminal of its own, as the leader of a session.  Raises OSError."""
    master, slave = os.openpty()
    try:
        os.set_blocking(master, False)
        set_size(slave, height or _ROWS, width or _COLUMNS)
        if sys.platform == "linux":
            modes = termios.tcgetattr(slave)
            modes[0] |= _IUTF8
            termios.tcsetattr(slave, termios.TCSANOW, modes)
        process = await trio.lowlevel.open_process(
            on_terminal(slave, argv),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return Terminal(master, process)
