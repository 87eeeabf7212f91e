"""Requests that reach into an agent which is there and cannot be dialled, or not by everybody at once."""

import httpx
import pytest

from tailnet.api.into_agent import refused_of
from tailnet.node.membership import open_agent
from tailnet.refusals import Refused
from tailnet.server.server import CoordinatorServer
from tailnet.services import own_node as own_node_module
from tailnet.services.agent_http import AgentFailed, AgentRefused
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


def test_why_an_agent_gave_nothing() -> None:
    def answer(error: AgentRefused | AgentFailed | Unreachable | TooMany, **how: bool) -> tuple[int, str, str]:
        refused = refused_of(error, "Failed.", **how)
        return refused.status, refused.message, refused.detail

    own = Refused(418, "Teapot.", "d")
    assert answer(AgentRefused(own)) == (418, "Teapot.", "d")
    assert answer(AgentRefused(own), passes_errors=False) == (500, "Failed.", "418 Teapot. (d)")
    assert answer(AgentFailed("x", is_late=True)) == (408, "Failed.", "x")
    assert answer(AgentFailed("x", is_late=True), passes_errors=False) == (500, "Failed.", "x")
    assert answer(Unreachable("x"))[0] == 500
    assert answer(TooMany("y")) == (503, "Too many connections into agents are open.", "y")
