"""While a proof is shown: who asks for it sees it and nothing else, everybody else is served as ever."""

import hashlib
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from derp.close_reason import CloseReason
from derp.config.relay import TlsConfig
from derp.keys import NodePrivate
from derp.transport.framing import RECEIVE_BYTES
from derp.transport.host import WireEnded
from derp.transport.links import TlsLink
from derp.transport.tls import TlsServer
from derp.transport.tls_alpn import ACME_PROTOCOL, AlpnTlsLink, make_proof, show_proof, tls_link
from tests.support.certificates import issue

NAME = "relay.example"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
DIGEST = hashlib.sha256(b"token.thumbprint").digest()
ARENA = memoryview(bytearray(2 * RECEIVE_BYTES))
SCRATCH = memoryview(bytearray(RECEIVE_BYTES))


@pytest.fixture
def server(tmp_path: Path) -> TlsServer:
    leaf = issue(NAME)
    for suffix, content in (("crt", leaf.pem), ("key", leaf.key_pem)):
        (tmp_path / f"r.{suffix}").write_bytes(content)
    config = TlsConfig(tmp_path / "r.crt", tmp_path / "r.key", NAME, require_sni=True)
    return TlsServer(config, NodePrivate.generate().public(), now=NOW.timestamp())


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


class Visitor:
    """A client in memory, whose bytes go through a real socket pair; `piece` bytes at a time."""

    def __init__(self, link: TlsLink, theirs: socket.socket, protocols: list[str], name: str = NAME) -> None:
        context = ssl._create_unverified_context()
        if protocols:
            context.set_alpn_protocols(protocols)
        self.link, self.theirs = link, theirs
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        theirs.setblocking(False)

    def handshake(self, piece: int = RECEIVE_BYTES) -> None:
        """Until both sides are done; WireEnded and SSLError as they come."""
        while True:
            try:
                self.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            said = self.outgoing.read()
            try:
                for at in range(0, len(said), piece):
                    self.theirs.send(said[at : at + piece])
                    self.link.receive(ARENA, 0, SCRATCH, SCRATCH)
            finally:
                while True:
                    try:
                        self.incoming.write(self.theirs.recv(RECEIVE_BYTES))
                    except BlockingIOError:
                        break
            if done:
                return

    def leaf(self) -> x509.Certificate:
        der = self.tls.getpeercert(True)
        assert der is not None
        return x509.load_der_x509_certificate(der)


@pytest.mark.parametrize("piece", [RECEIVE_BYTES, 1])
def test_the_authority_sees_the_proof_and_nothing_else(
    server: TlsServer, sockets: tuple[socket.socket, socket.socket], piece: int
) -> None:
    show_proof(server, DIGEST)
    visitor = Visitor(tls_link(server, sockets[0], ("192.0.2.1", 1)), sockets[1], [ACME_PROTOCOL])
    with pytest.raises(WireEnded, match="an authority looked") as caught:
        visitor.handshake(piece)
    assert caught.value.reason is CloseReason.HTTP_DONE
    assert visitor.tls.selected_alpn_protocol() == ACME_PROTOCOL
    leaf = visitor.leaf()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAME]
    proof = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31"))
    assert proof.critical
    assert isinstance(proof.value, x509.UnrecognizedExtension)
    assert proof.value.value == b"\x04\x20" + DIGEST


@pytest.mark.parametrize("protocols", [[], ["http/1.1"], ["h2", "http/1.1"]])
def test_clients_see_the_certificate(
    server: TlsServer, sockets: tuple[socket.socket, socket.socket], protocols: list[str]
) -> None:
    show_proof(server, DIGEST)
    link = tls_link(server, sockets[0], ("192.0.2.1", 1))
    assert isinstance(link, AlpnTlsLink)
    visitor = Visitor(link, sockets[1], protocols)
    visitor.handshake(piece=7)
    assert visitor.leaf() == server.leaf
    visitor.tls.write(b"hello")
    sockets[1].send(visitor.outgoing.read())
    assert bytes(ARENA[: link.receive(ARENA, 0, SCRATCH, SCRATCH)]) == b"hello"


def test_another_name_is_refused_as_ever(server: TlsServer, sockets: tuple[socket.socket, socket.socket]) -> None:
    show_proof(server, DIGEST)
    link = tls_link(server, sockets[0], ("192.0.2.1", 1))
    with pytest.raises(WireEnded) as caught:
        Visitor(link, sockets[1], [], "other.example").handshake()
    assert caught.value.reason is CloseReason.TLS_OTHER_NAME


def test_without_a_proof_nobody_agrees_on_acme(server: TlsServer, sockets: tuple[socket.socket, socket.socket]) -> None:
    show_proof(server, DIGEST)
    show_proof(server, None)
    link = tls_link(server, sockets[0], ("192.0.2.1", 1))
    assert type(link) is TlsLink
    visitor = Visitor(link, sockets[1], [ACME_PROTOCOL])
    visitor.handshake()
    assert visitor.tls.selected_alpn_protocol() is None
    assert visitor.leaf() == server.leaf


def test_a_proof_for_an_address() -> None:
    make_proof("2001:db8::1", DIGEST, NOW)


def test_what_is_no_tls_ends(server: TlsServer, sockets: tuple[socket.socket, socket.socket]) -> None:
    show_proof(server, DIGEST)
    link = tls_link(server, sockets[0], ("192.0.2.1", 1))
    sockets[1].send(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(WireEnded) as caught:
        link.receive(ARENA, 0, SCRATCH, SCRATCH)
    assert caught.value.reason is CloseReason.TLS_NOT_SPOKEN
