"""The far ends of a relay's links, driven by hand: plain, TLS, websocket, or both, on non-blocking sockets.

`write` never blocks: what the kernel does not take is kept and goes with the next `write` or `flush`.  `read` returns
what has arrived; `ended` turns true at the end of the stream.
"""

import contextlib
import functools
import os
import socket
import ssl
from typing import Protocol

from derp.protocol.websocket import Opcode, WebSocketDecoder, encode_masked
from derp.transport.tls_records import RecordKeeper
from tests.support.certificates import client_context, issue, server_context

HOSTNAME = "relay.test"


@functools.cache
def tls_contexts(tls12: bool = False) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context and the context of a client that trusts it; made once."""
    authority = issue(common_name="authority", is_authority=True)
    return server_context(issue(HOSTNAME, issuer=authority), tls12=tls12), client_context(authority)


@functools.cache
def own_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext, RecordKeeper]:
    """The same, and the keeper of a server that does TLS records itself."""
    authority = issue(common_name="authority", is_authority=True)
    server, keeper = server_context(issue(HOSTNAME, issuer=authority)), RecordKeeper()
    keeper.watch(server)
    return server, client_context(authority), keeper


class Wire(Protocol):
    """One side of a connection."""

    @property
    def ended(self) -> bool: ...
    def write(self, data: bytes) -> None: ...
    def flush(self) -> bool: ...
    def read(self) -> bytes: ...
    def close(self) -> None: ...


class PlainWire:
    """A TCP or Unix socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.ended = False
        self.received_bytes = 0
        self.waiting = b""

    def write(self, data: bytes) -> None:
        self.waiting += data
        self.flush()

    def flush(self) -> bool:
        """Hand on what waits; True when nothing does, or nobody is there to get it."""
        while self.waiting:
            try:
                sent = self.sock.send(self.waiting)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                self.waiting = b""
                break
            self.waiting = self.waiting[sent:]
        return True

    def read(self, at_most: int = 1 << 24) -> bytes:
        received = []
        while at_most and not self.ended:
            try:
                data = self.sock.recv(min(at_most, 1 << 16))
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            self.ended = not data
            received.append(data)
            self.received_bytes += len(data)
            at_most -= len(data)
        return b"".join(received)

    def close(self) -> None:
        self.sock.close()


class TlsWire:
    """The client's side of TLS over a plain wire."""

    def __init__(self, wire: PlainWire, context: ssl.SSLContext, hostname: str = HOSTNAME) -> None:
        self.wire = wire
        self.ended = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)
        self._is_open = False
        self._before_open = b""
        self._step()

    def _step(self) -> None:
        if not self._is_open:
            try:
                self._tls.do_handshake()
                self._is_open = True
                if self._before_open:
                    self._tls.write(self._before_open)
            except ssl.SSLWantReadError:
                pass
        self.wire.write(self._outgoing.read())

    def encrypt(self, data: bytes) -> bytes:
        """Records for `data`, not sent."""
        self._tls.write(data)
        return self._outgoing.read()

    def say_goodbye(self) -> bytes:
        """The close_notify record, not sent."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._outgoing.read()

    def version(self) -> str | None:
        return self._tls.version()

    def write(self, data: bytes) -> None:
        if not self._is_open:
            self._before_open += data
        else:
            self._tls.write(data)
        self._step()

    def flush(self) -> bool:
        return self.wire.flush()

    def read(self) -> bytes:
        self._incoming.write(self.wire.read())
        received = []
        try:
            self._step()
            while self._is_open:
                data = self._tls.read(1 << 16)
                self.ended |= not data
                if not data:
                    break
                received.append(data)
        except ssl.SSLWantReadError:
            self.ended |= self.wire.ended
        except ssl.SSLZeroReturnError:
            self.ended = True
        return b"".join(received)

    def close(self) -> None:
        self.wire.close()


class WebSocketWire:
    """The client's side of a websocket after its upgrade, over another wire.

    `messages` are the sizes of the messages received, `control` the control frames.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.messages: list[int] = []
        self.control: list[tuple[int, bytes]] = []
        self._decoder = WebSocketDecoder(False, 1 << 30)
        self._seen = b""

    @property
    def ended(self) -> bool:
        return self.wire.ended

    def write(self, data: bytes) -> None:
        """In messages of at most 32 KiB, as genuine relays want them."""
        self.wire.write(b"".join(masked(data[at : at + 32_768]) for at in range(0, len(data), 32_768)))

    def write_raw(self, frames: bytes) -> None:
        self.wire.write(frames)

    def flush(self) -> bool:
        return self.wire.flush()

    def read(self) -> bytes:
        data = self.wire.read()
        self._measure(data)
        out = bytearray(len(data))
        end = self._decoder.receive_into(memoryview(data), out, 0)
        self.control += self._decoder.control
        self._decoder.control.clear()
        return bytes(out[:end])

    def _measure(self, data: bytes) -> None:
        """Note the size of each frame, by a reading of RFC 6455 of its own."""
        self._seen += data
        while len(self._seen) >= 2:
            length, head = self._seen[1] & 0x7F, 2
            if length == 126:
                length, head = int.from_bytes(self._seen[2:4], "big"), 4
            elif length == 127:
                length, head = int.from_bytes(self._seen[2:10], "big"), 10
            if len(self._seen) < head + length:
                return
            if self._seen[0] & 0x0F == Opcode.BINARY:
                self.messages.append(length)
            self._seen = self._seen[head + length :]

    def close(self) -> None:
        self.wire.close()


def masked(data: bytes, opcode: int = Opcode.BINARY) -> bytes:
    """One message of a websocket client."""
    return encode_masked(opcode, data, os.urandom(4))


def socket_pair(send_buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
    """(near, far); what `near` sends backs up behind about `send_buffer_bytes`."""
    near, far = socket.socketpair()
    near.setblocking(False)
    if send_buffer_bytes is not None:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    return near, far


def tcp_pair(buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
    """(near, far) over TCP on 127.0.0.1; with `buffer_bytes` both kernels hold little."""
    with socket.socket() as listener:
        if buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        far = socket.socket()
        if buffer_bytes is not None:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    near.setblocking(False)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far
