"""What is thrown at an agent's parsers, and the law: only refusals are raised, and pieces say what the whole says.

`pty` is a whole client's side of the reconnecting PTY; `pty_pieces` the same, cut as its first byte says; `wishes` are
lines of the speed test; `http` is what comes to port 4 before there is a request.
"""

import json
import struct
from contextlib import suppress
from typing import Final

from derp.transport.http import HttpError, ServerHttp
from tailnet.agent import http
from tailnet.agent.pty_frames import PtyFrames, Request
from tailnet.agent.speedtest import MAX_SECONDS, read_wish
from tailnet.errors import RemoteProtocolError
from tests.fuzz.laws import Target
from tests.support.terminals import request_bytes, wish_bytes

ID: Final = "5f4dcc3b-aa76-4d61-8327-deb882cf99aa"
_SIZES: Final = range(65536)


def _requests(pieces: list[bytes]) -> tuple[list[Request], bool]:
    """What they say, and whether they were refused at last."""
    frames, requests = PtyFrames(), []
    for piece in pieces:
        try:
            requests += frames.receive_data(piece)
        except RemoteProtocolError:
            return requests, True
    return requests, False


def pty(data: bytes) -> None:
    """Sizes are sizes, and what is typed is whole characters."""
    requests, _ = _requests([data])
    for each in requests:
        assert each.height in _SIZES
        assert each.width in _SIZES
        each.data.decode()


def pty_pieces(data: bytes) -> None:
    """Whoever sends byte by byte says no less than who sends all at once, and is refused for the same."""
    whole, is_refused = _requests([data])
    pieces, was_refused = _requests([data[at : at + 1] for at in range(len(data))])
    assert was_refused == is_refused
    assert pieces == whole or (is_refused and pieces[: len(whole)] == whole)


def wishes(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert 0 <= read_wish(data).seconds <= MAX_SECONDS


def http_heads(data: bytes) -> None:
    """An answer can be made to whatever came."""
    server, status = ServerHttp(http.MAX_HEAD_BYTES, http.MAX_BODY_BYTES), 404
    try:
        request = server.receive_data(data or b"\0")
    except HttpError as error:
        status = error.status
    else:
        if request is None:
            return
        assert len(request.body) <= http.MAX_BODY_BYTES
    assert server.send_response(status, [], b"x").startswith(b"HTTP/1.1 %d " % status)


_TYPED: Final = (
    wish_bytes(ID) + request_bytes('ls "\\ü\r', 30, 100) + b'\n{"data":"\\u00fc\\ud83d","height":null}' + b"{}"
)

TARGETS: Final[dict[str, tuple[Target, list[bytes]]]] = {
    "pty": (
        pty,
        [_TYPED, wish_bytes(ID, command="top", Container="web", ContainerUser="me", BackendType="screen"), _TYPED[:60]],
    ),
    "pty_pieces": (pty_pieces, [_TYPED, struct.pack("<H", 2) + b"{}", wish_bytes(ID) + b'{"data":"' + b"\\" * 50]),
    "wishes": (
        wishes,
        [json.dumps({"version": 2, "time": time, "direction": time % 2}).encode() for time in (0, 1, 5 * 10**9)],
    ),
    "http": (
        http_heads,
        [
            b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n",
            b"POST /api/v0/containers/devcontainers/x/recreate HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nnull",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nnull\r\n0\r\n\r\n",
        ],
    ),
}
