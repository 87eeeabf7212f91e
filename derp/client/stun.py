"""Asking relays over UDP where we come from: STUN over one socket per address family.  Layer L3.

Codec: protocol/stun.py.  Used by netcheck.py and probe.py, which decide whom to ask and how often.
"""

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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


@dataclass(frozen=True, slots=True)
class StunAnswer:
    """Round trip, and the address that the relay saw."""

    seconds: float
    ip: IPv4Address | IPv6Address
    port: int


class StunClient:
    """Any number of tasks may `ask` at a time.  `open_stun` makes it and closes its sockets."""

    def __init__(self) -> None:
        self._sockets: dict[int, trio.socket.SocketType] = {}
        self._waiting: dict[bytes, tuple[float, trio.MemorySendChannel[StunAnswer]]] = {}
        for family, number in _FAMILIES.items():
            try:
                self._sockets[family] = trio.socket.socket(number, socket.SOCK_DGRAM)
            except OSError:
                continue  # a machine without IPv6, or without IPv4

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
        sock = self._sockets.get(family)
        if sock is None:
            raise ConnectError(f"this machine has no IPv{family}")
        transaction_id = os.urandom(TRANSACTION_ID_BYTES)
        give, take = trio.open_memory_channel[StunAnswer](1)
        self._waiting[transaction_id] = (trio.current_time(), give)
        try:
            with mapped_errors(f"send a STUN request to {address[0]}", connecting=True):
                try:
                    await sock.sendto(encode_request(transaction_id), address)
                except PermissionError as error:
                    # Linux says so when a local firewall drops the datagram: lost on the way, as anywhere else.
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

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()

    async def _read(self, sock: trio.socket.SocketType) -> None:
        while True:
            try:
                datagram = await sock.recv(_MAX_ANSWER_BYTES)
                arrived = trio.current_time()
                transaction_id, ip, port = parse_response(datagram)
            except (OSError, RemoteProtocolError):
                # Whoever sends us nonsense, and an ICMP error that some systems report here, end nobody's waiting.
                await trio.lowlevel.checkpoint()
                continue
            # Only the id tells: 96 random bits, while the address may be another one of the relay's.
            sent, give = self._waiting.pop(transaction_id, (0.0, None))
            if give is not None:
                try:
                    give.send_nowait(StunAnswer(arrived - sent, ip_address(ip), port))
                except trio.BrokenResourceError:
                    continue  # nobody waits any more


@asynccontextmanager
async def open_stun() -> AsyncIterator[StunClient]:
    """Sockets of both families on free ports."""
    client = StunClient()
    try:
        async with trio.open_nursery() as nursery:
            for sock in client._sockets.values():
                nursery.start_soon(client._read, sock)
            yield client
            nursery.cancel_scope.cancel()
    finally:
        client.close()
