"""Requests that reach into an agent which is there and cannot be dialled, or not by everybody at once."""

import httpx
import pytest

from tailnet.api.into_agent import not_dialled
from tailnet.node.membership import open_agent
from tailnet.server.server import CoordinatorServer
from tailnet.services import own_node as own_node_module
from tailnet.services.own_node import TooMany, Unreachable
from tests.support.seeds import agent_token, peer_id, user_token
from tests.tailnet.client.test_rpc import url_of

MAIN = peer_id("main")


async def ask(server: CoordinatorServer) -> tuple[int, str, str]:
    headers = {"Coder-Session-Token": user_token("alice")}
    async with httpx.AsyncClient(base_url=url_of(server), headers=headers) as client:
        response = await client.get(f"/api/v2/workspaceagents/{MAIN}/containers", timeout=60)
        return response.status_code, response.json()["message"], response.json()["detail"]


async def test_an_agent_that_serves_nothing_there(server: CoordinatorServer) -> None:
    async with open_agent(url_of(server), agent_token("main"), MAIN, is_direct=False):
        status, message, detail = await ask(server)
        assert (status, message) == (500, "Internal error dialing workspace agent.")
        assert "refused" in detail


async def test_too_many_at_once(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_node_module, "MAX_STREAMS_PER_USER", 0)
    async with open_agent(url_of(server), agent_token("main"), MAIN, is_direct=False):
        status, message, _ = await ask(server)
        assert (status, message) == (503, "Too many connections into agents are open.")


def test_why_no_connection_was_made() -> None:
    assert (not_dialled(Unreachable("x")).status, not_dialled(Unreachable("x")).detail) == (500, "x")
    assert (not_dialled(TooMany("y")).retry_after_seconds, not_dialled(TooMany("y")).detail) == (10, "y")
