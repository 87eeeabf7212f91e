"""Peers that break a rule of each layer, read nothing or open too much: what it costs them, and nobody else."""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from derp.protocol.websocket import CloseCode, Opcode
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.rpc.varint import encode_varint
from tailnet.rpc.yamux import WINDOW_BYTES
from tailnet.server.server import CoordinatorServer
from tailnet.services.tailnet_rpc import MAX_TASKS_PER_CHANNEL
from tests.support.seeds import agent_token, make_id, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
    MANY_DOOR,
    TAILNET,
    Coordination,
    Peer,
    client_door,
    open_connection,
    open_peer,
    open_websocket,
    upgrade_request,
    upgraded,
    wait_for,
)

MAIN, GPU = peer_id("main"), peer_id("gpu")
ALICE = user_token("alice")
Unharmed = Callable[[], Awaitable[None]]
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, RST = 1, 8


def yamux(kind: int, flags: int, stream: int, length: int, body: bytes = b"", version: int = 0) -> bytes:
    return struct.pack(">BBHII", version, kind, flags, stream, length) + body


def last_go_away(received: bytes) -> int | None:
    """The code of a go-away in what the server sent, which has small frames only."""
    at = received.find(b"\x00\x03\x00\x00\x00\x00\x00\x00")
    return None if at < 0 else int.from_bytes(received[at + 8 : at + 12], "big")


@pytest.fixture
async def unharmed(server: CoordinatorServer) -> AsyncIterator[Unharmed]:
    """Two peers that met before; the check: updates still flow between them."""
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, client_door(MAIN), ALICE) as client,
    ):
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        await theirs.tunnel(MAIN)
        await mine.update(agent_peer.node(MAIN))
        await theirs.next_node()
        homes = iter(range(1000))

        async def check() -> None:
            sent = await mine.update(agent_peer.node(MAIN, preferred_derp=next(homes) + 1))
            assert await theirs.next_node() == (MAIN, sent)

        yield check
        await check()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\x82\x05hello", CloseCode.PROTOCOL_ERROR),
        (b"\xc2\x80\x00\x00\x00\x00", CloseCode.PROTOCOL_ERROR),
        (b"\x81\x80\x00\x00\x00\x00", CloseCode.UNSUPPORTED_DATA),
        (b"\x82\xff\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x00", CloseCode.MESSAGE_TOO_BIG),
    ],
    ids=["unmasked", "reserved bit", "text", "too long"],
)
async def test_bad_websocket_frames(server: CoordinatorServer, unharmed: Unharmed, raw: bytes, code: CloseCode) -> None:
    async with open_websocket(server, AGENT_DOOR, agent_token("gpu")) as hostile:
        await hostile.write_raw(raw)
        await hostile.read_to_end()
        assert hostile.close_code == code
        assert hostile.close_text


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (yamux(PING, SYN, 0, 0, version=1), "yamux version 1"),
        (yamux(9, 0, 0, 0), "unknown yamux frame type"),
        (yamux(DATA, SYN, 1, WINDOW_BYTES + 1), "exceed its window"),
        (yamux(WINDOW_UPDATE, SYN, 2, 0), "a number that is ours"),
        (yamux(DATA, 0, 99, WINDOW_BYTES + 1), "which is not open"),
        (yamux(WINDOW_UPDATE, SYN, 1, 0) + yamux(WINDOW_UPDATE, 0, 1, 0xFFFFFFFF), "beyond 32 bits"),
        (yamux(GO_AWAY, 0, 0, 1), "go away 1"),
    ],
    ids=["version", "type", "overrun", "parity", "strays", "window", "go away"],
)
async def test_bad_yamux_frames(server: CoordinatorServer, unharmed: Unharmed, frames: bytes, said: str) -> None:
    async with open_websocket(server, AGENT_DOOR, agent_token("gpu")) as hostile:
        await hostile.write(frames)
        received = await hostile.read_to_end()
        assert hostile.close_code == CloseCode.PROTOCOL_ERROR
        assert said in hostile.close_text
        if "go away" not in said:
            assert last_go_away(received) == 1
    assert server.relay_statistics().closed["protocol_error"] == 1


def drpc(kind: int, message: int, body: bytes = b"", *, done: bool = True) -> bytes:
    return bytes([kind << 1 | done, 1]) + encode_varint(message) + encode_varint(len(body)) + body


def coordinating(wire: bytes) -> bytes:
    """A Coordinate call, and behind it these bytes, in frames that its window takes."""
    wire = drpc(1, 1, (TAILNET + "Coordinate").encode()) + wire
    pieces = [wire[at : at + 16_384] for at in range(0, len(wire), 16_384)]
    return yamux(WINDOW_UPDATE, SYN, 1, 0) + b"".join(yamux(DATA, 0, 1, len(each), each) for each in pieces)


def called_and_dropped(stream: int) -> bytes:
    body = drpc(1, 1, b"/no/such/rpc")
    opened = yamux(WINDOW_UPDATE, SYN, stream, 0) + yamux(DATA, 0, stream, len(body), body)
    return opened + yamux(WINDOW_UPDATE, RST, stream, 0)


FLOODS = {
    "pings": (yamux(PING, SYN, 0, 7) * 3000, "carry nothing"),
    "pongs": (yamux(PING, 2, 0, 7) * 3000, "carry nothing"),
    "go-aways": (yamux(GO_AWAY, 0, 0, 0) * 3000, "carry nothing"),
    "windows": (yamux(WINDOW_UPDATE, SYN, 1, 0) + yamux(WINDOW_UPDATE, 0, 1, 1) * 3000, "carry nothing"),
    "windows for nobody": (yamux(WINDOW_UPDATE, 0, 9, 1 << 17) * 3000, "carry nothing"),
    "empty frames": (yamux(WINDOW_UPDATE, SYN, 1, 0) + yamux(DATA, 0, 1, 0) * 3000, "carry nothing"),
    "bytes": (yamux(WINDOW_UPDATE, SYN, 1, 0) + yamux(DATA, 0, 1, 1, b"\x03") * 10_000, "next to nothing"),
    "calls": (b"".join(map(called_and_dropped, range(1, 10_001, 2))), "more than"),
    "empty messages": (coordinating(b"".join(drpc(2, n) for n in range(2, 40_000))), "messages"),
    "messages in bytes": (coordinating(b"".join(drpc(2, 2, b"x", done=False) for _ in range(40_000))), "messages"),
}


@pytest.mark.parametrize("what", FLOODS)
async def test_floods_of_every_layer_are_ended_counted_and_logged(
    server: CoordinatorServer, unharmed: Unharmed, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames, said = FLOODS[what]
    caplog.set_level("INFO")
    async with open_websocket(server, AGENT_DOOR, agent_token("gpu")) as hostile:
        with suppress(trio.BrokenResourceError):  # it is turned away in the middle
            for at in range(0, len(frames), 60_000):
                await hostile.write(frames[at : at + 60_000])
        await hostile.read_to_end()
        await wait_for(lambda: server.relay_statistics().closed["flood"])
    assert server.relay_statistics().closed["flood"] == 1
    [line] = [each for each in caplog.messages if each.startswith(f"x agent gpu {GPU}: ")]
    assert said in line


@pytest.mark.parametrize("body", [b"\xff" * 40, b"\x05\x01\x01\x00", b"\x03\x01\x01\xff\xff\xff\xff\x7f"])
async def test_bad_drpc_frames_cost_the_stream_alone(
    server: CoordinatorServer, unharmed: Unharmed, body: bytes
) -> None:
    async with open_websocket(server, AGENT_DOOR, agent_token("gpu")) as hostile:
        await hostile.write(yamux(WINDOW_UPDATE, SYN, 1, 0) + yamux(DATA, 0, 1, len(body), body))
        await hostile.write(yamux(PING, SYN, 0, 7))
        received = b""
        while yamux(PING, 2, 0, 7) not in received:
            received += await hostile.read()
        assert yamux(WINDOW_UPDATE, RST, 1, 0) in received


async def test_bad_messages_cost_the_call_alone(server: CoordinatorServer, unharmed: Unharmed) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("gpu")) as hostile:
        call = await hostile.open(AGENT + "GetManifest")
        await call.send_bytes(b"\xff\xff")
        assert "not a GetManifestRequest" in str(await call.wait_ended())
        call = await hostile.open(AGENT + "GetManifest")
        await call.close_send()
        assert "before its request" in str(await call.wait_ended())
        await hostile.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)


async def test_garbage_behind_the_request_ends_that_connection_alone(
    server: CoordinatorServer, unharmed: Unharmed
) -> None:
    # A caller who is not in memory, so that the decision is a task of its own.
    for name in ("gpu", "gpu"):
        async with open_connection(server) as stream:
            await stream.send_all(upgrade_request(AGENT_DOOR, agent_token(name)) + b"\x82\x05hello")
            websocket = await upgraded(stream)
            assert await websocket.read_to_end() == b""
    await unharmed()


async def test_half_open_and_too_many_calls(server: CoordinatorServer, unharmed: Unharmed) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("gpu")) as hostile:
        calls = [await hostile.open(AGENT + "GetManifest") for _ in range(250)]
        refused = calls[MAX_TASKS_PER_CHANNEL:]
        for call in refused:
            assert f"more than {MAX_TASKS_PER_CHANNEL} calls" in str(await call.wait_ended())
        assert server.reading().refused_calls == len(refused)
        await calls[0].send(agent.GetManifestRequest())
        assert (await calls[0].receive(agent.Manifest)).agent_id == GPU
        # The place that this answer left is there for the next one.
        await hostile.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
    async with open_websocket(server, AGENT_DOOR, agent_token("gpu")) as hostile_socket:
        await hostile_socket.write(b"".join(yamux(WINDOW_UPDATE, SYN, 2 * n + 1, 0) for n in range(1000)))
        received = b""
        while len(received) < 12 * 1000:
            received += await hostile_socket.read()
        assert sum(received[at + 3] == RST for at in range(0, len(received), 12)) == 1000 - 256


async def test_a_stream_that_nobody_reads_is_dropped(server: CoordinatorServer, unharmed: Unharmed) -> None:
    """The peer reads its socket but gives its Coordinate stream no window: after 4 MiB it is out."""
    async with (
        open_peer(server, AGENT_DOOR, agent_token("gpu")) as talker,
        open_websocket(server, client_door(GPU), ALICE) as deaf,
    ):
        body = bytes([3, 1, 1, 0x24]) + (TAILNET + "Coordinate").encode()
        request = tailnet.CoordinateRequest(add_tunnel={"id": GPU}).SerializeToString()
        body += bytes([5, 1, 2, len(request)]) + request
        await deaf.write(yamux(DATA, SYN, 1, len(body), body))
        await wait_for(lambda: server.reading().statistics.tunnels == 2)
        call = await talker.coordinate()

        async def read_on() -> None:
            while await deaf.read():
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on)
            await talk_until_overflow(server, talker, call)
            nursery.cancel_scope.cancel()


async def test_a_socket_that_nobody_reads_is_dropped(server: CoordinatorServer, unharmed: Unharmed) -> None:
    """It even grants a window of 4 GiB; what piles up is bounded all the same."""
    async with (
        open_peer(server, AGENT_DOOR, agent_token("gpu")) as talker,
        open_peer(server, client_door(GPU), ALICE) as deaf,
    ):
        call = await deaf.coordinate()
        await call.tunnel(GPU)
        await wait_for(lambda: server.reading().statistics.tunnels == 2)
        await deaf.websocket.write(yamux(WINDOW_UPDATE, 0, call.id, 0xFF000000))
        deaf.stop_reading()
        await talk_until_overflow(server, talker, await talker.coordinate())


async def talk_until_overflow(server: CoordinatorServer, talker: Peer, call: Coordination) -> None:
    homes = 0
    server.reactor.write_seconds = 0.0  # on a slow machine it would be dropped for taking nothing, before it overflows
    with trio.fail_after(60):
        while not server.reading().overflows:
            homes += 1
            names = {f"{homes}-{n}": 0.1 for n in range(900)}
            await call.update(talker.node(GPU, derp_latency=names))
    assert server.reading().statistics.departures["failed update"] == 1


@pytest.mark.parametrize(
    "text",
    ['{"id":1e999}', '{"a":' + "[" * 60_000, "[]", "nonsense", '{"key":"nodekey:00"}', "\ud800 {}", "{" * 70_000],
    ids=["infinity", "deep", "array", "nonsense", "key", "not UTF-8", "too long"],
)
async def test_bad_nodes_of_version_1(
    server: CoordinatorServer, unharmed: Unharmed, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_websocket(server, "/api/v2/workspaceagents/me/coordinate", agent_token("gpu")) as hostile:
        await hostile.write(text.encode("utf-8", "surrogatepass"))
        assert await hostile.read_to_end() == b""
    assert not [record for record in caplog.records if record.exc_info], "a defect of ours, not a fault of the peer"


async def test_a_time_that_version_1_cannot_say_harms_nobody(server: CoordinatorServer, unharmed: Unharmed) -> None:
    old = f"/api/v2/workspaceagents/{make_id('gpu')}/coordinate"
    async with (
        open_websocket(server, old, ALICE) as old_client,
        open_peer(server, AGENT_DOOR, agent_token("gpu")) as strange,
    ):
        node = strange.node(GPU, derp_latency={"1-v4": float("inf"), "2-v4": 0.5})
        node.as_of.seconds = 1 << 62
        await (await strange.coordinate()).update(node)
        received = await old_client.read()
        assert b'"as_of":"0001-01-01T00:00:00Z"' in received
        assert b'"derp_latency":{"2-v4":0.5}' in received


@pytest.mark.stores("sqlite")  # whose file is written over
async def test_a_store_that_fails_keeps_live_peers_meeting(
    server: CoordinatorServer, unharmed: Unharmed, filled_url: str
) -> None:
    async with (
        open_peer(server, MANY_DOOR, ALICE) as many,
        open_peer(server, AGENT_DOOR, agent_token("gpu")) as agent_peer,
    ):
        call = await many.coordinate()
        await call.tunnel(MAIN)
        assert (await call.next_node())[0] == MAIN
        path = Path(filled_url.removeprefix("sqlite:///"))
        for each in path.parent.glob("tailnet.db*"):
            # Not cut off first: SQLite has the log's index mapped, and would die of a bus error.
            with each.open("r+b") as file:
                file.write(b"this is no store" * 1000)
        # What agents report again anyway is lost without an error, which would end them.
        stats = agent.UpdateStatsRequest(stats={"connection_count": 1})
        await agent_peer.call(AGENT + "UpdateStats", stats, agent.UpdateStatsResponse)
        metadata = agent.BatchUpdateMetadataRequest(metadata=[{"key": "a", "result": {"value": "b"}}])
        await agent_peer.call(AGENT + "BatchUpdateMetadata", metadata, agent.BatchUpdateMetadataResponse)
        await unharmed()
        # Somebody of whom nothing is known cannot be decided about; that is not "no permission".
        server.callers.store._recent.clear()
        server.callers.store._checked_at = -1e9
        await call.tunnel(GPU)
        while True:
            response = await call.response()
            if response.error:
                break
        assert "try again" in response.error
        assert await call.wait_ended() is None


async def test_text_messages_and_pings_of_the_websocket(server: CoordinatorServer, unharmed: Unharmed) -> None:
    async with open_websocket(server, AGENT_DOOR, agent_token("gpu")) as peer:
        await peer.write(b"are you there", Opcode.PING)
        await peer.write(yamux(PING, SYN, 0, 5))
        assert await peer.read() == yamux(PING, 2, 0, 5)
        assert peer.pongs == [b"are you there"]
