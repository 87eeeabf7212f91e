"""Coming in: at once from memory or by a task, refused, left meanwhile, bytes behind the request, and too many."""

import logging
import socket
import struct
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
import trio

from derp.protocol.websocket import Opcode, encode_masked
from derp.relay.limits import TokenBucket
from tailnet.api.rpc_admission import Accepted, RefusedPeer
from tailnet.coordinator import arrivals
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.server import entrance
from tailnet.server.server import CoordinatorServer
from tests.derp.server.world import ask
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
    Peer,
    RefusedUpgrade,
    client_door,
    open_connection,
    open_peer,
    open_websocket,
    read_answer,
    upgrade_request,
    upgraded,
    wait_for,
)
from tests.tailnet.server.test_server import Serve, settle

MAIN = peer_id("main")
PING, PONG = bytes.fromhex("000200010000000000000007"), bytes.fromhex("000200020000000000000007")


class Gate:
    """Holds decisions of the admission back until it is opened."""

    def __init__(self, server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = trio.Event()
        self.waiting = 0
        self.admission = server.entrance._admission
        real = self.admission.judge

        async def judge(method: str, target: str, headers: object) -> Accepted | RefusedPeer:
            self.waiting += 1
            try:
                await self.opened.wait()
            finally:
                self.waiting -= 1
            return await real(method, target, headers)  # type: ignore[arg-type]

        monkeypatch.setattr(self.admission, "judge_now", lambda *arguments: None)
        monkeypatch.setattr(self.admission, "judge", judge)


@pytest.mark.parametrize("is_known", [False, True], ids=["by a task", "at once"])
async def test_what_comes_behind_the_request_is_served_after_it(server: CoordinatorServer, is_known: bool) -> None:
    if is_known:
        async with open_peer(server, AGENT_DOOR, agent_token("main")):
            pass
    raw = upgrade_request(AGENT_DOOR, agent_token("main"))
    async with open_connection(server) as stream:
        await stream.send_all(raw + encode_masked(Opcode.BINARY, PING, b"mask"))
        websocket = await upgraded(stream)
        assert await websocket.read() == PONG
        await websocket.write(PING)
        assert await websocket.read() == PONG


@pytest.mark.parametrize("is_known", [False, True], ids=["by a task", "at once"])
async def test_a_websocket_message_cut_behind_the_request(server: CoordinatorServer, is_known: bool) -> None:
    if is_known:
        async with open_peer(server, AGENT_DOOR, agent_token("main")):
            pass
    frame = encode_masked(Opcode.BINARY, PING, b"mask")
    for cut in range(len(frame)):
        async with open_connection(server) as stream:
            await stream.send_all(upgrade_request(AGENT_DOOR, agent_token("main")) + frame[:cut])
            websocket = await upgraded(stream)
            await websocket.write_raw(frame[cut:])
            assert await websocket.read() == PONG


async def test_what_comes_while_it_is_decided_waits(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(server, monkeypatch)
    async with open_connection(server) as stream:
        await stream.send_all(upgrade_request(AGENT_DOOR, agent_token("main")))
        await wait_for(lambda: gate.waiting)
        await stream.send_all(encode_masked(Opcode.BINARY, PING, b"mask"))
        gate.opened.set()
        assert await (await upgraded(stream)).read() == PONG


async def test_who_leaves_while_it_is_decided_is_forgotten(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(server, monkeypatch)
    async with open_connection(server) as stream:
        await stream.send_all(upgrade_request(AGENT_DOOR, agent_token("main")))
        await wait_for(lambda: gate.waiting)
        reset_at_close(stream)
    await wait_for(lambda: not gate.waiting)
    assert server.entrance._deciding == 0
    assert server.reading().channels == 0
    assert not server.lobby.waiting


def reset_at_close(stream: trio.abc.Stream) -> None:
    """A paused link sees no more than that."""
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def test_decisions_in_hand_are_bounded(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(entrance, "MAX_DECIDING", 1)
    gate = Gate(server, monkeypatch)
    async with open_connection(server) as first, open_connection(server) as second:
        await first.send_all(upgrade_request(AGENT_DOOR, agent_token("main")))
        await wait_for(lambda: gate.waiting)
        await second.send_all(upgrade_request(AGENT_DOOR, agent_token("gpu")))
        answer = await read_answer(second)
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert 2 <= int(answer.headers["retry-after"]) <= 10
        assert answer.json()["message"]
        assert "! the store does not say" in caplog.text
        gate.opened.set()
        await upgraded(first)


async def test_a_drain_that_begins_while_it_is_decided_refuses(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(server, monkeypatch)
    async with open_connection(server) as stream:
        await stream.send_all(upgrade_request(AGENT_DOOR, agent_token("main")))
        await wait_for(lambda: gate.waiting)
        server.entrance.close()
        gate.opened.set()
        with pytest.raises(RefusedUpgrade) as caught:
            await upgraded(stream)
        assert caught.value.answer.status == 503
    assert server.reading().channels == 0


@pytest.mark.parametrize("where", ["judge", "judge_now", "accept"])
async def test_a_defect_costs_one_connection(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    async with open_peer(server, *DOORS[0]) as inside, open_connection(server) as stream:
        with monkeypatch.context() as patched:
            admission = server.entrance._admission
            if where == "judge_now":
                patched.setattr(admission, "judge_now", fail)
                let_nobody_in(server)
            else:
                patched.setattr(admission, "judge_now", lambda *_: None)
                owner, name = (admission, "judge") if where == "judge" else (server.entrance, "_accept")
                patched.setattr(owner, name, fail)
            await stream.send_all(upgrade_request(*DOORS[1]))
            if where == "judge_now":
                await wait_for(lambda: server.reading().entrance.waiting == 1)
                server.entrance._line._bucket = TokenBucket(1000.0, 1000.0, server.reactor.now)
            assert await stream.receive_some() == b""
        assert server.entrance._deciding == 0
        assert caplog.text.count("could not be let in and is closed") == 1
        await settle(inside)
        async with open_peer(server, *DOORS[1]) as client:
            await settle(client)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec_WebSocket_Version": "8"}, 400),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Connection": "keep-alive"}, 426),
        ({"Origin": "https://evil.example.com"}, 403),
    ],
)
async def test_requests_that_are_no_websocket_of_ours(
    server: CoordinatorServer, headers: dict[str, str], status: int
) -> None:
    for _ in range(2):  # by a task, then from memory
        with pytest.raises(RefusedUpgrade) as caught:
            async with open_websocket(server, AGENT_DOOR, agent_token("main"), **headers):
                pass
        assert caught.value.answer.status == status
        assert caught.value.answer.json()["message"]
    assert server.reading().entrance.refused == 2
    assert server.reading().channels == 0


async def test_callers_are_named_in_the_log_and_tokens_are_not(
    server: CoordinatorServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
            await peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
        async with open_peer(server, client_door(MAIN), user_token("alice")):
            pass
        with pytest.raises(RefusedUpgrade):
            async with open_websocket(server, client_door(MAIN), user_token("nobody")):
                pass
        await wait_for(lambda: sum(each.getMessage().startswith("x ") for each in caplog.records) == 2)
    assert f"> agent main {MAIN}" in caplog.text
    assert "of alice" in caplog.text
    assert "! refused 127.0.0.1" in caplog.text
    for secret in (agent_token("main"), user_token("alice"), user_token("nobody")):
        assert secret not in caplog.text
        assert secret.partition("-")[2] not in caplog.text


def let_nobody_in(server: CoordinatorServer) -> None:
    server.entrance._line._bucket = TokenBucket(1e-9, 0.0, server.reactor.now)


DOORS = [(AGENT_DOOR, agent_token("main")), (client_door(MAIN), user_token("alice"))]


@pytest.mark.parametrize(("door", "token"), DOORS, ids=["rpc", "coordinate"])
async def test_who_comes_in_a_storm_is_let_in_when_his_turn_comes(
    server: CoordinatorServer, door: str, token: str
) -> None:
    let_nobody_in(server)
    async with open_connection(server) as stream:
        await stream.send_all(upgrade_request(door, token) + encode_masked(Opcode.BINARY, PING, b"mask"))
        await wait_for(lambda: server.reading().entrance.waiting == 1)
        server.entrance._line._bucket = TokenBucket(1000.0, 1000.0, server.reactor.now)
        websocket = await upgraded(stream)
        assert await websocket.read() == PONG
        assert server.reading().entrance.waiting == 0


async def test_who_waited_too_long_is_told_to_try_again(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arrivals, "PATIENCE_SECONDS", 0.0)
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as inside:
        let_nobody_in(server)
        for door, token in DOORS:
            async with open_connection(server) as stream:
                await stream.send_all(upgrade_request(door, token))
                answer = await read_answer(stream)
                assert (answer.status, answer.headers["connection"]) == (503, "close")
                assert 2 <= int(answer.headers["retry-after"]) <= 10
                assert "try again" in answer.json()["message"]
        assert server.reading().entrance.put_off == 2
        await settle(inside)  # whoever is inside stays there
    assert caplog.text.count("--upgrade-limit") == 1


async def test_who_hangs_up_has_no_place_in_the_line(server: CoordinatorServer) -> None:
    let_nobody_in(server)
    async with open_connection(server) as stream:
        await stream.send_all(upgrade_request(AGENT_DOOR, agent_token("main")))
        await wait_for(lambda: server.reading().entrance.waiting == 1)
        reset_at_close(stream)
    await wait_for(lambda: server.reading().entrance.waiting == 0)
    assert not server.lobby.waiting


async def test_of_two_that_fight_for_one_id_the_next_one_waits(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fights = server.entrance.fights
    monkeypatch.setattr(arrivals, "HOLD_SECONDS", 0.01)
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(open_peer(server, *DOORS[0])) for _ in range(3)]
        calls = [await peer.coordinate() for peer in peers]
        for call in calls[:2]:
            await call.wait_ended()
        [fight] = fights.current(server.reactor.now)
        assert (fight.peer_id, fight.count) == (MAIN, 2)
        assert set(fight.addresses) <= {f"127.0.0.1:{own_port(peer)}" for peer in peers}
        assert len(fight.addresses) == 2
        assert server.reading().entrance.fights == 1
        assert "from each other" in caplog.text
        fight.until = server.reactor.now + 3600.0
        waiting = [await stack.enter_async_context(open_connection(server)) for _ in range(9)]
        for stream in waiting:
            await stream.send_all(upgrade_request(*DOORS[0]))
        await wait_for(lambda: server.reading().entrance.put_off)  # the ninth
        assert server.reading().entrance.waiting == 8
        assert "! too many wait for ids" in caplog.text
        assert "--upgrade-limit" not in caplog.text
        await settle(peers[2])
        async with open_peer(server, *DOORS[1]) as client:  # other ids do not wait
            await settle(client)


def own_port(peer: Peer) -> int:
    stream = peer.websocket.stream
    assert isinstance(stream, trio.SocketStream)
    port: int = stream.socket.getsockname()[1]
    return port


async def test_a_full_coordinator_answers_its_operators_and_nobody_else(serve: Serve) -> None:
    server = await serve(max_connections=1)
    async with open_peer(server, AGENT_DOOR, agent_token("main")):
        for path in ("/healthz", "/readyz", "/metrics", "/debug/"):
            request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert (await ask(cast(Any, server), request.encode(), "tailnet")).startswith(b"HTTP/1.1 200 "), path
        with pytest.raises(RefusedUpgrade, match=r"503 .*all 1 connections of this server are taken"):
            async with open_peer(server, AGENT_DOOR, agent_token("gpu")):
                pass
