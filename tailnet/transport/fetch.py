"""HTTP from our side (layer L2; the only file of tailnet with httpx): documents that are followed, and questions.

One Fetcher per source keeps its connection and what the server said about the last version.  Spec: RFC 9110 section 13.
Callers: services/map_sources.py; an Asker asks a running server for the command line (cli/operator_door.py).
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import httpx

from derp.text import fit_to_show, printable
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
                body = await _read_up_to(response, self._max_bytes)
                if len(body) > self._max_bytes:
                    raise TransportError(f"has more than {self._max_bytes} bytes: is it the right URL?")
        except httpx.TimeoutException:
            raise TransportError(f"does not answer within {self._timeout_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise TransportError(f"cannot be fetched: {reason_of(error)}") from None
        self._validators = {}
        for name, condition in (("etag", "if-none-match"), ("last-modified", "if-modified-since")):
            if name in response.headers:
                self._validators[condition] = response.headers[name]
        return body


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered; `body` is cut at the limit that was asked for."""

    status: int
    body: bytes


class Asker:
    """Asks one server for its pages.  Use as an async context manager.

    `verified`: whether its certificate has to be good; without it nobody knows who answers, so no token is sent.
    """

    def __init__(self, url: str, *, token: str, verified: bool, timeout_seconds: float) -> None:
        assert verified or not token
        self._url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            timeout=timeout_seconds,
            headers={"user-agent": "tailnet"} | ({"coder-session-token": token} if token else {}),
            limits=httpx.Limits(max_connections=1),
            verify=system_context() if verified else False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def ask(self, path: str, max_bytes: int) -> Answer:
        """GET a page.  Raises TransportError with a reason that names the server and not the token."""
        shown = fit_to_show(self._url)
        try:
            async with self._client.stream("GET", url_for_tls(self._url + path)) as response:
                return Answer(response.status_code, (await _read_up_to(response, max_bytes))[:max_bytes])
        except httpx.TimeoutException:
            raise TransportError(f"{shown} does not answer within {self._timeout_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise TransportError(f"{shown} cannot be asked: {reason_of(error)}") from None


async def _read_up_to(response: httpx.Response, max_bytes: int) -> bytes:
    """The body; of a longer one a byte more than that, so that it is seen to be longer."""
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > max_bytes:
                # The loop is not left here: httpx would leave its generators to the garbage collector, and trio
                # complains of that.  With the connection closed the next step ends them all.
                await response.aclose()
                body = body[: max_bytes + 1]
    except httpx.TransportError:
        if len(body) <= max_bytes:
            raise
    return bytes(body)
