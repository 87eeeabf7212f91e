"""The store away under a running server: live pairs stay, who was known comes in again, and what is reported waits."""

import shutil
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf.message import Message

from tailnet.auth import store_callers as backends
from tailnet.config.coordinator import BusPlace
from tailnet.errors import StoreError
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.server.server import CoordinatorServer
from tailnet.services import store_watch
from tailnet.services.resume_keys import ResumeKeys
from tailnet.store import outbox
from tailnet.store.keys import LEAD_TIME, ROTATE_AFTER
from tailnet.store.store import Store
from tests.support.disks import full_disk
from tests.support.missing import or_missing
from tests.support.postgresql import PASSWORD, USER, Cluster, PostgresqlMissing, running_cluster
from tests.support.relays import free_port
from tests.support.seeds import agent_token, fill, make_id, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
    Coordination,
    Peer,
    client_door,
    open_connection,
    open_peer,
    read_answer,
    wait_for,
)
from tests.tailnet.server.test_replicated import linked

Serve = Callable[..., Awaitable[CoordinatorServer]]
MAIN, GPU = peer_id("main"), peer_id("gpu")
ALICE = user_token("alice")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens every few seconds happens at once."""
    monkeypatch.setattr(store_watch, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(store_watch, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "RETRY_SECONDS", (0.05,))
    monkeypatch.setattr(outbox, "WRITE_SECONDS", 0.05)


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL that a test may stop."""
    with or_missing(PostgresqlMissing), running_cluster() as cluster:
        yield cluster


async def readiness(server: CoordinatorServer) -> tuple[int, str]:
    async with open_connection(server) as stream:
        await stream.send_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await read_answer(stream)
    return answer.status, answer.body.decode()


async def numbers(server: CoordinatorServer) -> dict[str, float]:
    async with open_connection(server) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await read_answer(stream)
    lines = [line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


async def meet(agent_peer: Peer, client: Peer) -> tuple[Coordination, Coordination]:
    """An agent, which asks for its manifest first as they all do, and a client that know each other's node."""
    manifest = await agent_peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
    assert manifest.agent_id == MAIN
    mine, theirs = await agent_peer.coordinate(), await client.coordinate()
    sent = await mine.update(agent_peer.node(MAIN))
    await theirs.tunnel(MAIN)
    assert await theirs.next_node() == (MAIN, sent)
    said = await theirs.update(client.node(GPU))
    while (await mine.next_node())[1] != said:
        pass  # who was here before is told too
    return mine, theirs


REPORTS: list[tuple[str, Message, type[Message]]] = [
    ("BatchCreateLogs", agent.BatchCreateLogsRequest(logs=[{"output": "meanwhile"}]), agent.BatchCreateLogsResponse),
    (
        "UpdateLifecycle",
        agent.UpdateLifecycleRequest(lifecycle={"state": agent.Lifecycle.SHUTTING_DOWN}),
        agent.Lifecycle,
    ),
    ("UpdateStats", agent.UpdateStatsRequest(stats={"rx_bytes": 7}), agent.UpdateStatsResponse),
]


async def live_through(
    server: CoordinatorServer, away: AbstractContextManager[None], reason: str, trouble: str, *, comes_back: bool = True
) -> None:
    """A pair that met before the store went away, and one that comes again while it is."""
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as old_agent,
        open_peer(server, client_door(MAIN), ALICE) as old_client,
    ):
        mine, theirs = await meet(old_agent, old_client)
        await server.outbox.flush()
        assert (await readiness(server))[0] == 200
        with away:
            with trio.fail_after(60):
                while reason not in await until_not_ready(server):
                    pass  # it may be cut off first
            assert (await numbers(server))[f'tailnet_store_trouble{{trouble="{trouble}"}}'] == 1
            with trio.fail_after(60):
                # The live pair hears of each other; whatever the agent reports is answered.
                sent = await mine.update(old_agent.node(MAIN, preferred_derp=7))
                assert await theirs.next_node() == (MAIN, sent)
                for name, request, response in REPORTS:
                    await old_agent.call(AGENT + name, request, response)
                # Both come again, as after a network that was away too, and meet.
                async with (
                    open_peer(server, AGENT_DOOR, agent_token("main")) as new_agent,
                    open_peer(server, client_door(MAIN), ALICE) as new_client,
                ):
                    await meet(new_agent, new_client)
            assert server.presence.is_here(MAIN)
            # While one tries to write them they are nobody's; then they wait again.
            await wait_for(lambda: server.outbox.readings()["logs"].waiting == 1)
        if comes_back:
            with trio.fail_after(60):
                await until_readiness_is(server, 200)
                await server.outbox.flush()
            assert [line.output for line in server.store.reports.list_logs(MAIN)] == ["meanwhile"]
            stats = server.store.reports.latest_stats(MAIN)
            assert stats is not None
            assert stats.rx_bytes == 7


async def until_not_ready(server: CoordinatorServer) -> str:
    """What /readyz says once it says no."""
    return (await until_readiness_is(server, 503))[1]


async def until_readiness_is(server: CoordinatorServer, status: int) -> tuple[int, str]:
    with trio.fail_after(60):
        while True:
            said = await readiness(server)
            if said[0] == status:
                return said
            await trio.sleep(0.02)


@pytest.mark.stores("sqlite")
async def test_a_full_disk(impatient: None, server: CoordinatorServer) -> None:
    await live_through(server, full_disk(), "the disk refuses", "full")


@pytest.mark.stores("sqlite")
async def test_a_file_that_is_damaged(impatient: None, server: CoordinatorServer, tmp_path: Path) -> None:
    @contextmanager
    def damaged() -> Iterator[None]:
        path = tmp_path / "tailnet.db"
        other = sqlite3.connect(path)
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        with path.open("r+b") as file:
            file.seek(0)
            file.write(b"nothing that SQLite knows" * 10_000)
        yield
        other.close()

    await live_through(server, damaged(), "restore it from a copy", "damaged", comes_back=False)


@pytest.mark.stores("sqlite")
async def test_a_file_that_was_replaced(impatient: None, server: CoordinatorServer, tmp_path: Path) -> None:
    @contextmanager
    def replaced() -> Iterator[None]:
        store, aside = tmp_path / "tailnet.db", tmp_path / "aside.db"
        shutil.copy(store, tmp_path / "copy.db")
        store.rename(aside)
        (tmp_path / "copy.db").rename(store)
        yield

    # Only a start brings it back: the file may be any other.
    await live_through(server, replaced(), "start it again", "replaced", comes_back=False)


async def test_a_database_that_is_stopped(impatient: None, own_cluster: Cluster, serve: Serve) -> None:
    url = own_cluster.url(own_cluster.make_database())
    store = Store.open(url)
    fill(store)
    store.close()

    @contextmanager
    def stopped() -> Iterator[None]:
        own_cluster.stop()
        yield
        own_cluster.start()

    await live_through(await serve(store=url), stopped(), "stopped, restarting", "unreachable")


async def test_a_replica_whose_store_is_away_refuses_no_token_of_another(
    impatient: None, own_cluster: Cluster, serve: Serve
) -> None:
    """A key is made and begins to sign while one replica can read nothing."""
    name = own_cluster.make_database()
    store = Store.open(own_cluster.url(name))
    fill(store)
    store.close()
    with own_cluster.connect() as admin:
        admin.execute(f"CREATE ROLE another SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        ports = [free_port(socket.SOCK_STREAM) for _ in range(2)]
        places = tuple(("127.0.0.1", port) for port in ports)
        servers = [
            await serve(
                store=own_cluster.url(name, user=user),
                bus=BusPlace("static", places),
                bus_secret=bytes(32),
                replica_listen=(place,),
                replica_name=user,
            )
            for user, place in zip((USER, "another"), places, strict=True)
        ]
        one, other = (each.keys for each in servers)
        now = datetime.now(UTC)
        for each in (one, other):
            each._clock = lambda: now
        await linked(*servers)
        await wait_for(lambda: one._elsewhere and other._elsewhere)
        old = signing(one)
        admin.execute("ALTER ROLE another NOLOGIN")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'another'")
        now += ROTATE_AFTER
        await one.refresh()
        for _ in range(3):
            now += LEAD_TIME
            await one.refresh()
            with pytest.raises(StoreError):
                await other.refresh()
            assert (len(one.ids), len(other.ids)) == (2, 1)
            token = one.current.issue(MAIN, "alice", now.timestamp()).token
            assert other.current.verify(token, "alice", now.timestamp()) == MAIN
        assert signing(one) == old
        admin.execute("ALTER ROLE another LOGIN")
        await other.refresh()
        await wait_for(lambda: signing(one) != old)
        token = one.current.issue(MAIN, "alice", now.timestamp()).token
        assert other.current.verify(token, "alice", now.timestamp()) == MAIN


def signing(keys: ResumeKeys) -> str:
    """What names the key in its tokens."""
    return keys.current.issue(MAIN, "", 0.0).token.partition(".")[0]


async def test_a_database_that_became_a_standby(impatient: None, own_cluster: Cluster, serve: Serve) -> None:
    name = own_cluster.make_database()
    store = Store.open(own_cluster.url(name))
    fill(store)
    store.close()

    @contextmanager
    def read_only() -> Iterator[None]:
        with own_cluster.connect() as admin:
            for value in ("on", "off"):
                admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}')
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
                if value == "on":
                    yield

    await live_through(await serve(store=own_cluster.url(name)), read_only(), "Name the primary", "read_only")


async def test_who_is_not_known_is_told_to_come_again(
    impatient: None, own_cluster: Cluster, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "MAX_PRELOADED", 0)
    url = own_cluster.url(own_cluster.make_database())
    store = Store.open(url)
    fill(store)
    store.close()
    server = await serve(store=url)
    own_cluster.stop()
    await until_not_ready(server)
    async with open_connection(server) as stream:
        head = (
            f"GET /api/v2/workspaceagents/{make_id('web')} HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {ALICE}\r\n\r\n"
        )
        await stream.send_all(head.encode())
        answer = await read_answer(stream)
    assert 500 <= answer.status < 600
    assert "hunter2" not in answer.body.decode()


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextmanager
def locked_tables(cluster: Cluster, name: str) -> Iterator[None]:
    with cluster.connect(name) as other, other.transaction():
        other.execute("LOCK TABLE agents, agent_logs, servers, counters, kept_maps, signing_keys IN EXCLUSIVE MODE")
        yield


@pytest.mark.stores
async def test_a_restart_with_a_store_that_takes_no_writes(
    serve: Serve, filled_url: str, store_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Agents and clients that know each other meet within ten seconds, although every write waits for a lock."""
    regions: dict[str, Any] = {"derp_map": (tmp_path / "map.json",)}
    (tmp_path / "map.json").write_text('{"Regions":{}}')
    first = await serve(**regions)
    async with (
        open_peer(first, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(first, client_door(MAIN), ALICE) as client,
    ):
        await meet(agent_peer, client)
    await first.drain()
    (tmp_path / "map.json").write_text('{"Regions":{"1":{"RegionID":1,"RegionCode":"x","RegionName":"X"}}}')
    if store_kind == "sqlite":
        locked: AbstractContextManager[None] = locked_file(tmp_path / "tailnet.db")
    else:
        cluster: Cluster = request.getfixturevalue("cluster")
        locked = locked_tables(cluster, filled_url.partition("?")[0].rpartition("/")[2])
    with locked, trio.fail_after(60):
        second = await serve(**regions)
        async with (
            open_peer(second, AGENT_DOOR, agent_token("main")) as agent_peer,
            open_peer(second, client_door(MAIN), ALICE) as client,
        ):
            await meet(agent_peer, client)
            await agent_peer.call(AGENT + REPORTS[0][0], REPORTS[0][1], REPORTS[0][2])
    with trio.fail_after(60):
        while not await wait_for(lambda: second.store.reports.list_logs(MAIN)):
            pass
    assert [line.output for line in second.store.reports.list_logs(MAIN)] == ["meanwhile"]


async def test_a_store_that_takes_a_second_for_each_write(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """Nobody who reads or reports waits for it, and the reports of a second are one transaction."""
    server = await serve()
    gate = trio.Event()
    begin = server.store.database.dialect.begin_write

    def slow(connection: Any, *, durable: bool) -> None:
        trio.from_thread.run(gate.wait, trio_token=token)
        begin(connection, durable=durable)

    token = trio.lowlevel.current_trio_token()
    monkeypatch.setattr(server.store.database.dialect, "begin_write", slow)
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, client_door(MAIN), ALICE) as client,
    ):
        with trio.fail_after(60):
            await meet(agent_peer, client)
            for _ in range(50):
                for name, asked, response in REPORTS:
                    await agent_peer.call(AGENT + name, asked, response)
            assert (await readiness(server))[0] == 200
        before = server.store.database.writer.transactions
        gate.set()
        await wait_for(lambda: len(server.store.reports.list_logs(MAIN)) == 50)
        assert server.store.database.writer.transactions - before < 10
