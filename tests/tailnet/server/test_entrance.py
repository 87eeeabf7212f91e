"""Coming in: at once from memory or by a task, refused, left meanwhile, bytes behind the request, and too many."""

import logging

import pytest
import trio

from derp.protocol.websocket import Opcode, encode_masked
from tailnet.api.rpc_admission import Accepted, RefusedPeer
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.server import entrance
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
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
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # SO_LINGER: a reset, which a paused link sees
    await wait_for(lambda: not gate.waiting)
    assert server.entrance._deciding == 0
    assert server.reading().channels == 0
    assert not server.lobby.waiting


async def test_decisions_in_hand_are_bounded(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "MAX_DECIDING", 1)
    gate = Gate(server, monkeypatch)
    async with open_connection(server) as first, open_connection(server) as second:
        await first.send_all(upgrade_request(AGENT_DOOR, agent_token("main")))
        await wait_for(lambda: gate.waiting)
        await second.send_all(upgrade_request(AGENT_DOOR, agent_token("gpu")))
        answer = await read_answer(second)
        assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "5", "close")
        assert answer.json()["message"]
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
    assert server.reading().refused_at_door == 2
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
