"""The error table, fed with errors that real sockets and real TLS raise."""

import errno
import os
import socket
import ssl

import pytest
import trio
import trio.testing

from derp.errors import (
    ConnectError,
    ConnectionClosed,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
    TransportTimeout,
)
from derp.transport.stream import mapped_errors, reason_of, transport_error


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def verify_error(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, message)
    error.verify_code, error.verify_message = code, message
    return error


def ssl_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


def broken_by(cause: Exception | None) -> trio.BrokenResourceError:
    error = trio.BrokenResourceError("broken")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "when_connecting", "when_live", "said"),
    [
        (os_error(errno.ECONNREFUSED), ConnectError, ConnectionClosed, "nothing listens"),
        (os_error(errno.ECONNRESET), ConnectError, ConnectionClosed, "reset"),
        (os_error(errno.ETIMEDOUT), ConnectError, ConnectionClosed, "firewall"),
        (os_error(errno.EMFILE), ConnectError, ConnectionClosed, "ulimit"),
        (os_error(errno.ENOTSOCK), ConnectError, ConnectionClosed, os.strerror(errno.ENOTSOCK)),
        (socket.gaierror(socket.EAI_NONAME, "not known"), ConnectError, ConnectionClosed, "does not resolve"),
        (verify_error(10, "certificate has expired"), ConnectError, ConnectionClosed, "expired"),
        (verify_error(62, "Hostname mismatch"), ConnectError, ConnectionClosed, "another name"),
        (verify_error(77, "odd"), ConnectError, ConnectionClosed, "refused: odd"),
        (ssl_error("WRONG_VERSION_NUMBER"), ConnectError, ConnectionClosed, "http://"),
        (ssl_error("SOMETHING_NEW"), ConnectError, ConnectionClosed, "SOMETHING_NEW"),
        (broken_by(os_error(errno.EPIPE)), ConnectError, ConnectionClosed, "already closed"),
        (broken_by(None), ConnectError, ConnectionClosed, "broke"),
        (trio.ClosedResourceError(), ConnectionClosed, ConnectionClosed, "we have closed"),
        (trio.TooSlowError(), TransportTimeout, TransportTimeout, "in time"),
        (RemoteProtocolError("not DERP"), ConnectError, ConnectionClosed, "not DERP"),
    ],
)
def test_the_table(
    error: Exception, when_connecting: type[TransportError], when_live: type[TransportError], said: str
) -> None:
    for connecting, expected in ((True, when_connecting), (False, when_live)):
        mapped = transport_error(error, "connect to a:1", connecting=connecting)
        assert type(mapped) is expected
        assert str(mapped).startswith("connect to a:1: ")
        assert said in str(mapped)


def test_a_mapped_error_is_not_mapped_again() -> None:
    first = ConnectError("connect to a:1: no")
    assert transport_error(first, "outer", connecting=True) is first


def test_bugs_are_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError):
        transport_error(ZeroDivisionError(), "x")
    with pytest.raises(trio.BusyResourceError), mapped_errors("x"):
        raise trio.BusyResourceError
    with pytest.raises(LocalProtocolError), mapped_errors("x"):
        raise LocalProtocolError("ours")


def test_a_live_protocol_error_stays_one() -> None:
    with pytest.raises(RemoteProtocolError), mapped_errors("read"):
        raise RemoteProtocolError("bad frame")
    with pytest.raises(ConnectError, match="connect: bad frame"), mapped_errors("connect", connecting=True):
        raise RemoteProtocolError("bad frame")


async def test_a_refused_connection_says_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with (
            trio.socket.socket() as sock,
            pytest.raises(ConnectError, match="reach it: nothing listens"),
            mapped_errors("reach it", connecting=True),
        ):
            await sock.connect(("127.0.0.1", port))


async def test_tls_to_a_plain_server_says_so() -> None:
    left, right = trio.testing.memory_stream_pair()
    await right.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    tls = trio.SSLStream(left, ssl.create_default_context(), server_hostname="a")
    with pytest.raises(ConnectError, match="does not speak TLS"), mapped_errors("TLS with a", connecting=True):
        await tls.do_handshake()


async def test_the_cause_is_kept_for_the_traceback() -> None:
    left, right = trio.testing.memory_stream_pair()
    await right.aclose()
    with pytest.raises(ConnectionClosed) as caught, mapped_errors("send"):
        await left.send_all(b"x")
    assert isinstance(caught.value.__cause__, trio.BrokenResourceError)


def wrapped(error: BaseException) -> Exception:
    """As libraries do it: one raised from it, and one raised while that was handled, both without a word."""
    outer, middle = RuntimeError(), RuntimeError()
    outer.__context__, middle.__cause__ = middle, error
    return outer


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (os_error(errno.ENOENT), "there is no such socket"),
        (os_error(errno.ENOTDIR), "there is no such socket"),
        (os_error(errno.ECONNREFUSED), "nobody listens there"),
        (os_error(errno.EACCES), "this user may not open it"),
        (os_error(errno.EPERM), "this user may not open it"),
        (os_error(errno.EMFILE), "this process has no file descriptor left"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
        (ValueError("x"), "x"),
    ],
)
def test_errors_of_a_socket_of_this_machine(error: Exception, says: str) -> None:
    assert reason_of(error, on_local_socket=True).startswith(says)
    assert reason_of(wrapped(error), on_local_socket=True) == reason_of(error, on_local_socket=True)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (os_error(errno.ECONNREFUSED), "nothing listens on that port"),
        (socket.gaierror(socket.EAI_NONAME, "not known"), "the name does not resolve"),
        (verify_error(18, "self-signed"), "its certificate is self-signed"),
        (verify_error(77, "odd"), "its certificate is refused: odd"),
        (ssl.SSLCertVerificationError(), "its certificate is refused: SSLCertVerificationError, for which no reason"),
        (ssl_error("WRONG_VERSION_NUMBER"), "the other side does not speak TLS there"),
        (ssl.SSLError(), "TLS failed: SSLError, for which no reason is given"),
        (broken_by(os_error(errno.EPIPE)), "the other side has already closed"),
        (ExceptionGroup("all failed", [os_error(errno.ECONNREFUSED)]), "nothing listens on that port"),
        (ConnectError("said already"), "said already"),
        (OSError(), "OSError, for which no reason is given"),
        (trio.BrokenResourceError(), "BrokenResourceError, for which no reason is given"),
        (KeyError("x"), "KeyError, for which no reason is given"),
    ],
)
def test_the_reason_is_told_however_deep_it_stands(error: Exception, says: str) -> None:
    assert reason_of(error).startswith(says)
    if not isinstance(error, ConnectError):  # ours are sentences already, and whoever raised one knew more
        # Without a reason anywhere the outermost kind is named, which says what was being done.
        found = reason_of(wrapped(error))
        assert found.startswith(says) or found == "RuntimeError, for which no reason is given"
