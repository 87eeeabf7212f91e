"""Hellos that do not come through, from real clients: each ends for its own reason, in a sentence."""

import ssl
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from derp.close_reason import CloseReason
from derp.config import TlsConfig
from derp.keys import NodePrivate
from derp.transport.framing import RECEIVE_BYTES
from derp.transport.host import WireEnded
from derp.transport.links import TlsLink
from derp.transport.tls import TlsServer
from derp.transport.tls_refusals import AskedTls, handshake_failure
from tests.support.certificates import client_context, issue
from tests.support.wires import socket_pair

ROOT = issue(is_authority=True, common_name="root")
NOW = 1_700_000_000.0


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    leaf = issue("relay.example", issuer=ROOT)
    files = tmp_path / "relay.crt", tmp_path / "relay.key"
    files[0].write_bytes(leaf.pem)
    files[1].write_bytes(leaf.key_pem)
    config = TlsConfig(*files, "relay.example", require_sni=True)
    return TlsServer(config, NodePrivate(b"k" * 32).public(), now=NOW).context


def end_of(context: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> WireEnded | None:
    """How the server's side of a handshake with this client ended; None: it came about."""
    near, far = socket_pair()
    far.setblocking(False)
    link = TlsLink(near, ("192.0.2.1", 1), context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client.wrap_bio(incoming, outgoing, server_hostname=name)
    buffers = [memoryview(bytearray(2 * RECEIVE_BYTES + 65_536)) for _ in range(3)]
    try:
        for _ in range(6):
            with suppress(ssl.SSLError):  # it wants to read; or its alert goes out
                tls.do_handshake()
            if said := outgoing.read():
                far.send(said)
                link.receive(buffers[0], 0, buffers[1], buffers[2])
            with suppress(BlockingIOError):
                incoming.write(far.recv(RECEIVE_BYTES))
    except WireEnded as ended:
        return ended
    finally:
        near.close()
        far.close()
    assert link.is_open
    return None


def trusting() -> ssl.SSLContext:
    return client_context(ROOT)


def without_checks() -> ssl.SSLContext:
    client = trusting()
    client.check_hostname = False
    return client


def too_old() -> ssl.SSLContext:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it is: too old
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    return client


def with_a_cipher_of_its_own() -> ssl.SSLContext:
    client = without_checks()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("AES128-SHA")
    return client


def distrusting() -> ssl.SSLContext:
    return client_context(issue(is_authority=True, common_name="another"))


@pytest.mark.parametrize(
    ("client", "name", "reason", "words"),
    [
        (trusting, "relay.example", None, ""),
        (without_checks, "relay.example.", None, ""),
        (
            without_checks,
            None,
            CloseReason.TLS_NO_NAME,
            "only relay.example is served: a proxy in front",
        ),
        (without_checks, "127.0.0.1", CloseReason.TLS_NO_NAME, "the hello has no name"),  # which Python does not send
        (without_checks, "other.example", CloseReason.TLS_OTHER_NAME, "the hello asks for other.example, and only"),
        (too_old, "relay.example", CloseReason.TLS_TOO_OLD, "TLS 1.2 and 1.3 (UNSUPPORTED_PROTOCOL)"),
        (with_a_cipher_of_its_own, "relay.example", CloseReason.TLS_TOO_OLD, "(NO_SHARED_CIPHER)"),
        (distrusting, "relay.example", CloseReason.TLS_DISTRUSTED, "(TLSV1_ALERT_UNKNOWN_CA)"),
    ],
)
def test_each_reason_is_told_apart(
    context: ssl.SSLContext,
    client: Callable[[], ssl.SSLContext],
    name: str | None,
    reason: CloseReason | None,
    words: str,
) -> None:
    ended = end_of(context, client(), name)
    assert (ended and ended.reason) is reason
    assert words in str(ended)


@pytest.mark.parametrize(
    "line", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"CONNECT x:443 HTTP/1.1\r\n\r\n", b"\x00" * 100]
)
def test_what_is_no_tls_is_named(context: ssl.SSLContext, line: bytes) -> None:
    near, far = socket_pair()
    far.send(line)
    buffers = [memoryview(bytearray(2 * RECEIVE_BYTES + 65_536)) for _ in range(3)]
    with pytest.raises(WireEnded) as caught:
        TlsLink(near, ("192.0.2.1", 1), context).receive(buffers[0], 0, buffers[1], buffers[2])
    assert caught.value.reason is CloseReason.TLS_NOT_SPOKEN
    assert ("plain HTTP" if line[0] else "no TLS") in str(caught.value)
    near.close()
    far.close()


@pytest.fixture
def refused() -> AskedTls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = AskedTls
    tls = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    assert isinstance(tls, AskedTls)
    return tls


def test_a_name_that_a_stranger_chose_is_cut_and_written_out(refused: AskedTls) -> None:
    refused.refuse_name("\x1b[2J" + "x" * 300, "relay.example")
    reason, text = handshake_failure(refused, ssl.SSLError(1, "x"))
    assert reason is CloseReason.TLS_OTHER_NAME
    assert text.isprintable()
    assert len(text) < 200


def test_an_error_without_a_word(refused: AskedTls) -> None:
    reason, text = handshake_failure(refused, ssl.SSLError())
    assert (reason, text) == (CloseReason.TLS_FAILED, "TLS: SSLError, for which no reason is given")
