"""Asking relays over UDP where we come from: STUN over one socket per address family.  Layer L3.

Codec: protocol/stun.py.  Used by netcheck.py and probe.py, which decide whom to ask and how often.
"""

import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

import trio

from derp.errors import ConnectError, RemoteProtocolError
from derp.netcheck.plan import StunTarget
from derp.protocol.stun import TRANSACTION_ID_BYTES, encode_request, parse_response
from derp.transport.stream import mapped_errors

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
# An answer has 32 or 44 bytes; more attributes than fit here are no relay's.
_MAX_ANSWER_BYTES: Final = 1500
# Requests without an answer, of which the oldest goes: a netcheck of a hundred regions sends 600, if none answers.
MAX_WAITING: Final = 2048


@dataclass(frozen=True, slots=True)
class StunAnswer:
    """Round trip, and the address that the relay saw."""

    seconds: float
    ip: IPv4Address | IPv6Address
    port: int


class StunClient:
    """Any number of tasks may `ask` at a time.  `open_stun` makes one with sockets of its own.

    Who has sockets already gives `transmit(family, datagram, address)`, which raises OSError, and hands each datagram
    that comes to `receive`.
    """

    def __init__(self, transmit: Callable[[int, bytes, tuple[Any, ...]], object]) -> None:
        self._transmit = transmit
        self._waiting: dict[bytes, tuple[float, trio.MemorySendChannel[StunAnswer]]] = {}

    async def resolve(self, target: StunTarget) -> tuple[Any, ...]:
        """The socket address to ask.  Raises ConnectError."""
        with mapped_errors(f"look {target.host} up for IPv{target.family}", connecting=True):
            try:
                found = await trio.socket.getaddrinfo(
                    target.host, target.port, _FAMILIES[target.family], socket.SOCK_DGRAM
                )
            except UnicodeError as error:  # what IDNA cannot encode
                raise ConnectError(f"{target.host!r} is not a host name") from error
        return found[0][4]

    async def send(self, family: int, address: tuple[Any, ...]) -> trio.MemoryReceiveChannel[StunAnswer]:
        """Send one request; the channel gives its answer, if one comes.  Raises ConnectError; close the channel."""
        await trio.lowlevel.checkpoint()
        transaction_id = os.urandom(TRANSACTION_ID_BYTES)
        give, take = trio.open_memory_channel[StunAnswer](1)
        while len(self._waiting) >= MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[transaction_id] = (trio.current_time(), give)
        try:
            with mapped_errors(f"send a STUN request to {address[0]}", connecting=True):
                try:
                    self._transmit(family, encode_request(transaction_id), address)
                except BlockingIOError:
                    pass  # the system has no room for it: lost on the way, as anywhere else
                except PermissionError as error:
                    # Linux says so when a local firewall drops the datagram.
                    if error.errno != errno.EPERM:
                        raise
        except BaseException:
            del self._waiting[transaction_id]
            take.close()
            raise
        return take

    async def ask(self, target: StunTarget) -> StunAnswer:
        """One request and its answer; waits for ever, so set a deadline.  Raises ConnectError."""
        with await self.send(target.family, await self.resolve(target)) as answers:
            return await answers.receive()

    def receive(self, datagram: bytes | memoryview) -> None:
        """Take what came; what is no answer to a request of ours is passed over."""
        arrived = trio.current_time()
        try:
            transaction_id, ip, port = parse_response(datagram)
        except RemoteProtocolError:
            return
        # Only the id tells: 96 random bits, while the address may be another one of the relay's.
        sent, give = self._waiting.pop(transaction_id, (0.0, None))
        if give is not None:
            with suppress(trio.BrokenResourceError):  # nobody waits any more
                give.send_nowait(StunAnswer(arrived - sent, ip_address(ip), port))


@asynccontextmanager
async def open_stun() -> AsyncIterator[StunClient]:
    """Sockets of both families on free ports."""
    sockets: dict[int, socket.socket] = {}

    def transmit(family: int, datagram: bytes, address: tuple[Any, ...]) -> None:
        if family not in sockets:
            raise ConnectError(f"this machine has no IPv{family}")
        sockets[family].sendto(datagram, address)

    client = StunClient(transmit)
    with ExitStack() as stack:
        for family, number in _FAMILIES.items():
            with suppress(OSError):  # a machine without IPv6, or without IPv4
                sockets[family] = stack.enter_context(socket.socket(number, socket.SOCK_DGRAM))
                sockets[family].setblocking(False)
        async with trio.open_nursery() as nursery:
            for sock in sockets.values():
                nursery.start_soon(_read, client, sock)
            yield client
            nursery.cancel_scope.cancel()


async def _read(client: StunClient, sock: socket.socket) -> None:
    while True:
        await trio.lowlevel.wait_readable(sock)
        with suppress(OSError):  # an ICMP error, which some systems report here
            client.receive(sock.recv(_MAX_ANSWER_BYTES))
