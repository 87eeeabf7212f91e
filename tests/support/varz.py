"""The operator's pages of a relay as dashboards read them: /debug/varz and /debug/vars, ours or the genuine relay's."""

import json
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from tests.support.peers import PATIENCE_SECONDS
from tests.support.relay_command import HOST

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
# As often as a page is looked at while something has to come: a relay's own clock is what is waited for.
_LOOK_SECONDS = 0.1


class Scraped:
    """One reading of /debug/varz.  A sample's name is `name{label="value",...}`, labels in order of their names."""

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.values: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                name, kind = line.split()[2:4]
                self.types[name] = kind
            elif not line.startswith("#"):
                found = _SAMPLE.fullmatch(line)
                assert found is not None, line
                name, labels, value = found.groups()
                if labels:
                    name += "{" + ",".join(f'{key}="{text}"' for key, text in sorted(_LABEL.findall(labels))) + "}"
                assert name not in self.values, line
                self.values[name] = float(value)


class OperatorsPages:
    """Asks one relay with TLS, whose name is `name`.  `asked` is how many requests that took, each on a connection."""

    def __init__(self, port: int, name: str, authority: Path) -> None:
        self.asked = 0
        self._port = port
        self._name = name
        self._context = ssl.create_default_context(cafile=str(authority))

    async def get(self, path: str) -> str:
        """The body of a page, which must be there."""
        self.asked += 1
        request = f"GET {path} HTTP/1.1\r\nHost: {self._name}\r\nConnection: close\r\n\r\n"
        with trio.fail_after(PATIENCE_SECONDS):
            tcp = await trio.open_tcp_stream(HOST, self._port)
            stream = trio.SSLStream(tcp, self._context, server_hostname=self._name, https_compatible=True)
            async with stream:
                await stream.send_all(request.encode())
                answer = b"".join([part async for part in stream])
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), answer
        if b"chunked" in head:
            body = _unchunked(body)
        return body.decode()

    async def scrape(self) -> Scraped:
        return Scraped(await self.get("/debug/varz"))

    async def variables(self) -> dict[str, Any]:
        page: dict[str, Any] = json.loads(await self.get("/debug/vars"))
        return page

    async def wait(self, condition: Callable[[dict[str, float]], bool]) -> Scraped:
        """Scrape until it holds."""
        with trio.fail_after(PATIENCE_SECONDS):
            page = await self.scrape()
            while not condition(page.values):
                await trio.sleep(_LOOK_SECONDS)
                page = await self.scrape()
        return page


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        whole += rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]
    return whole
