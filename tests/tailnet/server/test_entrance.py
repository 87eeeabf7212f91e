"""Coming in: at once from memory or by a task, refused, left meanwhile, bytes behind the request, and too many."""

import gc
import logging
import socket
import struct
import tracemalloc
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
import trio

from derp.protocol.websocket import Opcode, encode_masked
from derp.relay.limits import TokenBucket
from tailnet.api.rpc_admission import Accepted, RefusedPeer
from tailnet.coordinator import arrivals
from tailnet.coordinator.arrivals import MAX_REQUEST_BYTES, WAITER_BYTES
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.server import entrance
from tailnet.server.server import CoordinatorServer
from tests.derp.server.world import ask
from tests.support.seeds import agent_token, make_id, peer_id, user_token
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
                let_nobody_in(server)
            else:
                patched.setattr(admission, "judge_now", lambda *_: None)
                owner, name = (admission, "judge") if where == "judge" else (server.entrance, "_accept")
                patched.setattr(owner, name, fail)
            await stream.send_all(upgrade_request(*DOORS[1]))
            if where == "judge_now":
                await wait_for(lambda: waiting(server) == 1)
                patched.setattr(admission, "judge_now", fail)
                let_everybody_in(server)
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
    _pace(server, 1e-9, 0.0)


def let_everybody_in(server: CoordinatorServer) -> None:
    _pace(server, 1000.0, 1000.0)


def _pace(server: CoordinatorServer, per_second: float, burst: float) -> None:
    line, strangers = server.entrance._line, server.entrance._strangers
    line._bucket, strangers._sure, strangers._spare = (
        TokenBucket(per_second, burst, server.reactor.now) for _ in range(3)
    )


def waiting(server: CoordinatorServer) -> int:
    """Who waits for his turn, known or not."""
    found = server.reading().entrance
    return found.waiting + found.strangers_waiting


DOORS = [(AGENT_DOOR, agent_token("main")), (client_door(MAIN), user_token("alice"))]


@pytest.mark.parametrize(("door", "token"), DOORS, ids=["rpc", "coordinate"])
async def test_who_comes_in_a_storm_is_let_in_when_his_turn_comes(
    server: CoordinatorServer, door: str, token: str
) -> None:
    let_nobody_in(server)
    async with open_connection(server) as stream:
        await stream.send_all(upgrade_request(door, token) + encode_masked(Opcode.BINARY, PING, b"mask"))
        await wait_for(lambda: waiting(server) == 1)
        let_everybody_in(server)
        websocket = await upgraded(stream)
        assert await websocket.read() == PONG
        assert waiting(server) == 0


async def test_who_waited_too_long_is_told_to_try_again(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arrivals, "PATIENCE_SECONDS", 0.0)
    async with open_peer(server, *DOORS[0]) as inside, open_peer(server, *DOORS[1]):
        let_nobody_in(server)
        for door, token in DOORS:
            async with open_connection(server) as stream:
                await stream.send_all(upgrade_request(door, token))
                answer = await read_answer(stream)
                assert (answer.status, answer.headers["connection"]) == (503, "close")
                assert 2 <= int(answer.headers["retry-after"]) <= 10
                assert "try again" in answer.json()["message"]
        found = server.reading().entrance
        assert (found.put_off, found.strangers_put_off) == (2, 0)
        await settle(inside)  # whoever is inside stays there
    assert caplog.text.count("--upgrade-limit") == 1


async def test_who_hangs_up_has_no_place_in_the_line(server: CoordinatorServer) -> None:
    let_nobody_in(server)
    async with open_connection(server) as stream:
        await stream.send_all(upgrade_request(AGENT_DOOR, agent_token("main")))
        await wait_for(lambda: waiting(server) == 1)
        reset_at_close(stream)
    await wait_for(lambda: not waiting(server))
    assert server.reading().entrance.held_bytes == 0
    assert not server.lobby.waiting


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine puts nobody off while a test looks at who waits."""
    monkeypatch.setattr(arrivals, "PATIENCE_SECONDS", 600.0)
    monkeypatch.setattr(entrance, "PATIENCE_SECONDS", 600.0)


def wrong_tokens() -> list[tuple[str, str]]:
    """What memory can refuse: none, malformed, and such as the store was asked about a moment ago."""
    return [(AGENT_DOOR, ""), (AGENT_DOOR, "no UUID"), (client_door(MAIN), ""), (client_door(MAIN), "x" * 2_000)]


async def test_what_memory_can_refuse_takes_nobody_s_place(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one token is left of any line, and they are answered."""
    monkeypatch.setattr("tailnet.auth.store_callers.CHECK_SECONDS", 3600.0)  # a busy machine does not look in time
    unknown = (AGENT_DOOR, str(make_id("nobody")))
    known_id = (client_door(MAIN), f"{user_token('alice')[:10]}-{'x' * 22}")
    async with open_peer(server, *DOORS[0]), open_peer(server, *DOORS[1]):
        for door, token in (unknown, known_id):
            assert await status_of(server, door, token) == 401  # the store says so
        let_nobody_in(server)
        for _ in range(20):
            for door, token in (*wrong_tokens(), unknown, known_id):
                assert await status_of(server, door, token) == 401, token
        assert waiting(server) == 0
        found = server.reading().entrance
        assert (found.put_off, found.strangers_put_off, found.refused) == (0, 0, 122)


async def status_of(server: CoordinatorServer, door: str, token: str) -> int:
    async with open_connection(server) as stream:
        await stream.send_all(upgrade_request(door, token))
        status: int = (await read_answer(stream)).status
        return status


async def test_agents_come_in_while_strangers_flood(server: CoordinatorServer, patient: None) -> None:
    """Strangers have the last place of their line, and none of them has a turn; who is known does not notice."""
    async with open_peer(server, *DOORS[0]), open_peer(server, *DOORS[1]):
        pass
    strangers, line = server.entrance._strangers, server.entrance._line
    strangers._sure = strangers._spare = TokenBucket(1e-9, 0.0, server.reactor.now)
    strangers.room.most = 16 * WAITER_BYTES
    async with AsyncExitStack() as stack:
        flood = [await stack.enter_async_context(open_connection(server)) for _ in range(30)]
        for number, stream in enumerate(flood):
            await stream.send_all(upgrade_request(AGENT_DOOR, str(make_id(f"made up {number}"))))
        await wait_for(lambda: len(strangers) + server.entrance.strangers_put_off_count == len(flood))
        assert 5 <= len(strangers) <= 10, "one address has half of the room"
        for door, token in (*DOORS, *DOORS):
            assert await status_of(server, *wrong_tokens()[0]) == 401
            async with open_peer(server, door, token) as peer:
                await peer.coordinate()
                assert len(line) == 0, "it did not wait"
        assert server.entrance.put_off_count == 0
        assert (await read_answer(flood[-1])).status == 503


async def test_a_stranger_whom_the_store_knows_comes_in_at_his_turn(
    serve: Serve, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailnet.auth.store_callers.MAX_PRELOADED", 0)
    server = await serve()
    let_nobody_in(server)
    async with open_connection(server) as stream, open_connection(server) as made_up:
        await made_up.send_all(upgrade_request(AGENT_DOOR, str(make_id("made up"))))
        await stream.send_all(upgrade_request(*DOORS[0]) + encode_masked(Opcode.BINARY, PING, b"mask"))
        await wait_for(lambda: server.reading().entrance.strangers_waiting == 2)
        assert server.reading().entrance.waiting == 0
        let_everybody_in(server)
        assert (await read_answer(made_up)).status == 401
        assert await (await upgraded(stream)).read() == PONG
        assert server.reading().entrance.held_bytes == 0


async def test_strangers_leave_room_for_those_who_are_known_where_the_store_is_slow(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "MAX_DECIDING_STRANGERS", 1)
    async with open_peer(server, *DOORS[0]), open_peer(server, *DOORS[1]):
        pass
    gate = Gate(server, monkeypatch)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(open_connection(server)) for _ in range(4)]
        for number in range(2):
            await streams[number].send_all(upgrade_request(AGENT_DOOR, str(make_id(f"made up {number}"))))
        await wait_for(lambda: gate.waiting and server.entrance.strangers_put_off_count)
        for stream, door in zip(streams[2:], DOORS, strict=True):
            await stream.send_all(upgrade_request(*door))
        await wait_for(lambda: gate.waiting == 3)
        gate.opened.set()
        for stream in streams[2:]:
            await upgraded(stream)
    await wait_for(lambda: server.entrance._deciding == server.entrance._deciding_strangers == 0)


async def test_what_strangers_hold_while_the_store_is_asked_about_them_is_bounded_too(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(server, monkeypatch)
    strangers = server.entrance._strangers
    strangers.room.most = 2 * WAITER_BYTES + 1_000
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(open_connection(server)) for _ in range(3)]
        for number, stream in enumerate(streams):
            door, token = (AGENT_DOOR, str(make_id("made up"))) if number else (AGENT_DOOR, agent_token("main"))
            await stream.send_all(upgrade_request(door, token))
            await wait_for(lambda: gate.waiting + server.entrance.strangers_put_off_count > number)  # noqa: B023  # awaited in place
        assert (await read_answer(streams[2])).status == 503
        held = server.reading().entrance.held_bytes
        assert 2 * WAITER_BYTES < held <= strangers.room.most
        server.entrance.fights.note(MAIN, (), server.reactor.now + 3_600.0)
        gate.opened.set()
        assert (await read_answer(streams[1])).status == 401
        # Who waits for his id is known by now, and holds what he has among those.
        await wait_for(lambda: server.reading().entrance.waiting == 1)
        assert strangers.room.held == 0
        assert WAITER_BYTES < server.reading().entrance.held_bytes < held
        reset_at_close(streams[0])
    await wait_for(lambda: not waiting(server))
    assert server.reading().entrance.held_bytes == 0


HOSTILE = {
    "a long line": (b"X-Padding: " + b"a" * 60_000 + b"\r\n", b""),
    "many lines": (b"".join(b"X-%d: %s\r\n" % (number, b"a" * 240) for number in range(240)), b""),
    "bytes behind it": (b"X-Padding: " + b"a" * 30_000 + b"\r\n", bytes(12_000)),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("is_known", [False, True], ids=["stranger", "known"])
async def test_what_somebody_who_waits_holds_is_bounded(
    server: CoordinatorServer, patient: None, kind: str, is_known: bool
) -> None:
    async with open_peer(server, *DOORS[0]):
        pass
    lines, behind = HOSTILE[kind]
    token = agent_token("main") if is_known else str(make_id("made up"))
    request = upgrade_request(AGENT_DOOR, token).replace(b"\r\n", b"\r\n" + lines, 1) + behind
    let_nobody_in(server)
    count = 17
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(open_connection(server)) for _ in range(count)]
        await wait_for(lambda: len(server.reactor.wires) == count)
        counted = list[int]()
        try:
            for number, stream in enumerate(streams):
                if number == 1:  # what is kept once for all is there
                    gc.collect()
                    tracemalloc.start()
                await stream.send_all(request)
                await wait_for(lambda: waiting(server) == number + 1)  # noqa: B023  # awaited in place
                counted.append(server.reading().entrance.held_bytes)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        # Of what came behind the kernel may have kept a part.
        each = (counted[-1] - counted[0]) / (count - 1)
        assert WAITER_BYTES < each < WAITER_BYTES + 1_000 + len(behind)
        # Half of a head beside it would be one that was kept; what the server did meanwhile is far less.
        assert held / (count - 1) < each + 30_000
        for stream in streams:
            reset_at_close(stream)
    await wait_for(lambda: not waiting(server))
    assert server.reading().entrance.held_bytes == 0


@pytest.mark.parametrize("is_known", [False, True], ids=["stranger", "known"])
async def test_a_request_that_is_too_large_to_wait_is_told_so(server: CoordinatorServer, is_known: bool) -> None:
    async with open_peer(server, *DOORS[0]):
        pass
    let_nobody_in(server)
    token = agent_token("main") if is_known else str(make_id("made up"))
    cookie = b"\r\nCookie: a=" + b"b" * MAX_REQUEST_BYTES
    async with open_connection(server) as stream:
        await stream.send_all(upgrade_request(AGENT_DOOR, token).replace(b"\r\n", cookie + b"\r\n", 1))
        answer = await read_answer(stream)
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert "shorter cookies" in answer.json()["message"]
    assert server.reading().entrance.held_bytes == 0


async def test_what_those_who_wait_hold_together_is_bounded(server: CoordinatorServer, patient: None) -> None:
    async with open_peer(server, *DOORS[0]):
        pass
    let_nobody_in(server)
    server.entrance._room.most = 2 * WAITER_BYTES + 1_000
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(open_connection(server)) for _ in range(3)]
        for stream in streams:
            await stream.send_all(upgrade_request(*DOORS[0]))
        assert (await read_answer(streams[2])).status == 503
        assert server.reading().entrance.waiting == 2
        let_everybody_in(server)
        for stream in streams[:2]:
            await upgraded(stream)
        assert server.reading().entrance.held_bytes == 0


async def test_one_caller_has_no_more_places_in_the_line_than_sockets(serve: Serve, patient: None) -> None:
    server = await serve(max_sockets_per_caller=2)
    async with open_peer(server, *DOORS[0]), AsyncExitStack() as stack:
        async with open_peer(server, *DOORS[1]):
            pass
        let_nobody_in(server)
        first = await stack.enter_async_context(open_connection(server))
        await first.send_all(upgrade_request(*DOORS[0]))
        await wait_for(lambda: server.reading().entrance.waiting == 1)
        for _ in range(3):
            assert await status_of(server, *DOORS[0]) == 429
        client = await stack.enter_async_context(open_connection(server))
        await client.send_all(upgrade_request(*DOORS[1]))  # others are not refused for that
        await wait_for(lambda: server.reading().entrance.waiting == 2)
        reset_at_close(first)
        await first.aclose()
        await wait_for(lambda: server.reading().entrance.waiting == 1)
        again = await stack.enter_async_context(open_connection(server))
        await again.send_all(upgrade_request(*DOORS[0]))
        await wait_for(lambda: server.reading().entrance.waiting == 2)
        let_everybody_in(server)
        for stream in (client, again):
            await upgraded(stream)
        assert not server.entrance._waiting_of
        assert await status_of(server, *DOORS[0]) == 429
        assert server.reading().entrance.put_off == 0


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
