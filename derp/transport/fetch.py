"""Small HTTP calls to other services: admission checks, maps.  Layer L2; derp's only file on httpx."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import httpx
import trio

from derp.errors import ConnectError, TransportTimeout
from derp.text import MAX_SHOWN_CHARS, error_text, fit_to_show, without_secrets
from derp.transport.stream import reason_of
from derp.transport.tls_client import system_context

# Connections kept to the same service; more calls than this at a time wait their turn.
_MAX_CONNECTIONS: Final = 64
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer; `body` is cut at the limit that was asked for.  `location`: where a redirect leads.  `etag`: what to
    ask with next time, to hear 304 while nothing has changed."""

    status: int
    body: bytes
    location: str = ""
    etag: str = ""

    @property
    def redirect(self) -> str:
        """What kind of redirect to where, for messages; empty: it is none."""
        if self.status not in _REDIRECTS:
            return ""
        where = fit_to_show(self.location)[:MAX_SHOWN_CHARS] if self.location else "somewhere that it does not say"
        return f"a redirect ({self.status}) to {where}"


def _mask_url(record: logging.LogRecord) -> bool:
    """httpx says each request's URL at INFO, with the password and the token in it, in every program that logs that."""
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True


logging.getLogger("httpx").addFilter(_mask_url)


class HttpCaller:
    """A client with kept connections.  `async with` it; certificates are verified against the system's roots.

    `socket`: the path of a Unix socket; every call then goes there, whatever host its URL names.
    """

    def __init__(self, *, timeout_seconds: float, socket: str = "") -> None:
        self._timeout_seconds = timeout_seconds
        self._socket = socket
        limits = httpx.Limits(max_connections=_MAX_CONNECTIONS)
        # No TLS on a socket of this machine: do not read the system's roots for it.
        transport = httpx.AsyncHTTPTransport(uds=socket, limits=limits, verify=False) if socket else None
        self._client = httpx.AsyncClient(
            timeout=timeout_seconds,
            limits=limits,
            follow_redirects=False,
            transport=transport,
            verify=system_context() if transport is None else False,
        )

    async def __aenter__(self) -> "HttpCaller":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def post(self, url: str, body: bytes, max_bytes: int, headers: Mapping[str, str] | None = None) -> Fetched:
        """POST `body`, without a content type unless `headers` have one, as genuine relays do.

        Raises ConnectError, TransportTimeout.
        """
        return await self._call("POST", url, body, max_bytes, headers)

    async def get(self, url: str, max_bytes: int, headers: Mapping[str, str] | None = None) -> Fetched:
        """GET.  Raises ConnectError, TransportTimeout."""
        return await self._call("GET", url, None, max_bytes, headers)

    async def _call(
        self, method: str, url: str, body: bytes | None, max_bytes: int, headers: Mapping[str, str] | None = None
    ) -> Fetched:
        name = self._socket or fit_to_show(url)
        try:
            with trio.fail_after(self._timeout_seconds):
                async with self._client.stream(method, url_for_tls(url), content=body, headers=headers) as response:
                    where = response.headers.get("location", "")
                    with suppress(httpx.InvalidURL):
                        where = str(response.url.join(where)) if where else ""
                    answer = await _read_body(response, max_bytes)
                    return Fetched(response.status_code, answer, where, response.headers.get("etag", ""))
        except (trio.TooSlowError, httpx.TimeoutException) as error:
            raise TransportTimeout(f"{name} did not answer within {self._timeout_seconds:g} s") from error
        except httpx.InvalidURL as error:
            raise ConnectError(f"{name} is no URL: {error_text(error)}") from error
        except httpx.HTTPError as error:
            reason = reason_of(error, on_local_socket=bool(self._socket))
            raise ConnectError(f"{name} cannot be reached: {reason}") from error


def url_for_tls(url: str) -> httpx.URL:
    """The URL without the final dot of its host, which is in no certificate.  Raises httpx.InvalidURL."""
    parsed = httpx.URL(url)
    return parsed.copy_with(host=parsed.host.removesuffix(".")) if parsed.host.endswith(".") else parsed


async def _read_body(response: httpx.Response, max_bytes: int) -> bytes:
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) >= max_bytes:
                # Not by leaving the loop: httpx would leave its generators to the garbage collector, of which trio
                # complains.  With the connection closed the next step ends them all.
                await response.aclose()
    except httpx.TransportError:
        if len(body) < max_bytes:
            raise
    return bytes(body[:max_bytes])
