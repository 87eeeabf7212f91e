"""The HTTP API's server: one connection at a time is handed to Hypercorn.  Layer L2; the only file that imports it.

server/server.py hands over connections whose first request is for the API; bytes received so far come with them.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from derp.transport.linkstream import LinkStream

_log = logging.getLogger("tailnet.api")

# The largest body is an identity document or a batch of logs: 1 MiB of lines in JSON.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
KEEP_ALIVE_SECONDS: Final = 30.0
RECEIVE_BYTES: Final = 64 * 1024
# A request line is looked at when it is whole; ours fit, and Hypercorn refuses longer ones itself.
MAX_REQUEST_LINE_BYTES: Final = 8 * 1024


class ApiServer:
    """Serves an ASGI app on streams.  `is_foreign(target)`: requests that are not the app's.

    Proxies keep connections and send whatever comes next on them: an RPC websocket after a page.
    """

    def __init__(self, app: Any, is_foreign: Callable[[str], bool], ping_seconds: float | None = None) -> None:
        config = Config()
        config.keep_alive_timeout = KEEP_ALIVE_SECONDS
        config.include_server_header = False
        config.accesslog = None
        config.errorlog = None
        config.wsgi_max_body_size = MAX_BODY_BYTES
        config.websocket_max_message_size = MAX_BODY_BYTES
        # For proxies that end what is silent, and for us: a ping to a client that is gone stays unacknowledged, which
        # the kernel ends (derp/transport/listen.py).
        config.websocket_ping_interval = ping_seconds
        # Proxies between us and browsers: websockets stay HTTP/1.1.
        config.alpn_protocols = ["http/1.1"]
        self._config = config
        self._app = wrap_app(app, MAX_BODY_BYTES, "asgi")
        self._context = WorkerContext(None)
        self._is_foreign = is_foreign
        self._idle = trio.Event()
        self.connection_count = 0

    async def serve(self, stream: LinkStream) -> bytes:
        """Serve one connection until it ends; closes the stream.

        Or until a request comes that is not the app's: then its first bytes are returned, and the link is the
        caller's again.
        """
        connection = _Connection(self._app, self._config, self._context, stream, self._is_foreign)
        self.connection_count += 1
        try:
            await connection
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the caller left in the middle of an answer
        except Exception:
            # A defect of one connection, groups of them included: it must not take relay and coordinator with it.
            _log.exception("! a connection of the API failed")
        finally:
            self.connection_count -= 1
            if not self.connection_count:
                self._idle.set()
            await trio.aclose_forcefully(stream)
        return connection.foreign

    async def stop(self) -> None:
        """End idle connections; those with a request in hand finish it."""
        await self._context.terminated.set()

    async def wait_idle(self) -> None:
        """Until no connection is left."""
        while self.connection_count:
            self._idle = trio.Event()
            await self._idle.wait()


class _Ending(WorkerContext):
    """What a connection has of its server; sleeps end with the connection.

    Hypercorn's pings would keep the socket of a websocket that is over until the next one is due.
    """

    def __init__(self, shared: WorkerContext) -> None:
        super().__init__(None)
        self.terminated = shared.terminated
        self.over = trio.Event()

    async def sleep(self, wait: float) -> None:  # type: ignore[override]  # there it is static
        with trio.move_on_after(wait):
            await self.over.wait()


class _Connection(TCPServer):
    """Hypercorn's connection, which also looks at where each request wants to go."""

    def __init__(
        self, app: Any, config: Config, context: WorkerContext, stream: LinkStream, is_foreign: Callable[[str], bool]
    ) -> None:
        self._ending = _Ending(context)
        super().__init__(app, config, self._ending, {}, stream)  # type: ignore[arg-type]  # any stream with a socket will do
        self.foreign = b""
        self._link_stream = stream
        self._is_foreign = is_foreign
        self._is_between = False  # requests, so that what comes next is the head of one
        self._turned = trio.Event()  # an answer is done

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            if self._ending.over.is_set():
                return
            self._is_between = event.idle
        if self._is_between or isinstance(event, Closed):
            self._turned.set()
        if isinstance(event, RawData):
            await self._send(event.data)
        else:
            await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        # Hypercorn shields its sends, so that half a frame is never followed by a whole one: an app that gives a reader
        # up would wait for it all the same.  Here whoever gives up a send gives up the connection.
        async with self.send_lock:
            try:
                await self._link_stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())
            except trio.Cancelled:
                await trio.aclose_forcefully(self._link_stream)
                raise

    async def _read_data(self) -> None:
        while True:
            try:
                data = await self._receive()
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                break
            if self.foreign:
                break
            await self.protocol.handle(RawData(data))
            if not data:
                break
        self._ending.over.set()
        # Hypercorn would keep the socket of a caller that left until its keep-alive time is over.
        await self.idle_task.stop()
        await self.protocol.handle(Closed())

    async def _receive(self) -> bytes:
        data = await self._link_stream.receive_some(RECEIVE_BYTES)
        if data and self._has_whole_request():
            # A caller is quick: the answer that it has is not yet done with here.
            self._turned = trio.Event()
            await self._turned.wait()
        if not self._is_between:
            return data
        while data and b"\r\n" not in data and len(data) < MAX_REQUEST_LINE_BYTES:
            more = await self._link_stream.receive_some(RECEIVE_BYTES)
            if not more:
                return data
            data += more
        words = data.partition(b"\r\n")[0].split(b" ")
        if len(words) == 3 and self._is_foreign(words[1].decode("latin-1")):
            self.foreign = data + self._link_stream.take_received()
        return data

    def _has_whole_request(self) -> bool:
        # h11's word for it; websockets and HTTP/2 have no such state.
        connection = getattr(self.protocol.protocol, "connection", None)
        return str(getattr(connection, "their_state", "")) == "DONE"
