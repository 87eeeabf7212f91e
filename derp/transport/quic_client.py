"""A client's QUIC connection to a relay as a trio stream.  Layer L2.

Who waits drives: whichever task receives, or waits for room, serves socket and deadlines for all; `run` is a task that
does nothing else, so that the connection lives while nobody receives.  When our own address changes, it goes on from a
new socket under the same session.  Around quic.py; next hop: client/dial.py.
"""

import os
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final

import trio

from derp.close_reason import CloseReason
from derp.errors import RemoteProtocolError, TransportTimeout
from derp.protocol.frames import FrameType
from derp.protocol.quic import StreamFrames, is_packet
from derp.protocol.stun import TRANSACTION_ID_BYTES, encode_request, is_stun, parse_response
from derp.text import error_text
from derp.transport import platform
from derp.transport.quic import PING_SECONDS, Place, QuicLine, check_chain, dial
from derp.transport.stream import mapped_errors
from derp.transport.tls_client import TlsFacts, TlsTrust, certificate_facts

_MAX_UDP_BYTES: Final = 2048
# Taken in one turn; the rest waits in the socket.
_MAX_DATAGRAMS: Final = 64
_RECEIVE_BYTES: Final = 1024 * 1024
# Asked, the relay answers within a round trip.  Nothing for so long: our address may have changed, or a router on the
# way may have forgotten us, so we go on from a new socket.
_SILENT_SECONDS: Final = 3.0
# What nobody has received yet: 1 MiB, as much as a TCP socket holds.
_MAX_WAITING_BYTES: Final = 1024 * 1024


async def open_quic(
    address: tuple[Any, ...], family: socket.AddressFamily, trust: TlsTrust, label: str
) -> "QuicStream":
    """Shake hands with the relay at a UDP address; the caller has a deadline.  Raises ConnectError."""
    name = trust.in_tls().server_name or str(address[0])
    stream = QuicStream(address, family, name)
    try:
        with mapped_errors(f"QUIC with {label}", connecting=True):
            await stream.wait_open()
        chain = stream.line.peer_chain()
        stream.facts = certificate_facts(chain, trust, label, check_chain)
        return stream
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


class QuicStream(trio.abc.Stream):
    """The control stream, and packets beside it.  Until `begin_frames` it is bytes as they are; then `send_all` takes
    whole frames and `receive_some` gives whole frames, whichever way they travelled."""

    facts: TlsFacts

    def __init__(self, address: tuple[Any, ...], family: socket.AddressFamily, server_name: str) -> None:
        self._address, self._family = address, family
        self._place = Place(address)
        self._socket = self._new_socket()
        self.line: QuicLine = dial(self._place, server_name, trio.current_time())
        self._frames: StreamFrames | None = None
        self._waiting = bytearray()
        self._observed: dict[bytes, tuple[bytes, int] | None] = {}
        self._is_closed = False
        self._driver: trio.CancelScope | None = None
        self._news = trio.lowlevel.ParkingLot()
        self._heard_at = self._asked_at = trio.current_time()
        self.dropped_count = 0
        """Packets that came while nobody received for too long."""

    def _new_socket(self) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            platform.never_fragment(sock)
            sock.connect(self._address)  # so that "nothing listens there" is told
        except BaseException:
            sock.close()
            raise
        return sock

    # --- the stream

    async def wait_open(self) -> None:
        """Shake hands.  BrokenResourceError says why it failed."""
        self._transmit()
        while not self.line.is_open:
            self._check()
            await self._drive()

    def begin_frames(self, received: bytes) -> None:
        """From now on there are frames; `received` came already, and belongs before what `receive_some` gives next."""
        self._frames = StreamFrames()
        rest, self._waiting = received + bytes(self._waiting), bytearray()
        self._waiting += self._frames.receive_data(rest)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        self._send(data)
        while not self.line.has_room:
            self._check()
            await self._drive()

    def send_at_once(self, data: bytes) -> bool:
        """Send without a task switch.  False: the path takes no more for now, and the next `send_all`, if only of
        nothing, waits until it does.  Raises as `send_all` does."""
        self._check()
        self._send(data)
        return self.line.has_room

    def _send(self, data: bytes | bytearray | memoryview) -> None:
        if self._frames is None:
            self.line.send_stream(data)
        else:
            self.line.send_frames(data)
        self._transmit()

    async def wait_send_all_might_not_block(self) -> None:
        await self.send_all(b"")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._is_closed:
                raise trio.ClosedResourceError
            if self.line.has_stream:  # there was no room for it before
                self._take()
                self._transmit()
                continue
            if self._is_at_end():
                return b""
            self._check()
            await self._drive()
        # Whole frames, so everything: what travelled as datagrams may not be cut and mixed with what comes next.
        data, self._waiting = bytes(self._waiting), bytearray()
        return data

    def _is_at_end(self) -> bool:
        ended = self.line.ended
        return self.line.has_peer_ended or (ended is not None and ended.reason is CloseReason.CLOSED_BY_PEER)

    async def ask_address(self, timeout_seconds: float) -> tuple[str, int]:
        """From which address the relay sees us.  TransportTimeout if it does not say."""
        transaction = os.urandom(TRANSACTION_ID_BYTES)
        self._observed[transaction] = None
        try:
            with trio.move_on_after(timeout_seconds):
                # A datagram may be lost.
                while self._observed[transaction] is None:
                    self._check()
                    self.line.send_datagram(encode_request(transaction))
                    self._transmit()
                    with trio.move_on_after(max(2 * self.line.rtt_seconds, 0.1)):
                        while self._observed[transaction] is None:
                            self._check()
                            await self._drive()
            found = self._observed[transaction]
        finally:
            del self._observed[transaction]
        if found is None:
            raise TransportTimeout(f"no answer within {timeout_seconds:g} s from which address we come")
        return str(ip_address(found[0])), found[1]

    async def run(self) -> None:
        """Keep the connection going until it has ended; raises nothing."""
        while self.line.ended is None and not self._is_closed:
            await self._drive()

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.line.close(CloseReason.STOPPED)
            self._transmit()
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            if self._driver is not None:
                self._driver.cancel()
            self._news.unpark_all()
        await trio.lowlevel.checkpoint()

    # --- below

    def _check(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError
        if self.line.ended is not None:
            raise trio.BrokenResourceError(str(self.line.ended)) from self.line.ended

    async def _drive(self) -> None:
        """Wait for something to happen, and do what follows: one task does, the others wait for it."""
        if self._driver is not None:
            await self._news.park()
            return
        try:
            with trio.CancelScope(deadline=self._deadline()) as self._driver:
                await trio.lowlevel.wait_readable(self._socket)
        except trio.ClosedResourceError:
            return
        finally:
            self._driver = None
            # Also when this task was cancelled: another one takes over.
            self._news.unpark_all()
        if not self._is_closed:
            self._serve()

    def _deadline(self) -> float:
        at = self.line.next_timeout()
        ping_at = max(self._heard_at, self._asked_at) + PING_SECONDS
        if self._asked_at > self._heard_at:
            ping_at = self._asked_at + _SILENT_SECONDS
        return min(at, ping_at) if at is not None else ping_at

    def _serve(self) -> None:
        now, line = trio.current_time(), self.line
        for _ in range(_MAX_DATAGRAMS):
            try:
                datagram = self._socket.recv(_MAX_UDP_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if not line.is_open:  # nothing listens there; later it may be anybody's word
                    line.close(CloseReason.SOCKET_FAILED, error_text(error))
                break
            self._heard_at = now
            line.receive(datagram, self._place, now)
        self._take()
        line.handle_timeout(now)
        self._stay_heard(now)
        if not line.may_wait:
            self._transmit()

    def _take(self) -> None:
        line = self.line
        if line.has_stream and len(self._waiting) < _MAX_WAITING_BYTES:  # else it waits there, and its sender with it
            data = line.take_stream(_MAX_WAITING_BYTES)
            self._waiting += data if self._frames is None else self._frames.receive_data(data)
        packets, line.packets = line.packets, []
        for packet in packets:
            if is_packet(packet, FrameType.RECV_PACKET):
                if self._frames is not None and self._frames.is_open and len(self._waiting) < _MAX_WAITING_BYTES:
                    self._waiting += packet
                else:
                    self.dropped_count += 1
            elif is_stun(packet):
                with suppress(RemoteProtocolError):
                    transaction, host, port = parse_response(packet)
                    if transaction in self._observed:
                        self._observed[transaction] = host, port

    def _stay_heard(self, now: float) -> None:
        """Ask for a sign of life after a silence; without one go on from a new socket."""
        if not self.line.is_open:
            return
        if self._asked_at > self._heard_at:
            if now >= self._asked_at + _SILENT_SECONDS:
                self.change_socket()
                self._asked_at = now
        elif now >= max(self._heard_at, self._asked_at) + PING_SECONDS:
            self._asked_at = now
            self.line.ping()

    def change_socket(self) -> None:
        """Our address has changed, or may have: the session goes on from another."""
        try:
            fresh = self._new_socket()
        except OSError:
            return  # no network now; asked again later
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._socket = fresh
        self.line.change_address()
        self._transmit()

    def _transmit(self) -> None:
        now = trio.current_time()
        for datagram, _ in self.line.datagrams_to_send(now):
            with suppress(OSError):  # a loss like any other; a silence that lasts has us change the socket
                self._socket.send(datagram)
        if self._driver is not None:
            self._driver.deadline = min(self._driver.deadline, self._deadline())
