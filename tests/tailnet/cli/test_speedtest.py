"""`tailnet speedtest` on a real coordinator, with a node of ours as the agent."""

import json

import pytest
import trio
from click.testing import CliRunner, Result

from tailnet.cli.root import cli
from tailnet.node.membership import open_agent
from tailnet.node.speedtest import SPEEDTEST_PORT
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.speedtests import serve_speedtest
from tests.tailnet.client.test_rpc import url_of


async def speedtest(server: CoordinatorServer, *words: str, serves: bool = True) -> Result:
    environ = {"CODER_URL": url_of(server), "CODER_SESSION_TOKEN": user_token("alice")}
    async with (
        open_agent(url_of(server), agent_token("main"), peer_id("main")) as agent,
        trio.open_nursery() as nursery,
    ):
        if serves:
            nursery.start_soon(trio.serve_listeners, serve_speedtest, [agent.engine.listen(SPEEDTEST_PORT)])
        said = await trio.to_thread.run_sync(
            lambda: CliRunner().invoke(cli, ["speedtest", "--time=0.3", *words, "main"], env=environ)
        )
        nursery.cancel_scope.cancel()
    return said


@pytest.mark.parametrize(("words", "direction"), [([], "from"), (["--reverse"], "to")])
async def test_both_ways(server: CoordinatorServer, words: list[str], direction: str) -> None:
    said = await speedtest(server, "--json", *words)
    assert said.exit_code == 0, said.output
    result = json.loads(said.stdout.splitlines()[-1])
    assert (result["event"], result["agent"], result["direction"]) == ("result", "dev.main", direction)
    assert result["bytes"] > 0
    assert result["mbits_per_second"] > 0


async def test_for_people(server: CoordinatorServer) -> None:
    said = await speedtest(server, "--relay-only")
    assert said.stdout.startswith("from dev.main: ")
    assert said.stdout.endswith(" s, by relay\n")
    assert said.stdout.count("\n") == 1  # the line a second is for terminals


async def test_an_agent_without_one(server: CoordinatorServer) -> None:
    said = await speedtest(server, serves=False)
    assert str(said.exception) == "dev.main serves no speed test on port 3"
