"""A port where Prometheus fetches the last run of `derp probe --every`: /metrics and /healthz, plain HTTP.  Layer L3.

One request per connection: a monitor comes once a minute, so nothing is gained by keeping connections, and one that is
kept would hold a place.  What is shown was rendered when the run ended; a scrape starts nothing and waits for nothing.
Used by cli_probe.py; heads: transport/http.py.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from derp.client.client import open_background
from derp.metrics import CONTENT_TYPE
from derp.transport.http import HttpError, Request, ServerHttp
from derp.transport.listen import open_listener

# Two monitors, and people with curl.  More at once is a mistake or worse, and must not eat the prober's descriptors,
# without which relays would look dead.
MAX_CONNECTIONS: Final = 16
# Prometheus sends half a KiB.
MAX_HEAD_BYTES: Final = 8 * 1024
# From accept to the last byte taken.  Prometheus gives up after 10 s by default, so nobody waits for longer.
REQUEST_SECONDS: Final = 10.0

_RECEIVE_BYTES: Final = 4096
_TEXT: Final = "text/plain; charset=utf-8"
_NOT_YET: Final = b"the first run is not done yet: come again, its length is the time of all probes together\n"
_ELSEWHERE: Final = b"there are /metrics (the last run, for Prometheus) and /healthz (the prober runs)\n"

Answer = tuple[int, str, bytes]


class ScrapePort:
    """`show` after each run.  `open_scrape_port` makes it and closes its socket."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self._connections = 0
        self._exposition: bytes | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        name = self._listener.socket.getsockname()
        return name[0], name[1]

    def show(self, exposition: bytes) -> None:
        """What /metrics gives from now on."""
        self._exposition = exposition

    def answer(self, request: Request) -> Answer:
        """(status, content type, body)."""
        if request.method not in ("GET", "HEAD"):
            return 405, _TEXT, b"only GET and HEAD are understood here\n"
        match request.target.partition("?")[0]:
            case "/metrics" if self._exposition is not None:
                return 200, CONTENT_TYPE, self._exposition
            case "/metrics":
                return 503, _TEXT, _NOT_YET
            case "/healthz":  # also before the first run: a supervisor must not stop what has only begun
                return 200, _TEXT, b"ok\n"
        return 404, _TEXT, _ELSEWHERE

    async def _run(self) -> None:
        await trio.serve_listeners(self._serve, [self._listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self._connections >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        try:
            # A peer may break off whenever it likes.
            with suppress(trio.BrokenResourceError), trio.move_on_after(REQUEST_SECONDS):
                await self._serve_one(stream)
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        http = ServerHttp(MAX_HEAD_BYTES)
        request = None
        try:
            while request is None:
                received = await stream.receive_some(_RECEIVE_BYTES)
                if not received:
                    return
                request = http.receive_data(received)
            status, content_type, body = self.answer(request)
        except HttpError as error:
            status, content_type, body = error.status, _TEXT, f"{error}\n".encode()
        headers = [("Content-Type", content_type), ("Connection", "close")]
        if status == 405:
            headers.append(("Allow", "GET, HEAD"))
        await stream.send_all(http.send_response(status, headers, body))
        await stream.send_eof()
        # Closed with bytes unread, the kernel would send a reset, which may overtake the answer.
        while await stream.receive_some(_RECEIVE_BYTES):
            pass


@asynccontextmanager
async def open_scrape_port(host: str, port: int) -> AsyncIterator[ScrapePort]:
    """Listen while the block runs; `host` as for `open_listener`.  Raises ConfigError that names the address."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(open_listener(host, port)))
    async with listener, open_background() as nursery:
        scrapes = ScrapePort(listener)
        nursery.start_soon(scrapes._run)
        yield scrapes
