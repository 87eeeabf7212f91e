"""Agents and clients inside the test's own process: tailnet/rpc/connection.py's client side over a real websocket.

`open_peer(server, path, token)` dials a running CoordinatorServer; a refused upgrade is raised as RefusedUpgrade with
the answer.  `peer.call` is one unary RPC, `peer.open` a stream of messages.  Every wait is bounded by PATIENCE_SECONDS.
The genuine layers' twin of this is tailnet_peers.py.
"""

import json
import math
import os
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import trio
from google.protobuf.message import Message

from derp.keys import NodePrivate
from derp.protocol.websocket import CloseCode, Opcode, WebSocketDecoder, encode_masked, parse_close
from tailnet.errors import RemoteProtocolError, RpcError
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.rpc.connection import ClientConnection, ConnectionEvent
from tailnet.rpc.yamux import SessionLimits
from tailnet.server.server import CoordinatorServer
from tailnet.types import TAILSCALE_SERVICE_PREFIX, PeerID

PATIENCE_SECONDS = 120.0
TAILNET = "/coder.tailnet.v2.Tailnet/"
AGENT = "/coder.agent.v2.Agent/"
AGENT_DOOR = "/api/v2/workspaceagents/me/rpc?version=2.4"
MANY_DOOR = "/api/v2/tailnet?version=2.3"
# The client side asks for no signs of life of its own, unless a test wants it to.
QUIET = SessionLimits(ping_seconds=None)

M = TypeVar("M", bound=Message)
T = TypeVar("T")


def client_door(agent_id: bytes, more: str = "version=2.0") -> str:
    return f"/api/v2/workspaceagents/{PeerID(agent_id)}/coordinate?{more}"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `rest` is what came behind it."""

    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class RefusedUpgrade(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.body!r}")
        self.answer = answer


class Ended(Exception):
    """The stream ended; `error` is the RpcError or None after an orderly end."""

    def __init__(self, error: RpcError | None) -> None:
        super().__init__(str(error))
        self.error = error


async def connect(server: CoordinatorServer, context: ssl.SSLContext | None = None) -> trio.abc.Stream:
    """A connection to the server, plain or under TLS."""
    stream = await trio.open_tcp_stream(server.listening[0].host, server.listening[0].port)
    if context is None:
        return stream
    secured = trio.SSLStream(stream, context, server_hostname="127.0.0.1", https_compatible=True)
    await secured.do_handshake()
    return secured


async def read_answer(stream: trio.abc.ReceiveStream, received: bytes = b"") -> Answer:
    """The next answer, of Content-Length or chunked, on a connection that lives on."""
    while b"\r\n\r\n" not in received:
        chunk = await stream.receive_some()
        if not chunk:
            raise EOFError(f"the server hung up after {received!r}")
        received += chunk
    head, _, rest = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split()[1])
    size = int(headers.get("content-length", 0))
    while len(rest) < size:
        rest += await stream.receive_some()
    return Answer(status, headers, rest[:size], rest[size:])


def upgrade_request(target: str, token: str = "", **headers: str) -> bytes:
    lines = {"Host": "tailnet.test", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    lines["Sec-WebSocket-Key"] = b64encode(os.urandom(16)).decode()
    if token:
        lines["Coder-Session-Token"] = token
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items())]
    return ("\r\n".join(head) + "\r\n\r\n").encode()


class WebSocket:
    """The client's end of a websocket, on any stream: `write` sends a message, `read` gives bytes, b"" at the end."""

    def __init__(self, stream: trio.abc.Stream, rest: bytes = b"") -> None:
        self.stream = stream
        self._rest = rest
        self._decoder = WebSocketDecoder(expect_masked=False, max_message_bytes=1 << 30)
        self._buffer = bytearray(1 << 20)
        self._writing = trio.Lock()
        self.close_code: int | None = None
        self.close_text = ""
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []

    async def write(self, data: bytes, opcode: Opcode = Opcode.BINARY) -> None:
        await self.write_raw(encode_masked(opcode, data, os.urandom(4)))

    async def write_raw(self, data: bytes) -> None:
        async with self._writing:
            await self.stream.send_all(data)

    async def read(self) -> bytes:
        while True:
            data, self._rest = self._rest or await self._receive(), b""
            if not data:
                return b""
            end = self._decoder.receive_into(memoryview(data), self._buffer, 0)
            for opcode, payload in self._decoder.control:
                if opcode == Opcode.CLOSE:
                    self.close_code, self.close_text = parse_close(payload)
                else:
                    (self.pings if opcode == Opcode.PING else self.pongs).append(bytes(payload))
            self._decoder.control.clear()
            if end:
                return bytes(self._buffer[:end])
            if self.close_code is not None:
                return b""

    async def _receive(self) -> bytes:
        try:
            return await self.stream.receive_some(64 * 1024)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def read_to_end(self) -> bytes:
        """Everything until the server closes."""
        received = b""
        with trio.fail_after(PATIENCE_SECONDS):
            while chunk := await self.read():
                received += chunk
        return received


async def dial(
    server: CoordinatorServer, target: str, token: str = "", *, context: ssl.SSLContext | None = None, **headers: str
) -> WebSocket:
    """Dial and upgrade; the caller closes the stream.  Raises RefusedUpgrade."""
    with trio.fail_after(PATIENCE_SECONDS):
        stream = await connect(server, context)
        try:
            await stream.send_all(upgrade_request(target, token, **headers))
            return await upgraded(stream)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise


@asynccontextmanager
async def open_connection(
    server: CoordinatorServer, context: ssl.SSLContext | None = None
) -> AsyncIterator[trio.abc.Stream]:
    """`connect`, closed at the end; within the patience of tests."""
    stream = await connect(server, context)
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            yield stream
    finally:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_websocket(
    server: CoordinatorServer, target: str, token: str = "", *, context: ssl.SSLContext | None = None, **headers: str
) -> AsyncIterator[WebSocket]:
    """`dial`, closed at the end."""
    websocket = await dial(server, target, token, context=context, **headers)
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            yield websocket
    finally:
        await trio.aclose_forcefully(websocket.stream)


async def upgraded(stream: trio.abc.Stream) -> WebSocket:
    """The websocket of an upgrade that was asked for.  Raises RefusedUpgrade."""
    answer = await read_answer(stream)
    if answer.status != 101:
        raise RefusedUpgrade(answer)
    return WebSocket(stream, answer.rest)


class Call:
    """One call in hand.  `receive` gives messages in order and raises Ended."""

    def __init__(self, peer: "Peer", call_id: int) -> None:
        self._peer = peer
        self.id = call_id
        self.put, self._got = trio.open_memory_channel[bytes](math.inf)
        self.ended = trio.Event()
        self.error: RpcError | None = None

    async def send(self, message: Message) -> None:
        await self.send_bytes(message.SerializeToString())

    async def send_bytes(self, payload: bytes) -> None:
        assert self._peer.connection.send_message(self.id, payload)
        await self._peer.flush()

    async def receive(self, kind: type[M]) -> M:
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                return kind.FromString(await self._got.receive())
            except trio.EndOfChannel:
                raise Ended(self.error) from None

    def waiting(self) -> int:
        """Messages that came and were not asked for."""
        return self._got.statistics().current_buffer_used

    async def wait_ended(self) -> RpcError | None:
        with trio.fail_after(PATIENCE_SECONDS):
            await self.ended.wait()
        return self.error

    async def cancel(self) -> None:
        self._peer.connection.cancel(self.id)
        await self._peer.flush()

    async def close_send(self) -> None:
        self._peer.connection.close_send(self.id)
        await self._peer.flush()


class Coordination(Call):
    """A Coordinate call, with the words of its protocol.  Updates come one by one, whatever responses held them."""

    def __init__(self, peer: "Peer", call_id: int) -> None:
        super().__init__(peer, call_id)
        self._updates: list[tailnet.CoordinateResponse.PeerUpdate] = []

    async def request(self, **fields: Any) -> None:
        await self.send(tailnet.CoordinateRequest(**fields))

    async def update(self, node: tailnet.Node) -> tailnet.Node:
        await self.request(update_self={"node": node})
        return node

    async def tunnel(self, agent_id: bytes) -> None:
        await self.request(add_tunnel={"id": agent_id})

    async def response(self) -> tailnet.CoordinateResponse:
        return await self.receive(tailnet.CoordinateResponse)

    async def next(self) -> tailnet.CoordinateResponse.PeerUpdate:
        while not self._updates:
            response = await self.response()
            assert not response.error, response.error
            self._updates.extend(response.peer_updates)
        return self._updates.pop(0)

    async def next_node(self) -> tuple[bytes, tailnet.Node]:
        update = await self.next()
        assert update.kind == tailnet.CoordinateResponse.PeerUpdate.Kind.NODE, update
        return update.id, update.node

    async def error_text(self) -> str:
        return (await self.response()).error


class Peer:
    """One RPC connection.  open_peer makes and closes it."""

    def __init__(self, websocket: WebSocket, limits: SessionLimits = QUIET) -> None:
        self.websocket = websocket
        self.private = NodePrivate.generate()
        self.connection = ClientConnection(now=trio.current_time(), limits=limits)
        self.closed = trio.Event()
        self.pongs = trio.Event()
        self._calls: dict[int, Call] = {}
        self._reading = trio.Event()
        self._reading.set()

    def node(self, peer_id: bytes, **fields: Any) -> tailnet.Node:
        """A node as a genuine peer of that id would send it."""
        address = f"{PeerID(peer_id).address(TAILSCALE_SERVICE_PREFIX)}/128"
        known = {
            "id": 7,
            "key": convert.node_key_bytes(self.private.public()),
            "disco": f"discokey:{'ab' * 32}",
            "preferred_derp": 999,
            "addresses": [address],
            "allowed_ips": [address],
        }
        return tailnet.Node(**{**known, **fields})

    async def call(self, rpc: str, request: Message, response: type[M]) -> M:
        """One unary RPC.  Raises RpcError."""
        call = Call(self, self.connection.call(rpc, request.SerializeToString()))
        self._calls[call.id] = call
        await self.flush()
        try:
            answer = await call.receive(response)
        except Ended as ended:
            raise ended.error or RpcError("the call ended without an answer") from None
        self.connection.close(call.id)
        await self.flush()
        return answer

    async def stream(self, rpc: str, request: Message) -> Call:
        """One request, many answers."""
        call = self._calls[0] = Call(self, self.connection.call(rpc, request.SerializeToString()))
        self._calls[call.id] = self._calls.pop(0)
        await self.flush()
        return call

    async def open(self, rpc: str) -> Call:
        """A call that sends what and when the test likes."""
        call = Call(self, self.connection.open_call(rpc))
        self._calls[call.id] = call
        await self.flush()
        return call

    async def coordinate(self) -> Coordination:
        call = Coordination(self, self.connection.open_call(TAILNET + "Coordinate"))
        self._calls[call.id] = call
        await self.flush()
        return call

    async def flush(self) -> None:
        data = b"".join(self.connection.data_to_send())
        if data:
            # A call that ended because the connection did says so by its own end.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.websocket.write(data)

    def stop_reading(self) -> None:
        """Read nothing from the socket any more."""
        self._reading = trio.Event()

    async def wait_closed(self) -> int | None:
        """The close code, None for a connection that just ended."""
        with trio.fail_after(PATIENCE_SECONDS):
            await self.closed.wait()
        return self.websocket.close_code

    async def run(self) -> None:
        while True:
            await self._reading.wait()
            data = await self.websocket.read()
            if not data:
                break
            try:
                events = self.connection.receive_data(data)
            except RemoteProtocolError:
                break  # the server says that it ends the session
            for event, call_id, value in events:
                self._receive(event, call_id, value)
            await self.flush()
        for event, call_id, value in self.connection.receive_eof():
            self._receive(event, call_id, value)
        self.closed.set()

    def _receive(self, event: ConnectionEvent, call_id: int, value: Any) -> None:
        if event is ConnectionEvent.PONG:
            self.pongs.set()
        call = self._calls.get(call_id)
        if call is None:
            return
        if event is ConnectionEvent.MESSAGE:
            call.put.send_nowait(bytes(value))
        elif event is ConnectionEvent.ENDED:
            call.error = value
            call.ended.set()
            call.put.close()


@asynccontextmanager
async def open_peer(
    server: CoordinatorServer,
    target: str,
    token: str,
    *,
    limits: SessionLimits = QUIET,
    context: ssl.SSLContext | None = None,
    **headers: str,
) -> AsyncIterator[Peer]:
    """Dial a door; hang up at the end without a word, as genuine peers that are killed do."""
    peer = Peer(await dial(server, target, token, context=context, **headers), limits)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.run)
            yield peer
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(peer.websocket.stream)


async def wait_for(what: Callable[[], T]) -> T:
    """Poll until `what()` is true: for what other threads or the kernel do, which tell nobody."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            found = what()
            if found:
                return found
            await trio.sleep(0.01)


GOING_AWAY = int(CloseCode.GOING_AWAY)
