"""Peers that break a rule of each layer: what it costs them, and that it costs nobody else anything."""

import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio

from tests.interop.conftest import World
from tests.interop.test_tailnet_leaving import meet
from tests.interop.test_tailnet_meeting import CLIENT_ADDRESS, start_client
from tests.support.tailnet_peers import TAILNET, TailnetPeer, TailnetPeers
from tests.support.tailnet_servers import TAILSCALE_PREFIX, Agent, address

pytestmark = pytest.mark.interop

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
WINDOW_BYTES = 256 * 1024
MESSAGE_CAP = 4 << 20
COORDINATE = (TAILNET + "Coordinate").encode()


def yamux(kind: int, flags: int, stream: int, length: int, body: bytes = b"", version: int = 0) -> bytes:
    return struct.pack(">BBHII", version, kind, flags, stream, length) + body


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def drpc(kind: int, message: int, data: bytes, *, done: bool = True, stream: int = 1) -> bytes:
    return bytes([kind << 1 | done]) + varint(stream) + varint(message) + varint(len(data)) + data


INVOKE_COORDINATE = drpc(1, 1, COORDINATE)


def many(world: World) -> int:
    """A thousand streams; fewer for the baseline, whose yamux 0.1.2 spins in Read between the end of a session and
    that of its streams: a goroutine each, which starves the process for seconds."""
    return 1000 if world.server.kind == "ours" else 100


Check = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
async def bystanders(world: World, program: TailnetPeers) -> Check:
    """Two peers that met before the attack.  The check: updates and packets still flow between them."""
    target = world.agent()
    agent, client, _, _ = await meet(program, world, target)
    await agent.open_relay()
    await client.open_relay()

    async def unharmed() -> None:
        sent = await agent.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=["10.0.0.1:77"])
        assert await client.next_node() == (target.id, sent)
        await client.send_packet(agent, b"still here")
        assert await agent.packet() == (client.node_key, b"still here")

    return unharmed


async def hostile_socket(world: World, program: TailnetPeers) -> TailnetPeer:
    peer = program.peer("hostile")
    agent = world.agent()
    path = f"/api/v2/workspaceagents/{agent.id}/coordinate"
    await peer.dial_raw(world.server, world.alice.token, path)
    return peer


async def hostile_session(world: World, program: TailnetPeers) -> TailnetPeer:
    peer = program.peer("hostile")
    await peer.dial_client(world.server, world.alice, world.agent())
    return peer


MASKED_EMPTY = b"\x80\x00\x00\x00\x00"

BAD_WEBSOCKET = {
    "unmasked": b"\x82\x05hello",
    "reserved bit": b"\xc2" + MASKED_EMPTY,
    "reserved opcode": b"\x83" + MASKED_EMPTY,
    "reserved control opcode": b"\x8b" + MASKED_EMPTY,
    "ping of 126 bytes": b"\x89\xfe\x00\x7e" + bytes(4 + 126),
    "fragmented ping": b"\x09" + MASKED_EMPTY,
    "continuation of nothing": b"\x80" + MASKED_EMPTY,
    "message inside a message": b"\x02" + MASKED_EMPTY + b"\x82" + MASKED_EMPTY,
    "length with the top bit": b"\x82\xff" + b"\xff" * 8 + bytes(4),
    "HTTP again": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("what", BAD_WEBSOCKET)
async def test_bad_websocket_frames_end_the_connection(
    world: World, program: TailnetPeers, bystanders: Check, what: str
) -> None:
    hostile = await hostile_socket(world, program)
    await hostile.write(BAD_WEBSOCKET[what], as_="tcp")
    code, _ = await hostile.wait_raw_closed()
    # 1002 is what RFC 6455 has for it; genuine servers sometimes say 1000 or hang up without a word.
    assert code in (-1, 1000, 1002, 1009), what
    await bystanders()


async def test_text_is_not_the_protocol(world: World, program: TailnetPeers, bystanders: Check) -> None:
    hostile = await hostile_socket(world, program)
    await hostile.write(yamux(PING, SYN, 0, 7), as_="text")
    code, _ = await hostile.wait_raw_closed()
    assert code == 1003
    await bystanders()


OVERRUN = yamux(DATA, SYN, 1, WINDOW_BYTES + 1, bytes(WINDOW_BYTES + 1))

BAD_YAMUX = {
    "version 1": yamux(DATA, SYN, 1, 0, version=1),
    "type 4": yamux(4, 0, 0, 0),
    "noise": bytes(range(1, 250)),
    "window overrun": OVERRUN,
    "a length of 4 GiB": yamux(DATA, SYN, 1, 0xFFFF_FFFF),
    "the same stream twice": yamux(WINDOW_UPDATE, SYN, 1, 0) * 2,
}


@pytest.mark.parametrize("what", BAD_YAMUX)
async def test_bad_yamux_frames_end_the_session(
    world: World, program: TailnetPeers, bystanders: Check, what: str
) -> None:
    hostile = await hostile_socket(world, program)
    await hostile.write(BAD_YAMUX[what])
    await hostile.wait_raw_closed()
    await bystanders()


async def test_frames_for_streams_that_are_not_there_harm_nobody(
    world: World, program: TailnetPeers, bystanders: Check
) -> None:
    hostile = await hostile_socket(world, program)
    stray = [
        yamux(kind, flags, stream, 0) for kind in (DATA, WINDOW_UPDATE) for flags in (0, FIN, RST) for stream in (9, 8)
    ]
    await hostile.write(b"".join(stray) + yamux(DATA, 0, 11, 5, b"hello"))
    await bystanders()
    await hostile.hang_up()


async def test_yamux_frames_in_any_packing_are_one_stream_of_bytes(
    world: World, program: TailnetPeers, bystanders: Check
) -> None:
    hostile = await hostile_socket(world, program)
    for byte in yamux(PING, SYN, 0, 0x01020304):
        await hostile.write(bytes([byte]))
    assert await hostile.raw_bytes(12) == yamux(PING, ACK, 0, 0x01020304)
    await hostile.write(yamux(PING, SYN, 0, 5) * 20)
    assert await hostile.raw_bytes(240) == b"".join([yamux(PING, ACK, 0, 5)] * 20)
    await bystanders()


BAD_DRPC = {
    "unknown kind": drpc(9, 1, b"x"),
    "message before invoke": drpc(2, 1, b"x"),
    "an endless varint": b"\x03" + b"\xff" * 32,
    "stream id nought": drpc(1, 1, COORDINATE, stream=0),
    "ids that go back": INVOKE_COORDINATE + drpc(2, 5, b"") + drpc(2, 4, b""),
    "invoke twice": INVOKE_COORDINATE + drpc(1, 2, COORDINATE),
    "a body that is too long": INVOKE_COORDINATE + b"\x05\x01\x02" + varint(MESSAGE_CAP * 4),
    "metadata that does not parse": drpc(7, 1, b"\xff\xff") + drpc(1, 2, COORDINATE),
    "protobuf that does not parse": INVOKE_COORDINATE + drpc(2, 2, b"\xff\xff\xff"),
    "a node that does not parse": INVOKE_COORDINATE + drpc(2, 2, b"\x0a\x04\x0a\x02\x08\xff"),
    "cancel before anything": drpc(4, 1, b""),
}


@pytest.mark.parametrize("what", BAD_DRPC)
async def test_bad_calls_end_themselves_and_not_the_session(
    world: World, program: TailnetPeers, bystanders: Check, what: str
) -> None:
    hostile = await hostile_session(world, program)
    await hostile.ask("half_open", count=3, hex=BAD_DRPC[what].hex())
    assert (await hostile.ask("ping"))["seconds"] >= 0
    assert "token" in await hostile.call(TAILNET + "RefreshResumeToken")
    await bystanders()


async def test_a_message_above_the_cap_is_not_gathered(world: World, program: TailnetPeers, bystanders: Check) -> None:
    hostile = await hostile_session(world, program)
    pieces = b"".join(drpc(2, 2, bytes(64 << 10), done=False) for _ in range(80))  # 5 MiB of a 4 MiB message
    await hostile.ask("half_open", count=1, hex=(INVOKE_COORDINATE + pieces).hex())
    assert "token" in await hostile.call(TAILNET + "RefreshResumeToken")
    await bystanders()


@pytest.mark.parametrize("data", [b"", INVOKE_COORDINATE, INVOKE_COORDINATE[:9]], ids=["silent", "invoked", "cut"])
async def test_a_thousand_half_open_calls(world: World, program: TailnetPeers, bystanders: Check, data: bytes) -> None:
    hostile = await hostile_session(world, program)
    await hostile.ask("half_open", count=many(world), hex=data.hex())
    await bystanders()
    await hostile.hang_up()
    await bystanders()


async def test_a_thousand_coordinations_of_one_agent(world: World, program: TailnetPeers, bystanders: Check) -> None:
    """Each takes over from the one before; what is left is one peer that works."""
    target = world.agent()
    hostile = program.peer("hostile")
    await hostile.dial_agent(world.server, target)
    node = b"\x0a\x02\x0a\x00"  # update_self with an empty node
    await hostile.ask("half_open", count=many(world), hex=(INVOKE_COORDINATE + drpc(2, 2, node)).hex())
    await hostile.hang_up()
    await bystanders()
    agent, client, _, _ = await meet(program, world, target)
    assert agent.id != client.id


async def test_a_peer_that_never_reads_is_put_out_and_delays_nobody(world: World, program: TailnetPeers) -> None:
    target = world.agent()
    agent, client, _, _ = await meet(program, world, target)
    stalled = program.peer("stalled")
    await stalled.dial_client(world.server, world.alice, target, receive_buffer=4096)
    await stalled.coordinate()
    await stalled.update(addresses=[CLIENT_ADDRESS])
    await stalled.add_tunnel(target.id)
    stalled_id, _ = await agent.next_node()
    await stalled.next_node()
    await stalled.ask("pause_reading")
    await flood_until_gone(agent, target, stalled_id)
    last = await agent.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=["10.1.1.1:1"])
    while (await client.next_node())[1] != last:
        pass
    # A new client is served as ever.
    fresh, _ = await start_client(program, world, target, "fresh")
    await fresh.add_tunnel(target.id)
    assert await fresh.next_node() == (target.id, last)


async def flood_until_gone(agent: TailnetPeer, target: Agent, stalled: object) -> None:
    """Update, with nodes of some 2 KB, until the stalled peer is said to be gone."""
    endpoints = [f"10.200.100.1:{port}" for port in range(10_000, 10_100)]

    gone = trio.Event()

    async def flood() -> None:
        while not gone.is_set():  # not cancelled: an update that is half done would come later than the next
            await agent.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=endpoints)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        update = await agent.next_update()
        assert update.id == stalled
        assert update.kind in ("DISCONNECTED", "LOST")
        gone.set()
