"""`tailnet drain`: a coordinator in a process of its own has gone when the command returns."""

from pathlib import Path

import trio
from click.testing import CliRunner, Result

from derp.cli_drain import DrainError
from tailnet.cli.root import cli
from tests.support.tailnet_servers import Seed, running_server


async def drain(*words: str) -> Result:
    return await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, ["drain", *words]))


async def test_it_returns_when_the_coordinator_has_ended(tmp_path: Path) -> None:
    with running_server("ours", tmp_path, Seed()) as server:
        ran = await drain(str(server.pid))
        assert (ran.exit_code, ran.output) == (0, "")
        assert server.process.poll() == 0
    assert "SIGTERM: draining" in (tmp_path / "server.log").read_text()


async def test_a_process_that_is_no_coordinator_is_left_alone() -> None:
    async with trio.open_nursery() as nursery:
        sleeper = await nursery.start(trio.run_process, ["sleep", "100"])
        ran = await drain("--replace", str(sleeper.pid))
        assert isinstance(ran.exception, DrainError)
        assert sleeper.poll() is None
        nursery.cancel_scope.cancel()
