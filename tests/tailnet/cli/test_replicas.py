"""`tailnet replicas`: who serves together, and the status that monitors go by."""

import json
import re
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from click.testing import CliRunner, Result

from tailnet import __version__
from tailnet.cli.replicas import _COLUMNS
from tailnet.cli.root import cli
from tailnet.config.coordinator import BusPlace
from tailnet.health.codes import RULES, Code
from tailnet.server.server import CoordinatorServer
from tailnet.store.store import Store
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
    assert lines[0].endswith(f"version {__version__}, bus static: 0 peers here, 0 known elsewhere, 0 absent")
    assert lines[1] == "no other replica is known"
    assert "! 127.0.0.1:" in said.stdout
    as_json = await replicas(url_of(server), "--json")
    assert json.loads(as_json.stdout)["name"] == "fra-1"


async def test_two_and_what_is_wrong_with_one_of_them(serve: Serve, tmp_path: Path) -> None:
    settings: dict[str, object] = {"bus_secret": bytes(32), "replica_listen": (("127.0.0.1", 0),)}
    first = await serve(bus=BusPlace("static", ()), replica_name="fra-1", **settings)
    assert first.replicas is not None
    place = first.replicas.listening[0].getsockname()
    store = f"sqlite:///{tmp_path / 'other.db'}"
    Store.open(store).close()
    second = await serve(bus=BusPlace("static", (place,)), replica_name="fra-2", store=store, **settings)
    assert second.replicas is not None
    pairs = second.replicas.cluster.pairs
    await wait_for(lambda: [pair for pair in pairs.values() if pair.delay_seconds is not None])
    said = await replicas(url_of(second))
    assert said.exit_code == 0, said.stdout
    heads, row, *rest = said.stdout.splitlines()[1:]
    assert re.split("  +", heads) == [name.replace("_", " ").upper() for name in _COLUMNS]
    assert row.startswith("fra-1 (")
    assert row.split()[2] == "session"
    assert f"  to {place[0]}:{place[1]}  " in row
    assert re.split("  +", row)[5] == __version__
    assert rest == []
    first.replicas.cluster.wall_clock = lambda: time.time() + 60
    await wait_for(lambda: max(pair.wall_ahead_seconds or 0 for pair in pairs.values()) > 10)
    said = await replicas(url_of(second))
    assert said.exit_code == 1
    words = " ".join(said.stdout.split())
    assert "warning: ER03: the clock of replica fra-1 (" in words
    assert RULES[Code.REPLICA_CLOCK].advice in words
    as_json = json.loads((await replicas(url_of(second), "--json")).stdout)
    assert [each["code"] for each in as_json["findings"]] == ["ER03"]
    health = await second.health.report()
    assert Code.REPLICA_CLOCK in {each.code for each in health.findings}


async def test_a_server_without_a_bus_says_so(server: CoordinatorServer) -> None:
    said = await replicas(url_of(server))
    assert said.exit_code == 2
    assert f"{url_of(server)} serves alone: it has no --bus" in said.stdout.replace("\n", " ")
    as_json = await replicas(url_of(server), "--json")
    assert (as_json.exit_code, "no --bus" in json.loads(as_json.stdout)["error"]) == (2, True)
