"""An issuer of key sets on loopback: a real HTTP server that answers a follower when something changes."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

from derp.admission.keyset import KeySet, sign_key_set
from derp.admission.signed import IssuerPrivate
from derp.transport.http import Request, ServerHttp

PRIVATE = IssuerPrivate(b"i" * 32)
DAY_SECONDS = 86_400.0


class IssuingServer:
    """`publish` makes the next version; `status` is answered in place of 200 if it is not that."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.version = 100
        self.document = b""
        self.status = 200
        self.port = 0
        self.requests: list[Request] = []
        self.waits = True
        self._changed = trio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/key-set"

    def publish(
        self,
        keys: Iterable[bytes],
        revoked: Iterable[bytes] = (),
        *,
        life: float = DAY_SECONDS,
        version: int | None = None,
    ) -> bytes:
        self.version = self.version + 1 if version is None else version
        key_set = KeySet(self.version, self.now, self.now + life, frozenset(keys), frozenset(revoked))
        self.offer(sign_key_set(PRIVATE, key_set))
        return self.document

    def offer(self, document: bytes) -> None:
        """Any bytes, as a thief of the server would have them."""
        self.document = document
        self._changed.set()
        self._changed = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            http = ServerHttp()
            while data := await stream.receive_some():
                request = http.receive_data(data)
                while request is not None:
                    self.requests.append(request)
                    await stream.send_all(await self._answer(http, request))
                    request = http.next_cycle()
        await stream.aclose()

    async def _answer(self, http: ServerHttp, request: Request) -> bytes:
        def etag() -> str:
            return f'"{hash(self.document):x}"'

        while self.status == 200 and request.headers.get("if-none-match") == etag():
            if not self.waits:
                return http.send_response(304, [("ETag", etag())], b"")
            await self._changed.wait()
        return http.send_response(self.status, [("ETag", etag())], self.document if self.status == 200 else b"")


@asynccontextmanager
async def open_issuer(now: float) -> AsyncIterator[IssuingServer]:
    """It serves on a port of loopback while the block runs."""
    server = IssuingServer(now)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        server.port = listener.socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()
