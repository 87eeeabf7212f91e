"""Memory and volumes are measured for who wants to know, and for nobody else."""

from pathlib import Path

import pytest
import trio
import trio.testing

from tailnet.agent.monitors import measure, monitor, read_memory
from tailnet.errors import Unimplemented
from tailnet.proto.generated import agent_pb2 as agent
from tests.support.agents import FakeRpc

Wanted = agent.GetResourcesMonitoringConfigurationResponse
MEMINFO = "MemTotal:       1000 kB\nMemFree:  100 kB\nMemAvailable:  400 kB\n"


async def test_the_last_readings_go_together(autojump_clock: trio.testing.MockClock) -> None:
    wanted = Wanted(config=Wanted.Config(num_datapoints=3, collection_interval_seconds=10))
    wanted.memory.enabled = True
    wanted.volumes.add(enabled=True, path="/")
    wanted.volumes.add(enabled=False, path="/tmp")
    rpc = FakeRpc(GetResourcesMonitoringConfiguration=wanted)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(monitor, rpc.control())
        (said, *_) = await rpc.wait_said("PushResourcesMonitoringUsage", 2)
        nursery.cancel_scope.cancel()
    assert len(said.datapoints) == 3
    point = said.datapoints[0]
    assert 0 < point.memory.used <= point.memory.total
    assert [each.volume for each in point.volumes] == ["/"]
    assert 0 < point.volumes[0].used <= point.volumes[0].total


@pytest.mark.parametrize("answer", [Wanted(), Unimplemented()])
async def test_nothing_is_wanted(answer: "Wanted | Exception") -> None:
    rpc = FakeRpc(GetResourcesMonitoringConfiguration=answer)
    await monitor(rpc.control())
    assert len(rpc.calls) == 1


def test_a_volume_that_is_not_there_is_left_out() -> None:
    point = measure(False, ["/not/there", "/"])
    assert [each.volume for each in point.volumes] == ["/"]
    assert not point.HasField("memory")


@pytest.mark.parametrize(
    ("limit", "meminfo", "expected"),
    [
        ("3000", MEMINFO, (2000, 3000)),
        ("max", MEMINFO, (600 * 1024, 1000 * 1024)),
        ("max", "nonsense", None),
    ],
)
def test_memory(limit: str, meminfo: str, expected: tuple[int, int] | None, tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "meminfo").write_text(meminfo)
    assert read_memory(tmp_path, tmp_path / "meminfo") == expected
