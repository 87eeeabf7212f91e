"""What an agent's HTTP API may answer, and what becomes of it: sound answers, errors, garbage, no end."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from pydantic import BaseModel

from tailnet.node.streams import TunnelStream
from tailnet.server.server import CoordinatorServer
from tailnet.services import agent_http as agent_http_module
from tailnet.services.agent_http import AgentFailed, AgentHttp, AgentRefused, parse_answer, read_refusal
from tests.support.fake_agent import Answer, open_fake_agent, read_request
from tests.support.seeds import peer_id
from tests.tailnet.client.test_rpc import url_of

MAIN = peer_id("main")
PATH = "/api/v0/thing"


class Thing(BaseModel):
    name: str


async def ask(server: CoordinatorServer, method: str = "GET") -> Thing:
    with trio.fail_after(60):
        return await AgentHttp(server.own_node).ask(MAIN, "alice", PATH, Thing, method)


async def test_an_answer(server: CoordinatorServer) -> None:
    async with open_fake_agent(url_of(server)) as agent:
        agent.answers[f"GET {PATH}"] = Answer(200, {"name": "a", "newer": 1})
        agent.answers[f"POST {PATH}"] = Answer(202, {"name": "b"})
        assert (await ask(server), await ask(server, "POST")) == (Thing(name="a"), Thing(name="b"))
        assert agent.asked == [f"GET {PATH}", f"POST {PATH}"]


async def test_an_error_is_passed_on(server: CoordinatorServer) -> None:
    async with open_fake_agent(url_of(server)) as agent:
        agent.answers[f"GET {PATH}"] = Answer(403, {"message": "Not enabled.", "detail": "d"})
        with pytest.raises(AgentRefused) as caught:
            await ask(server)
        refused = caught.value.refused
        assert (refused.status, refused.message, refused.detail) == (403, "Not enabled.", "d")
        with pytest.raises(AgentRefused) as caught:
            await ask(server, "POST")
        refused = caught.value.refused
        assert (refused.status, refused.message) == (404, 'unexpected non-JSON response "text/plain"')
        assert refused.detail == "404 page not found", "an older agent has no such route"


async def hang_up(stream: TunnelStream) -> None:
    await read_request(stream)


async def hang_up_in_the_middle(stream: TunnelStream) -> None:
    await read_request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


async def talk_nonsense(stream: TunnelStream) -> None:
    await read_request(stream)
    await stream.send_all(b"SSH-2.0-Go\r\n\r\n" * 10)


async def never_end(stream: TunnelStream) -> None:
    await read_request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await stream.send_all(bytes(64 * 1024))


async def send_heads_without_end(stream: TunnelStream) -> None:
    await read_request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"X: " + b"y" * 1000 + b"\r\n")


async def break_off(stream: TunnelStream) -> None:
    await read_request(stream)
    stream.abort()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (hang_up, "instead of answering"),
        (hang_up_in_the_middle, "malformed|ended|closed"),
        (talk_nonsense, "malformed HTTP answer"),
        (never_end, "larger than"),
        (send_heads_without_end, "malformed HTTP answer"),
        (break_off, "reset"),
    ],
)
async def test_what_is_no_answer(
    server: CoordinatorServer, behaviour: Callable[[TunnelStream], Awaitable[None]], reason: str
) -> None:
    async with open_fake_agent(url_of(server)) as agent:
        agent.serve_raw = behaviour
        with pytest.raises(AgentFailed, match=reason) as caught:
            await ask(server)
        assert not caught.value.is_late
        assert server.own_node.stream_count == 0


async def test_an_agent_that_is_slow(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_http_module, "DIAL_SECONDS", 1.0)
    async with open_fake_agent(url_of(server)) as agent:
        agent.is_silent = True
        with pytest.raises(AgentFailed, match="did not answer within 1 s") as caught:
            await ask(server)
        assert caught.value.is_late


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "not understood: the whole"),
        (b"{}", "not understood: name"),
        (b'{"name": 5}', "not understood: name"),
    ],
)
def test_what_is_no_thing(content: bytes, reason: str) -> None:
    with pytest.raises(AgentFailed, match=reason):
        parse_answer(content, Thing)


@pytest.mark.parametrize("status", [399, 401, 407, 600])
def test_what_an_agent_may_not_say_in_our_name(status: int) -> None:
    refused = read_refusal(status, {}, b'{"message": "sign in again"}')
    assert (refused.status, refused.detail) == (502, f"Its status is {status}.")


def test_what_an_error_says_is_text_of_others() -> None:
    body = b'{"message": "a\\u001b[31m", "detail": 7, "validations": [{"field": "f", "detail": "d"}, 5]}'
    refused = read_refusal(409, {}, body)
    assert "\x1b" not in refused.message
    assert refused.detail == "7"
    assert [(each.field, each.detail) for each in refused.validations] == [("f", "d")]
    assert len(read_refusal(500, {}, b"x" * 1_000_000).detail) <= 200
