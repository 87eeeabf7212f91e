"""The HTTP API's server: one connection at a time is handed to Hypercorn.  Layer L2; the only file that imports it.

server/server.py hands over connections whose first request is for the API; bytes received so far come with them.
Hypercorn bounds neither how long a head or a body takes, nor a body's size, nor how long an answer waits for its
reader: this file does.  It needs private parts of Hypercorn for that; `prove_hypercorn` shows at start that they are
as we know them.
"""

import logging
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import Enum
from importlib.metadata import version
from math import inf
from typing import Any, Final

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from derp.protocol.target import authority, origin_form
from derp.text import error_text
from derp.transport.links import Link
from derp.transport.linkstream import LinkStream
from tailnet.errors import ConfigError

_log = logging.getLogger("tailnet.api")

# The largest body is an identity document or a batch of logs: 1 MiB of lines in JSON.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
# A body that is carried out while it comes, and never held: 50,000 agents with their apps and scripts.
MAX_STREAM_BYTES: Final = 256 * 1024 * 1024
KEEP_ALIVE_SECONDS: Final = 30.0
# A head is one packet or two; the front door gives the first one of a connection as long.
HEAD_SECONDS: Final = 10.0
# The largest body that there is, 1 MiB, over 140 kbit/s; of a stream one piece, or what its sender reads in between.
BODY_SECONDS: Final = 60.0
# One piece of an answer, 64 KiB, for a reader of 17 kbit/s.  An answer as a whole has no deadline: some are streams.
WRITE_SECONDS: Final = 30.0
PIECE_BYTES: Final = 64 * 1024
# A request line is looked at when it is whole; ours fit, and Hypercorn refuses longer ones itself.
MAX_REQUEST_LINE_BYTES: Final = 8 * 1024
# The name of an extension of a request's scope: a list of functions to call when its caller leaves, for whoever has no
# task to wait for `http.disconnect` with.
LEAVERS: Final = "tailnet.leavers"
_PROOF_SECONDS: Final = 10.0


class ApiEnd(Enum):
    """Why the server ended a connection, or did not begin with it.  The values are metric labels."""

    HEAD_TOO_SLOW = "head_too_slow"
    BODY_TOO_SLOW = "body_too_slow"
    BODY_TOO_LARGE = "body_too_large"
    ANSWER_NOT_READ = "answer_not_read"
    GAVE_WAY = "gave_way"  # it was idle, and a newcomer found no room
    TOO_MANY = "too_many"  # all were busy: the newcomer got a 503


class _Phase(Enum):
    IDLE = "between requests"
    HEAD = "in a head"
    BODY = "in a body"
    ANSWER = "a request is whole"


_TIMEOUTS: Final = {
    _Phase.HEAD: (HEAD_SECONDS, ApiEnd.HEAD_TOO_SLOW),
    _Phase.BODY: (BODY_SECONDS, ApiEnd.BODY_TOO_SLOW),
}
_CONTINUE: Final = b"HTTP/1.1 100 "
# A parameter of the query that counts by its presence; and terminals, whose bytes come a few at a time.
_NO_COMPRESSION: Final = re.compile(rb"[?&]no_compression(=|&|$)|^[^?]*/pty(\?|$)")
_TOO_SLOW_BODY: Final = b'{"message":"the request took too long to come"}\n'
_TOO_SLOW: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_TOO_SLOW_BODY), _TOO_SLOW_BODY)
)
# Who is in the middle of a body that is refused would be reset before it reads why, so its bytes are thrown away for
# a moment: two bodies, or a round trip or three.
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 2 * MAX_BODY_BYTES


class ApiServer:
    """Serves an ASGI app on streams.  `is_foreign(target)`: requests that are not the app's; `is_stream(target)`: those
    whose body is carried out while it comes.

    Proxies keep connections and send whatever comes next on them: an RPC websocket after a page.
    """

    def __init__(
        self,
        app: Any,
        is_foreign: Callable[[str], bool],
        ping_seconds: float | None = None,
        *,
        max_connections: int,
        is_stream: Callable[[str], bool] = lambda target: False,
    ) -> None:
        self._is_stream = is_stream
        self._config = _config(ping_seconds)
        self._app = wrap_app(app, MAX_BODY_BYTES, "asgi")
        self._context = WorkerContext(None)
        self._is_foreign = is_foreign
        self._max_connections = max_connections
        self._idle = trio.Event()
        self._idle_connections: dict[_Connection, None] = {}  # the longest idle first
        self._is_turning_away = False
        self.connection_count = 0
        self.ended_count = Counter[ApiEnd]()

    def admits(self) -> bool:
        """Whether one more connection may be served now; counts a refusal.  An idle one gives way to a newcomer."""
        if self.connection_count < self._max_connections:
            self._is_turning_away = False
            return True
        for connection in self._idle_connections:
            connection.end(ApiEnd.GAVE_WAY)
            return True
        self.ended_count[ApiEnd.TOO_MANY] += 1
        if not self._is_turning_away:  # once per rush
            self._is_turning_away = True
            _log.warning(
                "! all %d connections of the API are busy, newcomers are turned away: raise max_api_connections",
                self._max_connections,
            )
        return False

    async def serve(self, stream: LinkStream, app: Any = None) -> bytes:
        """Serve one connection until it ends; closes the stream.  `app`: another one than the server's, to which every
        request of the connection belongs.

        Or until a request comes that is not the app's: then its first bytes are returned, and the link is the
        caller's again.
        """
        wrapped = self._app if app is None else wrap_app(app, MAX_BODY_BYTES, "asgi")
        is_foreign = self._is_foreign if app is None else _is_never
        connection = _Connection(wrapped, self._config, self._context, stream, is_foreign, self._is_stream)
        connection.idle_connections = self._idle_connections
        self.connection_count += 1
        try:
            with connection.scope:
                await connection
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the caller left in the middle of an answer
        except Exception:
            # A defect of one connection, groups of them included: it must not take relay and coordinator with it.
            _log.exception("! a connection of the API failed")
        finally:
            self.connection_count -= 1
            self._idle_connections.pop(connection, None)
            if not self.connection_count:
                self._idle.set()
            await trio.aclose_forcefully(stream)
            connection.forget()
        ended = connection.ended
        if ended is not None:
            self.ended_count[ended] += 1
            _log.info("x %s:%d at the API: %s", *stream.address, ended.value)
        return connection.foreign

    async def stop(self) -> None:
        """End idle connections; those with a request in hand finish it."""
        await self._context.terminated.set()

    async def wait_idle(self) -> None:
        """Until no connection is left."""
        while self.connection_count:
            self._idle = trio.Event()
            await self._idle.wait()


async def prove_hypercorn() -> None:
    """Serve a request over a pair of sockets and compare what this file sees of it with what it has to see.

    ConfigError when Hypercorn is another than we know: a deadline that never begins, or a request for the relay that
    the API answers, would show much later and to others.
    """
    seen: list[str] = []
    with trio.move_on_after(_PROOF_SECONDS):
        try:
            await _observe(seen)
        except Exception as error:
            seen.append(error_text(error))
    if seen != _PROOF:
        raise ConfigError(
            f"hypercorn {version('hypercorn')} is another than the API's server knows (a request went through "
            f"{', '.join(seen) or 'nothing'}): install the version that requirements.lock names"
        )


async def _observe(seen: list[str]) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    stream = LinkStream(Link(near, ("", 0)), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1")
    app = wrap_app(_greet, MAX_BODY_BYTES, "asgi")
    connection = _Witness(app, _config(None), WorkerContext(None), stream, lambda target: target == "/else", _is_never)
    connection.tell = seen.append
    connection.answer_to = {_Phase.BODY: (far, b"2"), _Phase.IDLE: (far, b"GET /else HTTP/1.1\r\n")}
    with near, far:
        await connection
        if not connection.was_idle:
            seen.append("no keep-alive")
        seen += [connection.foreign.decode("latin-1"), far.recv(12).decode("latin-1")]


def _is_never(target: str) -> bool:
    return False


def _config(ping_seconds: float | None) -> Config:
    config = Config()
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    config.websocket_max_message_size = MAX_BODY_BYTES
    # For proxies that end what is silent, and for us: a ping to a client that is gone stays unacknowledged, which the
    # kernel ends (derp/transport/listen.py).
    config.websocket_ping_interval = ping_seconds
    # Proxies between us and browsers: websockets stay HTTP/1.1.
    config.alpn_protocols = ["http/1.1"]
    return config


class _Ending(WorkerContext):
    """What a connection has of its server; sleeps end with the connection.

    Hypercorn's pings would keep the socket of a websocket that is over until the next one is due.
    """

    def __init__(self, shared: WorkerContext) -> None:
        # In place of its own constructor, which makes two events for each connection: 0.8 KiB of an idle one's 16.
        self.max_requests = None
        self.requests = 0
        self.terminate, self.terminated = shared.terminate, shared.terminated
        self.over = trio.Event()

    async def sleep(self, wait: float) -> None:  # type: ignore[override]  # there it is static
        with trio.move_on_after(wait):
            await self.over.wait()


class _Requests(h11.Connection):
    """h11's server side, as Hypercorn drives it.  It tells where in a request the caller is, and bounds bodies."""

    def __init__(
        self,
        max_head_bytes: int,
        enter: Callable[[_Phase], None],
        refuse: Callable[[ApiEnd], None],
        is_stream: Callable[[str], bool],
    ) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=max_head_bytes)
        self._enter = enter
        self._refuse = refuse
        self._is_stream = is_stream
        self._streams = False  # the body that comes now is one
        self._body_bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            return self._begin(event)
        if isinstance(event, h11.Data):
            self._count(len(event.data))
            if self._streams:
                self._enter(_Phase.BODY)  # its deadline is that of the next piece
        elif isinstance(event, h11.EndOfMessage):
            self._enter(_Phase.ANSWER)
        return event

    def _begin(self, request: h11.Request) -> h11.Request:
        if request.method == b"PRI":
            raise h11.RemoteProtocolError("HTTP/2 without TLS is not spoken here", error_status_hint=505)
        headers = dict(request.headers)
        length = headers.get(b"content-length")
        has_body = length is not None or b"transfer-encoding" in headers
        # A websocket's bytes, which follow a request without a body, are nobody's body.
        self._enter(_Phase.BODY if has_body else _Phase.ANSWER)
        self._streams = has_body and self._is_stream(origin_form(request.target.decode("latin-1")))
        self._body_bytes = 0
        self._count(int(length or 0))
        self._body_bytes = 0
        kept = list(request.headers)
        if headers.get(b"upgrade", b"").lower() == b"h2c":
            # Who asks for it is served as HTTP/1.1, as RFC 9110 allows: HTTP/2 would go past every bound of this file.
            kept = [(name, value) for name, value in kept if name != b"upgrade"]
        if _NO_COMPRESSION.search(request.target):
            # Hypercorn compresses each websocket whose client can; who asks not to is not asked again.
            kept = [(name, value) for name, value in kept if name != b"sec-websocket-extensions"]
        # Hypercorn takes a target apart as if it always were a path.
        target = request.target.decode("latin-1")
        host = authority(target)
        if host is not None:
            kept = [(name, value) for name, value in kept if name != b"host"] + [(b"host", host.encode("latin-1"))]
        return h11.Request(
            method=request.method, target=origin_form(target), headers=kept, http_version=request.http_version
        )

    def _count(self, size: int) -> None:
        self._body_bytes += size
        most = MAX_STREAM_BYTES if self._streams else MAX_BODY_BYTES
        if self._body_bytes > most:
            self._refuse(ApiEnd.BODY_TOO_LARGE)
            raise h11.RemoteProtocolError(f"a body has at most {most} bytes", error_status_hint=413)


class _Connection(TCPServer):
    """Hypercorn's connection, which also looks at where each request wants to go and how long it takes.

    Run it inside its `scope`.  `ended`: why this server ended it, if it did.
    """

    def __init__(
        self,
        app: Any,
        config: Config,
        context: WorkerContext,
        stream: LinkStream,
        is_foreign: Callable[[str], bool],
        is_stream: Callable[[str], bool],
    ) -> None:
        self._ending = _Ending(context)
        self._whole_app = app
        self._leavers: list[Callable[[], None]] = []
        super().__init__(self._begin, config, self._ending, {}, stream)  # type: ignore[arg-type]  # any stream with a socket will do
        self.foreign = b""
        self.scope = trio.CancelScope()
        self.ended: ApiEnd | None = None
        self.idle_connections: dict[_Connection, None] = {}  # the server's
        self._phase = _Phase.HEAD
        self._link_stream = stream
        self._is_foreign = is_foreign
        self._is_between = False  # requests, so that what comes next is the head of one
        self._is_answering = False  # so that nothing else may be said
        self._turned: trio.Event | None = None  # somebody waits for an answer to be done
        self._requests = _Requests(config.h11_max_incomplete_size, self.enter, self._note_end, is_stream)

    def _begin(self, scope: Any, *more: Any) -> Any:
        """Call the app; no coroutine of its own, which each stream would keep."""
        self._leavers = scope["extensions"][LEAVERS] = []
        return self._whole_app(scope, *more) if scope["type"] == "http" else self._serve_socket(scope, *more)

    async def _serve_socket(self, scope: Any, receive: Callable[[], Awaitable[Any]], *more: Any) -> None:
        try:
            await self._whole_app(scope, receive, *more)
        finally:
            self._task_group.spawn(self._read_away, receive)

    async def _read_away(self, receive: Callable[[], Awaitable[Any]]) -> None:
        """Take what still comes on a websocket that the app has ended: Hypercorn's own last word waits for room behind
        it, and the connection would stay for as long as its caller goes on sending."""
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                while (await receive())["type"] != "websocket.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(read)
            await self._ending.over.wait()
            nursery.cancel_scope.cancel()

    def enter(self, phase: _Phase) -> None:
        """The caller is there now."""
        self._phase = phase
        seconds = _TIMEOUTS[phase][0] if phase in _TIMEOUTS else inf
        self.scope.deadline = trio.current_time() + seconds
        if phase is _Phase.IDLE:
            self.idle_connections[self] = None
        else:
            self.idle_connections.pop(self, None)

    def end(self, reason: ApiEnd) -> None:
        """End it at once."""
        self._note_end(reason)
        self.idle_connections.pop(self, None)
        self.scope.cancel()

    def forget(self) -> None:
        """It is over.  Hypercorn's parts point at each other; cut here, they need not wait for the cycle collector,
        which comes once in a thousand connections."""
        for part in ("app", "protocol", "_requests", "_leavers", "_task_group"):
            vars(self).pop(part, None)

    def _note_end(self, reason: ApiEnd) -> None:
        self.ended = self.ended or reason

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            if self._ending.over.is_set():
                return
            self._is_between = event.idle
            self._is_answering = False
            if event.idle:
                self.enter(_Phase.IDLE)
        if self._turned is not None and (self._is_between or isinstance(event, Closed)):
            self._turned.set()
        if isinstance(event, Closed) and self.ended is ApiEnd.BODY_TOO_LARGE:
            await self._link_stream.linger(_LINGER_SECONDS, _LINGER_BYTES)
        if isinstance(event, RawData):
            await self._send(event.data)
        else:
            await super().protocol_send(event)

    async def _idle_timeout(self) -> None:
        # Who came with a request, or sends one now, is not idle: a server that stops would end the connection unheard.
        if self._phase is _Phase.IDLE:
            await super()._idle_timeout()

    async def _send(self, data: bytes) -> None:
        """Send an answer, or a piece of one, as long as somebody reads it."""
        # Hypercorn shields its sends, so that half a frame is never followed by a whole one: an app that gives a reader
        # up would wait for it all the same.  Here whoever gives up a send gives up the connection.
        view = memoryview(data)
        async with self.send_lock:
            self._is_answering = self._is_answering or not data.startswith(_CONTINUE)
            try:
                for start in range(0, len(view), PIECE_BYTES):
                    with trio.move_on_after(WRITE_SECONDS) as scope:
                        await self._link_stream.send_all(view[start : start + PIECE_BYTES])
                    if scope.cancelled_caught:
                        self.end(ApiEnd.ANSWER_NOT_READ)
                        await trio.lowlevel.checkpoint()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())
            except trio.Cancelled:
                await trio.aclose_forcefully(self._link_stream)
                raise

    async def _read_data(self) -> None:
        self.protocol.protocol.connection = self._requests
        self.enter(_Phase.HEAD)
        try:
            while data := await self._receive():
                if self.foreign:
                    break
                await self.protocol.handle(RawData(data))
            else:
                await self.protocol.handle(RawData(b""))
        except trio.Cancelled:
            if self.scope.cancel_called and self.ended is None and self._phase in _TIMEOUTS:
                self.ended = _TIMEOUTS[self._phase][1]
                if not self._is_answering:
                    self._link_stream.send_nowait(_TOO_SLOW)
            raise
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass
        self._ending.over.set()
        for tell in self._leavers:
            tell()
        # Hypercorn would keep the socket of a caller that left until its keep-alive time is over.
        await self.idle_task.stop()
        await self.protocol.handle(Closed())

    async def _receive(self) -> bytes:
        data = await self._link_stream.receive_some(PIECE_BYTES)
        if data and self._requests.their_state is h11.DONE:
            # A caller is quick: the answer that it has is not yet done with here.
            self._turned = trio.Event()
            await self._turned.wait()
            self._turned = None
        if not self._is_between or not data:
            return data
        if self._phase is _Phase.IDLE:
            # A head that begins late would else be cut off by the keep-alive time.
            await self.idle_task.stop()
            self.enter(_Phase.HEAD)
        while b"\r\n" not in data and len(data) < MAX_REQUEST_LINE_BYTES:
            more = await self._link_stream.receive_some(PIECE_BYTES)
            if not more:
                return data
            data += more
        words = data.partition(b"\r\n")[0].split(b" ")
        if len(words) == 3 and self._is_foreign(words[1].decode("latin-1")):
            self.foreign = data + self._link_stream.take_received()
        return data


class _Witness(_Connection):
    """The connection of the proof: tells the phases it goes through, and goes on when they are reached."""

    tell: Callable[[str], None]
    was_idle = False
    answer_to: dict[_Phase, tuple[socket.socket, bytes]]

    def enter(self, phase: _Phase) -> None:
        super().enter(phase)
        self.tell(phase.value)
        if phase in self.answer_to:
            far, data = self.answer_to.pop(phase)
            far.send(data)

    async def _idle_timeout(self) -> None:
        self.was_idle = self.was_idle or self._phase is _Phase.IDLE
        await super()._idle_timeout()


async def _greet(scope: Any, receive: Any, send: Any) -> None:
    """The app of the proof."""
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


_PROOF: Final = [
    _Phase.HEAD.value,
    _Phase.BODY.value,
    _Phase.ANSWER.value,
    _Phase.IDLE.value,
    _Phase.HEAD.value,
    "GET /else HTTP/1.1\r\n",
    "HTTP/1.1 200",
]
