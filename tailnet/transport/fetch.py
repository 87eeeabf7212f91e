"""HTTP from our side (layer L2; the only file of tailnet with httpx): documents that are followed, questions, news.

A Fetcher keeps its connection and what the server said about the last version (RFC 9110 section 13).  A Poster tells
somebody something and hears whether it was taken; an Asker asks a running server for the command line; `ask` is one
question with a secret in it.
Callers: services/map_sources.py, services/webhook.py, cli/operator_door.py, services/external_auth.py.
"""

import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Final, Self

import httpx
import trio

from derp.text import fit_to_show, printable
from derp.transport.fetch import url_for_tls
from derp.transport.http import retry_after_of
from derp.transport.stream import reason_of
from derp.transport.tls_client import system_context
from tailnet.errors import TransportError

# Redirects of a URL that moved; more than three are a loop.
MAX_REDIRECTS: Final = 3
# An answer's body is read so far, so that its connection can be used again; a longer one ends the connection.
MAX_ANSWER_BYTES: Final = 16 * 1024


class _Opened:
    """Has a client between enter and exit, and may be entered again."""

    def __init__(self, open_client: Callable[[], httpx.AsyncClient]) -> None:
        self._open_client = open_client
        self._opened: httpx.AsyncClient | None = None

    @property
    def _client(self) -> httpx.AsyncClient:
        assert self._opened is not None, "use as an async context manager"
        return self._opened

    async def __aenter__(self) -> Self:
        self._opened = self._open_client()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.aclose()
            self._opened = None


class Fetcher(_Opened):
    """Fetches one URL.  Use as an async context manager."""

    def __init__(self, url: str, *, timeout_seconds: float, max_bytes: int) -> None:
        # Proxy variables of the environment apply, as for every other program of the operator.
        super().__init__(
            lambda: httpx.AsyncClient(
                timeout=timeout_seconds,
                follow_redirects=True,
                max_redirects=MAX_REDIRECTS,
                headers={"user-agent": "tailnet", "accept": "application/json"},
                limits=httpx.Limits(max_connections=1),
                verify=system_context(),
            )
        )
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes
        self._validators: dict[str, str] = {}

    async def fetch(self, *, force: bool = False) -> bytes | None:
        """The document, or None if it is the one fetched last.  `force` fetches it in any case.

        Raises TransportError with a reason for the operator; the URL is not in it.
        """
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


class Asker(_Opened):
    """Asks one server for its pages.  Use as an async context manager.

    `verified`: whether its certificate has to be good; without it nobody knows who answers, so no token is sent.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str,
        verified: bool,
        timeout_seconds: float,
        context: ssl.SSLContext | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """`context`: TLS settings instead of the system's roots; `headers` are sent besides ours."""
        assert verified or not token
        super().__init__(
            lambda: httpx.AsyncClient(
                timeout=timeout_seconds,
                headers=[
                    *headers,
                    ("user-agent", "tailnet"),
                    *([("coder-session-token", token)] if token else ()),
                ],
                limits=httpx.Limits(max_connections=1),
                verify=(context or system_context()) if verified else False,
            )
        )
        self._url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds

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


@dataclass(frozen=True, slots=True)
class Posted:
    """What a receiver answered."""

    status: int
    retry_after_seconds: float | None  # as it asks for


class Poster(_Opened):
    """Posts to one receiver after the other, over a few connections that it keeps.  Use as an async context manager.

    Redirects are not followed: what was meant for one receiver is nobody else's.
    """

    def __init__(self, *, timeout_seconds: float, max_connections: int) -> None:
        super().__init__(
            lambda: httpx.AsyncClient(
                timeout=timeout_seconds,
                follow_redirects=False,
                headers={"user-agent": "tailnet", "accept": "*/*"},
                limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=30.0),
                verify=system_context(),
            )
        )
        self._timeout_seconds = timeout_seconds

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Posted:
        """Raises TransportError with a reason when no answer comes in time; the URL is not in it."""
        try:
            # httpx bounds each step; a receiver that sends a byte now and then would keep us for ever.
            with trio.fail_after(self._timeout_seconds):
                request = self._client.build_request("POST", url_for_tls(url), content=body, headers=headers)
                response = await self._client.send(request, stream=True)
                try:
                    await _read_away(response)
                finally:
                    await response.aclose()
        except (httpx.TimeoutException, trio.TooSlowError):
            raise TransportError(f"does not answer within {self._timeout_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise TransportError(f"cannot be reached: {reason_of(error)}") from None
        return Posted(response.status_code, retry_after_of(response.headers))


async def _read_away(response: httpx.Response) -> None:
    size = 0
    try:
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                await response.aclose()  # its next step ends the loop, as in Fetcher
    except httpx.StreamError:
        if size <= MAX_ANSWER_BYTES:
            raise
    except httpx.TransportError:
        pass  # the head said what counts


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back: any status, a body within its bound, headers by lower-case name."""

    status: int
    body: bytes
    headers: Mapping[str, str]


async def ask(
    url: str,
    *,
    form: Mapping[str, str] | None = None,
    headers: Mapping[str, str],
    timeout_seconds: float,
    max_bytes: int,
) -> Answered:
    """POST a form, or GET without one, and read the answer.  `timeout_seconds` is for all of it.

    A redirect is an answer like any other: what was sent is for nobody else.  Raises TransportError with a reason for
    the operator; neither URL nor what was sent is in it.
    """
    try:
        # Also who sends a byte now and then has to be done by then: httpx asks for one byte within its time-out.
        with trio.fail_after(timeout_seconds):
            async with (
                httpx.AsyncClient(
                    timeout=timeout_seconds,
                    follow_redirects=False,
                    headers={"user-agent": "tailnet", "accept": "application/json"},
                    verify=_context(),
                ) as client,
                client.stream("GET" if form is None else "POST", url_for_tls(url), data=form, headers=headers) as got,
            ):
                body = await _read_up_to(got, max_bytes)
                if len(body) > max_bytes:
                    raise TransportError(f"has more than {max_bytes} bytes: is it the right URL?")
                return Answered(got.status_code, body, dict(got.headers))
    except (httpx.TimeoutException, trio.TooSlowError):
        raise TransportError(f"does not answer within {timeout_seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise TransportError(f"cannot be asked: {reason_of(error)}") from None


@cache
def _context() -> ssl.SSLContext:
    # Reading the system's roots takes some 50 ms, in which the loop does nothing else: once, and not for each question.
    return system_context()
