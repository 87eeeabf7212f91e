"""How much memory and room on volumes a workspace uses, for coordinators that want to know.  Layer L3.

The memory is that of the agent's control group where that has a limit, else the machine's.  Next hop: control.py.
"""

import os
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import trio

from tailnet.agent.control import Control
from tailnet.proto import convert
from tailnet.proto.generated import agent_pb2 as agent

# Bounds of what a coordinator may want.
MAX_DATAPOINTS: Final = 1_000
MAX_VOLUMES: Final = 64
MIN_SECONDS: Final = 1.0
_GROUP: Final = Path("/sys/fs/cgroup")
_MACHINE: Final = Path("/proc/meminfo")

Datapoint = agent.PushResourcesMonitoringUsageRequest.Datapoint


async def monitor(control: Control) -> None:
    """Until cancelled, or not at all where the coordinator wants nothing."""
    wanted = await control.report(
        "GetResourcesMonitoringConfiguration",
        agent.GetResourcesMonitoringConfigurationRequest(),
        agent.GetResourcesMonitoringConfigurationResponse,
    )
    if wanted is None:
        return
    is_memory = wanted.HasField("memory") and wanted.memory.enabled
    volumes = [each.path for each in wanted.volumes if each.enabled][:MAX_VOLUMES]
    if not is_memory and not volumes:
        return
    count = min(max(wanted.config.num_datapoints, 1), MAX_DATAPOINTS)
    kept: deque[Datapoint] = deque(maxlen=count)
    while True:
        await trio.sleep(max(wanted.config.collection_interval_seconds, MIN_SECONDS))
        # A volume may be a network's that does not answer.
        kept.append(await trio.to_thread.run_sync(measure, is_memory, volumes, abandon_on_cancel=True))
        # The coordinator judges the last so many together, and wants all of them each time.
        if len(kept) == count:
            request = agent.PushResourcesMonitoringUsageRequest(datapoints=kept)
            pushed = agent.PushResourcesMonitoringUsageResponse
            if await control.report("PushResourcesMonitoringUsage", request, pushed) is None:
                return


def measure(is_memory: bool, volumes: Iterable[str]) -> Datapoint:
    """One reading; what cannot be read is missing from it."""
    point = Datapoint(collected_at=convert.timestamp(datetime.now(UTC)))
    memory = read_memory() if is_memory else None
    if memory is not None:
        point.memory.used, point.memory.total = memory
    for path in volumes:
        try:
            found = os.statvfs(path)
        except (OSError, ValueError):
            continue
        total, free = found.f_blocks * found.f_frsize, found.f_bfree * found.f_frsize
        point.volumes.add(volume=path, used=total - free, total=total)
    return point


def read_memory(group: Path = _GROUP, machine: Path = _MACHINE) -> tuple[int, int] | None:
    """Bytes in use, and all; None where no system of ours tells."""
    try:
        return int((group / "memory.current").read_text()), int((group / "memory.max").read_text())
    except (OSError, ValueError):  # no group of the second version, or one without a limit ("max")
        pass
    try:
        lines = dict(line.split(":", 1) for line in machine.read_text().splitlines())
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return None
    return total - available, total
