"""Small documents over HTTP, fetched again only when they changed (layer L2; the only file of tailnet with httpx).

One Fetcher per source keeps its connection and what the server said about the last version.  Spec: RFC 9110 section 13.
Next hop: services/map_sources.py.
"""

from types import TracebackType
from typing import Final, Self

import httpx

from derp.text import printable
from derp.transport.fetch import url_for_tls
from derp.transport.stream import reason_of
from derp.transport.tls_client import system_context
from tailnet.errors import TransportError

# Redirects of a URL that moved; more than three are a loop.
MAX_REDIRECTS: Final = 3


class Fetcher:
    """Fetches one URL.  Use as an async context manager."""

    def __init__(self, url: str, *, timeout_seconds: float, max_bytes: int) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes
        self._validators: dict[str, str] = {}
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        # Proxy variables of the environment apply, as for every other program of the operator.
        self._client = httpx.AsyncClient(
            timeout=self._timeout_seconds,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            headers={"user-agent": "tailnet", "accept": "application/json"},
            limits=httpx.Limits(max_connections=1),
            verify=system_context(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def fetch(self, *, force: bool = False) -> bytes | None:
        """The document, or None if it is the one fetched last.  `force` fetches it in any case.

        Raises TransportError with a reason for the operator; the URL is not in it.
        """
        assert self._client is not None, "use as an async context manager"
        headers = {} if force else self._validators
        try:
            async with self._client.stream("GET", url_for_tls(self._url), headers=headers) as response:
                if response.status_code == 304 and headers:
                    return None
                if response.status_code != 200:
                    raise TransportError(f"answers {response.status_code} {printable(response.reason_phrase)}".strip())
                body = await self._read_body(response)
        except httpx.TimeoutException:
            raise TransportError(f"does not answer within {self._timeout_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise TransportError(f"cannot be fetched: {reason_of(error)}") from None
        self._validators = {}
        for name, condition in (("etag", "if-none-match"), ("last-modified", "if-modified-since")):
            if name in response.headers:
                self._validators[condition] = response.headers[name]
        return body

    async def _read_body(self, response: httpx.Response) -> bytes:
        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > self._max_bytes:
                    # The loop is not left here: httpx would leave its generators to the garbage collector, and trio
                    # complains of that.  With the connection closed the next step ends them all.
                    await response.aclose()
                    body = body[: self._max_bytes + 1]
        except httpx.TransportError:
            if len(body) <= self._max_bytes:
                raise
        if len(body) > self._max_bytes:
            raise TransportError(f"has more than {self._max_bytes} bytes: is it the right URL?")
        return bytes(body)
