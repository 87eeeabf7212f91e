"""A database that failed over to a copy: servers go on, and what the copy does not know is forgotten."""

import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from tailnet.server.server import CoordinatorServer
from tailnet.services import store_watch
from tailnet.store import outbox
from tailnet.store.store import Store
from tailnet.tokens import agent_token_digest
from tests.support.missing import or_missing
from tests.support.postgresql import Cluster, PostgresqlMissing, running_cluster
from tests.support.seeds import NOW, agent_token, fill, make_id, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT_DOOR,
    RefusedUpgrade,
    client_door,
    open_connection,
    open_peer,
    read_answer,
    wait_for,
)

Serve = Callable[..., Awaitable[CoordinatorServer]]
MAIN = peer_id("main")
ALICE = user_token("alice")


@pytest.fixture
def cluster_and_copies() -> Iterator[tuple[Cluster, Callable[[], Cluster]]]:
    """A PostgreSQL, and what makes a copy of it while it is stopped."""
    copies: list[Cluster] = []
    try:
        with or_missing(PostgresqlMissing), running_cluster() as cluster:

            def copy() -> Cluster:
                folder = Path(tempfile.mkdtemp(prefix="tailnet-pg-copy-", dir=cluster.folder.parent))
                folder.chmod(0o755)
                copies.append(cluster.copy(folder))
                return copies[-1]

            yield cluster, copy
            for each in copies:
                each.stop(signal.SIGQUIT)
    finally:
        for each in copies:
            shutil.rmtree(each.folder, ignore_errors=True)


async def status(server: CoordinatorServer, target: str, token: str = "") -> int:
    async with open_connection(server) as stream:
        head = f"GET {target} HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {token}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode())
        return (await read_answer(stream)).status


async def until_status(server: CoordinatorServer, target: str, token: str, wanted: int) -> None:
    with trio.fail_after(60):
        while True:
            if await status(server, target, token) == wanted:
                return
            await trio.sleep(0.05)


async def test_a_copy_that_lacks_the_last_changes(
    cluster_and_copies: tuple[Cluster, Callable[[], Cluster]], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_watch, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(store_watch, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(outbox, "RETRY_SECONDS", (0.1,))
    cluster, copy = cluster_and_copies
    url = cluster.url(cluster.make_database())
    store = Store.open(url)
    fill(store)
    store.close()
    cluster.stop()
    behind = copy()
    cluster.start()
    server = await serve(store=url)
    # After the copy was taken: another agent, and an agent that is deleted.
    child = peer_id("child")
    store = Store.open(url)
    token = make_id("token of child")
    store.callers.add_sub_agent(MAIN, child, agent_token_digest(token), "child", NOW)
    store.callers.delete_agent(peer_id("gpu"))
    store.close()
    page = f"/api/v2/workspaceagents/{peer_id('gpu')}"
    await until_status(server, page, ALICE, 404)
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, client_door(MAIN), ALICE) as client,
        open_peer(server, AGENT_DOOR, str(token)),
    ):
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        await theirs.tunnel(MAIN)
        sent = await mine.update(agent_peer.node(MAIN))
        assert await theirs.next_node() == (MAIN, sent)
        cluster.stop(signal.SIGQUIT)
        behind.take_over(cluster)
        behind.start()
        # The pair did not notice.
        sent = await mine.update(agent_peer.node(MAIN, preferred_derp=9))
        assert await theirs.next_node() == (MAIN, sent)
        # What the copy says counts, for everybody: the deleted agent is there again, the new one never was.
        await until_status(server, page, ALICE, 200)
        with trio.fail_after(60):
            while True:
                try:
                    async with open_peer(server, AGENT_DOOR, str(token)):
                        pass
                except (RefusedUpgrade, BaseExceptionGroup):
                    break
                await trio.sleep(0.05)
        assert await status(server, "/readyz") == 200
    await wait_for(lambda: not server.presence.is_here(child))
