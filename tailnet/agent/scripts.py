"""The scripts of an agent: at its start, at its stop, and by the clock.  Layer L3.

    run_script -> lines to logs.py and to the script's file -> reports.py
What a run came to decides how the agent's lifecycle goes on.  Next hop: processes.py, logs.py, reports.py.
"""

import logging
import os
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import Enum, IntEnum
from typing import BinaryIO, Final

import trio
from cronsim import CronSim, CronSimError

from derp.text import error_text, fit_to_show
from tailnet.agent.context import Context
from tailnet.agent.logs import Lines, Logs
from tailnet.agent.manifest import Script
from tailnet.agent.processes import NOT_STARTED, Ended, run_script
from tailnet.agent.reports import Reports
from tailnet.proto import convert
from tailnet.proto.generated import agent_pb2 as agent

_log = logging.getLogger("tailnet.agent")

# Of one run; a script that prints more is looked at with other means.
MAX_FILE_BYTES: Final = 64 * 1024 * 1024


class Stage(Enum):
    START = agent.Timing.START
    STOP = agent.Timing.STOP
    CRON = agent.Timing.CRON


class Outcome(IntEnum):
    """What came of several scripts, the worst of them."""

    GOOD = 0
    FAILED = 1
    TIMED_OUT = 2


class Scripts:
    """Made once per agent."""

    def __init__(self, context: Context, reports: Reports, logs: Logs) -> None:
        self._context = context
        self._reports = reports
        self._logs = logs

    async def run_all(self, scripts: Iterable[Script], stage: Stage) -> Outcome:
        """All at once, until the last has ended."""
        outcomes: list[Outcome] = []

        async def run(script: Script) -> None:
            ended = await self.run(script, stage)
            outcomes.append(
                Outcome.TIMED_OUT if ended.is_timed_out else Outcome.GOOD if ended.is_good else Outcome.FAILED
            )

        async with trio.open_nursery() as nursery:
            for script in scripts:
                nursery.start_soon(run, script)
        return max(outcomes, default=Outcome.GOOD)

    async def run(self, script: Script, stage: Stage) -> Ended:
        """One run, reported."""
        began, now = trio.current_time(), datetime.now(UTC)
        with _Output(script, self._logs, self._log_path(script)) as output:
            ended = await run_script(
                script.text,
                output.take,
                self._context,
                timeout_seconds=script.timeout_seconds,
                environment=self._environment(script),
            )
            output.end(ended, script.timeout_seconds)
        seconds = trio.current_time() - began
        text = "script %s (%s) ended with %d after %.1f s%s"
        how = ", timed out" if ended.is_timed_out else f": {ended.problem}" if ended.problem else ""
        level = logging.INFO if ended.is_good else logging.WARNING
        _log.log(level, text, script.name, stage.name.lower(), ended.exit_code, seconds, how)
        if script.id:
            self._reports.script(_timing(script, stage, ended, now))
        return ended

    async def run_by_clock(self, scripts: Iterable[Script]) -> None:
        """Those with a schedule, until cancelled.  One that still runs when its next time comes leaves it out."""
        async with trio.open_nursery() as nursery:
            for script in scripts:
                if script.cron:
                    nursery.start_soon(self._repeat, script)

    async def _repeat(self, script: Script) -> None:
        due = now = datetime.now().astimezone()
        while True:
            try:
                # A clock that was set back, or a sleep that was short, is no second run at the same time.
                due = next(CronSim(script.cron, max(now, due)))
            except (CronSimError, StopIteration) as error:
                _log.warning("script %s: its schedule %r: %s", script.name, script.cron[:100], error_text(error))
                return
            await trio.sleep((due - now).total_seconds())
            await self.run(script, Stage.CRON)
            now = datetime.now().astimezone()

    def _environment(self, script: Script) -> dict[str, str]:
        """Besides what sessions have: a directory of its own, and one for programs that it installs for them."""
        environment = self._context.environment()
        directory = self._context.scripts_directory
        if directory is not None:
            own = os.path.join(directory, "data", script.log_source_id.hex())
            for each in (own, self._context.bin_directory):
                os.makedirs(each, mode=0o700, exist_ok=True)
            environment |= {"CODER_SCRIPT_DATA_DIR": own, "CODER_SCRIPT_BIN_DIR": self._context.bin_directory}
        return environment

    def _log_path(self, script: Script) -> str:
        """Where its output goes: one that is not absolute is in the directory for temporary files."""
        path = script.log_path or f"coder-script-{script.log_source_id.hex()}.log"
        return self._context.expand(path if path.startswith(("~", "$")) else os.path.join(tempfile.gettempdir(), path))


class _Output:
    """What one run prints: to its file as it is, to the logs line by line."""

    def __init__(self, script: Script, logs: Logs, path: str) -> None:
        self._source_id = script.log_source_id
        self._logs = logs
        self._lines = {False: Lines(), True: Lines()}
        self._file: BinaryIO | None = None
        self._left = MAX_FILE_BYTES
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            # Nobody's link leads us elsewhere, and the output is its user's alone.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
        except (OSError, ValueError) as error:
            _log.warning("script %s: its log %s: %s", script.name, fit_to_show(path[:200]), error_text(error))

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def take(self, piece: bytes, is_error: bool) -> None:
        self._write(piece)
        level = agent.Log.ERROR if is_error else agent.Log.INFO
        for line in self._lines[is_error].cut(piece):
            self._logs.put(self._source_id, level, line)

    def end(self, ended: Ended, timeout_seconds: float) -> None:
        """The last lines, and one of ours where the output cannot say it."""
        for is_error, level in ((False, agent.Log.INFO), (True, agent.Log.ERROR)):
            for line in self._lines[is_error].end():
                self._logs.put(self._source_id, level, line)
        said = ended.problem
        if ended.is_timed_out:
            said = f"the script was ended after {timeout_seconds:g} s, its time"
        elif ended.exit_code and ended.exit_code != NOT_STARTED:
            said = f"the script ended with {ended.exit_code}"
        if ended.pipes_left_open:
            said = f"{said}; " * bool(said) + "what it left in the background is not heard any more"
        if said:
            self._logs.put(self._source_id, agent.Log.WARN, said.encode())

    def _write(self, piece: bytes) -> None:
        if self._file is None:
            return
        try:
            self._left -= self._file.write(piece[: self._left])
        except OSError as error:
            _log.warning("the log of a script takes no more: %s", error_text(error))
            self._left = 0


def _timing(script: Script, stage: Stage, ended: Ended, began: datetime) -> agent.Timing:
    status = agent.Timing.OK
    if ended.is_timed_out:
        status = agent.Timing.TIMED_OUT
    elif ended.exit_code:
        status = agent.Timing.EXIT_FAILURE
    elif ended.pipes_left_open:
        status = agent.Timing.PIPES_LEFT_OPEN
    return agent.Timing(
        script_id=script.id,
        start=convert.timestamp(began),
        end=convert.timestamp(datetime.now(UTC)),
        exit_code=ended.exit_code,
        stage=stage.value,
        status=status,
    )
