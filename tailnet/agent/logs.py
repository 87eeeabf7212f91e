"""Lines of logs on their way to the coordinator: gathered, bounded, sent until it wants no more.  Layer L3.

    put(source, level, line) -> a queue -> BatchCreateLogs, batch by batch
A coordinator keeps 1 MiB of an agent's lines and says when it has them.  More than that never waits here, and what is
too much is dropped: a script does not stand still because a coordinator is away.  Callers: scripts.py.  Next hop:
control.py.
"""

import logging
from collections import deque
from datetime import UTC, datetime
from typing import Final

import trio

from tailnet.agent.control import Control
from tailnet.proto import convert
from tailnet.proto.generated import agent_pb2 as agent

_log = logging.getLogger("tailnet.agent")

# A line longer than that is several.
MAX_LINE_BYTES: Final = 32 * 1024
# Of all sources: as much as the coordinator keeps of an agent.
MAX_QUEUED_BYTES: Final = 1024 * 1024
# A batch: a quarter of that, so that a lost connection repeats little.
MAX_BATCH_BYTES: Final = 256 * 1024
# What prints line by line is sent a few times a second.
GATHER_SECONDS: Final = 0.25
# A line's time, level and place in a message.
_LINE_COST: Final = 32


class Logs:
    """Made once per agent; `run` is one task."""

    def __init__(self, control: Control) -> None:
        self.is_full = False
        """The coordinator keeps no more."""
        self.dropped_lines = 0
        self._control = control
        self._queue: deque[tuple[bytes, agent.Log, int]] = deque()
        self._queued_bytes = 0
        self._changed = trio.lowlevel.ParkingLot()

    def put(self, source_id: bytes, level: int, line: bytes) -> None:
        """One line, if there is room for it."""
        if self.is_full or self._queued_bytes >= MAX_QUEUED_BYTES:
            self.dropped_lines += 1
            return
        # A zero byte ends a text in databases; other bytes that are no UTF-8 are shown as such.
        text = line.decode("utf-8", "replace").replace("\0", "�")
        log = agent.Log(created_at=convert.timestamp(datetime.now(UTC)), output=text)
        log.level = level  # type: ignore[assignment]  # its number
        size = len(line) + _LINE_COST
        self._queue.append((source_id, log, size))
        self._queued_bytes += size
        self._changed.unpark_all()

    async def wait_sent(self) -> None:
        """Until nothing waits."""
        while self._queue:
            await self._changed.park()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            while not self._queue:
                await self._changed.park()
            await trio.sleep(GATHER_SECONDS)
            while self._queue:
                await self._send()

    async def _send(self) -> None:
        source_id, batch, size = self._batch()
        request = agent.BatchCreateLogsRequest(log_source_id=source_id, logs=batch)
        answer = await self._control.report("BatchCreateLogs", request, agent.BatchCreateLogsResponse)
        if answer is None:
            self.dropped_lines += len(batch)
        # They leave the queue when they are there: a lost connection repeats them.
        for _ in batch:
            self._queue.popleft()
        self._queued_bytes -= size
        if answer is not None and answer.log_limit_exceeded:
            self._stop()
        self._changed.unpark_all()

    def _batch(self) -> tuple[bytes, list[agent.Log], int]:
        """The first lines of one source."""
        source_id, total = self._queue[0][0], 0
        batch: list[agent.Log] = []
        for source, log, size in self._queue:
            if source != source_id or (batch and total + size > MAX_BATCH_BYTES):
                break
            batch.append(log)
            total += size
        return source_id, batch, total

    def _stop(self) -> None:
        _log.warning("the coordinator keeps no more log lines of this agent: later ones are in files alone")
        self.is_full = True
        self.dropped_lines += len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0


class Lines:
    """Cuts what a process prints into lines; `end` gives the last one, which may have no end."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def cut(self, piece: bytes) -> list[bytes]:
        """The lines that are whole now, without their ends."""
        self._rest += piece
        *whole, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        found = [part for line in whole for part in _parts(line.removesuffix(b"\r"))]
        while len(self._rest) >= MAX_LINE_BYTES:
            found.append(bytes(self._rest[:MAX_LINE_BYTES]))
            del self._rest[:MAX_LINE_BYTES]
        return found

    def end(self) -> list[bytes]:
        rest, self._rest = bytes(self._rest), bytearray()
        return [rest] if rest else []


def _parts(line: bytes) -> list[bytes]:
    return [line[at : at + MAX_LINE_BYTES] for at in range(0, len(line), MAX_LINE_BYTES)] or [b""]
