"""What every request and answer of the API has in common (layer L3): pure ASGI, around the whole app of app.py.

An answer gets `X-Request-Id` and the headers that tell browsers what not to do with it; large ones are compressed for
who reads gzip.  The log gets one line per request.  Guards (guards.py) write who called into the `Exchange`.
Which websites may use it: cors.py.  With OpenTelemetry each is a span (transport/tracing.py).
"""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from derp.log import fields
from tailnet.api.cors import preflight, shared_headers
from tailnet.tokens import without_user_tokens
from tailnet.transport.tracing import Tracing

_log = logging.getLogger("tailnet.api.access")
_streams = logging.getLogger("tailnet.api")

REQUEST_ID: Final = "x-request-id"
# One's own id goes into our log and back, so it is short and has no character that means anything anywhere.
_SANE_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:/+=-]{0,127}")
# Load balancers ask these each second or two.
PROBES: Final = frozenset({"/healthz", "/readyz"})
# A path is cut in the log: the longest of ours has some 150 characters.
_MAX_PATH_CHARS: Final = 256
# Two thirds of a packet; what is shorter goes in one packet anyway.
COMPRESSED_FROM_BYTES: Final = 1024
# Measured on a map of 1,000 relays, 164 KB of JSON: level 1 takes 0.4 ms and leaves 14 %, level 6 takes 1.0 ms and
# leaves 13 %, level 9 takes 14 ms and leaves 12 %.  From 128 KiB on Starlette leaves it to a thread.
_COMPRESSION_LEVEL: Final = 1
# Where an answer does not say it itself.  Answers hold what only their caller may see, so nobody keeps them.
_DEFAULTS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
KEY: Final = "tailnet.exchange"
# What the log and Hypercorn look at when an answer is over.
_KEPT: Final = frozenset({KEY, "type", "method", "path", "http_version"})


# What is told of an answer that goes on for hours.
Rest = Callable[[Receive, Send], Awaitable[None]]


@dataclass(slots=True)
class Exchange:
    """One request and its answer: what the log says of them."""

    request_id: str
    caller_kind: str = ""  # "user", "agent" or "administrator" once a guard knows
    caller_id: str = ""
    status: int = 0  # 101: a websocket was accepted
    rest: Rest | None = None  # see `defer`


def exchange_of(scope: Mapping[str, object]) -> Exchange:
    """That of an app inside `Middleware`."""
    exchange = scope[KEY]
    assert isinstance(exchange, Exchange)
    return exchange


def defer(scope: Scope, rest: Rest) -> None:
    """Give an answer that goes on for hours only when the app has returned: what it needed to find out who may ask for
    what (frames, stacks, the request taken apart) is 12 KiB, which each follower of a stream would hold."""
    exchange_of(scope).rest = rest


class Middleware:
    """The outermost ASGI app; what the exception handlers answer goes through it too."""

    def __init__(
        self,
        app: ASGIApp,
        uncompressed: Collection[str] = (),
        *,
        origins: Callable[[], Collection[str]] = tuple,
        tracing: Tracing | None = None,
    ) -> None:
        """`uncompressed`: paths whose answers go out as they are.  `origins`: websites that may use it, as of now."""
        self._app = app
        self._origins = origins
        self._tracing = tracing
        self._uncompressed = uncompressed
        self._compressing = GZipMiddleware(app, COMPRESSED_FROM_BYTES, _COMPRESSION_LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        exchange = Exchange(request_id(headers.get(REQUEST_ID.encode(), b"").decode("latin-1")))
        scope[KEY] = exchange
        may_compress = _reads_gzip(headers) and scope["path"] not in self._uncompressed
        app = self._compressing if may_compress else self._app
        began = time.perf_counter()
        origins = self._origins()
        shared = shared_headers(origins, scope["path"], headers) if origins else ()

        async def send_with_headers(message: Message) -> None:
            if message["type"] in _STARTS:
                exchange.status = message.get("status", 101)
                message["headers"] = [*_complete(message, exchange.request_id), *shared]
            await send(message)
            if exchange.rest is not None:
                message["headers"] = ()  # Hypercorn keeps the message

        try:
            allowed = preflight(origins, scope.get("method", ""), scope["path"], headers) if origins else None
            if allowed is not None:
                await send_with_headers(
                    {"type": "http.response.start", "status": 204, "headers": allowed[len(shared) :]}
                )
                await send_with_headers({"type": "http.response.body", "body": b""})
            elif self._tracing is not None:
                await _traced(self._tracing, app, scope, receive, send_with_headers)
            else:
                await app(scope, receive, send_with_headers)
            if exchange.rest is not None:
                _forget_routing(scope)
                await _give_rest(exchange.rest, scope, receive, send_with_headers)
        finally:
            _tell(scope, exchange, time.perf_counter() - began)


async def _traced(tracing: Tracing, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer inside a span.  That of a stream ends when it begins to be told."""
    exchange, method = exchange_of(scope), scope.get("method", "GET")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    about = {"http.request.method": method, "url.path": scope["path"], "tailnet.request_id": exchange.request_id}
    with tracing.serving(method, headers, about) as span:
        await app(scope, receive, send)
        route = getattr(scope.get("route"), "path", "")
        if route:
            span.rename(f"{method} {route}")
            span.note(http__route=route)
        if exchange.status:
            span.note(http__response__status_code=exchange.status)
        if exchange.caller_kind:
            span.note(tailnet__caller_kind=exchange.caller_kind, tailnet__caller=exchange.caller_id)
        if exchange.status >= 500:
            span.fail(f"answered {exchange.status}")


async def _give_rest(rest: Rest, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await rest(receive, send)
    except Exception:
        # A defect of one stream, groups of them included; that it ends without its last event tells its reader.
        _streams.exception("! %s failed (request %s)", scope["path"], exchange_of(scope).request_id)


def _forget_routing(scope: Scope) -> None:
    kept = {key: scope[key] for key in _KEPT}
    scope.clear()  # else it keeps the room of all that was in it
    scope.update(kept)


def request_id(given: str) -> str:
    """The caller's own, if it is sane, so that one id goes through all logs; else a new one."""
    return given if _SANE_ID.fullmatch(given) else str(uuid.uuid4())


def _reads_gzip(headers: Mapping[bytes, bytes]) -> bool:
    for part in headers.get(b"accept-encoding", b"").decode("latin-1").lower().split(","):
        name, _, quality = part.replace(" ", "").partition(";q=")
        if name == "gzip":
            return not re.fullmatch(r"0(\.0*)?", quality)
    return False


def _complete(message: Message, request_id: str) -> list[tuple[bytes, bytes]]:
    headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
    headers.append((REQUEST_ID.encode(), request_id.encode()))
    if message["type"] == "websocket.accept":
        return headers  # it is no page: only the id is of use
    said = {name for name, _ in headers}
    return headers + [each for each in _DEFAULTS if each[0] not in said]


def _tell(scope: Scope, exchange: Exchange, seconds: float) -> None:
    path = scope["path"]
    is_probe = path in PROBES and exchange.status < 500
    level = logging.DEBUG if is_probe else logging.INFO
    if not _log.isEnabledFor(level):
        return
    method = scope.get("method", "GET")
    # Somebody who puts his token there by mistake finds no such path; the log must not have it.
    path = without_user_tokens(path)
    path = path if len(path) <= _MAX_PATH_CHARS else path[:_MAX_PATH_CHARS] + "..."
    caller = f"{exchange.caller_kind} {exchange.caller_id}" if exchange.caller_kind else "nobody known"
    # A caller that left before its answer began has no status: 499, as proxies write it.
    status = exchange.status or 499
    milliseconds = round(seconds * 1000, 1)
    text = "%s %s: %d in %.1f ms, %s, request %s"
    more = fields(
        event="request",
        method=method,
        path=path,
        status=status,
        milliseconds=milliseconds,
        caller_kind=exchange.caller_kind,
        caller=exchange.caller_id,
        request_id=exchange.request_id,
    )
    _log.log(level, text, method, path, status, milliseconds, caller, exchange.request_id, extra=more)
