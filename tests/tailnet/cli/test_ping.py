"""`tailnet ping` on a real coordinator, with a node of ours as the agent."""

import json
from collections.abc import AsyncIterator

import pytest
import trio
from click.testing import CliRunner, Result

from derp.netcheck.report import Report
from tailnet.cli.ping import why_by_relay
from tailnet.cli.root import cli
from tailnet.node.membership import open_agent
from tailnet.paths.endpoint import Endpoint
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token
from tests.tailnet.client.test_rpc import url_of
from tests.tailnet.conftest import Serve

MAIN = peer_id("main")
QUICK = ("-c", "2", "--interval", "0.1")


async def ping(server: CoordinatorServer, *words: str) -> Result:
    """The command, in a thread, as it runs an event loop of its own."""
    environ = {"CODER_URL": url_of(server), "CODER_SESSION_TOKEN": user_token("alice")}
    return await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, ["ping", *words], env=environ))


@pytest.fixture
async def agent(server: CoordinatorServer) -> AsyncIterator[None]:
    async with open_agent(url_of(server), agent_token("main"), MAIN):
        yield


async def test_an_agent_answers_directly(server: CoordinatorServer, agent: None) -> None:
    said = await ping(server, "-c", "5", "--interval", "0.2", "--json", "dev.main")
    assert said.exit_code == 0, said.output
    first, *pings, summary = map(json.loads, said.stdout.splitlines())
    assert first == {"event": "agent", "agent": "dev.main", "id": str(MAIN)}
    assert pings[-1]["direct"] is True
    assert pings[-1]["endpoint"].rpartition(":")[2].isdecimal()
    assert (summary["sent"], summary["received"], summary["lost"]) == (5, 5, 0)
    assert 0 < summary["min_seconds"] <= summary["median_seconds"] <= summary["max_seconds"]
    assert "why_not_direct" not in summary


async def test_an_agent_answers_by_the_relay(server: CoordinatorServer, agent: None) -> None:
    said = await ping(server, *QUICK, "--relay-only", str(MAIN))
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert lines[0] == f"main is {MAIN}"
    assert " ms by relay region 999 " in lines[2]
    assert lines[3].startswith("main: 2 sent, 2 received, 0 lost; min/median/max ")
    assert lines[4] == "not direct: direct connections are turned off here (--relay-only)"


async def test_an_agent_that_is_not_there(server: CoordinatorServer) -> None:
    said = await ping(server, "--wait", "0.3", "main")
    assert "dev.main cannot be reached: nothing was heard of it in 0.3 s" in str(said.exception)
    assert "lists it as " in str(said.exception)


async def test_a_deployment_without_direct_connections(serve: Serve) -> None:
    server = await serve(disable_direct_connections=True)
    async with open_agent(url_of(server), agent_token("main"), MAIN):
        said = await ping(server, *QUICK, "--json", "dev.main")
    assert said.exit_code == 0, said.output
    _, *pings, summary = map(json.loads, said.stdout.splitlines())
    assert not any(each["direct"] for each in pings)
    assert "the deployment has turned direct connections off" in summary["why_not_direct"]


V4, V6 = Endpoint("192.0.2.1", 5), Endpoint("2001:db8::1", 5)


EASY, HARD = (Report(udp=True, stun_asked=True, mapping_varies=varies) for varies in (False, True))
NO_ANSWER = Report(stun_asked=True)


@pytest.mark.parametrize(
    ("relay_only", "report", "ours", "theirs", "why"),
    [
        (True, EASY, [V4], [V4], "--relay-only"),
        (False, EASY, [], [V4], "this machine has no UDP"),
        (False, NO_ANSWER, [V4], [V4], "no UDP passes here"),
        (False, Report(), [V4], [], "the agent has no address"),
        (False, EASY, [V4], [V6], "this machine has IPv4 addresses only, and the agent IPv6 ones"),
        (False, EASY, [V6], [V4], "this machine has IPv6 addresses only, and the agent IPv4 ones"),
        (False, HARD, [V4], [V4], "behind a hard NAT"),
        (False, EASY, [V4, V6], [V4], "(192.0.2.1:5): a NAT or a firewall"),
        (False, None, [V4], [V4] * 9, "192.0.2.1:5, ...)"),
    ],
)
def test_why_not_directly(
    relay_only: bool, report: Report | None, ours: list[Endpoint], theirs: list[Endpoint], why: str
) -> None:
    assert why in why_by_relay(relay_only, True, report, ours, theirs)
    assert "the deployment" in why_by_relay(relay_only, False, report, ours, theirs)
