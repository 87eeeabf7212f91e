"""A thousand who follow one agent, by websocket and by server-sent events: nothing is lost, nothing out of order.

And what each of them takes of the server's memory.
"""

import resource
from pathlib import Path

import trio

from tailnet.proto.generated import agent_pb2 as agent
from tests.support.api_load import UNMEASURED, follower_bytes, warm_up
from tests.support.seeds import agent_token, defined_document, fill, make_id, peer_id, user_token
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, Peer, open_peer, wait_for
from tests.support.tailnet_servers import Seed, running_server
from tests.support.text_sockets import open_text_socket
from tests.tailnet.conftest import Serve
from tests.tailnet.server.test_metadata_streams import report, watching

MAIN = peer_id("main")
LOGS = f"/api/v2/workspaceagents/{MAIN}/logs?follow"
OF_LOGS, OF_METADATA = 600, 400
BATCHES, LINES = 20, 10
# What is promised for one that follows by server-sent events.
FOLLOWER_BYTES = 30 * 1024


async def print_lines(peer: Peer, batch: int) -> None:
    request = agent.BatchCreateLogsRequest(
        log_source_id=make_id("source").bytes,
        logs=[agent.Log(output=str(number)) for number in range(batch * LINES, (batch + 1) * LINES)],
    )
    await peer.call(AGENT + "BatchCreateLogs", request, agent.BatchCreateLogsResponse)


async def test_a_thousand_of_one_agent(serve: Serve, nursery: trio.Nursery) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))  # both ends are in this process
    server = await serve(api_rate_limit=0)
    await server.store.run(fill, server.store, defined_document())
    lines: list[list[int]] = [[] for _ in range(OF_LOGS)]
    values: list[list[int]] = [[] for _ in range(OF_METADATA)]
    at_once = trio.Semaphore(50)  # who come in; all stay

    async def follow_logs(found: list[int]) -> None:
        await at_once.acquire()
        async with open_text_socket(server, LOGS, user_token("alice")) as socket:
            at_once.release()
            while len(found) < BATCHES * LINES:
                found += [int(line["output"]) for line in await socket.read()]

    async def watch(found: list[int]) -> None:
        await at_once.acquire()
        async with watching(server) as events:
            at_once.release()
            while not found or found[-1] < BATCHES:
                _, [cpu, _] = await events.read()
                found.append(int(cpu["result"]["value"] or 0))

    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer, trio.open_nursery() as followers:
        for found in lines:
            followers.start_soon(follow_logs, found)
        for found in values:
            followers.start_soon(watch, found)
        for batch in range(BATCHES):
            await print_lines(peer, batch)
            await report(peer, str(batch + 1))
            reading = server.reading()
            if batch == BATCHES // 2:
                # Half of all is written before the last of them is here.
                await wait_for(lambda: server.logs.counts.followers + server.metadata.counts.followers == 1_000)
    assert lines == [list(range(BATCHES * LINES))] * OF_LOGS
    assert all(found == sorted(found) and found[-1] == BATCHES for found in values)
    reading = server.reading()
    assert not any(count for (feed, _), count in reading.feed_drops.items() if feed in ("logs", "metadata"))


def test_what_a_follower_takes(tmp_path: Path) -> None:
    seed = Seed()
    user = seed.add_user("alice")
    target = f"/api/v2/workspaceagents/{seed.add_agent(user).id}/watch-metadata"
    environment = {"TAILNET_API_RATE_LIMIT": "0", **UNMEASURED}
    with running_server("ours", tmp_path, seed, environment=environment) as server:
        warm_up(server.url)
        assert follower_bytes(server.url, server.pid, target, user.token, 500) < FOLLOWER_BYTES
