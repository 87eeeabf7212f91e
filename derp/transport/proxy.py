"""HTTP proxies: which one the environment names for a relay, and a CONNECT tunnel through it.  Layer L2.

HTTPS_PROXY, HTTP_PROXY and NO_PROXY are read as Go programs read them, so that our client and a genuine one on the
same machine take the same way; ALL_PROXY, which curl users expect, counts where the other two are silent.
CONNECT goes to the relay's own name and port (RFC 9110 section 9.3.6), also for plain HTTP: a proxy that is merely
asked to pass a request on strips its Upgrade.  Next hop: client/dial.py.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import unquote, urlsplit

import trio

from derp.errors import ConfigError, ConnectError
from derp.text import printable, without_secrets
from derp.transport.http import ClientHttp, exchange
from derp.transport.stream import mapped_errors
from derp.transport.tcp import TcpTarget, dial_tcp
from derp.transport.tls_client import TlsTrust, start_tls

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy.  `authorization` is the value of Proxy-Authorization, or empty; it is never shown."""

    scheme: str
    host: str
    port: int
    authorization: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str, *, source: str = "proxy") -> "Proxy":
        """Read `http://user:password@host:port`; scheme, password and port may be missing.

        Raises ConfigError, which names `source` and repeats no password.
        """
        url = text if "://" in text else f"http://{text}"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            # Python's reason would quote what stands behind the colon, which may be a password.
            raise ConfigError(
                f"{source}: not a proxy URL: write http://user:password@host:port, and / ? # @ and : in a password as "
                "%2F %3F %23 %40 %3A"
            ) from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise ConfigError(
                f"{source}: {printable(parts.scheme)} proxies are not supported; give an HTTP proxy that allows CONNECT"
            )
        if not parts.hostname:
            raise ConfigError(f"{source}: a proxy URL needs a host, as in http://proxy.example:3128")
        authorization = ""
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = f"Basic {base64.b64encode(user.encode()).decode()}"
        return cls(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme], authorization)

    def label(self) -> str:
        """For messages: scheme, host and port."""
        return f"{self.scheme}://{TcpTarget(self.host, self.port).label()}"


def proxy_from_environment(is_tls: bool, host: str, port: int, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for a relay, or None to dial it directly.  Raises ConfigError, which names the variable."""
    # A CGI program's HTTP_PROXY comes from the visitor's "Proxy:" header.
    names = ("HTTPS_PROXY",) if is_tls else () if "REQUEST_METHOD" in environment else ("HTTP_PROXY",)
    for upper in (*names, "ALL_PROXY"):
        for name in (upper, upper.lower()):
            value = environment.get(name, "").strip()
            if value:
                excepted = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
                return None if is_excepted(host, port, excepted) else Proxy.parse(value, source=name)
    return None


def is_excepted(host: str, port: int, no_proxy: str) -> bool:
    """Does NO_PROXY take this host out?  This machine itself always is.

    Entries, split by commas: `*`; an address; a network in CIDR form; `example.com` with all names below it;
    `.example.com` or `*.example.com`, only the names below; any name or address with `:port` for that port only.
    """
    name = host.rstrip(".").lower()
    address = _address(name)
    if name == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_entry_matches(entry.strip().lower(), name, address, port) for entry in no_proxy.split(","))


async def dial_through(
    proxy: Proxy, host: str, port: int, *, timeout_seconds: float, prefer_ipv6: bool = False
) -> trio.abc.Stream:
    """A stream to host:port through the proxy.  Raises ConnectError or TransportTimeout, which name the proxy."""
    target = TcpTarget(proxy.host, proxy.port)
    doing = f"proxy {proxy.label()}"
    stream: trio.abc.Stream
    try:
        with trio.fail_after(timeout_seconds):
            stream = await dial_tcp(target, timeout_seconds=timeout_seconds, prefer_ipv6=prefer_ipv6)
            try:
                if proxy.scheme == "https":
                    stream, _ = await start_tls(stream, TlsTrust(proxy.host), proxy.label())
                await open_tunnel(stream, proxy, host, port)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            return stream
    except ConnectError as error:
        raise ConnectError(f"{doing}: {error}") from error
    except trio.TooSlowError as error:
        raise ConnectError(f"{doing}: no answer to CONNECT within {timeout_seconds:g} s") from error


async def open_tunnel(stream: trio.abc.Stream, proxy: Proxy, host: str, port: int) -> None:
    """Ask the proxy at the other end of `stream` for a tunnel; after that the stream is the relay's."""
    where = TcpTarget(host, port).label()
    http = ClientHttp(max_body_bytes=1024, head_only=True)
    headers = [("Host", where), ("User-Agent", "derp")]
    if proxy.authorization:
        headers.append(("Proxy-Authorization", proxy.authorization))
    with mapped_errors(f"CONNECT {where}", connecting=True):
        response = await exchange(stream, http, http.send_request("CONNECT", where, headers))
    status = f"{response.status} {printable(response.reason)}".strip()
    if 300 <= response.status <= 399:
        leads = printable(without_secrets(response.headers.get("location", "") or "somewhere that it does not say"))
        raise ConnectError(f"it answers CONNECT with a redirect ({status}) to {leads}: does one have to log in there?")
    if response.status == 407:
        raise ConnectError(
            f"it refuses our name and password ({status})"
            if proxy.authorization
            else f"it wants a name and a password ({status}): give http://user:password@host:port"
        )
    if not 200 <= response.status <= 299:
        raise ConnectError(f"it does not connect to {where} ({status}): let it allow CONNECT to that host and port")
    if http.trailing_data():
        raise ConnectError(f"something at {where} spoke before it was asked: it is no relay")


def _entry_matches(entry: str, name: str, address: IPv4Address | IPv6Address | None, port: int) -> bool:
    if entry == "*":
        return True
    if not entry:
        return False
    try:
        network = ip_network(entry, strict=False)
    except ValueError:
        pass
    else:
        return address is not None and address in network
    head, colon, tail = entry.rpartition(":")
    if colon and tail.isdecimal():
        if tail.lstrip("0") != str(port):
            return False
        entry = head
    literal = _address(entry.strip("[]"))
    if literal is not None:
        return literal == address
    if entry.startswith("*."):
        entry = entry[1:]
    if entry.startswith("."):
        return name.endswith(entry)
    return name == entry or name.endswith(f".{entry}")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
