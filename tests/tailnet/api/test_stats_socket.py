"""Reports of the oldest agents, over a real server: they are asked and answer, and what was not asked for ends it."""

import json
from dataclasses import replace
from typing import Any

import pytest
import trio

from derp.protocol.websocket import CloseCode
from tailnet.api import stats_socket
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, make_id, peer_id, user_token
from tests.support.tailnet_driver import RefusedUpgrade, dial, wait_for
from tests.support.text_sockets import open_text_socket

MAIN = peer_id("main")
TARGET = "/api/v2/workspaceagents/me/report-stats"
TOKEN = agent_token("main")
OLD = {"conns_by_proto": {"TCP": 2}, "num_comms": 3, "rx_packets": 4, "rx_bytes": 5, "tx_packets": 6, "tx_bytes": 7}


def stored(server: CoordinatorServer) -> Any:
    return server.store.reports.latest_stats(MAIN)


async def test_each_interval_it_is_asked_and_answers(server: CoordinatorServer) -> None:
    services = server._app.state.services
    server._app.state.services = replace(services, config=replace(services.config, stats_interval_seconds=0.01))
    async with open_text_socket(server, TARGET, TOKEN) as socket:
        for number in range(3):
            assert await socket.read() == {}
            await socket.write(json.dumps(OLD | {"rx_bytes": 100 + number}))
        await wait_for(lambda: stored(server) is not None and stored(server).rx_bytes == 102)
    assert stored(server).connection_count == 3


@pytest.mark.parametrize("nonsense", ["", "{", "[]", '{"rx_bytes": "x"}', "\x00", "null"])
async def test_what_is_no_report_ends_it_and_is_not_stored(server: CoordinatorServer, nonsense: str) -> None:
    async with open_text_socket(server, TARGET, TOKEN) as socket:
        await socket.read()
        await socket.write(nonsense)
        code, reason = await socket.end()
    assert code == CloseCode.POLICY_VIOLATION
    assert reason.startswith("400 ")
    assert stored(server) is None


async def test_nothing_is_taken_that_was_not_asked_for(server: CoordinatorServer) -> None:
    async with open_text_socket(server, TARGET, TOKEN) as socket:
        await socket.read()
        await socket.write(json.dumps(OLD))
        await socket.write(json.dumps(OLD))
        assert await socket.end() == (CloseCode.POLICY_VIOLATION, "nothing was asked for")


async def test_who_does_not_answer_is_ended(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_socket, "ANSWER_SECONDS", 0.01)
    async with open_text_socket(server, TARGET, TOKEN) as socket:
        await socket.read()
        code, reason = await socket.end()
    assert (code, reason.startswith("no report came")) == (CloseCode.INTERNAL_ERROR, True)


async def test_an_agent_that_is_gone_is_ended(server: CoordinatorServer) -> None:
    async with open_text_socket(server, TARGET, TOKEN) as socket:
        await socket.read()
        await server.store.run(server.store.callers.delete_agent, MAIN)
        assert await socket.end() == (CloseCode.POLICY_VIOLATION, "authorization withdrawn")


async def test_a_server_that_leaves_says_so(server: CoordinatorServer) -> None:
    async with open_text_socket(server, TARGET, TOKEN) as socket, trio.open_nursery() as nursery:
        await socket.read()
        nursery.start_soon(server.drain)
        code, _ = await socket.end()
        assert code == CloseCode.GOING_AWAY


@pytest.mark.parametrize("token", ["", user_token("alice"), str(make_id("nobody"))])
async def test_only_agents(server: CoordinatorServer, token: str) -> None:
    with pytest.raises(RefusedUpgrade) as refused:
        await dial(server, TARGET, token)
    assert refused.value.answer.status == 401
