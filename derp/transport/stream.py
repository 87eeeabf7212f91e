"""What all byte streams of the relay share: their shape, and one table of what can go wrong.  Layer L2.

The streams are trio's: SocketStream (tcp.py), SSLStream (tls_client.py), WebSocketStream (websocket.py), and
trio's memory streams in tests.  They raise what trio's contract says; whoever uses one wraps the calls in
`mapped_errors`, so that callers above see the tree of derp/errors.py only, with a sentence that says what to change.
"""

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import trio

from derp.errors import (
    ConnectError,
    ConnectionClosed,
    DerpError,
    RemoteProtocolError,
    TransportError,
    TransportTimeout,
)
from derp.text import error_text
from derp.transport.host import WireEnded


class ByteStream(Protocol):
    """An ordered stream of bytes.  One task may send while another one receives; nobody else."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything.  If it is cancelled, an unknown part was sent and the stream is of no more use."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """At least one byte, or none when the peer has ended its side."""

    async def aclose(self) -> None:
        """Close at once; idempotent, and complete even if cancelled."""


# OSError by number: what an operator can do about it.  Those missing here get the system's own words.
_BY_ERRNO: Final = {
    errno.ECONNREFUSED: "nothing listens on that port: is it running, and is the port right?",
    errno.ENETUNREACH: "no route to that network: this machine may have no address of that family",
    errno.EHOSTUNREACH: "no route to that host: a router or a firewall on the way refuses it",
    errno.EADDRNOTAVAIL: "this machine has no address of that family",
    errno.ETIMEDOUT: "no answer from the other side: it hangs, or a firewall drops the packets silently",
    errno.ECONNRESET: "the other side, or something on the way, reset the connection",
    errno.EPIPE: "the other side has already closed the connection",
    errno.EACCES: "a firewall of this machine forbids the connection",
    errno.EPERM: "a firewall of this machine forbids the connection",
    errno.EMFILE: "this process has no file descriptor left: raise its limit (ulimit -n, LimitNOFILE=)",
    errno.ENFILE: "this machine has no file descriptor left: raise fs.file-max",
}

# On the path of a Unix socket some numbers mean other things.
_BY_ERRNO_LOCAL: Final = {
    errno.ENOENT: "there is no such socket: start the service that makes it, or correct the path",
    errno.ENOTDIR: "there is no such socket: start the service that makes it, or correct the path",
    errno.ECONNREFUSED: "nobody listens there: start the service behind it, or correct the path",
    errno.EACCES: "this user may not open it: its mode, or that of a folder above it, forbids that",
    errno.EPERM: "this user may not open it: its mode, or that of a folder above it, forbids that",
}

# What OpenSSL found wrong with a certificate, by X509_V_ERR number.
_BY_VERIFY_CODE: Final = {
    9: "its certificate is not valid yet: is this machine's clock right?",
    10: "its certificate has expired: renew it there, or check this machine's clock",
    18: "its certificate is self-signed: pin it in the DERP map (CertName sha256-raw:<hex>), or have this machine "
    "trust it (SSL_CERT_FILE), unless somebody intercepts the connection",
    19: "its chain ends in a root that this machine does not trust: somebody on the way may intercept TLS; "
    "if that is intended, add that root to the system's",
    20: "its issuer is not trusted here: it may not send its whole chain, or this machine lacks root "
    "certificates (install ca-certificates, or set SSL_CERT_FILE)",
    62: "its certificate is for another name: correct HostName, CertName or the URL, or the certificate",
    64: "its certificate is not for that address: correct HostName, CertName or the URL, or the certificate",
}

_BY_SSL_REASON: Final = {
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS there: is it http:// instead of https://?",
    "HTTP_REQUEST": "the other side does not speak TLS there: is it http:// instead of https://?",
    "UNSUPPORTED_PROTOCOL": "the other side offers only TLS versions that are too old: TLS 1.2 is the least",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other side refuses our TLS versions (1.2 and 1.3)",
    "TLSV1_UNRECOGNIZED_NAME": "the other side does not serve that name: correct HostName or the URL",
    "TLSV1_ALERT_INTERNAL_ERROR": "the other side has no certificate for that name: correct HostName or the URL",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the other side refuses the handshake: it may serve other names only",
    "UNEXPECTED_EOF_WHILE_READING": "the other side closed the connection during TLS",
}

# Errors that wrap each other; a longer chain is a circle.
_MAX_CAUSES: Final = 10


def transport_error(error: Exception, doing: str, *, connecting: bool = False) -> TransportError:
    """The one table: any error of a socket, TLS, HTTP, websocket or deadline as a TransportError.

    `doing` says what was going on ("connect to relay.example:443"); `connecting` decides between ConnectError and
    ConnectionClosed.  Errors not named here are bugs: they are raised as they are.
    """
    broken = ConnectError if connecting else ConnectionClosed
    if isinstance(error, TransportError):
        return error
    if isinstance(error, trio.BrokenResourceError | WireEnded) and isinstance(error.__cause__, Exception):
        # A wrapper; the reason is inside.
        return transport_error(error.__cause__, doing, connecting=connecting)
    if isinstance(error, trio.TooSlowError | TimeoutError) and not getattr(error, "errno", None):
        return TransportTimeout(f"{doing}: no answer in time")
    if isinstance(error, trio.ClosedResourceError):
        return ConnectionClosed(f"{doing}: we have closed this connection")
    if isinstance(error, trio.BrokenResourceError):
        return broken(f"{doing}: the connection broke")
    if isinstance(error, RemoteProtocolError | WireEnded):
        return broken(f"{doing}: {error}")
    if isinstance(error, OSError):
        return broken(f"{doing}: {_os_sentence(error)}")
    raise error


@contextmanager
def mapped_errors(doing: str, *, connecting: bool = False) -> Iterator[None]:
    """Everything of the table comes out as a TransportError; errors of a live protocol stay what they are."""
    try:
        yield
    except RemoteProtocolError as error:
        if not connecting:
            raise
        raise transport_error(error, doing, connecting=True) from error
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
        raise transport_error(error, doing, connecting=connecting) from error


def reason_of(error: BaseException, *, on_local_socket: bool = False) -> str:
    """Why, and what to do about it, however a library has wrapped it: one sentence that is never empty.

    HTTP clients raise errors without a word around those of sockets and TLS, which have the reason; so the innermost
    one that the tables know is told.  `on_local_socket`: the path of a Unix socket is what may be wrong.
    """
    if isinstance(error, DerpError):
        return str(error) or error_text(error)
    for cause in _causes(error):
        if isinstance(cause, OSError) and on_local_socket and cause.errno in _BY_ERRNO_LOCAL:
            return _BY_ERRNO_LOCAL[cause.errno]
        if isinstance(cause, ssl.SSLError | socket.gaierror) or (isinstance(cause, OSError) and cause.errno):
            return _os_sentence(cause)
    return error_text(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and those behind it, of several that happened together the first."""
    seen: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if seen is None:
            return
        yield seen
        seen = seen.exceptions[0] if isinstance(seen, BaseExceptionGroup) else seen.__cause__ or seen.__context__


def _os_sentence(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        # Besides OpenSSL, Python's own check of the name raises this, as number 62.
        why = getattr(error, "verify_message", "") or error_text(error)
        return _BY_VERIFY_CODE.get(getattr(error, "verify_code", 0), f"its certificate is refused: {why}")
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or ""  # those that Python makes itself have none
        return _BY_SSL_REASON.get(reason, f"TLS failed: {reason or error_text(error)}")
    if isinstance(error, socket.gaierror):
        return f"the name does not resolve ({error_text(error)}): check its spelling and this machine's DNS"
    sentence = _BY_ERRNO.get(error.errno or 0)
    return sentence or error_text(error)
