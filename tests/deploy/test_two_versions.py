"""Replicas of two versions side by side: an earlier program beside today's, and one of a later protocol."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from click.testing import CliRunner

from tailnet.cli.root import cli
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer
from tailnet.store.store import Store
from tests.support.earlier import unpack
from tests.support.relays import free_port, stop_process
from tests.support.seeds import agent_token, fill, peer_id, seed_document, user_token
from tests.support.tailnet_driver import AGENT_DOOR, MANY_DOOR, wait_for
from tests.tailnet.server.test_rolling import Moving

MAIN, GPU = peer_id("main"), peer_id("gpu")
ALICE = user_token("alice")
Kind = tailnet.CoordinateResponse.PeerUpdate.Kind
# A release whose replicas understand only each other.
LATER = "import tailnet.replica.pair as pair; pair.VERSION = 2; from tailnet.cli.root import run; run()"
TODAY = ("-m", "tailnet")


class Replica:
    """One process, which open_peer can dial."""

    def __init__(self, process: trio.Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.listening = [SimpleNamespace(host="127.0.0.1", port=port)]

    @property
    def server(self) -> CoordinatorServer:
        return cast(CoordinatorServer, self)

    async def describe(self) -> dict[str, Any]:
        """What `tailnet replicas` says of it."""
        words = ["replicas", f"http://127.0.0.1:{self.port}", "--json"]
        said = await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, words))
        found: dict[str, Any] = json.loads(said.stdout)
        return found

    async def has_states(self, *wanted: str) -> None:
        """Wait until the others are so, in any order: who cannot be talked to has not said its name."""
        with trio.fail_after(60):
            while sorted(each["state"] for each in (await self.describe())["replicas"]) != sorted(wanted):  # noqa: ASYNC110  # another process tells nobody
                await trio.sleep(0.3)


class Processes:
    """Starts replicas of one cluster, each with a store of its own that knows the same agents."""

    def __init__(self, folder: Path, stores: "Stores", stack: AsyncExitStack) -> None:
        self._folder, self._stores, self._stack = folder, stores, stack
        self._ports = [free_port(socket.SOCK_STREAM) for _ in range(3)]
        (folder / "cluster.key").write_text("ab" * 32)
        (folder / "cluster.key").chmod(0o600)

    async def start(self, number: int, name: str, program: Sequence[str] = TODAY, *, is_old: bool = False) -> Replica:
        environ = self._stores.earlier_environment if is_old else clean_environment()
        shutil.copy(self._stores.earlier if is_old else self._stores.today, self._folder / f"{name}.db")
        store, log = f"sqlite:///{self._folder / name}.db", self._folder / f"{name}.log"
        command = [sys.executable, *program]
        bus = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        words = [f"--bus=static:{bus}", f"--replica-listen=127.0.0.1:{self._ports[number]}", f"--replica-name={name}"]
        words += [f"--bus-key-file={self._folder / 'cluster.key'}", f"--store={store}"]
        words += ["--listen=127.0.0.1:0", "--stun-listen=127.0.0.1:0", "--drain=2s"]
        if not is_old:  # which knows no such setting
            words.append("--replica-notice=0s")
        with log.open("wb") as out:
            process = await trio.lowlevel.open_process(
                [*command, "serve", *words], env=environ, cwd=self._folder, stdout=subprocess.PIPE, stderr=out
            )
        self._stack.push_async_callback(stop_process, process)
        return Replica(process, await self._port(process, log), log)

    async def _port(self, process: trio.Process, log: Path) -> int:
        assert process.stdout is not None
        said = b""
        with trio.fail_after(60):
            while (found := re.search(rb"http://127\.0\.0\.1:(\d+)", said)) is None:
                piece = await process.stdout.receive_some()
                assert piece, await trio.Path(log).read_text()
                said += piece
        return int(found[1])


@dataclass(frozen=True)
class Stores:
    """Files with the same agents, filled by each program, and the environment in which Python runs the earlier one."""

    today: Path
    earlier: Path
    earlier_environment: dict[str, str]


def clean_environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith(("TAILNET_", "DERP_"))}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("stores")
    seed = folder / "seed.json"
    seed.write_text(json.dumps(seed_document()))
    stores = Stores(
        folder / "today.db",
        folder / "earlier.db",
        {**clean_environment(), "PYTHONPATH": str(unpack(folder / "files"))},
    )
    store = Store.open(f"sqlite:///{stores.today}")
    fill(store)
    store.close()
    command = [sys.executable, *TODAY, "admin", "import", str(seed), "--store", f"sqlite:///{stores.earlier}"]
    subprocess.run(command, env=stores.earlier_environment, cwd=folder, capture_output=True, check=True)
    return stores


@pytest.fixture
async def processes(tmp_path: Path, stores: Stores) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        yield Processes(tmp_path, stores, stack)


async def test_an_update_of_one_after_the_other_cuts_nobody(processes: Processes, nursery: trio.Nursery) -> None:
    old, other = [await processes.start(number, f"old{number}", is_old=True) for number in (0, 1)]
    place = {"agent": old, "here": other}
    agent = Moving(lambda: place["agent"].server, AGENT_DOOR, agent_token("main"), MAIN)
    client = Moving(lambda: other.server, MANY_DOOR, ALICE, wants=MAIN)
    for peer in (agent, client):
        await nursery.start(peer.run)
    await wait_for(lambda: client.kinds(agent) and agent.kinds(client))
    new = await processes.start(2, "new")
    await new.has_states("session", "session")
    place["here"] = new
    here = Moving(lambda: place["here"].server, AGENT_DOOR, agent_token("gpu"), GPU)
    follower = Moving(lambda: other.server, MANY_DOOR, ALICE, wants=GPU)
    for peer in (here, follower):
        await nursery.start(peer.run)
    await wait_for(lambda: follower.kinds(here) and here.kinds(follower))
    for leaves, moving, watching, goes_to in ((old, agent, client, new), (new, here, follower, other)):
        seen, moves = len(watching.kinds(moving)), len(moving.places)
        place |= {"agent": goes_to, "here": goes_to if leaves is new else new}
        leaves.process.terminate()
        await wait_for(lambda: len(moving.places) > moves and len(watching.kinds(moving)) > seen)  # noqa: B023
        assert await leaves.process.wait() == 0
    # Neither the earlier one, which sends all away at once, nor today's says that one is lost who comes back at once.
    assert set(client.kinds(agent)) == set(follower.kinds(here)) == {Kind.NODE}
    assert Kind.DISCONNECTED not in {*agent.kinds(client), *here.kinds(follower)}


async def test_versions_that_have_nothing_in_common_say_so_and_the_others_go_on(
    processes: Processes, nursery: trio.Nursery
) -> None:
    old = await processes.start(0, "old", is_old=True)
    new = await processes.start(1, "new")
    later = await processes.start(2, "later", ("-c", LATER))
    for replica in (new, old):
        await replica.has_states("session", "refused")
    await later.has_states("refused", "refused")
    for replica, spoken in ((new, "speaks versions 2 to 2"), (later, "speaks versions 1 to 1")):
        assert any(spoken in each for each in (await replica.describe())["missing"])
        await wait_for(lambda: spoken in replica.log.read_text())  # noqa: B023  # called in place
    agent = Moving(lambda: old.server, AGENT_DOOR, agent_token("main"), MAIN)
    client = Moving(lambda: new.server, MANY_DOOR, ALICE, wants=MAIN)
    for peer in (agent, client):
        await nursery.start(peer.run)
    await wait_for(lambda: client.kinds(agent) and agent.kinds(client))
