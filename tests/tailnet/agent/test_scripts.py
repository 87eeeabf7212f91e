"""Scripts of a manifest: what their runs leave in files and logs, and what the coordinator is told of them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
import trio.testing

from tailnet.agent import processes, scripts
from tailnet.agent.context import Context
from tailnet.agent.logs import Logs
from tailnet.agent.manifest import Script
from tailnet.agent.reports import Reports
from tailnet.agent.scripts import Outcome, Scripts, Stage
from tailnet.proto.generated import agent_pb2 as agent
from tests.support.agents import FakeRpc, open_context

SOURCE, SCRIPT_ID = b"s" * 16, b"i" * 16


def a_script(text: str, **changes: object) -> Script:
    made = Script(SCRIPT_ID, SOURCE, "", text, "", True, False, 30.0, "a script")
    return replace(made, **changes)  # type: ignore[arg-type]


@dataclass
class World:
    context: Context
    rpc: FakeRpc
    logs: Logs
    scripts: Scripts

    async def timing(self) -> agent.Timing:
        (request,) = await self.rpc.wait_said("ScriptCompleted")
        found: agent.Timing = request.timing
        return found

    async def lines(self) -> list[tuple[int, str]]:
        await self.logs.wait_sent()
        return [(log.level, log.output) for each in self.rpc.said("BatchCreateLogs") for log in each.logs]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    rpc = FakeRpc()
    control = rpc.control()
    logs, reports = Logs(control), Reports(control)
    with trio.fail_after(60):
        async with open_context(wanted_directory=str(tmp_path)) as context:
            context.nursery.start_soon(logs.run)
            context.nursery.start_soon(reports.run)
            yield World(context, rpc, logs, Scripts(context, reports, logs))


async def test_a_run_is_written_down_and_reported(world: World, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "start.log"
    script = a_script("echo one; echo two >&2; printf three", log_path=str(path))
    ended = await world.scripts.run(script, Stage.START)
    assert ended.is_good
    lines = await world.lines()
    assert sorted(lines) == sorted([(agent.Log.INFO, "one"), (agent.Log.ERROR, "two"), (agent.Log.INFO, "three")])
    assert sorted(path.read_text()) == sorted("one\ntwo\nthree")
    assert path.stat().st_mode & 0o077 == 0
    assert {each.log_source_id for each in world.rpc.said("BatchCreateLogs")} == {SOURCE}
    timing = await world.timing()
    assert (timing.script_id, timing.stage, timing.status, timing.exit_code) == (
        SCRIPT_ID,
        agent.Timing.START,
        agent.Timing.OK,
        0,
    )
    assert timing.start.ToDatetime() <= timing.end.ToDatetime()


@pytest.mark.parametrize(
    ("text", "timeout_seconds", "status", "said"),
    [
        ("exit 3", 30.0, agent.Timing.EXIT_FAILURE, "ended with 3"),
        ("#!/not/there", 30.0, agent.Timing.EXIT_FAILURE, "cannot be started"),
        ("sleep 1000", 0.3, agent.Timing.TIMED_OUT, "after 0.3 s"),
        ("sleep 1000 &", 30.0, agent.Timing.PIPES_LEFT_OPEN, "in the background"),
    ],
)
async def test_ends_that_are_not_good(
    text: str, timeout_seconds: float, status: int, said: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PIPE_SECONDS", 0.2)
    await world.scripts.run(a_script(text, timeout_seconds=timeout_seconds), Stage.STOP)
    timing = await world.timing()
    assert (timing.stage, timing.status) == (agent.Timing.STOP, status)
    level, line = (await world.lines())[-1]
    assert level == agent.Log.WARN
    assert said in line


async def test_all_at_once_and_the_worst_counts(world: World, tmp_path: Path) -> None:
    """Two that wait for each other."""
    meet = "touch {}; while [ ! -e {} ]; do sleep 0.01; done"
    both = [a_script(meet.format("a", "b")), a_script(meet.format("b", "a"), id=b"")]
    assert await world.scripts.run_all(both, Stage.START) is Outcome.GOOD
    assert await world.timing(), "an old server gave the other no id"
    some = [a_script("true"), a_script("false"), a_script("sleep 1000", timeout_seconds=0.3)]
    assert await world.scripts.run_all(some[:2], Stage.START) is Outcome.FAILED
    assert await world.scripts.run_all(some, Stage.START) is Outcome.TIMED_OUT
    assert await world.scripts.run_all([], Stage.START) is Outcome.GOOD


async def test_programs_that_a_script_installs_are_there_for_sessions(world: World) -> None:
    text = (
        'printf "#!/bin/sh\\necho installed" > "$CODER_SCRIPT_BIN_DIR/tool-of-ours"; chmod +x "$CODER_SCRIPT_BIN_DIR"/*'
    )
    await world.scripts.run(a_script(f'{text}; touch "$CODER_SCRIPT_DATA_DIR/kept"'), Stage.START)
    await world.scripts.run(a_script('tool-of-ours; ls "$CODER_SCRIPT_DATA_DIR"'), Stage.START)
    assert [line for _, line in await world.lines()] == ["installed", "kept"]
    assert world.context.environment()["PATH"].endswith(world.context.bin_directory)


async def test_a_log_that_is_somebody_else_s_link_is_not_followed(world: World, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / "link").symlink_to(target)
    await world.scripts.run(a_script("echo lost", log_path=str(tmp_path / "link")), Stage.START)
    assert target.read_text() == "kept"
    assert await world.lines() == [(agent.Log.INFO, "lost")]


async def test_a_file_takes_so_much(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "MAX_FILE_BYTES", 5)
    await world.scripts.run(a_script("echo 123; echo 456", log_path=str(tmp_path / "log")), Stage.START)
    assert (tmp_path / "log").read_text() == "123\n4"
    assert len(await world.lines()) == 2


@pytest.mark.parametrize("schedule", ["* * * * * *", "*/1 * * * * *"])
async def test_a_schedule_runs_again_and_again(schedule: str, world: World) -> None:
    """Six fields have the seconds first; one that makes no sense is nobody else's trouble."""
    scripts = [a_script("echo now", cron=schedule), a_script("", cron="nonsense"), a_script("", cron="0 3 * * *")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.scripts.run_by_clock, scripts)
        await world.rpc.wait_said("ScriptCompleted", 3)
        nursery.cancel_scope.cancel()
    timings = [each.timing for each in world.rpc.said("ScriptCompleted")]
    assert {each.stage for each in timings} == {agent.Timing.CRON}
    assert len({each.start.seconds for each in timings}) == len(timings), "one run for each second"
