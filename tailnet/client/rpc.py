"""One RPC connection to a coordinator, from the dialling side.  Layer L3.

    async with open_rpc_client(url, door, token) as rpc:
        maps = await rpc.open(STREAM_DERP_MAPS, tailnet.StreamDERPMapsRequest())
A websocket (derp/transport/websocket.py) carries yamux and dRPC, whose rules are tailnet/rpc/connection.py; this file
moves bytes, keeps deadlines and gives each call its own answers.  Doors and RPCs: ../protocol of the schema in
tailnet/proto.  Next hop: coordination.py.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final, Generic, TypeVar

import trio
from google.protobuf.message import DecodeError, Message

from derp.client.client import open_background
from derp.client.dial import DialOptions, RelayAddress, open_relay_stream
from derp.errors import ConfigError, DerpError, TransportError, UpgradeRefused
from derp.text import error_text
from derp.transport.stream import mapped_errors
from derp.transport.websocket import open_websocket
from tailnet.errors import RpcError
from tailnet.rpc.connection import ClientConnection, ConnectionEvent, Event
from tailnet.rpc.yamux import SessionLimits

M = TypeVar("M", bound=Message)

# The header that both doors read a token from; a URL would put the token into logs.
TOKEN_HEADER: Final = "Coder-Session-Token"  # noqa: S105  # its name
CONNECT_SECONDS: Final = 10.0
CALL_SECONDS: Final = 30.0
# Answers of one call that nobody has read yet.  A client of 10,000 tunnels gets its first nodes in some hundred
# messages; a program that lets ten times as many pile up does not read.
MAX_UNREAD: Final = 1024
# Statuses that a coordinator answers with instead of what was asked for, and what they mean;
# what it says besides is in its log, under the id of the request.
REFUSALS: Final[Mapping[int, str]] = {
    HTTPStatus.BAD_REQUEST: "this coordinator does not serve what was asked for, or not in this version",
    HTTPStatus.UNAUTHORIZED: "it does not take the token, which is wrong, or has expired or been revoked",
    HTTPStatus.FORBIDDEN: "the holder of this token may not",
    HTTPStatus.NOT_FOUND: "there is no such agent, or it is none of yours; or this is no coordinator",
    HTTPStatus.CONFLICT: "it lets in browsers only",
}
_RECEIVE_BYTES: Final = 64 * 1024
_LIMITS: Final = SessionLimits()


class RpcCall(Generic[M]):
    """A call in hand: `send` any number of requests, `receive` its answers until RpcError or EndOfChannel."""

    def __init__(self, client: "RpcClient", call_id: int, answer: type[M]) -> None:
        self.id = call_id
        self._client = client
        self._answer = answer
        self._error: RpcError | None = None
        self._put, self._got = trio.open_memory_channel[bytes](MAX_UNREAD)

    async def send(self, request: Message) -> None:
        """Send one more request.  Raises RpcError when the server does not read, TransportError when it is gone."""
        await self._client.send(self.id, request)

    async def receive(self) -> M:
        """The next answer.  Raises trio.EndOfChannel after an orderly end, RpcError after any other."""
        try:
            payload = await self._got.receive()
        except trio.EndOfChannel:
            if self._error is not None:
                raise self._error from None
            raise
        try:
            return self._answer.FromString(payload)
        except DecodeError as error:
            raise RpcError(f"an answer is no {self._answer.DESCRIPTOR.name}: {error_text(error)}") from None

    def take(self, payload: bytes) -> None:
        """An answer came.  Raises trio.WouldBlock when MAX_UNREAD wait already."""
        self._put.send_nowait(payload)

    def end(self, error: RpcError | None) -> None:
        """Nothing more will come; what has come can still be received."""
        self._error = error
        self._put.close()


class RpcClient:
    """One connection.  `open_rpc_client` makes and closes it; its methods may be used from several tasks."""

    def __init__(self, stream: trio.abc.Stream, limits: SessionLimits = _LIMITS) -> None:
        self._stream = stream
        self._core = ClientConnection(now=trio.current_time(), limits=limits)
        self._calls: dict[int, RpcCall[Message]] = {}
        self._writing = trio.Lock()
        self._lost: TransportError | None = None

    @property
    def is_lost(self) -> bool:
        """The connection has ended, and with it every call in hand."""
        return self._lost is not None

    async def call(self, path: str, request: Message, answer: type[M], timeout_seconds: float = CALL_SECONDS) -> M:
        """One unary RPC.  Raises RpcError; TransportError when the connection is lost."""
        call = await self.open(path, request, answer)
        with mapped_errors(f"{path} within {timeout_seconds:g} s"), trio.fail_after(timeout_seconds):
            try:
                return await call.receive()
            except trio.EndOfChannel:
                raise RpcError(f"{path} ended without an answer") from None
            finally:
                self._calls.pop(call.id, None)
                self._core.close(call.id)
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await self._flush()

    async def open(self, path: str, request: Message | None, answer: type[M]) -> RpcCall[M]:
        """Begin a call; with a `request` it is the only one, without one `RpcCall.send` sends them."""
        self._check()
        core = self._core
        call_id = core.open_call(path) if request is None else core.call(path, request.SerializeToString())
        call = RpcCall(self, call_id, answer)
        self._calls[call_id] = call  # type: ignore[assignment]  # the dictionary only hands bytes on
        await self._flush()
        return call

    async def send(self, call_id: int, request: Message) -> None:
        """One more request of a call that `open` began without one."""
        self._check()
        if not self._core.send_message(call_id, request.SerializeToString()):
            raise RpcError("the server does not read its requests")
        await self._flush()

    async def run(self) -> None:
        """Read and keep alive until the connection ends or this is cancelled; calls in hand end with it."""
        reason = "the connection was closed"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_alive)
                with mapped_errors("the coordinator"):
                    while data := await self._stream.receive_some(_RECEIVE_BYTES):
                        self._dispatch(self._core.receive_data(data))
                        await self._flush()
                reason = "the coordinator closed the connection"
                nursery.cancel_scope.cancel()
        except* DerpError as group:
            reason = str(group.exceptions[0])
        finally:
            self._lost = TransportError(reason)
            for call in self._calls.values():
                call.end(RpcError(reason))
            self._calls.clear()

    async def _keep_alive(self) -> None:
        while (deadline := self._core.next_timeout()) is not None:
            await trio.sleep_until(deadline)
            self._dispatch(self._core.handle_timeout(trio.current_time()))
            await self._flush()

    def _dispatch(self, events: Sequence[Event]) -> None:
        for kind, call_id, value in events:
            call = self._calls.get(call_id)
            if call is None:
                continue
            if kind is ConnectionEvent.MESSAGE:
                try:
                    call.take(bytes(value))
                except trio.WouldBlock:
                    self._core.cancel(call_id)
                    del self._calls[call_id]
                    call.end(RpcError(f"{MAX_UNREAD} answers were not read"))
            elif kind is ConnectionEvent.ENDED:
                del self._calls[call_id]
                call.end(value)

    async def _flush(self) -> None:
        async with self._writing:
            data = b"".join(self._core.data_to_send())
            if data:
                with mapped_errors("the coordinator"):
                    await self._stream.send_all(data)

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost


@asynccontextmanager
async def open_rpc_client(
    url: str, door: str, token: str, *, options: DialOptions | None = None, timeout_seconds: float = CONNECT_SECONDS
) -> AsyncIterator[RpcClient]:
    """Dial the coordinator at `url` (http or https, its root) and enter by `door`, the path with its query.

    Raises ConfigError for a URL that is none, ConnectError or TransportTimeout when it cannot be reached or refuses.
    """
    if url.partition("://")[0] not in ("http", "https"):
        raise ConfigError(f"coordinator URL {url!r}: must look like https://tailnet.example.org")
    options = options or DialOptions()
    address = RelayAddress.from_url(url.rstrip("/") + door, options)
    with mapped_errors(f"connect to {url} within {timeout_seconds:g} s", connecting=True):
        with trio.fail_after(timeout_seconds):
            stream, _ = await open_relay_stream(address, options)
            try:
                websocket = await open_websocket(
                    stream,
                    host=address.host_header(),
                    target=address.path,
                    label=url,
                    subprotocol=None,
                    extra_headers=[*options.extra_headers(), (TOKEN_HEADER, token)],
                )
            except BaseException as error:
                await trio.aclose_forcefully(stream)
                if isinstance(error, UpgradeRefused) and error.status in REFUSALS:
                    text = f"{error_text(error)}: {REFUSALS[error.status]}"
                    raise UpgradeRefused(text, error.status, error.retry_after_seconds) from None
                raise
    client = RpcClient(websocket)
    try:
        async with open_background() as nursery:
            nursery.start_soon(client.run)
            yield client
    finally:
        with trio.move_on_after(1, shield=True):
            await websocket.aclose()
