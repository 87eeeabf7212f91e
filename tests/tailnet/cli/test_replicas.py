"""`tailnet replicas`: who serves together, and the status that monitors go by."""

import json
import socket
from collections.abc import Awaitable, Callable

import trio
from click.testing import CliRunner, Result

from tailnet.cli.root import cli
from tailnet.config.coordinator import BusPlace
from tailnet.server.server import CoordinatorServer
from tests.support.relays import free_port
from tests.support.tailnet_driver import wait_for

Serve = Callable[..., Awaitable[CoordinatorServer]]


async def replicas(*words: str) -> Result:
    """The command, in a thread, as it runs an event loop of its own."""
    return await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, ["replicas", *words]))


def url_of(server: CoordinatorServer) -> str:
    return f"http://127.0.0.1:{server.listening[0].port}"


async def test_one_that_waits_for_another_and_one_that_is_alone(serve: Serve) -> None:
    nobody = "127.0.0.1", free_port(socket.SOCK_STREAM)
    bus = BusPlace("static", (nobody,))
    server = await serve(bus=bus, bus_secret=bytes(32), replica_listen=(("127.0.0.1", 0),), replica_name="fra-1")
    assert server.replicas is not None
    troubles = server.replicas.dial_troubles
    await wait_for(lambda: troubles)
    said = await replicas(url_of(server))
    assert said.exit_code == 1, said.stdout
    lines = said.stdout.splitlines()
    assert lines[0].startswith("fra-1 (")
    assert lines[0].endswith("bus static: 0 peers here, 0 known elsewhere, 0 absent")
    assert lines[1] == "no other replica is known"
    assert "! 127.0.0.1:" in said.stdout
    as_json = await replicas(url_of(server), "--json")
    assert json.loads(as_json.stdout)["name"] == "fra-1"


async def test_a_server_without_a_bus_says_so(server: CoordinatorServer) -> None:
    said = await replicas(url_of(server))
    assert said.exit_code == 2
    assert f"{url_of(server)} serves alone: it has no --bus" in said.stdout.replace("\n", " ")
    as_json = await replicas(url_of(server), "--json")
    assert (as_json.exit_code, "no --bus" in json.loads(as_json.stdout)["error"]) == (2, True)
