"""A control plane at a running server: whom it deletes is gone within a second, streams flow, strangers stay out."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trio

from derp.protocol.websocket import CloseCode
from tailnet.config import CoordinatorConfig
from tailnet.config.admin_tokens import parse_admin_tokens
from tailnet.coordinator.resume import ResumeTokenRefused
from tailnet.server.server import CoordinatorServer
from tailnet.services import upkeep
from tailnet.transport import asgi
from tests.support.administration import ALICE, BOB, DEV, GPU, MAIN, OTHER_TOKEN, TOKEN, TOKENS, agent_line
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.tailnet_driver import AGENT_DOOR, Peer, client_door, open_peer, wait_for
from tests.tailnet.conftest import Serve

pytestmark = pytest.mark.stores
MAIN_ID = peer_id("main")
LOCAL = (("127.0.0.1", 0),)


@asynccontextmanager
async def control_plane(
    server: CoordinatorServer, token: str = TOKEN, kind: str = "tailnet"
) -> AsyncIterator[httpx.AsyncClient]:
    port = next(each.port for each in server.listening if each.kind == kind)
    url = f"http://127.0.0.1:{port}/api/v2/admin/"
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        yield client


@pytest.fixture
async def server(serve: Serve) -> CoordinatorServer:
    return await serve(admin_tokens=TOKENS)


ENDINGS: dict[str, tuple[str, str, Any]] = {
    "its agent is deleted": ("DELETE", f"agents/{MAIN}", None),
    "its workspace is deleted": ("DELETE", f"workspaces/{DEV}", None),
    "its owner is deleted": ("DELETE", f"users/{ALICE}", None),
    "its token is replaced": ("POST", f"agents/{MAIN}/rotate", None),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_an_agent_is_gone_within_a_second(server: CoordinatorServer, ending: str) -> None:
    method, path, body = ENDINGS[ending]
    async with (
        control_plane(server) as plane,
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent,
        open_peer(server, AGENT_DOOR, agent_token("web")) as other,
    ):
        response = await plane.request(method, path, json=body)
        assert response.status_code in (200, 204)
        # Rights are looked at twice a second; the rest of the patience is for busy machines.
        assert await agent.wait_closed() == CloseCode.POLICY_VIOLATION
        assert await is_well(other)


async def is_well(peer: Peer) -> bool:
    await peer.flush()
    return True


async def test_a_user_who_is_made_inactive_is_gone(server: CoordinatorServer) -> None:
    async with (
        control_plane(server) as plane,
        open_peer(server, client_door(MAIN_ID), user_token("alice")) as client,
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent,
    ):
        assert (await plane.patch(f"users/{ALICE}", json={"active": False})).status_code == 200
        assert await client.wait_closed() == CloseCode.POLICY_VIOLATION
        assert await is_well(agent)


async def test_a_grant_that_is_taken_away(server: CoordinatorServer) -> None:
    grant = f"grants/{DEV}:{BOB}"
    async with control_plane(server) as plane:
        body = {"workspace_id": str(DEV), "user_id": str(BOB), "rights": ["ssh"]}
        assert (await plane.put(grant, json=body)).status_code == 201
        async with open_peer(server, client_door(MAIN_ID), user_token("bob")) as client:
            assert (await plane.delete(grant)).status_code == 204
            assert await client.wait_closed() == CloseCode.POLICY_VIOLATION


async def test_who_is_made_over_http_comes_in(server: CoordinatorServer) -> None:
    async with control_plane(server) as plane:
        line = json.dumps({"kind": "agent", "id": str(peer_id("new")), "name": "new", "workspace_id": str(DEV)})
        told = json.loads((await plane.post("bulk", content=line)).text)
        async with open_peer(server, AGENT_DOOR, told["token"]) as agent:
            assert await is_well(agent)


async def test_the_old_token_of_an_agent_is_good_for_its_grace(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "GRACE_SECONDS", 0.05)
    async with control_plane(server) as plane:
        async with open_peer(server, AGENT_DOOR, agent_token("main")) as agent:
            rotated = await plane.post(f"agents/{MAIN}/rotate", json={"grace_seconds": 3600})
            await server.rights.look()
            assert await is_well(agent)
            async with open_peer(server, AGENT_DOOR, rotated.json()["token"]) as renewed:
                assert await is_well(renewed)
        # A second that is over soon: whoever is inside with the old one goes.
        async with open_peer(server, AGENT_DOOR, agent_token("gpu")) as agent:
            await plane.post(f"agents/{GPU}/rotate", json={"grace_seconds": 1})
            server.upkeep._clock = lambda: server.administration.administration.clock().replace(year=2100)
            server._nursery.start_soon(server.upkeep.end_grace_forever)
            assert await agent.wait_closed() == CloseCode.POLICY_VIOLATION


async def test_a_key_that_is_revoked_is_good_no_more(server: CoordinatorServer) -> None:
    token = server.keys.current.issue(MAIN_ID, "somebody", 1000.0).token
    async with control_plane(server) as plane:
        old = next(each for each in (await plane.get("keys")).json()["items"] if each["state"] == "signs")
        assert (await plane.post("keys", json={"purpose": "resume token"})).status_code == 201
        assert server.keys.current.verify(token, "somebody", 1001.0) == MAIN_ID
        assert (await plane.delete(f"keys/{old['id']}")).status_code == 204

    def refused() -> bool:
        try:
            server.keys.current.verify(token, "somebody", 1001.0)
        except ResumeTokenRefused:
            return True
        return False

    await wait_for(refused)


# --- where it is, and for whom


async def test_it_is_not_there_without_a_token(serve: Serve) -> None:
    server = await serve()
    async with control_plane(server) as plane:
        response = await plane.get("users")
        assert (response.status_code, response.json()) == (404, {"message": "Route not found."})
        response = await plane.post("bulk", content=agent_line("new"))
        assert response.status_code in (404, 405)


async def test_a_listener_of_its_own(serve: Serve) -> None:
    server = await serve(admin_tokens=TOKENS, admin_listen=LOCAL)
    async with control_plane(server, kind="admin") as own, control_plane(server) as public:
        assert (await own.get("users")).status_code == 200
        assert (await public.get("users")).json() == {"message": "Route not found."}
        for path in ("/healthz", "/derp", "/api/v2/buildinfo", "/metrics", f"/api/v2/workspaceagents/{MAIN}"):
            response = await own.get(f"http://{own.base_url.netloc.decode()}{path}")
            assert response.status_code == 404, "of the public side nothing is there"
        assert (await own.get("users")).status_code == 200


async def test_tokens_are_read_again(serve: Serve) -> None:
    now: list[CoordinatorConfig] = []
    server = await serve(lambda: now[0], admin_tokens=TOKENS)
    async with control_plane(server) as plane, control_plane(server, OTHER_TOKEN) as other:
        assert (await other.get("users")).status_code == 200
        given = {**server.config.given, "admin_token_file": "/etc/tailnet/admin.tokens"}
        now.append(replace(server.config, admin_tokens=parse_admin_tokens(f"plane:{TOKEN}"), given=given))
        server.reload()
        assert (await plane.get("users")).status_code == 200
        assert (await other.get("users")).status_code == 401


# --- streams


async def test_results_come_while_lines_go(server: CoordinatorServer) -> None:
    """A client of our own on a socket: httpx reads an answer once its request has gone."""
    async with control_plane(server) as plane:
        host = plane.base_url
        async with await trio.open_tcp_stream(host.host, host.port or 80) as stream:
            head = f"POST {host.path}bulk HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            await stream.send_all((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
            received = b""
            for number in range(3):
                line = agent_line(f"agent {number}")
                await stream.send_all(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                while received.count(b'"line":') <= number:
                    received += await stream.receive_some()
            assert b"\r\n0\r\n\r\n" not in received, "the answer goes on"
            await stream.send_all(b"0\r\n\r\n")
            while not received.endswith(b"\r\n0\r\n\r\n"):
                received += await stream.receive_some()


async def test_a_stream_is_longer_than_any_other_body(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "MAX_BODY_BYTES", 200_000)
    text = b"".join(agent_line(f"agent {number}", directory="/" + "d" * 900) for number in range(400))
    assert len(text) > 400_000
    async with control_plane(server) as plane:
        found = (await plane.post("bulk", content=text)).text.splitlines()
        assert [json.loads(each)["result"] for each in found] == ["created"] * 400
        assert (await plane.put(f"agents/{MAIN}", content=b" " * 300_000)).status_code == 413


async def test_a_stream_that_breaks_off_has_done_what_it_has_done(server: CoordinatorServer) -> None:
    async with control_plane(server) as plane:
        host = plane.base_url
        stream = await trio.open_tcp_stream(host.host, host.port or 80)
        line = agent_line("whole")
        head = f"POST {host.path}bulk HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        await stream.send_all((head + "Content-Length: 1000000\r\n\r\n").encode() + line + agent_line("half")[:20])
        received = b""
        while b'"created"' not in received:
            received += await stream.receive_some()
        await stream.aclose()
        await wait_for(lambda: server.administration.streams.borrowed_tokens == 0)
        assert (await plane.get(f"agents/{peer_id('whole')}")).status_code == 200
        assert (await plane.get(f"agents/{peer_id('half')}")).status_code == 404


@pytest.mark.parametrize("path", ["bulk", f"agents/{MAIN}"])
async def test_who_may_not_reads_why_in_the_middle_of_his_body(server: CoordinatorServer, path: str) -> None:
    async with control_plane(server, "x" * 40) as stranger:
        method: Callable[..., Any] = stranger.post if path == "bulk" else stranger.put
        response = await method(path, content=b"x" * 3_000_000)
        assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
