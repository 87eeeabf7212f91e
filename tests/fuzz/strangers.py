"""Strangers at the doors of a whole relay, over real sockets: what one does follows from its number.

Some say nothing right, some begin as they should and go astray, some hold the region's key.  Whatever they do, every
packet that carries a seal must arrive under the key and at the place that it names (`Sealed`).
"""

import hashlib
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import trio

from derp.errors import ProtocolError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.connection import ClientConnection
from derp.protocol.frames import HEADER, FrameType
from derp.protocol.messages import ClosePeer, ForwardPacket, Ping, RecvPacket, SendPacket, WatchConns, encode
from derp.protocol.states import ClientState
from derp.protocol.upgrade import derp_request_headers, websocket_request_headers
from derp.protocol.websocket import WebSocketDecoder, encode_masked
from derp.transport.http import ClientHttp
from tests.derp.server.world import DISCO, HOST
from tests.fuzz.laws import mutate

# How long a stranger waits for a relay that reads no more or has nothing to say.  It decides nothing but what the
# stranger does next.
_PATIENCE_SECONDS: Final = 0.2
_SEAL_BYTES: Final = 16
_REQUESTS: Final = [
    b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n",
    b"GET /generate_204 HTTP/1.1\r\nHost: relay\r\nX-Tailscale-Challenge: abc\r\n\r\n",
    b"GET /derp/probe HTTP/1.0\r\n\r\n",
    b"HEAD /derp/latency-check HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n",
    b"POST /derp HTTP/1.1\r\nHost: relay\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /debug/ HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: relay\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]
_RECORDS: Final = [
    b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
    b"\x15\x03\x03\x00\x02\x02\x28",
    b"\x17\x03\x03\x00\x13" + bytes(19),
    b"\x16\x03\x01\x40\x00" + bytes(200),
]
# Fragments, control frames, wrong masks, lengths and opcodes; what is right is made where it is sent.
_MESSAGES: Final = [
    encode_masked(0x9, b"ping", b"abcd"),
    encode_masked(0xA, b"", b"abcd"),
    encode_masked(0x2, b"", b"\x00" * 4),
    b"\x02\x83abcd" + bytes(3),
    b"\x80\x80abcd",
    b"\x82\xfe\x00\x05abcd" + bytes(5),
    b"\x82\xff\x00\x00\x00\x01\x00\x00\x00\x00abcd",
    b"\x82\x05hello",
    b"\x88\x82abcd\x62\x8a",
]
FRAMES: Final = [
    HEADER.pack(FrameType.SEND_PACKET, 31) + bytes(31),
    HEADER.pack(FrameType.SEND_PACKET, 1 << 31),
    HEADER.pack(FrameType.CLIENT_INFO, 300) + bytes(300),
    HEADER.pack(FrameType.NOTE_PREFERRED, 1) + b"\x01",
    HEADER.pack(FrameType.NOTE_PREFERRED, 0),
    HEADER.pack(FrameType.PING, 8) + b"12345678",
    HEADER.pack(FrameType.PONG, 8) + b"12345678",
    HEADER.pack(FrameType.KEEP_ALIVE, 0),
    HEADER.pack(0x77, 70_000) + bytes(2000),
    HEADER.pack(0xFF, 3) + b"abc",
    encode(WatchConns()),
    encode(ClosePeer(bytes(32))),
    encode(ForwardPacket(bytes(32), bytes(32), b"nobody")),
]


def sealed(source: bytes, target: bytes, number: int, size: int = 0) -> bytes:
    """A packet that says from whom to whom it is."""
    body = source + target + number.to_bytes(8, "big") + bytes(size)
    return hashlib.sha256(body).digest()[:_SEAL_BYTES] + body


@dataclass(frozen=True, slots=True)
class Sealed:
    """Such a packet, whole."""

    source: bytes
    target: bytes
    number: int

    @classmethod
    def read(cls, packet: bytes) -> "Sealed | None":
        """None: nobody sealed it, or somebody changed it."""
        seal, body = packet[:_SEAL_BYTES], packet[_SEAL_BYTES:]
        if len(body) < 72 or hashlib.sha256(body).digest()[:_SEAL_BYTES] != seal:
            return None
        return cls(body[:32], body[32:64], int.from_bytes(body[64:72], "big"))


def check(packet: RecvPacket, own_key: bytes) -> "Sealed | None":
    """What a client got: AssertionError if it is somebody else's, or came under another's key."""
    seal = Sealed.read(packet.packet)
    assert seal is None or (seal.source, seal.target) == (packet.src, own_key), "a packet to, or from, a wrong key"
    return seal


@dataclass(frozen=True, slots=True)
class Place:
    """A relay's door, and what strangers there know."""

    port: int
    is_tls: bool
    mesh_key: MeshKey
    keys: tuple[NodePrivate, ...]  # strangers share a few, so that some have several connections


class Stranger:
    """One connection.  `live` it, then `leave`."""

    def __init__(self, place: Place, number: int, done: Counter[str]) -> None:
        self._random = Random(f"stranger {number}")
        self._place = place
        self._done = done
        self._private = self._random.choice(place.keys)
        self._key = self._private.public().raw
        self._stream: Any = None
        self._socket: trio.SocketStream | None = None
        self._frame: Callable[[bytes], bytes] = bytes
        self._decoder: WebSocketDecoder | None = None
        self._sent = 0

    async def live(self) -> None:
        """Whatever it does, until it has had enough or was thrown out."""
        try:
            with trio.move_on_after(30 * _PATIENCE_SECONDS):
                self._socket = self._stream = await trio.open_tcp_stream(HOST, self._place.port)
                await self._choose()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError, EOFError):
            self._done["thrown out"] += 1

    async def leave(self) -> None:
        """In one of several ways."""
        if self._socket is None:
            return
        match self._random.randrange(3):
            case 0:  # a reset
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case 1:  # its side first
                try:
                    await self._socket.send_eof()
                    with trio.move_on_after(_PATIENCE_SECONDS):
                        while await self._socket.receive_some(65536):
                            pass
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
        await trio.aclose_forcefully(self._socket)

    async def _choose(self) -> None:
        random = self._random
        if self._place.is_tls and random.random() < 0.8:
            await self._shake_hands()
        ways = (self._say_nothing, self._babble, self._ask, self._log_in, self._log_in, self._log_in, self._log_in)
        await random.choice(ways)()

    # --- ways

    async def _say_nothing(self) -> None:
        self._done["silent"] += 1

    async def _babble(self) -> None:
        self._done["babble"] += 1
        await self._write(mutate(self._random, [*_RECORDS, *_REQUESTS, *FRAMES, self._random.randbytes(64)]))
        await self._listen()

    async def _ask(self) -> None:
        self._done["http"] += 1
        for _ in range(self._random.randrange(1, 6)):
            await self._write(mutate(self._random, _REQUESTS))
        await self._listen()

    async def _log_in(self) -> None:
        random = self._random
        is_websocket, is_mesh = random.random() < 0.4, random.random() < 0.3
        core = ClientConnection(
            self._private, random_bytes=random.randbytes, mesh_key=self._place.mesh_key if is_mesh else None
        )
        await self._upgrade(core, is_websocket)
        while core.state is not ClientState.OPEN:
            output = b"".join(core.data_to_send())
            if output and random.random() < 0.1:
                output = mutate(random, [output])
            await self._write(self._frame(output))
            core.receive_data(await self._receive())
        self._done["mesh" if is_mesh else "websocket" if is_websocket else "derp"] += 1
        for _ in range(random.randrange(1, 12)):
            await self._act(core, is_mesh)

    async def _act(self, core: ClientConnection, is_mesh: bool) -> None:
        random = self._random
        match random.randrange(8):
            case 0 | 1 | 2:
                await self._write(self._frame(b"".join(self._packet() for _ in range(random.choice((1, 3, 60))))))
            case 3 if is_mesh:
                target = random.choice(self._place.keys).public().raw
                own = encode(WatchConns()), encode(ClosePeer(target)), self._forwarded(target)
                await self._write(self._frame(random.choice(own)))
            case 4:
                await self._write(self._frame(encode(Ping(random.randbytes(8))) * random.choice((1, 20, 400))))
            case 5 if random.random() < 0.3:
                await self._write(self._frame(mutate(random, [*FRAMES, self._packet()])))
            case 6 if random.random() < 0.3 and self._decoder is not None:
                await self._write(mutate(random, _MESSAGES))
            case _:
                for event in core.receive_data(await self._receive()):
                    if isinstance(event, RecvPacket) and check(event, self._key) is not None:
                        self._done["packets"] += 1

    def _packet(self) -> bytes:
        random = self._random
        target = random.choice((*(key.public().raw for key in self._place.keys), bytes(32)))
        self._sent += 1
        payload = DISCO if random.random() < 0.2 else sealed(self._key, target, self._sent, random.choice((0, 9, 1200)))
        return encode(SendPacket(target, payload))

    def _forwarded(self, target: bytes) -> bytes:
        source = self._random.randbytes(32)
        return encode(ForwardPacket(source, target, sealed(source, target, 0)))

    # --- bytes

    async def _shake_hands(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._stream = trio.SSLStream(self._socket, context, server_hostname=HOST, https_compatible=True)
        await self._stream.do_handshake()
        if self._random.random() < 0.1:
            self._stream = self._socket  # and below it something else
            self._done["below TLS"] += 1

    async def _upgrade(self, core: ClientConnection, is_websocket: bool) -> None:
        http = ClientHttp(head_only=True)
        if is_websocket:
            headers = websocket_request_headers("relay", self._random.randbytes(16))
        else:
            headers = derp_request_headers("relay")
        request = http.send_request("GET", "/derp", list(headers))
        await self._write(mutate(self._random, [request]) if self._random.random() < 0.1 else request)
        answer = None
        while answer is None:
            answer = http.receive_data(await self._read())
        if answer.status != 101:
            raise EOFError
        rest = http.trailing_data()
        if is_websocket:
            self._decoder = WebSocketDecoder(False, 1 << 20)
            self._frame = lambda data: encode_masked(0x2, data, self._random.randbytes(4))
            rest = self._unframed(rest)
        core.receive_data(rest)

    async def _write(self, data: bytes) -> None:
        """In pieces as they come."""
        random = self._random
        size = random.choice((1 << 20, 1 << 20, 1000, 40)) if len(data) < 5000 else 1 << 20
        with trio.move_on_after(_PATIENCE_SECONDS):
            for at in range(0, len(data), size):
                await self._stream.send_all(data[at : at + size])

    async def _read(self) -> bytes:
        data: bytes = b""
        with trio.move_on_after(_PATIENCE_SECONDS):
            data = await self._stream.receive_some(65536)
        if not data:
            raise EOFError
        return data

    async def _receive(self) -> bytes:
        data = await self._read()
        return self._unframed(data) if self._decoder is not None else data

    def _unframed(self, data: bytes) -> bytes:
        assert self._decoder is not None
        out = bytearray(len(data) + 1)
        return bytes(out[: self._decoder.receive_into(memoryview(data), out, 0)])

    async def _listen(self) -> None:
        with trio.move_on_after(_PATIENCE_SECONDS):
            while await self._stream.receive_some(65536):
                pass
