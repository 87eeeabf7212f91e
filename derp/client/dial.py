"""From an address to a stream that is ready to speak DERP: TCP or a proxy, TLS, the upgrade, a websocket if need be.

Layer L3.  One attempt at one relay; which relays in which order is region.py, the handshake and what follows client.py.
A websocket is the second try when the way lets no `Upgrade: DERP` through: a 4xx, a page, a redirect, or HTTP/2.
"""

import html
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import trio

from derp.client.quic import HEAD_START_SECONDS, QuicTries, dial_quic
from derp.errors import ConfigError, ConnectError, TransportError
from derp.protocol.upgrade import Answer, AnswerKind, derp_request_headers, judge_derp_answer
from derp.text import bracketed, host_port, printable, without_secrets
from derp.transport.http import ClientHttp, Response, exchange
from derp.transport.proxy import Proxy, dial_through, proxy_from_environment
from derp.transport.stream import mapped_errors
from derp.transport.tcp import Attempt, TcpTarget, dial_tcp, has_route, race
from derp.transport.tls_client import TlsFacts, TlsTrust, start_tls
from derp.transport.websocket import open_websocket

DEFAULT_PATH: Final = "/derp"
# Of a page that came instead of an upgrade: enough for its title, too little to matter.
_MAX_PAGE_BYTES: Final = 4096

ExtraHeaders = Sequence[tuple[str, str]]


class Carrier(Enum):
    """What carries the DERP bytes."""

    DERP = "derp"
    DERP_FAST_START = "derp-fast-start"
    WEBSOCKET = "websocket"
    QUIC = "quic"


@dataclass(frozen=True, slots=True)
class DialOptions:
    """How to reach relays; the defaults are those of a genuine client.

    headers: sent with each request besides ours, e.g. a token; a callable is asked at each attempt.
    context: TLS settings instead of the system's roots.  cert_name, insecure_for_tests: for relays given as a URL,
    with the meaning they have in a DERP map.  proxy: use this one; otherwise `environment` names one (None: no proxy).
    dial_host: TCP goes to this host, while TLS and HTTP keep the relay's own name.
    quic: try QUIC too, and remember there where it did not come about: at relays that have it by the map, and at those
    given as a URL, which cannot say.  None: TCP alone, as genuine clients do.
    only_quic: nothing but QUIC, for who wants to know whether it works.
    """

    headers: ExtraHeaders | Callable[[], ExtraHeaders] = ()
    context: ssl.SSLContext | None = None
    cert_name: str = ""
    insecure_for_tests: bool = False
    proxy: Proxy | None = None
    environment: Mapping[str, str] | None = field(default_factory=lambda: dict(os.environ), repr=False)
    dial_host: str = ""
    force_websocket: bool = False
    prefer_ipv6: bool = False
    quic: QuicTries | None = None
    only_quic: bool = False

    def extra_headers(self) -> ExtraHeaders:
        """The headers for the attempt that begins now."""
        return self.headers() if callable(self.headers) else self.headers


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """One relay, and what the one who names it knows about it."""

    host: str
    port: int
    is_tls: bool = True
    path: str = DEFAULT_PATH
    ipv4: str = ""
    ipv6: str = ""
    cert_name: str = ""
    insecure_for_tests: bool = False
    force_websocket: bool = False
    ideal_node: str = ""
    """Name of the node the region would rather have us on; empty: this one."""
    name: str = ""
    """The node's name in the map, for messages."""
    quic_port: int | None = None
    """UDP port of DERP over QUIC; 0: not served; None: nobody says, so it would be beside the TCP port."""

    @classmethod
    def from_url(cls, url: str, options: DialOptions) -> "RelayAddress":
        """`https://host[:port][/path]`; http, ws and wss too, where the latter two force a websocket.

        Without a path `/derp` is meant.  Raises ConfigError.
        """
        shown = without_secrets(url)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            # Python's reason would quote what stands behind the colon, which may be a password.
            raise ConfigError(f"relay URL {shown!r}: must look like https://relay.example:8443/derp") from None
        if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
            raise ConfigError(f"relay URL {shown!r}: must look like https://relay.example/derp")
        if parts.username is not None:
            raise ConfigError("a relay URL holds no user and password: send a token as a header instead")
        is_tls = parts.scheme in ("https", "wss")
        path = parts.path if parts.path.strip("/") else DEFAULT_PATH
        return cls(
            host=parts.hostname,
            port=port or (443 if is_tls else 80),
            is_tls=is_tls,
            path=f"{path}?{parts.query}" if parts.query else path,
            cert_name=options.cert_name,
            insecure_for_tests=options.insecure_for_tests,
            force_websocket=parts.scheme in ("ws", "wss"),
        )

    def host_header(self) -> str:
        """With the port unless it is the scheme's own."""
        is_usual = self.port == (443 if self.is_tls else 80)
        return bracketed(self.host) if is_usual else host_port(self.host, self.port)

    def label(self) -> str:
        """For messages: the URL, and the node's name."""
        named = self if self.host else replace(self, host=self.ipv4 or self.ipv6)
        url = f"{'https' if self.is_tls else 'http'}://{named.host_header()}{self.path}"
        return f"{url} (node {self.name})" if self.name else url


@dataclass(slots=True)
class Dialled(trio.abc.AsyncResource):
    """A stream on which DERP may begin.

    received: bytes of the relay that came behind its answer.  server_key: from the meta certificate; then `unsent` is
    the request that must go out together with the ClientInfo, and `http` reads a refusal if one comes instead.
    websocket_reason: why a websocket, for the user and for the next attempt; empty if it is none or was asked for.
    run: what has to run as long as the stream is used, if anything.
    """

    address: RelayAddress
    stream: trio.abc.Stream
    carrier: Carrier
    received: bytes = b""
    unsent: bytes = b""
    server_key: bytes | None = None
    http: ClientHttp | None = None
    tls_version: str = ""
    websocket_reason: str = ""
    run: Callable[[], Awaitable[None]] | None = None

    async def aclose(self) -> None:
        """Nobody wants it."""
        await trio.aclose_forcefully(self.stream)


async def dial_relay(
    address: RelayAddress,
    options: DialOptions,
    *,
    timeout_seconds: float,
    tcp_seconds: float | None = None,
    websocket_reason: str = "",
) -> Dialled:
    """Reach one relay.  `tcp_seconds` bounds TCP alone; `websocket_reason`: why an earlier attempt needed a websocket.

    Raises ConnectError, TransportTimeout or ConfigError; nothing stays open then.
    """
    with mapped_errors(f"connect to {address.label()} within {timeout_seconds:g} s", connecting=True):
        with trio.fail_after(timeout_seconds):
            if options.only_quic:
                return await _dial_quic(address, options)

            by_tcp = partial(_dial_by_tcp, address, options, tcp_seconds, websocket_reason)
            quic = options.quic
            if quic is None or not _can_be_quic(address, options) or not quic.may_try(address.host, address.port):
                return await by_tcp()
            dialled = await _race_ways(partial(_dial_quic, address, options), by_tcp)
            quic.note(address.host, address.port, came_about=dialled.carrier is Carrier.QUIC)
            return dialled


async def _race_ways(by_quic: Attempt[Dialled], by_tcp: Attempt[Dialled]) -> Dialled:
    """The first that comes about.  If none does, it is TCP's error that counts: QUIC is one more way, and no stock
    client would tell of it."""
    failure: TransportError | None = None

    async def tcp() -> Dialled:
        nonlocal failure
        try:
            return await by_tcp()
        except TransportError as error:
            failure = error
            raise ConnectError(str(error)) from error

    try:
        return await race([by_quic, tcp], stagger_seconds=HEAD_START_SECONDS)
    except ConnectError as error:
        raise (failure or error) from error


async def _dial_by_tcp(
    address: RelayAddress, options: DialOptions, tcp_seconds: float | None, websocket_reason: str
) -> Dialled:
    if options.force_websocket or address.force_websocket or websocket_reason:
        return await _dial_websocket(address, options, tcp_seconds, websocket_reason)
    dialled = await _dial_derp(address, options, tcp_seconds)
    if isinstance(dialled, Dialled):
        return dialled
    try:
        return await _dial_websocket(address, options, tcp_seconds, dialled)
    except ConnectError as error:
        raise ConnectError(f"{address.label()}: {dialled}; then {error}") from error


def _can_be_quic(address: RelayAddress, options: DialOptions) -> bool:
    """Not where the map knows of none, nor where a websocket or a proxy is asked for: whoever set that up wants it to
    carry everything."""
    if not address.is_tls or address.quic_port == 0:
        return False
    wants_websocket = options.force_websocket or address.force_websocket
    return not wants_websocket and _proxy_for(address, options) is None


async def _dial_quic(address: RelayAddress, options: DialOptions) -> Dialled:
    if not address.is_tls:
        raise ConfigError(f"{address.label()}: QUIC has TLS always: name the relay as https://...")
    target = replace(_target_of(address, options), port=address.quic_port or address.port)
    stream = await dial_quic(target, _trust_of(address, options), address.label())
    dialled = await _upgrade(stream, stream.facts, address, options)
    if isinstance(dialled, str):
        raise ConnectError(f"{address.label()}: {dialled}")
    dialled.carrier, dialled.run = Carrier.QUIC, stream.run
    stream.begin_frames(dialled.received)
    dialled.received = b""
    return dialled


async def open_relay_stream(
    address: RelayAddress, options: DialOptions, tcp_seconds: float | None = None
) -> tuple[trio.abc.Stream, TlsFacts]:
    """TCP, perhaps through a proxy, and TLS if the relay has it: ready for HTTP.  The caller sets the deadline.

    Without TLS the facts are empty.  `tcp_seconds` bounds TCP alone.
    """
    return await secure_relay_stream(await open_relay_tcp(address, options, tcp_seconds), address, options)


async def open_relay_tcp(
    address: RelayAddress, options: DialOptions, tcp_seconds: float | None = None
) -> trio.abc.Stream:
    """The first half of open_relay_stream: a connection, perhaps through a proxy."""
    host = options.dial_host or address.host
    # Within a cancelled scope the deadline lies infinitely far back.
    remaining = max(trio.current_effective_deadline() - trio.current_time(), 0)
    proxy = _proxy_for(address, options)
    if proxy is not None:
        # Not held to the time for TCP: a proxy needs its own, and there is no other way to the next node either.
        return await dial_through(proxy, host, address.port, timeout_seconds=remaining, prefer_ipv6=options.prefer_ipv6)
    target = _target_of(address, options)
    seconds = min(tcp_seconds or remaining, remaining)
    return await dial_tcp(target, timeout_seconds=seconds, prefer_ipv6=options.prefer_ipv6)


async def secure_relay_stream(
    stream: trio.abc.Stream, address: RelayAddress, options: DialOptions
) -> tuple[trio.abc.Stream, TlsFacts]:
    """The second half: TLS if the relay has it.  Closes `stream` if that fails."""
    if not address.is_tls:
        return stream, TlsFacts("")
    return await start_tls(stream, _trust_of(address, options), address.label())


def _trust_of(address: RelayAddress, options: DialOptions) -> TlsTrust:
    return TlsTrust(address.host, address.cert_name, address.insecure_for_tests, options.context)


def has_way(address: RelayAddress, options: DialOptions) -> bool:
    """Whether this machine has a route to the relay, or a proxy; False says nothing about the relay.

    Raises ConnectError for an address that switches both families off.
    """
    return _proxy_for(address, options) is not None or has_route(_target_of(address, options))


def refusal_of(response: Response) -> Answer:
    """What an HTTP answer to `Upgrade: DERP` means, with what its body tells a human."""
    answer = judge_derp_answer(response.status, response.headers)
    said = _said(response)
    return Answer(answer.kind, f"{answer.reason}, which says {said!r}") if said and answer.reason else answer


def _target_of(address: RelayAddress, options: DialOptions) -> TcpTarget:
    return TcpTarget(options.dial_host or address.host, address.port, ipv4=address.ipv4, ipv6=address.ipv6)


def _proxy_for(address: RelayAddress, options: DialOptions) -> Proxy | None:
    if options.proxy is not None or options.environment is None:
        return options.proxy
    host = options.dial_host or address.host
    return proxy_from_environment(address.is_tls, host, address.port, options.environment)


async def _dial_derp(address: RelayAddress, options: DialOptions, tcp_seconds: float | None) -> Dialled | str:
    """A stream, or the reason why a websocket should be tried."""
    return await _upgrade(*await open_relay_stream(address, options, tcp_seconds), address, options)


async def _upgrade(
    stream: trio.abc.Stream, facts: TlsFacts, address: RelayAddress, options: DialOptions
) -> Dialled | str:
    """Ask for DERP; the stream is closed unless it is given back."""
    server_key = facts.server_key
    try:
        if facts.alpn == "h2":
            await trio.aclose_forcefully(stream)
            return "the other side chose HTTP/2, which has no Upgrade"
        http = ClientHttp(max_body_bytes=_MAX_PAGE_BYTES, head_only=True)
        headers = derp_request_headers(
            address.host_header(),
            fast_start=server_key is not None,
            ideal_node=address.ideal_node,
            extra=options.extra_headers(),
        )
        request = http.send_request("GET", address.path, headers)
        if server_key is not None:
            return Dialled(
                address,
                stream,
                Carrier.DERP_FAST_START,
                unsent=request,
                server_key=server_key,
                http=http,
                tls_version=facts.version,
            )
        with mapped_errors(f"upgrade at {address.label()}", connecting=True):
            response = await exchange(stream, http, request)
        answer = refusal_of(response)
        if answer.kind is AnswerKind.UPGRADED:
            return Dialled(address, stream, Carrier.DERP, received=http.trailing_data(), tls_version=facts.version)
        await trio.aclose_forcefully(stream)
        if answer.kind is AnswerKind.TRY_WEBSOCKET:
            return answer.reason
        raise ConnectError(f"{address.label()}: {answer.reason}")
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _dial_websocket(
    address: RelayAddress, options: DialOptions, tcp_seconds: float | None, reason: str
) -> Dialled:
    stream, facts = await open_relay_stream(address, options, tcp_seconds)
    try:
        websocket = await open_websocket(
            stream,
            host=address.host_header(),
            target=address.path,
            label=address.label(),
            extra_headers=options.extra_headers(),
        )
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return Dialled(address, websocket, Carrier.WEBSOCKET, tls_version=facts.version, websocket_reason=reason)


def _said(response: Response) -> str:
    """The title of a page or the first line of a text, at most 100 characters, printable."""
    if response.status == 101:
        return ""
    text = response.body.decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
    if title is not None:
        text = html.unescape(title[1])
    elif not response.headers.get("content-type", "").startswith("text/plain"):
        return ""
    first_line = next((line for line in text.strip().splitlines() if line.strip()), "")
    return printable(without_secrets(first_line.strip()), 100)
