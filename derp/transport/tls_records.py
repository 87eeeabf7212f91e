"""TLS links whose records are ours once OpenSSL has shaken hands (`--tls-records own`).  Layer L2.

OpenSSL gives traffic secrets to its key log alone.  Ours is a file in memory that has no name, and `SecretTap.take`
empties it right after each step of each handshake.  From then on the SSL object is gone, and protocol/tls13.py opens
and seals: a sixth of the memory, and a connection that can go to another process.  TLS 1.2 stays with OpenSSL.
Threats, and what a reviewer should look at: docs/tls-records.md.
"""

import os
import re
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from derp.close_reason import CloseReason
from derp.errors import ConfigError
from derp.protocol.tls13 import SUITES, Alert, CipherShelf, RecordLayer, Secrets, sealed_bytes
from derp.text import error_text
from derp.transport.framing import WRITE_BYTES, StreamWire
from derp.transport.host import Piece, WireEnded
from derp.transport.links import Link, TlsLink, check_tiny

_VERSION: Final = "TLSv1.3"


class SecretTap:
    """The key log of one SSLContext, which nobody else can open.  Of one thread: its handshakes take turns."""

    def __init__(self, context: ssl.SSLContext) -> None:
        """Raises ConfigError where there are no files without a name."""
        if not hasattr(os, "memfd_create"):
            raise ConfigError("--tls-records own needs Linux: leave it out")
        self._fd = os.memfd_create("tls", os.MFD_CLOEXEC)
        # OpenSSL opens it a second time, by a path that is good in this process alone, and appends.
        try:
            context.keylog_filename = f"/proc/self/fd/{self._fd}"
        except OSError as error:
            raise ConfigError(
                f"--tls-records own needs /proc: mount it, or leave it out: {error_text(error)}"
            ) from None

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self._fd)

    def take(self) -> tuple[bytes, bytes]:
        """The traffic secrets, client's and server's, that were logged since the last call; empty where none was.
        All that was logged is wiped and gone, what is of no use here (the handshake's own secrets, TLS 1.2) too."""
        fd = self._fd
        size = os.fstat(fd).st_size
        if not size:
            return b"", b""
        logged = bytearray(size)
        os.preadv(fd, [logged], 0)
        os.pwrite(fd, bytes(size), 0)
        os.ftruncate(fd, 0)
        secrets = _secret(logged, b"CLIENT"), _secret(logged, b"SERVER")
        logged[:] = bytes(size)
        return secrets


def _secret(logged: bytearray, side: bytes) -> bytes:
    """A line is a label, the client's random, the secret.  Empty if there is none of that label."""
    found = re.search(side + rb"_TRAFFIC_SECRET_0 [0-9a-f]{64} ([0-9a-f]+)\n", logged)
    return bytes.fromhex(found[1].decode()) if found else b""


class RecordKeeper:
    """What the links of one server share: the tap of its context, ciphers, a buffer to seal into.  Of one thread."""

    def __init__(self) -> None:
        self.shelf = CipherShelf()
        self.sealed = memoryview(bytearray(sealed_bytes(WRITE_BYTES)))
        self.tap: SecretTap | None = None

    def watch(self, context: ssl.SSLContext) -> None:
        """Handshakes of this context from now on; those that one before it has begun end with that."""
        context.num_tickets = 0  # each is a record under the secret that we take over: we would have to count them
        self.tap = SecretTap(context)


class RecordLink(TlsLink):
    """A TLS link that lets go of OpenSSL when a handshake of TLS 1.3 is over."""

    __slots__ = ("_begun", "_keeper", "_layer", "_secrets", "_tap")

    def __init__(
        self, sock: socket.socket, address: tuple[str, int], context: ssl.SSLContext, keeper: RecordKeeper | None
    ) -> None:
        """`keeper` watches `context`; without one OpenSSL is kept."""
        super().__init__(sock, address, context)
        self._keeper = keeper
        self._tap = keeper.tap if keeper is not None else None
        self._secrets = b"", b""  # client's and server's, until they are complete
        self._layer: RecordLayer | None = None  # None while OpenSSL does it
        self._begun = b""  # of a record that has not come whole

    def version(self) -> str | None:
        return super().version() if self._layer is None else _VERSION

    # --- from one process to another

    def export(self) -> tuple[list[str | bytes | int | bool], bytes] | None:
        """The record layer, and what has come of a record that is not whole; None while OpenSSL has it, or when the
        end has begun.  Afterwards this link is to do nothing more, and its socket to be closed without a word."""
        layer = self._layer
        if layer is None or layer.is_shut or layer.ended is not None:
            return None
        return layer.export(), self._begun

    @classmethod
    def restored(
        cls, sock: socket.socket, address: tuple[str, int], keeper: RecordKeeper, layer: Sequence[Any], begun: bytes
    ) -> "RecordLink":
        """What `export` gave, on the same socket."""
        link = cls.__new__(cls)
        Link.__init__(link, sock, address)
        link.is_open, link._write_bytes = True, WRITE_BYTES
        link._keeper, link._tap, link._secrets = keeper, None, (b"", b"")
        link._layer = RecordLayer.restore(keeper.shelf, layer)
        link._begun = begun
        return link

    # --- the handshake

    def _handshake(self) -> None:
        tap = self._tap
        if tap is None:
            super()._handshake()
            return
        tap.take()  # should somebody else have left something there, it is not for us
        try:
            super()._handshake()
        finally:
            # OpenSSL logs its own when it has sent its Finished, and the client's when the client's has come.
            client, server = tap.take()
            self._secrets = client or self._secrets[0], server or self._secrets[1]
        if self._tls.version() == _VERSION:
            self._take_over(*self._secrets)
        self._secrets, self._tap = (b"", b""), None

    def _take_over(self, client: bytes, server: bytes) -> None:
        """At this moment OpenSSL has read up to the client's Finished and not a byte further, and the server has sent
        nothing under its new secret.  So both sides count from 0."""
        name, *_ = self._tls.cipher() or ("",)
        suite = SUITES.get(name)
        if suite is None or self._keeper is None or not (client and server):
            return
        self._layer = RecordLayer.of_server(self._keeper.shelf, Secrets(suite, client, server))
        self._begun = self._incoming.read()

    def _decrypt(self, into: memoryview, at: int) -> int:
        at = super()._decrypt(into, at)
        if self._layer is None:
            return at
        # It has shaken hands, and found nothing behind that: what had come is ours.
        del self._tls, self._incoming, self._outgoing
        begun = memoryview(self._begun)
        return self._open(self._layer, begun, len(begun), into, at)

    # --- receiving

    def receive(self, view: memoryview, at: int, scratch: memoryview, framed: memoryview) -> int:
        if self._layer is None:
            return super().receive(view, at, scratch, framed)
        if self.codec is None:
            return self._receive(view, at, scratch)
        return StreamWire.receive(self, view, at, scratch, framed)

    def _receive(self, into: memoryview, at: int, scratch: memoryview) -> int:
        layer = self._layer
        if layer is None:
            return super()._receive(into, at, scratch)
        if self.ending is not None:
            raise self.ending
        begun = len(self._begun)
        if begun:
            scratch[:begun] = self._begun
        end = Link._receive(self, scratch, begun, scratch)
        return self._open(layer, scratch, end, into, at) if end > begun else at

    def _open(self, layer: RecordLayer, sealed: memoryview, end: int, into: memoryview, at: int) -> int:
        start = at
        rest, at, records = layer.receive_records(sealed, end, into, at)
        ended = layer.ended
        if ended is None:
            self._begun = bytes(sealed[rest:end]) if rest < end else b""
            check_tiny(records, at - start)
            return at
        if ended.alert is not None:
            self._tell(layer, ended.alert)
        reason = CloseReason.CLOSED_BY_PEER if ended.is_clean else CloseReason.TLS_FAILED
        ending = WireEnded(reason, "" if ended.is_clean else f"TLS: {ended.text}")
        # A peer may send its last packets and leave in one breath: they are served first.
        if at == start:
            raise ending
        self.ending = ending
        return at

    # --- sending

    def send(self, pieces: Sequence[Piece], size: int) -> int:
        layer = self._layer
        if layer is None:
            return super().send(pieces, size)
        if self.codec is not None or size > self._write_bytes:
            return StreamWire.send(self, pieces, size)
        if self.blocked:
            return 0
        self._send_sealed(pieces, size)
        return size

    def _send_sealed(self, pieces: Sequence[Piece], size: int) -> None:
        layer = self._layer
        if layer is None:
            super()._send_sealed(pieces, size)
            return
        assert self._keeper is not None
        sealed = self._keeper.sealed
        self._send_records(sealed[: layer.seal(pieces, size, sealed)])

    def send_raw(self, data: Piece) -> None:
        layer = self._layer
        if layer is None:
            super().send_raw(data)
            return
        view = memoryview(data)
        for start in range(0, len(view), WRITE_BYTES):
            part = view[start : start + WRITE_BYTES]
            self._send_sealed((part,), len(part))

    # --- the end

    def end_output(self) -> None:
        if self._layer is None:
            super().end_output()
            return
        self._shut()
        Link.end_output(self)

    def close(self) -> None:
        self._shut()
        super().close()

    def _shut(self) -> None:
        """Say that nothing more comes, unless it was said, or the kernel takes nothing any more."""
        layer = self._layer
        if layer is not None and not (layer.is_shut or self.blocked or self.tail):
            self._tell(layer, Alert.CLOSE_NOTIFY)

    def _tell(self, layer: RecordLayer, alert: Alert) -> None:
        """Last words: if the kernel has no room for them now, nobody waits until it has."""
        if layer.is_shut:
            return
        record = layer.seal_alert(alert)
        if not self.tail:
            with suppress(OSError):
                self.sock.send(record)
