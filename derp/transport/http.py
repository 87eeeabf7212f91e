"""HTTP/1.1 heads and small bodies, on top of h11.  Layer L2; the only file that imports h11.

ServerHttp reads what a stranger sends to the front door; ClientHttp asks for an upgrade, a tunnel through a
proxy, or a small page.  Both are without I/O: bytes in, one value out, bytes to send out; `exchange` drives the
client's over a stream.  What a request means is decided elsewhere: derp/protocol/upgrade.py for upgrades,
derp/server/pages.py for pages.
Spec: RFC 9110, RFC 9112.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.protocol.target import authority, origin_form
from derp.text import error_text
from derp.transport.stream import ByteStream

MAX_HEAD_BYTES: Final = 64 * 1024
# A browser behind two proxies sends about 40 header lines.  Each line costs about 2 us to check, so 64 KiB of
# four-byte lines would buy a stranger 30 ms of our time; this bound buys half a millisecond.
MAX_HEAD_LINES: Final = 256
MAX_RESPONSE_BODY_BYTES: Final = 1 << 20

_PHRASES: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_NO_BODY_STATUSES: Final = frozenset({204, 304})
_TLS_HANDSHAKE: Final = 0x16
_H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n"

Headers = Sequence[tuple[str, str]]


class HttpError(RemoteProtocolError):
    """The peer's HTTP cannot be served.  `status` is what a server answers, the text says what to change."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(slots=True)
class Request:
    """One request.  Header names are in lower case, repeated ones joined with a comma; values are latin-1.

    `target` is `/path?query` in one spelling, however it came (protocol/target.py); so is the Host header then.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    http_version: str


@dataclass(slots=True)
class Response:
    """One answer.  `body` is whole, except after `head_only`: then it is what came along with the head."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    http_version: str


class ServerHttp:
    """Reads requests of one connection and writes the answers.

    Call `receive_data` until it returns a Request; then either take the connection over (`trailing_data` has what
    came behind the head) or `send_response`.  If `keep_alive` is true after that, call `next_cycle`, which may
    return a request that was already pipelined.  After an HttpError one `send_response` is still allowed, and then
    the connection must be closed.

    With `head_only` the request is returned as soon as its head is complete and `trailing_data` begins with its
    body: for connections that are handed over whole to another server.  Only of a request for an upgrade the body is
    read first, which has to be empty: behind it another protocol begins.
    """

    __slots__ = (
        "_body",
        "_bounds",
        "_dead",
        "_h11",
        "_is_handed_out",
        "_max_body_bytes",
        "_max_head_bytes",
        "_plain",
        "_request",
        "head_only",
    )

    def __init__(
        self, max_head_bytes: int = MAX_HEAD_BYTES, max_body_bytes: int = 0, *, head_only: bool = False
    ) -> None:
        self._h11: h11.Connection | None = None
        # the first request's bytes and where its head ends, while only the plain reader has seen them
        self._plain: tuple[bytes, int] | None = None
        self._max_head_bytes = max_head_bytes
        self._bounds = _HeadBounds(max_head_bytes)
        self._max_body_bytes = max_body_bytes
        self._request: Request | None = None  # its head is complete, its body may not be
        self._is_handed_out = False  # it was returned, and is to be answered
        self._body = bytearray()
        self._dead: HttpError | None = None
        self.head_only = head_only

    def receive_data(self, data: bytes | bytearray | memoryview) -> Request | None:
        """Take bytes of the peer; return a request once it is complete.  Raises HttpError."""
        if self._dead is not None:
            raise self._dead
        if self._h11 is None and self._plain is None:
            raw = bytes(data)
            end = len(raw) and _plain_head_end(raw, self._max_head_bytes)
            if end:
                self._plain = raw, end
                self._request = _plain_request(raw, end)
                self._is_handed_out = True
                return self._request
        if self._is_handed_out:
            raise LocalProtocolError("answer the request and call next_cycle before more bytes are given")
        if not data:
            raise LocalProtocolError("no bytes: the end of the stream is for the caller to handle")
        raw = bytes(data)
        if self._request is None:
            self._guard_head(raw)
        self._connection.receive_data(raw)
        return self._advance()

    @property
    def _connection(self) -> h11.Connection:
        """Made when it is needed.  Upgrades never do: their head is plain, and nothing of HTTP follows it."""
        if self._h11 is None:
            self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=self._max_head_bytes)
            if self._plain is not None:
                (raw, _), self._plain, self._request = self._plain, None, None
                self._is_handed_out = False
                self._guard_head(raw)
                self._h11.receive_data(raw)
                self._advance()
        return self._h11

    def trailing_data(self) -> bytes:
        """What was received behind the last request: the first bytes of the upgraded protocol, or pipelining."""
        if self._plain is not None:
            raw, end = self._plain
            return raw[end:]
        return self._connection.trailing_data[0]

    def continue_response(self) -> bytes:
        """The interim answer a client waits for before it sends its body, or nothing.  Send it if receive_data gave
        None."""
        if not self._connection.they_are_waiting_for_100_continue:
            return b""
        event = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
        return self._connection.send(event) or b""

    def send_response(self, status: int, headers: Headers = (), body: bytes = b"") -> bytes:
        """The bytes of one whole answer; content-length is added, and `connection: close` where it has to be."""
        if status < 200:
            raise LocalProtocolError(f"{status} is not a final answer")
        if self.head_only and self._dead is None and self._connection.their_state is h11.SEND_BODY:
            self._pass_over_body()
        fields = [(name, value) for name, value in headers if name.lower() != "content-length"]
        bare = status in _NO_BODY_STATUSES
        if not bare:
            fields.append(("Content-Length", str(len(body))))
        if self._dead is not None and not any(name.lower() == "connection" for name, _ in fields):
            fields.append(("Connection", "close"))
        try:
            head = self._connection.send(_final(status, fields))
            silent = bare or (self._request is not None and self._request.method == "HEAD")
            rest = b"" if silent or not body else self._connection.send(h11.Data(data=body))
            end = self._connection.send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise LocalProtocolError(f"this answer cannot be sent now: {error_text(error)}") from error
        return (head or b"") + (rest or b"") + (end or b"")

    @property
    def keep_alive(self) -> bool:
        """True when the last answer left the connection usable for `next_cycle`."""
        state = self._connection
        return self._dead is None and state.our_state is h11.DONE and state.their_state is h11.DONE

    def next_cycle(self) -> Request | None:
        """Begin with the next request; returns it if it was received already.  Raises HttpError."""
        if not self.keep_alive:
            raise LocalProtocolError("this connection must be closed after its last answer")
        self._connection.start_next_cycle()
        self._request = None
        self._is_handed_out = False
        self._body.clear()
        self._bounds.restart()
        pipelined = self._connection.trailing_data[0]
        if not pipelined:
            return None
        self._guard_head(pipelined)
        return self._advance()

    def _pass_over_body(self) -> None:
        """A request that nobody took over is answered here.  Its end is an event of its own, also without a body;
        with one that nobody reads the connection is of no more use, and the answer says so."""
        try:
            over = type(self._connection.next_event()) is h11.EndOfMessage
        except h11.RemoteProtocolError:
            over = False
        if not over:
            self._dead = HttpError(413, "a request body is not accepted here")

    def _guard_head(self, raw: bytes) -> None:
        try:
            self._bounds.receive_data(raw)
        except HttpError as error:
            self._dead = error
            raise

    def _advance(self) -> Request | None:
        try:
            return self._next_request()
        except HttpError as error:
            self._dead = error
            raise
        except h11.RemoteProtocolError as error:
            self._dead = HttpError(error.error_status_hint, f"malformed HTTP request: {error_text(error)}")
            raise self._dead from error

    def _next_request(self) -> Request | None:
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                return None
            if type(event) is h11.Request:
                request = _request(
                    event.method.decode("ascii"),
                    event.target.decode("latin-1"),
                    _fold(event.headers),
                    event.http_version.decode("ascii"),
                )
                self._request = request
                if self.head_only and not self._is_upgrade_with_body(request):
                    self._is_handed_out = True
                    return request
                length = request.headers.get("content-length")
                if length is not None and int(length) > self._max_body_bytes:
                    raise self._too_large()
            elif type(event) is h11.Data:
                if len(self._body) + len(event.data) > self._max_body_bytes:
                    raise self._too_large()
                self._body += event.data
            elif type(event) is h11.EndOfMessage:
                assert self._request is not None
                self._request.body = bytes(self._body)
                self._is_handed_out = True
                return self._request
            else:  # PAUSED: nothing more can come before next_cycle
                return None

    def _is_upgrade_with_body(self, request: Request) -> bool:
        headers = request.headers
        return "upgrade" in headers and ("content-length" in headers or "transfer-encoding" in headers)

    def _too_large(self) -> HttpError:
        if self._request is not None and "upgrade" in self._request.headers and not self._max_body_bytes:
            return HttpError(400, "a request for an upgrade has no body: its bytes would be those of what comes after")
        return HttpError(413, f"the request body is larger than the {self._max_body_bytes} bytes accepted here")


def last_answer(status: int, headers: Headers, body: bytes, *, method: str = "GET") -> bytes:
    """An answer behind which the connection is closed, without what has read its request: who lets a request wait need
    not keep the bytes of it."""
    fields = [*headers, ("Content-Length", str(len(body))), ("Connection", "close")]
    connection = h11.Connection(h11.SERVER)
    head = connection.send(_final(status, fields)) or b""
    return head if method == "HEAD" else head + body


class ClientHttp:
    """One request and its answer: upgrades, CONNECT, small pages.

    `send_request` once, then `receive_data` until it returns a Response.  After 101, or after 2xx to a CONNECT,
    `trailing_data` has the first bytes of what follows.  The request may be followed at once by the upgraded
    protocol (DERP fast start); then nothing is read here.
    """

    __slots__ = ("_body", "_connection", "_max_body_bytes", "_response", "head_only")

    def __init__(
        self,
        max_head_bytes: int = MAX_HEAD_BYTES,
        max_body_bytes: int = MAX_RESPONSE_BODY_BYTES,
        *,
        head_only: bool = False,
    ) -> None:
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=max_head_bytes)
        self._max_body_bytes = max_body_bytes
        self._response: Response | None = None
        self._body = bytearray()
        self.head_only = head_only

    def send_request(self, method: str, target: str, headers: Headers, body: bytes = b"") -> bytes:
        """The bytes of the request; `headers` must hold Host.  Raises LocalProtocolError."""
        fields = list(headers)
        if body:
            fields.append(("Content-Length", str(len(body))))
        try:
            request = h11.Request(method=method, target=target, headers=fields)
            head = self._connection.send(request)
            rest = self._connection.send(h11.Data(data=body)) if body else b""
            self._connection.send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise LocalProtocolError(f"this request cannot be sent: {error_text(error)}") from error
        return (head or b"") + (rest or b"")

    def receive_data(self, data: bytes | bytearray | memoryview) -> Response | None:
        """Take bytes of the peer, none for the end of the stream; return the answer once it is there.

        Raises HttpError when it is malformed, too large, or ends early.
        """
        if not data and self._response is None and not self._connection.trailing_data[0]:
            raise HttpError(502, "the server closed the connection instead of answering")
        try:
            self._connection.receive_data(bytes(data))
            return self._next_response()
        except h11.RemoteProtocolError as error:
            raise HttpError(502, f"malformed HTTP answer: {error_text(error)}") from error
        except RuntimeError as error:  # h11's word for bytes after the end of the stream
            raise LocalProtocolError(error_text(error)) from error

    def trailing_data(self) -> bytes:
        """What was received behind the answer and was not given out as body."""
        return b"" if self.head_only and self._body else self._connection.trailing_data[0]

    def _next_response(self) -> Response | None:
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                return self._early() if self.head_only else None
            if type(event) is h11.InformationalResponse:
                if event.status_code == 101:
                    return _answer(event)
                continue  # 100 and 103 announce; the answer comes later
            if type(event) is h11.Response:
                self._response = _answer(event)
            elif type(event) is h11.Data:
                room = self._max_body_bytes - len(self._body)
                self._body += event.data[: max(room, 0)]
                if len(event.data) > room:
                    if self.head_only:
                        return self._early()
                    raise HttpError(502, f"the answer's body is larger than {self._max_body_bytes} bytes")
            else:  # EndOfMessage, or PAUSED after a CONNECT was granted
                return self._early()

    def _early(self) -> Response | None:
        if self._response is not None:
            self._response.body = bytes(self._body)
        return self._response


async def exchange(stream: ByteStream, http: ClientHttp, request: bytes) -> Response:
    """Send what `http.send_request` gave and read the answer.  Raises HttpError and what the stream raises."""
    await stream.send_all(request)
    while True:
        response = http.receive_data(await stream.receive_some())
        if response is not None:
            return response


class _HeadBounds:
    """Counts bytes and lines of a head before h11 spends time on them."""

    __slots__ = ("_bytes", "_lines", "_max_head_bytes", "_tail")

    def __init__(self, max_head_bytes: int) -> None:
        self._max_head_bytes = max_head_bytes
        self.restart()

    def restart(self) -> None:
        self._bytes = 0
        self._lines = 0
        self._tail = b""

    def receive_data(self, raw: bytes) -> None:
        if self._bytes == 0:
            if raw[0] == _TLS_HANDSHAKE:
                raise HttpError(400, "this port speaks plain HTTP and was sent TLS: use http://, or the TLS port")
            if raw.startswith(_H2_PREFACE):
                raise HttpError(505, "this port speaks HTTP/1.1: switch HTTP/2 off in the client or proxy before it")
        # The blank line may be cut: three bytes before these can belong to it.
        seen = self._tail + raw
        end = seen.find(b"\r\n\r\n")
        head_bytes = len(raw) if end < 0 else end + 4 - len(self._tail)
        self._bytes += head_bytes
        self._lines += raw.count(b"\n", 0, head_bytes)
        self._tail = seen[-3:]
        if self._bytes > self._max_head_bytes:
            raise HttpError(431, f"the request head is larger than {self._max_head_bytes} bytes: send fewer headers")
        if self._lines > MAX_HEAD_LINES:
            raise HttpError(431, f"the request has more than {MAX_HEAD_LINES} header lines: send fewer headers")


# What nearly every client's head is: h11 needs 60 us for it and this 8, which is a quarter of what a peer that connects
# costs.  Whatever is not exactly so is h11's to read, and to refuse.
_PLAIN_HEAD: Final = re.compile(rb"GET [!-~]+ HTTP/1\.1\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)+\r\n")
# Heads with a body, with more or fewer than one host, or with an answer on the way.
_NOT_PLAIN: Final = re.compile(rb"\r\n(?:content-length|transfer-encoding|expect):", re.IGNORECASE)
_HOST_LINE: Final = re.compile(rb"\r\nhost:", re.IGNORECASE)


def _plain_head_end(raw: bytes, max_head_bytes: int) -> int:
    """Where the head ends if it is plain, else 0."""
    match = _PLAIN_HEAD.match(raw)
    if match is None or match.end() > max_head_bytes or raw.count(b"\n", 0, match.end()) > MAX_HEAD_LINES:
        return 0
    end = match.end()
    if _NOT_PLAIN.search(raw, 0, end) is not None or len(_HOST_LINE.findall(raw, 0, end)) != 1:
        return 0
    return end


def _plain_request(raw: bytes, end: int) -> Request:
    first, *lines = raw[: end - 4].decode("latin-1").split("\r\n")
    folded: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        folded[name] = f"{folded[name]}, {value}" if name in folded else value
    return _request("GET", first[4:-9], folded, "1.1")


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """The seconds of Retry-After (RFC 9110 section 10.2.3); None without, and for a date."""
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _request(method: str, target: str, headers: dict[str, str], http_version: str) -> Request:
    if method != "CONNECT" and (not target.startswith("/") or "%" in target):
        host = authority(target)
        if host is not None:
            headers["host"] = host
        target = origin_form(target)
    return Request(method, target, headers, b"", http_version)


def _final(status: int, fields: list[tuple[str, str]]) -> h11.Response:
    encoded = [(name.encode("ascii"), value.encode("latin-1")) for name, value in fields]
    return h11.Response(status_code=status, headers=encoded, reason=_PHRASES.get(status, b""))


def _fold(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    folded: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        folded[name] = f"{folded[name]}, {value}" if name in folded else value
    return folded


def _answer(event: h11.Response | h11.InformationalResponse) -> Response:
    return Response(
        status=event.status_code,
        reason=event.reason.decode("latin-1"),
        headers=_fold(event.headers),
        body=b"",
        http_version=event.http_version.decode("ascii"),
    )
