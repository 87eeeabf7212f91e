"""A websocket as a byte stream: DERP where only websockets get through.  Layer L2, client side.

A client of our own on protocol/websocket.py instead of trio-websocket: that library needs a background task per
connection which crashes its nursery when a server refuses, and costs 58 us a message where this adds 7 to the socket's.
Message boundaries carry no meaning (spec: RFC 6455; subprotocol `derp`).  Next hop: client/dial.py.
"""

import operator
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

import trio

from derp.errors import ConnectError, UpgradeRefused
from derp.protocol.upgrade import (
    SUBPROTOCOL,
    WEBSOCKET_KEY_BYTES,
    AnswerKind,
    judge_websocket_answer,
    websocket_request_headers,
)
from derp.protocol.websocket import (
    GENUINE_MAX_MESSAGE_BYTES,
    MASK_BYTES,
    CloseCode,
    Opcode,
    WebSocketDecoder,
    WebSocketError,
    answer_control,
    close_payload,
    encode_header,
    encode_masked,
)
from derp.transport.http import ClientHttp, exchange, retry_after_of
from derp.transport.stream import mapped_errors

# Nothing is put together here, so a long message costs no memory: relays send one message per flush, of any size.
MAX_MESSAGE_BYTES: Final = 1 << 62
RECEIVE_BYTES: Final = 64 * 1024
# Answers that wait for the sender's turn: the latest of them, for each answers all before it.
_MAX_OWED: Final = 16
# A pong or the closing frame that the kernel does not take within this time is not worth waiting for.
CONTROL_SECONDS: Final = 2.0


async def open_websocket(
    stream: trio.abc.Stream,
    *,
    host: str,
    target: str,
    label: str,
    subprotocol: str | None = SUBPROTOCOL,
    extra_headers: Sequence[tuple[str, str]] = (),
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> "WebSocketStream":
    """Ask for a websocket over `stream` (TCP or TLS).  UpgradeRefused, ConnectError: the stream is then useless.

    `host` is the Host header, `target` the path.  `subprotocol`: DERP's own; None for a websocket that has none.
    """
    nonce = random_bytes(WEBSOCKET_KEY_BYTES)
    http = ClientHttp(max_body_bytes=1024, head_only=True)
    request = http.send_request(
        "GET", target, websocket_request_headers(host, nonce, subprotocol=subprotocol, extra=extra_headers)
    )
    with mapped_errors(f"websocket to {label}", connecting=True):
        response = await exchange(stream, http, request)
    answer = judge_websocket_answer(response.status, response.headers, nonce, subprotocol=subprotocol)
    if answer.kind is not AnswerKind.UPGRADED:
        text = f"websocket to {label}: {answer.reason}"
        if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            raise ConnectError(text)
        raise UpgradeRefused(text, response.status, retry_after_of(response.headers) or 0.0)
    return WebSocketStream(stream, received=http.trailing_data(), random_bytes=random_bytes)


class WebSocketStream(trio.abc.Stream):
    """Binary messages as one stream of bytes, under trio's contract for streams.

    Closing sends a closing frame if that needs no waiting, and closes the transport.  The peer's closing frame is the
    end of the stream; a broken rule of RFC 6455 is a BrokenResourceError, caused by a WebSocketError.
    `is_client=False` gives the server's half, which masks nothing: for tests and small embedders.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        *,
        is_client: bool = True,
        received: bytes = b"",
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.transport = transport
        self.close_code: int | None = None
        """What the peer said when it closed."""
        self._is_client = is_client
        self._random_bytes = random_bytes
        self._decoder = WebSocketDecoder(not is_client, MAX_MESSAGE_BYTES)
        self._undecoded: bytes | bytearray = received
        self._payload: bytes | bytearray | memoryview = b""
        self._owed: deque[bytes] = deque(maxlen=_MAX_OWED)
        self._ended = self._closed = self._send_broke = self._receive_broke = False
        self._sending = self._receiving = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send as messages of at most 32 KiB: a genuine relay closes on longer ones."""
        self._check_open()
        with self._alone("_sending"):
            self._check_sending()
            if not len(data):
                await trio.lowlevel.checkpoint()
                return
            view = memoryview(data)
            frames = [
                self._encode(Opcode.BINARY, view[at : at + GENUINE_MAX_MESSAGE_BYTES])
                for at in range(0, len(view), GENUINE_MAX_MESSAGE_BYTES)
            ]
            await self._transmit(b"".join(frames))
            await self._pay()

    async def wait_send_all_might_not_block(self) -> None:
        self._check_open()
        with self._alone("_sending"):
            self._check_sending()
            await self.transport.wait_send_all_might_not_block()
            await self._pay()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self._check_open()
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._alone("_receiving"):
            if self._receive_broke:
                raise trio.BrokenResourceError("this websocket broke")
            if self._payload or self._ended:
                await trio.lowlevel.checkpoint()
            while not self._payload and not self._ended:
                data, self._undecoded = self._undecoded, b""
                if not data:
                    data = await self.transport.receive_some(RECEIVE_BYTES)
                if not data:
                    self._ended = True
                    break
                await self._decode(data)
            whole = self._payload
            if max_bytes is None or len(whole) <= max_bytes:
                self._payload = b""
                return bytes(whole) if isinstance(whole, memoryview) else whole
            # A view: cutting a long message into short reads must not copy its rest each time.
            view = memoryview(whole)
            self._payload = view[max_bytes:]
            return bytes(view[:max_bytes])

    async def aclose(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            if not (self._sending or self._send_broke or self._ended):
                with self._alone("_sending"), trio.move_on_after(CONTROL_SECONDS):
                    await self.transport.send_all(self._encode(Opcode.CLOSE, close_payload(CloseCode.NORMAL)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # whoever is gone needs no farewell
        finally:
            await self.transport.aclose()

    async def _decode(self, data: bytes | bytearray) -> None:
        out = bytearray(len(data))
        decoder = self._decoder
        try:
            end = decoder.receive_into(memoryview(data), out, 0)
            if decoder.spent:
                decoder.settle(trio.current_time())
        except WebSocketError as error:
            self._owed.append(self._encode(Opcode.CLOSE, close_payload(error.close_code, str(error))))
            await self._pay_if_free()
            self._receive_broke = True
            raise trio.BrokenResourceError(str(error)) from error
        del out[end:]
        self._payload = out
        if not decoder.control:
            return
        for opcode, payload in decoder.control:
            if opcode == Opcode.CLOSE:
                self._ended = True
                self.close_code = int.from_bytes(payload[:2], "big") if payload else CloseCode.NO_STATUS
            answer = answer_control(opcode, payload, self._random_bytes(MASK_BYTES) if self._is_client else None)
            if answer:
                self._owed.append(answer)
        decoder.control.clear()
        await self._pay_if_free()

    async def _pay_if_free(self) -> None:
        if self._sending:
            return  # send_all pays when it is through: to wait for it here could wait for ourselves
        with self._alone("_sending"):
            await self._pay()

    async def _pay(self) -> None:
        while self._owed:
            answer = b"".join(self._owed)
            self._owed.clear()
            # Shielded: a receive may be cancelled at any time without harm, so half a frame must not remain.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CONTROL_SECONDS) as scope:
                try:
                    await self._transmit(answer)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # the next send or receive will say so
            if scope.cancelled_caught:
                return

    async def _transmit(self, frames: bytes) -> None:
        try:
            await self.transport.send_all(frames)
        except BaseException:
            self._send_broke = True  # part of a frame may be out
            raise

    def _encode(self, opcode: int, payload: bytes | memoryview) -> bytes:
        if self._is_client:
            return encode_masked(opcode, payload, self._random_bytes(MASK_BYTES))
        return encode_header(opcode, len(payload)) + payload

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this websocket is closed")

    def _check_sending(self) -> None:
        if self._send_broke or self._receive_broke or self._ended:
            raise trio.BrokenResourceError("this websocket broke, or the peer closed it")

    @contextmanager
    def _alone(self, what: str) -> Generator[None, None, None]:
        if getattr(self, what):
            raise trio.BusyResourceError("another task is using this side of the websocket")
        setattr(self, what, True)
        try:
            yield
        finally:
            setattr(self, what, False)
