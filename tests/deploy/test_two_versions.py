"""Replicas of two versions on one PostgreSQL: earlier programs beside today's, and one of a later protocol."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
import trio
from click.testing import CliRunner

from derp.client.client import DerpClient, open_derp_client
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from tailnet.cli.root import cli
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer
from tailnet.store.schema import HEAD_REVISION
from tailnet.types import PeerID
from tests.support.earlier import LAST, OLDEST, unpack
from tests.support.missing import or_missing
from tests.support.postgresql import Cluster, PostgresqlMissing, running_cluster
from tests.support.redis import RedisMissing, RedisServer, running
from tests.support.relays import free_port, stop_process
from tests.support.seeds import DEFAULT_AGENTS, AgentSpec, agent_token, make_id, peer_id, seed_document, user_token
from tests.support.tailnet_driver import (
    AGENT_DOOR,
    MANY_DOOR,
    PATIENCE_SECONDS,
    Answer,
    open_connection,
    open_peer,
    read_answer,
    wait_for,
)
from tests.tailnet.server.test_rolling import Moving

MAIN, GPU = peer_id("main"), peer_id("gpu")
ALICE = user_token("alice")
ADMINISTRATOR: Final = "a" * 32
Kind = tailnet.CoordinateResponse.PeerUpdate.Kind
# Whoever dials anew on a busy machine, or is kept from beating there, is not lost for that: how two versions speak is
# tested here, and the seconds elsewhere, on clocks of tests.
_PATIENT: Final = (
    "import tailnet.replica.pair as pair; pair.SILENCE_SECONDS = 60.0; "
    "import tailnet.replica.core as core; core.DOUBT_SECONDS = 600.0; "
)
_RUN: Final = "from tailnet.cli.root import run; run()"
TODAY: Final = _PATIENT + _RUN
# A release whose replicas understand only each other.
LATER: Final = _PATIENT + "pair.VERSION = 2; " + _RUN


@dataclass(frozen=True)
class Program:
    """`source`: what Python is given; `environment`: where it finds the modules; `commit`: of an earlier one."""

    source: str
    environment: dict[str, str]
    commit: str = ""

    @property
    def head_revision(self) -> str:
        """Of its schema."""
        if not self.commit:
            return HEAD_REVISION
        schema = Path(self.environment["PYTHONPATH"], "tailnet", "store", "schema.py").read_text()
        found = re.search(r'^HEAD_REVISION.*= "(\d+)"$', schema, re.MULTILINE)
        assert found is not None
        return found[1]


class Replica:
    """One process, which open_peer can dial."""

    def __init__(self, program: Program, process: trio.Process, port: int, log: Path) -> None:
        self.program = program
        self.process = process
        self.port = port
        self.log = log
        self.listening = [SimpleNamespace(host="127.0.0.1", port=port)]

    @property
    def server(self) -> CoordinatorServer:
        return cast(CoordinatorServer, self)

    async def ask(self, request: str, token: str) -> Answer:
        """`request`: method and path."""
        async with open_connection(self.server) as stream:
            head = f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n{token}\r\n\r\n"
            await stream.send_all(head.encode())
            return await read_answer(stream)

    async def shows(self, agent_id: PeerID, status: str) -> None:
        """Wait until the agent's page here says that it is so."""
        with trio.fail_after(PATIENCE_SECONDS):
            while (await self._status(agent_id)) != status:  # noqa: ASYNC110  # another process tells nobody
                await trio.sleep(0.1)

    async def _status(self, agent_id: PeerID) -> object:
        answer = await self.ask(f"GET /api/v2/workspaceagents/{agent_id}", f"Coder-Session-Token: {ALICE}")
        assert answer.status == 200, answer
        return answer.json()["status"]

    async def revoke_tokens(self, user: str) -> None:
        request = f"POST /api/v2/admin/users/{make_id(user)}/revoke-tokens"
        answer = await self.ask(request, f"Authorization: Bearer {ADMINISTRATOR}")
        assert answer.status in (200, 204), answer

    async def describe(self) -> dict[str, Any]:
        """What `tailnet replicas` says of it."""
        words = ["replicas", f"http://127.0.0.1:{self.port}", "--json"]
        said = await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, words))
        found: dict[str, Any] = json.loads(said.stdout)
        return found

    async def has_states(self, *wanted: str) -> None:
        """Wait until the others are so, in any order: who cannot be talked to has not said its name."""
        with trio.fail_after(PATIENCE_SECONDS):
            while sorted(each["state"] for each in (await self.describe())["replicas"]) != sorted(wanted):  # noqa: ASYNC110  # another process tells nobody
                await trio.sleep(0.1)


@dataclass
class Processes:
    """Starts replicas of one cluster, on one store and one bus."""

    folder: Path
    stack: AsyncExitStack
    store: str
    bus: str = "store"
    count: int = field(default=0, init=False)

    async def start(self, program: Program) -> Replica:
        self.count += 1
        log = self.folder / f"{self.count}.log"
        tokens = self.folder / "administrators"
        tokens.write_text(f"tests:{ADMINISTRATOR}\n")
        tokens.chmod(0o600)
        words = [f"--bus={self.bus}", f"--replica-name=replica{self.count}", f"--store={self.store}"]
        words += ["--listen=127.0.0.1:0", "--stun-listen=127.0.0.1:0", "--drain=2s", f"--admin-token-file={tokens}"]
        if self.bus == "store":  # Redis carries what no link does
            words.append(f"--replica-listen=127.0.0.1:{free_port(socket.SOCK_STREAM)}")
        if program.commit != OLDEST:  # which knows no such settings
            words += ["--replica-notice=0s", "--replica-drain=2s"]
        with log.open("wb") as out:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", program.source, "serve", *words],
                env=program.environment,
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=out,
            )
        self.stack.push_async_callback(stop_process, process)
        return Replica(program, process, await self._port(process, log), log)

    async def _port(self, process: trio.Process, log: Path) -> int:
        assert process.stdout is not None
        said = b""
        with trio.fail_after(PATIENCE_SECONDS):
            while (found := re.search(rb"http://127\.0\.0\.1:(\d+)", said)) is None:
                piece = await process.stdout.receive_some()
                if not piece:
                    raise EOFError(await trio.Path(log).read_text())
                said += piece
        return int(found[1])


def clean_environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith(("TAILNET_", "DERP_"))}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    """By commit; today's has none."""
    folder = tmp_path_factory.mktemp("programs")
    unpack(folder)
    environment = clean_environment()
    earlier = {
        commit: Program(TODAY, environment | {"PYTHONPATH": str(folder / commit)}, commit) for commit in (OLDEST, LAST)
    }
    return {"": Program(TODAY, environment), **earlier}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with or_missing(PostgresqlMissing), running_cluster() as started:
        yield started


@pytest.fixture(scope="module")
def filled(cluster: Cluster, programs: dict[str, Program], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that the oldest of these programs made."""
    folder, name = tmp_path_factory.mktemp("filled"), cluster.make_database()
    agents = (*DEFAULT_AGENTS, AgentSpec("lab", "lab", "carol"))
    (folder / "seed.json").write_text(json.dumps(seed_document(agents)))
    command = [sys.executable, "-m", "tailnet", "admin", "import", "seed.json", "--store", cluster.url(name)]
    subprocess.run(command, env=programs[OLDEST].environment, cwd=folder, capture_output=True, check=True)
    return name


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        yield Processes(tmp_path, stack, "")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with or_missing(RedisMissing), running(RedisServer(tmp_path)) as server:
        yield server


class Peers:
    """Peers that dial anew, each where `place` says at that moment."""

    def __init__(self, nursery: trio.Nursery, **place: Replica) -> None:
        self.place = place
        self.agents: list[Moving] = []
        self.clients: list[Moving] = []
        self._nursery = nursery

    async def agent(self, where: str, name: str) -> Moving:
        peer = Moving(lambda: self.place[where].server, AGENT_DOOR, agent_token(name), peer_id(name))
        self.agents.append(peer)
        return cast(Moving, await self._nursery.start(peer.run))

    async def client(self, where: str, wants: bytes) -> Moving:
        """Alice's; it comes back with its resume token, and has to be the same peer by that."""
        peer = Moving(lambda: self.place[where].server, MANY_DOOR, ALICE, wants=wants)
        self.clients.append(peer)
        return cast(Moving, await self._nursery.start(peer.run))

    async def meet(self, agent: Moving, client: Moving) -> None:
        await wait_for(lambda: client.kinds(agent) and agent.kinds(client))

    async def leave(self, replica: Replica, **place: Replica) -> None:
        """That one ends; who was there comes to where `place` says now, and everybody hears of it."""
        self.place |= place
        moving = [each for each in (*self.agents, *self.clients) if each.places[-1] is replica.server]
        assert moving
        moves = {each: len(each.places) for each in moving}
        told = {(one, each): len(one.kinds(each)) for one in self.clients for each in moving if one.kinds(each)}
        replica.process.terminate()
        await wait_for(lambda: all(len(each.places) > count for each, count in moves.items()))
        await wait_for(lambda: all(len(one.kinds(each)) > count for (one, each), count in told.items()))
        with trio.fail_after(PATIENCE_SECONDS):
            assert await replica.process.wait() == 0
        if replica.program.commit == OLDEST:  # which tells those whom it sends away that everybody is lost
            for each in moving:
                each.told.clear()

    def heard(self) -> set[int]:
        """Kinds of what all of them were told."""
        return {kind for each in (*self.agents, *self.clients) for _, kind in each.told}


async def relayed(sender: DerpClient, receiver: DerpClient, private: NodePrivate) -> None:
    """A packet arrives.  Relays drop what is for clients of whom they have not heard so far, so it is sent again."""
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            while True:
                await sender.send(private.public().raw, b"hello")
                await trio.sleep(0.1)

        nursery.start_soon(send)
        with trio.fail_after(PATIENCE_SECONDS):
            while not isinstance(await receiver.receive(), RecvPacket):
                pass
        nursery.cancel_scope.cancel()


async def relays_forward(one: Replica, other: Replica) -> None:
    keys = [NodePrivate.generate(), NodePrivate.generate()]
    urls = [f"http://127.0.0.1:{each.port}/derp" for each in (one, other)]
    async with open_derp_client(urls[0], keys[0]) as first, open_derp_client(urls[1], keys[1]) as second:
        await relayed(first, second, keys[1])
        await relayed(second, first, keys[0])


async def revoked(at: Replica, user: str, told: Replica) -> None:
    """What an administrator does at one ends a session at the other."""
    async with open_peer(told.server, MANY_DOOR, user_token(user)) as client:
        await client.coordinate()
        await at.revoke_tokens(user)
        await client.wait_closed()


# Over links, and over Redis alone.
@pytest.mark.parametrize(("commit", "bus"), [(OLDEST, "redis"), (LAST, "store")])
async def test_an_update_of_one_after_the_other_and_back_cuts_nobody(
    commit: str,
    bus: str,
    processes: Processes,
    programs: dict[str, Program],
    cluster: Cluster,
    filled: str,
    request: pytest.FixtureRequest,
    nursery: trio.Nursery,
) -> None:
    processes.store = cluster.url(cluster.make_database(filled))
    if bus == "redis":
        processes.bus = request.getfixturevalue("redis").url
    earlier, today = programs[commit], programs[""]
    old, other = await processes.start(earlier), await processes.start(earlier)
    await other.has_states("session")
    peers = Peers(nursery, first=old, stays=other)
    agent = await peers.agent("first", "main")
    await peers.meet(agent, await peers.client("stays", MAIN))
    roams = await peers.client("first", GPU)
    # Today's comes, and migrates the store under the others.
    new = await processes.start(today)
    await new.has_states("session", "session")
    peers.place["second"] = new
    gpu = await peers.agent("second", "gpu")
    for place, of, wants in (("stays", gpu, GPU), ("second", agent, MAIN)):
        await peers.meet(of, await peers.client(place, wants))
    await old.shows(GPU, "connected")
    await new.shows(MAIN, "connected")
    await revoked(new, "bob", old)
    await revoked(old, "carol", new)
    if commit != OLDEST and bus == "store":  # which has no mesh of relays, and needs links
        await relays_forward(old, new)
    await peers.leave(old, first=new)
    await other.shows(MAIN, "connected")
    # And back, with an earlier one that starts on the store as it is now, if its schema is still that one's.
    back = other
    if earlier.head_revision == HEAD_REVISION:
        back = await processes.start(earlier)
    else:
        with pytest.raises(EOFError, match="is newer than this program's"):
            await processes.start(earlier)
    await peers.leave(new, first=back, second=back)
    await other.shows(MAIN, "connected")
    await other.shows(GPU, "connected")
    assert len(roams.places) == 3
    assert peers.heard() == {Kind.NODE}


async def test_versions_that_have_nothing_in_common_say_so_and_the_others_go_on(
    processes: Processes, programs: dict[str, Program], cluster: Cluster, filled: str, nursery: trio.Nursery
) -> None:
    processes.store = cluster.url(cluster.make_database(filled))
    old, new = await processes.start(programs[OLDEST]), await processes.start(programs[""])
    later = await processes.start(Program(LATER, clean_environment()))
    for replica in (new, old):
        await replica.has_states("session", "refused")
    await later.has_states("refused", "refused")
    for replica, spoken in ((new, "speaks versions 2 to 2"), (later, "speaks versions 1 to 1")):
        assert any(spoken in each for each in (await replica.describe())["missing"])
        await wait_for(lambda: spoken in replica.log.read_text())  # noqa: B023  # called in place
    peers = Peers(nursery, one=old, other=new)
    await peers.meet(await peers.agent("one", "main"), await peers.client("other", MAIN))
