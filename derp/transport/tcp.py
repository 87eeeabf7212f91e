"""Dialling TCP: both address families raced, the first connection wins.  Layer L2.

A relay named in a DERP map may be reached over IPv4 and IPv6, each by a fixed address or by DNS, and users sit behind
networks where one of the two is broken without saying so.  Hence a race (RFC 8305), as genuine clients run it: both
families at once, or IPv4 200 ms later where IPv6 is preferred.  Next hop: tls_client.py, proxy.py, client/region.py.
"""

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, TypeAlias, TypeVar

import trio

from derp.errors import ConnectError
from derp.text import host_port
from derp.transport import platform
from derp.transport.stream import mapped_errors, transport_error

PREFER_IPV6_HEAD_START_SECONDS: Final = 0.2
# Between two addresses of one family; RFC 8305 recommends 250 ms.  A genuine client tries them one after the other
# inside 1.5 s, and never gets past a first one that swallows packets.
NEXT_ADDRESS_SECONDS: Final = 0.25
# A name with more addresses than this is a content network or a mistake; either way the first few decide.
MAX_ADDRESSES: Final = 6
# How long the kernel keeps a connection whose packets nobody acknowledges: the relay's own value.  Without it a
# client that sends notices a dead path only when the 120 s without a frame are over.
USER_TIMEOUT_SECONDS: Final = 15.0

_NO_ROUTE: Final = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_FAMILY_NAMES: Final = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}

Stream = TypeVar("Stream", bound=trio.abc.AsyncResource)
Attempt: TypeAlias = Callable[[], Awaitable[Stream]]


@dataclass(frozen=True, slots=True)
class TcpTarget:
    """Where to dial.  `ipv4` and `ipv6` are as in a DERP map: empty asks DNS for `host`, an address is used as it is,
    anything else ("none") switches the family off."""

    host: str
    port: int
    ipv4: str = ""
    ipv6: str = ""

    def label(self) -> str:
        """host:port, for messages."""
        return host_port(self.host or self.ipv4 or self.ipv6, self.port)

    def families(self) -> list[tuple[socket.AddressFamily, str]]:
        """The families to dial, each with the address or name to use.  Raises ConnectError if none is left."""
        found = []
        for family, stated in ((socket.AF_INET6, self.ipv6), (socket.AF_INET, self.ipv4)):
            if not (stated or self.host):
                continue  # for an empty name the system would answer with this machine
            literal = _parse_address(stated or self.host)
            if (stated and literal is None) or (literal is not None and _family_of(literal) is not family):
                continue
            found.append((family, stated or self.host))
        if not found and not (self.host or self.ipv4 or self.ipv6):
            raise ConnectError("connect: there is no name and no address to dial: set HostName in the map")
        if not found:
            raise ConnectError(
                f"connect to {self.label()}: the map switches IPv4 ({self.ipv4!r}) and IPv6 ({self.ipv6!r}) off"
            )
        return found


def has_route(target: TcpTarget) -> bool:
    """Whether anything can leave this machine for the target: False where it has no address of the families stated.

    Names are not looked up; one may lead anywhere, so it counts as a way.
    """
    for family, host in target.families():
        if _parse_address(host) is None:
            return True
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((host, target.port))  # of a datagram socket: the kernel looks for a route, nothing is sent
        except OSError as error:
            if error.errno not in _NO_ROUTE:
                return True
        else:
            return True
    return False


async def dial_tcp(target: TcpTarget, *, timeout_seconds: float, prefer_ipv6: bool = False) -> trio.SocketStream:
    """Connect, or raise ConnectError with the reason of every address tried (TransportTimeout if time ran out)."""
    doing = f"connect to {target.label()}"
    attempts = [dial_family(family, host, target.port, _dial_address) for family, host in target.families()]
    # Preferring IPv6 delays IPv4; otherwise both start at once, as in a genuine client.
    delay = PREFER_IPV6_HEAD_START_SECONDS if prefer_ipv6 else 0.0
    try:
        with trio.fail_after(timeout_seconds):
            return await race(attempts, stagger_seconds=delay)
    except trio.TooSlowError as error:
        raise transport_error(error, f"{doing} within {timeout_seconds:g} s") from error
    except ConnectError as error:
        raise ConnectError(f"{doing}: {error}") from error


def dial_family(
    family: socket.AddressFamily,
    host: str,
    port: int,
    dial_address: Callable[[socket.AddressFamily, tuple[Any, ...]], Attempt[Stream]],
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> Attempt[Stream]:
    """An attempt at all addresses of one family that a name has, one after the other, to run in a `race`."""

    async def attempt() -> Stream:
        with mapped_errors(_FAMILY_NAMES[family], connecting=True):
            try:
                found = await trio.socket.getaddrinfo(host, port, family, kind)
            except UnicodeError as error:  # what IDNA cannot encode, such as a name with an empty label
                raise ConnectError(f"{host!r} is not a host name") from error
        addresses = list(dict.fromkeys(entry[4] for entry in found))[:MAX_ADDRESSES]
        return await race([dial_address(family, one) for one in addresses], stagger_seconds=NEXT_ADDRESS_SECONDS)

    return attempt


async def race(attempts: Sequence[Attempt[Stream]], *, stagger_seconds: float) -> Stream:
    """The first attempt that succeeds; the others are cancelled, and what they opened is closed.

    Attempt n starts `stagger_seconds` after attempt n-1 started, or at once when that one has failed.
    An attempt fails with ConnectError; if all do, a ConnectError with all their reasons is raised.
    """
    reasons: list[str] = [""] * len(attempts)
    nameless: set[str] = set()
    failed = [trio.Event() for _ in attempts]
    winner: Stream | None = None

    async def run(index: int, scope: trio.CancelScope) -> None:
        nonlocal winner
        try:
            stream = await attempts[index]()
        except ConnectError as error:
            reasons[index] = str(error)
            if isinstance(error.__cause__, socket.gaierror):
                nameless.add(reasons[index])
            failed[index].set()
            return
        if winner is None:
            winner = stream
            scope.cancel()
        else:  # two succeeded during the same tick
            await trio.aclose_forcefully(stream)

    try:
        async with trio.open_nursery() as nursery:
            for index in range(len(attempts)):
                nursery.start_soon(run, index, nursery.cancel_scope)
                with trio.move_on_after(stagger_seconds):
                    await failed[index].wait()
    except BaseException:
        # Cancelled from outside in the very tick in which somebody won.
        if winner is not None:
            await trio.aclose_forcefully(winner)
        raise
    if winner is None:
        # Most names have no address in one of the families: no news beside what became of the other.
        told = dict.fromkeys(reason for reason in reasons if reason not in nameless) or dict.fromkeys(reasons)
        raise ConnectError("; ".join(told))
    return winner


def _dial_address(family: socket.AddressFamily, address: tuple[Any, ...]) -> Attempt[trio.SocketStream]:
    async def attempt() -> trio.SocketStream:
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            platform.limit_unacknowledged(sock, USER_TIMEOUT_SECONDS)
            with mapped_errors(str(address[0]), connecting=True):
                await sock.connect(address)
            # SocketStream sets TCP_NODELAY, and TCP_NOTSENT_LOWAT of 16 KiB: what we queue, we can still drop.
            return trio.SocketStream(sock)
        except BaseException:
            sock.close()
            raise

    return attempt


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _family_of(address: IPv4Address | IPv6Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
