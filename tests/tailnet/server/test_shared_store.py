"""Two servers on one PostgreSQL: what one is told the other knows; each says what it holds itself."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tailnet.proto.generated import agent_pb2 as agent
from tailnet.server.server import CoordinatorServer
from tailnet.services import store_watch
from tests.support.seeds import NOW, agent_token, make_id, peer_id, user_token
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, open_connection, open_peer, read_answer

pytestmark = pytest.mark.stores("postgresql")

Serve = Callable[..., Awaitable[CoordinatorServer]]
MAIN = peer_id("main")
PAGE = f"/api/v2/workspaceagents/{MAIN}"
ALICE = user_token("alice")


async def get(server: CoordinatorServer) -> Any:
    """The agent as its owner sees it at this server: its JSON, or the status of a refusal."""
    async with open_connection(server) as stream:
        head = f"GET {PAGE} HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {ALICE}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode())
        answer = await read_answer(stream)
    return answer.json() if answer.status == 200 else answer.status


async def until(server: CoordinatorServer, is_so: Callable[[Any], bool]) -> Any:
    with trio.fail_after(60):
        while True:
            said = await get(server)
            if is_so(said):
                return said
            await trio.sleep(0.05)


@pytest.fixture
async def both(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> tuple[CoordinatorServer, CoordinatorServer]:
    monkeypatch.setattr(store_watch, "BEAT_SECONDS", 0.1)
    return await serve(), await serve()


async def test_an_agent_of_one_is_seen_at_the_other(both: tuple[CoordinatorServer, CoordinatorServer]) -> None:
    one, other = both
    assert (await get(other))["status"] in ("connecting", "timeout")
    async with open_peer(one, AGENT_DOOR, agent_token("main")) as peer:
        said = await until(other, lambda body: body["status"] == "connected")
        startup = agent.UpdateStartupRequest(startup={"version": "v2.20.0"})
        await peer.call(AGENT + "UpdateStartup", startup, agent.Startup)
        logs = agent.BatchCreateLogsRequest(logs=[{"output": "hello"}])
        await peer.call(AGENT + "BatchCreateLogs", logs, agent.BatchCreateLogsResponse)
        said = await until(other, lambda body: body["version"] == "v2.20.0" and body["logs_length"] == 5)
        assert (one.presence.is_here(MAIN), other.presence.is_here(MAIN)) == (True, False)
        assert said["status"] == "connected"
        # It moves to the other server before the first one notices that its old connection ended.
        async with open_peer(other, AGENT_DOOR, agent_token("main")):
            await other.outbox.flush()
            await one.drain()
            assert (await get(other))["status"] == "connected"
            row = other.store.callers.get_agent(MAIN)
            assert row is not None
            assert row.seen_by == other.store_watch.id
    await until(other, lambda body: body["status"] == "disconnected")


async def test_who_is_revoked_at_one_is_turned_away_at_the_other(
    both: tuple[CoordinatorServer, CoordinatorServer],
) -> None:
    one, other = both
    assert (await get(one))["id"] == (await get(other))["id"] == str(MAIN)
    await one.store.run(one.store.callers.update_user, make_id("alice"), NOW, active=False)
    with trio.fail_after(5):
        for server in both:
            await until(server, lambda said: said == 401)


async def test_resume_tokens_and_the_relay_s_key_are_shared(both: tuple[CoordinatorServer, CoordinatorServer]) -> None:
    one, other = both
    token = one.keys.current.issue(MAIN, "alice", 1_000.0).token
    assert other.keys.current.verify(token, "alice", 1_001.0) == MAIN
    assert one.relay is not None
    assert other.relay is not None
    assert one.relay.public_key == other.relay.public_key


async def test_each_knows_of_the_other(both: tuple[CoordinatorServer, CoordinatorServer]) -> None:
    one, other = both
    with trio.fail_after(60):
        while True:
            if one.store_watch.servers == other.store_watch.servers == 2:
                break
            await trio.sleep(0.05)
    await one.drain()
    with trio.fail_after(60):
        while True:
            if other.store_watch.servers == 1:
                break
            await trio.sleep(0.05)
