"""Metadata of an agent: each value is what a small script prints, run at its interval.  Layer L3.

Values that are new go to the coordinator together, once a second at the most.  Next hop: processes.py, control.py.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import trio

from tailnet.agent.context import Context
from tailnet.agent.control import Control
from tailnet.agent.manifest import MetadataScript
from tailnet.agent.processes import Ended, run_script
from tailnet.proto import convert
from tailnet.proto.generated import agent_pb2 as agent

# Of a value, and of an error: coordinators keep no more.
MAX_VALUE_BYTES: Final = 2_048
GATHER_SECONDS: Final = 1.0
# A template with hundreds of them does not start hundreds of processes at once.
MAX_AT_ONCE: Final = 16
# A value that is older is never seen: values are sent once a second.
MIN_INTERVAL_SECONDS: Final = 1.0

Result = agent.WorkspaceAgentMetadata.Result


class Metadata:
    """Made for each manifest; `run` is one task."""

    def __init__(self, scripts: Iterable[MetadataScript], context: Context, control: Control) -> None:
        self._scripts = tuple(scripts)
        self._context = context
        self._control = control
        self._limiter = trio.CapacityLimiter(MAX_AT_ONCE)
        self._results: dict[str, agent.Metadata] = {}
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for script in self._scripts:
                nursery.start_soon(self._repeat, script)
            while True:
                while not self._results:
                    await self._changed.park()
                await trio.sleep(GATHER_SECONDS)
                # Those of one round; newer values of the same keys come with the next.
                results, self._results = self._results, {}
                request = agent.BatchUpdateMetadataRequest(metadata=results.values())
                await self._control.report("BatchUpdateMetadata", request, agent.BatchUpdateMetadataResponse)

    async def _repeat(self, script: MetadataScript) -> None:
        while True:
            began = trio.current_time()
            async with self._limiter:
                self._results[script.key] = agent.Metadata(key=script.key, result=await self._collect(script))
            self._changed.unpark_all()
            if not script.interval_seconds:
                return
            await trio.sleep_until(began + max(script.interval_seconds, MIN_INTERVAL_SECONDS))

    async def _collect(self, script: MetadataScript) -> Result:
        printed = {False: bytearray(), True: bytearray()}

        def take(piece: bytes, is_error: bool) -> None:
            kept = printed[is_error]
            kept += piece[: MAX_VALUE_BYTES - len(kept)]

        ended = await run_script(
            script.text,
            take,
            self._context,
            timeout_seconds=script.timeout_seconds,
        )
        return Result(
            collected_at=convert.timestamp(datetime.now(UTC)),
            value=_text(printed[False]),
            error=_problem(ended, script.timeout_seconds, _text(printed[True])),
        )


def _text(printed: bytearray) -> str:
    text = printed.decode("utf-8", "replace").replace("\0", "�").strip()
    # A character that was cut, or stands for bytes that are no text, takes more bytes than it came in.
    return text.encode()[:MAX_VALUE_BYTES].decode("utf-8", "ignore")


def _problem(ended: Ended, timeout_seconds: float, said: str) -> str:
    if ended.is_good:
        return ""
    if ended.is_timed_out:
        problem = f"it took longer than {timeout_seconds:g} s"
    else:
        problem = ended.problem or f"it ended with {ended.exit_code}"
    return f"{problem}: {said}"[:MAX_VALUE_BYTES] if said else problem
