"""Simulated agents in a process of their own, so that what they cost is apart from what the server costs.

    python bench/agents_load.py --url http://127.0.0.1:3000 --seed seed.json --agents 500 < /dev/zero

Each one boots as a genuine agent does (manifest, banners, start-up, lifecycle, logs, the DERP map's stream, its node)
and then reports at the intervals below, until stdin ends.  It prints a JSON line when all have booted, and one for each
window: a line on stdin begins one, the next one ends it.
Used by bench/agents.py; the client is tailnet/client.
"""

import gc
import json
import random
import resource
import sys
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from derp.errors import DerpError
from derp.keys import NodePrivate
from tailnet.client.coordination import make_node, open_coordination
from tailnet.client.rpc import RpcClient, open_rpc_client
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.proto.services import STREAM_DERP_MAPS
from tailnet.types import PeerID

AGENT = "/coder.agent.v2.Agent/"
DOOR = "/api/v2/workspaceagents/me/rpc?version=2.4"
# What the field's templates have: load, memory and disk each ten seconds, in one report.
METADATA_KEYS = ("cpu", "memory", "disk")
METADATA_SECONDS = 10.0
# What the server asks for unless its settings say otherwise.
STATS_SECONDS = 300.0
# A script that runs each five minutes and says five lines.
LOGS_SECONDS = 300.0
LOG_LINES = 5
# Somebody comes, works for five minutes, and comes again after five.
SESSION_SECONDS = 300.0
BOOT_LOG_BATCHES, BOOT_LOG_LINES = 3, 20
AT_ONCE = 64
# Of durations: what a percentile needs, and no more memory than that.
MAX_SAMPLES = 200_000


@dataclass
class Tally:
    """What was done and how long it took."""

    calls: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)  # seconds from a report to its answer
    late: list[float] = field(default_factory=list)  # seconds after its time that a report began: our own load
    is_measuring: bool = False

    def note(self, late: float, took: float) -> None:
        if self.is_measuring and len(self.took) < MAX_SAMPLES:
            self.late.append(late)
            self.took.append(took)


class Agent:
    """One of them."""

    def __init__(self, url: str, spec: dict[str, str], number: int, rhythm: float, tally: Tally) -> None:
        self._url = url
        self._token, self._id = spec["token"], PeerID.parse(spec["id"])
        self._rhythm = rhythm
        self._tally = tally
        self._random = random.Random(number)
        self._counter = 0
        self._session_id = b""  # while somebody is here

    async def run(self, limiter: trio.CapacityLimiter, booted: "Countdown") -> None:
        """Boot when it is our turn, then report until cancelled or cut off."""
        is_booted = False
        try:
            async with AsyncExitStack() as stack:
                async with limiter:
                    opened = open_rpc_client(self._url, DOOR, self._token, timeout_seconds=60.0)
                    rpc = await stack.enter_async_context(opened)
                    await self._boot(rpc)
                booted.one()
                is_booted = True
                await self._report_forever(rpc)
        except (DerpError, OSError) as error:
            self._tally.failures[str(error)[:100]] += 1
            if not is_booted:
                booted.one()

    async def _boot(self, rpc: RpcClient) -> None:
        manifest = await self._call(rpc, "GetManifest", agent.GetManifestRequest(), agent.Manifest)
        assert manifest.agent_id == self._id
        await self._call(rpc, "GetServiceBanner", agent.GetServiceBannerRequest(), agent.ServiceBanner)
        banners = agent.GetAnnouncementBannersRequest(), agent.GetAnnouncementBannersResponse
        await self._call(rpc, "GetAnnouncementBanners", *banners)
        startup = agent.Startup(version="v2.20.0", expanded_directory="/home/dev", subsystems=[agent.Startup.ENVBOX])
        await self._call(rpc, "UpdateStartup", agent.UpdateStartupRequest(startup=startup), agent.Startup)
        await self._lifecycle(rpc, agent.Lifecycle.STARTING)
        maps = await rpc.open(STREAM_DERP_MAPS, tailnet.StreamDERPMapsRequest(), tailnet.DERPMap)
        await maps.receive()
        coordination = await open_coordination(rpc)
        await coordination.announce(make_node(NodePrivate.generate(), self._id, 999))
        stats = await self._call(rpc, "UpdateStats", agent.UpdateStatsRequest(), agent.UpdateStatsResponse)
        assert stats.report_interval.seconds
        monitors = agent.GetResourcesMonitoringConfigurationRequest(), agent.GetResourcesMonitoringConfigurationResponse
        await self._call(rpc, "GetResourcesMonitoringConfiguration", *monitors)
        healths = agent.BatchUpdateAppHealthRequest(), agent.BatchUpdateAppHealthResponse
        await self._call(rpc, "BatchUpdateAppHealths", *healths)
        for _ in range(BOOT_LOG_BATCHES):
            await self._logs(rpc, BOOT_LOG_LINES)
        await self._lifecycle(rpc, agent.Lifecycle.READY)

    async def _report_forever(self, rpc: RpcClient) -> None:
        work = {"metadata": self._metadata, "stats": self._stats, "logs": self._few_logs, "session": self._session}
        seconds = dict(zip(work, (METADATA_SECONDS, STATS_SECONDS, LOGS_SECONDS, SESSION_SECONDS), strict=True))
        seconds = {name: each * self._rhythm for name, each in seconds.items()}
        # Agents were not started together.
        began = trio.current_time()
        due = {name: began + self._random.random() * each for name, each in seconds.items()}
        while True:
            name = min(due, key=due.__getitem__)
            await trio.sleep_until(due[name])
            started = trio.current_time()
            await work[name](rpc)
            self._tally.note(started - due[name], trio.current_time() - started)
            due[name] += seconds[name]

    async def _metadata(self, rpc: RpcClient) -> None:
        self._counter += 1
        now = Timestamp()
        now.GetCurrentTime()
        values = [
            agent.Metadata(
                key=key, result=agent.WorkspaceAgentMetadata.Result(collected_at=now, value=f"{self._counter} of 100 %")
            )
            for key in METADATA_KEYS
        ]
        request = agent.BatchUpdateMetadataRequest(metadata=values)
        await self._call(rpc, "BatchUpdateMetadata", request, agent.BatchUpdateMetadataResponse)

    async def _stats(self, rpc: RpcClient) -> None:
        stats = agent.Stats(
            connections_by_proto={"TCP": 2},
            connection_count=2,
            connection_median_latency_ms=12.5,
            rx_packets=1000,
            rx_bytes=100_000,
            tx_packets=1000,
            tx_bytes=100_000,
            session_count_ssh=1,
        )
        await self._call(rpc, "UpdateStats", agent.UpdateStatsRequest(stats=stats), agent.UpdateStatsResponse)

    async def _session(self, rpc: RpcClient) -> None:
        """Somebody comes by SSH, or goes again."""
        now = Timestamp()
        now.GetCurrentTime()
        action = agent.Connection.DISCONNECT if self._session_id else agent.Connection.CONNECT
        self._session_id, session_id = b"" if self._session_id else self._random.randbytes(16), self._session_id
        connection = agent.Connection(
            id=session_id or self._session_id, action=action, type=agent.Connection.SSH, timestamp=now, ip="192.0.2.7"
        )
        await self._call(rpc, "ReportConnection", agent.ReportConnectionRequest(connection=connection), Empty)

    async def _few_logs(self, rpc: RpcClient) -> None:
        await self._logs(rpc, LOG_LINES)

    async def _logs(self, rpc: RpcClient, count: int) -> None:
        now = Timestamp()
        now.GetCurrentTime()
        text = "line {}: installing something that has a long name"
        lines = [agent.Log(created_at=now, output=text.format(at), level=agent.Log.INFO) for at in range(count)]
        request = agent.BatchCreateLogsRequest(log_source_id=bytes(16), logs=lines)
        await self._call(rpc, "BatchCreateLogs", request, agent.BatchCreateLogsResponse)

    async def _lifecycle(self, rpc: RpcClient, state: Any) -> None:
        now = Timestamp()
        now.GetCurrentTime()
        request = agent.UpdateLifecycleRequest(lifecycle=agent.Lifecycle(state=state, changed_at=now))
        await self._call(rpc, "UpdateLifecycle", request, agent.Lifecycle)

    async def _call(self, rpc: RpcClient, name: str, request: Any, answer: Any) -> Any:
        self._tally.calls[name] += 1
        return await rpc.call(AGENT + name, request, answer, timeout_seconds=60.0)


class Countdown:
    """Fires when so many have called."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.done = trio.Event()

    def one(self) -> None:
        self._left -= 1
        if not self._left:
            self.done.set()


def cpu_seconds() -> float:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def quantile(values: list[float], share: float) -> float | None:
    """In milliseconds."""
    return 1000 * sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else None


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


async def load(url: str, specs: list[dict[str, str]], rhythm: float) -> None:
    """Until stdin ends.  A line on stdin begins the measurement anew."""
    tally, limiter, booted = Tally(), trio.CapacityLimiter(AT_ONCE), Countdown(len(specs))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number, spec in enumerate(specs):
            nursery.start_soon(Agent(url, spec, number, rhythm, tally).run, limiter, booted)
        await booted.done.wait()
        say(
            event="booted",
            seconds=trio.current_time() - began,
            calls=sum(tally.calls.values()),
            cpu_seconds=cpu_seconds(),
            failures=dict(tally.failures),
        )
        stdin = trio.lowlevel.FdStream(0)
        while await stdin.receive_some(100):
            tally.is_measuring = True
            tally.took.clear()
            tally.late.clear()
            calls, cpu, at = tally.calls.copy(), cpu_seconds(), trio.current_time()
            if not await stdin.receive_some(100):  # the end of the window
                break
            seconds = trio.current_time() - at
            say(
                event="window",
                seconds=seconds,
                calls={name: count - calls[name] for name, count in tally.calls.items() if count > calls[name]},
                cores=(cpu_seconds() - cpu) / seconds,
                report_p50_ms=quantile(tally.took, 0.5),
                report_p99_ms=quantile(tally.took, 0.99),
                late_p99_ms=quantile(tally.late, 0.99),
                failures=dict(tally.failures),
            )
        nursery.cancel_scope.cancel()


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--url", required=True)
@click.option("--seed", type=click.Path(path_type=Path), required=True, help="JSON file with users and agents")
@click.option("--agents", type=int, required=True, help="the last so many of the seed")
@click.option("--rhythm", default=1.0, show_default=True, help="0.1: intervals are a tenth of the real ones")
def main(url: str, seed: Path, agents: int, rhythm: float) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # 5,000 agents are a million objects that stay; to look through them again and again is no agent's work.
    gc.disable()
    trio.run(load, url, json.loads(seed.read_text())["agents"][-agents:], rhythm)


if __name__ == "__main__":
    main()
