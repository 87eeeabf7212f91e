"""The proof of TLS-ALPN-01 (RFC 8737): a certificate that only an authority asks for, on the port that clients use.
Layer L2.

While a proof is shown every new connection is an AlpnTlsLink, which reads the ClientHello first.  Who offers
`acme-tls/1` sees the proof and nothing else; everybody else is served as ever.  server/certificates.py makes proofs;
server/listener.py asks for links.
"""

import socket
import ssl
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from derp.close_reason import CloseReason
from derp.protocol.client_hello import offered_protocols
from derp.transport.host import WireEnded
from derp.transport.links import TlsLink
from derp.transport.tls import TlsServer, key_pem, load_chain, self_issued
from derp.transport.tls_records import RecordKeeper, RecordLink

ACME_PROTOCOL: Final = "acme-tls/1"
_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_DIGEST_BYTES: Final = 32
# Nobody looks at the dates, but a proof that lies around is worth nothing either way.
_LIFE: Final = timedelta(days=1)


class AlpnTlsLink(RecordLink):
    """A TLS link that shows `proof` to who offers `acme-tls/1`, and is an ordinary one to others."""

    __slots__ = ("_is_decided", "_proof")

    def __init__(
        self,
        sock: socket.socket,
        address: tuple[str, int],
        context: ssl.SSLContext,
        proof: ssl.SSLContext,
        keeper: RecordKeeper | None,
    ) -> None:
        super().__init__(sock, address, context, keeper)
        self._proof = proof
        self._is_decided = False

    def _handshake(self) -> None:
        if not self._is_decided:
            hello = self._incoming.read()
            self._incoming.write(hello)
            offered = offered_protocols(hello)
            if offered is None:
                raise ssl.SSLWantReadError
            self._is_decided = True
            if ACME_PROTOCOL.encode() in offered:
                self._tls.context = self._proof
        super()._handshake()
        if self._tls.selected_alpn_protocol() == ACME_PROTOCOL:
            # RFC 8737: nothing is said after the handshake.
            raise WireEnded(CloseReason.HTTP_DONE, "an authority looked at the proof that the name is ours")


def tls_link(tls: TlsServer, sock: socket.socket, address: tuple[str, int]) -> TlsLink:
    """A link for an accepted socket, with the certificate, and the proof if there is one, of this moment."""
    if tls.proof is not None:
        return AlpnTlsLink(sock, address, tls.context, tls.proof, tls.records)
    if tls.records is not None:
        return RecordLink(sock, address, tls.context, tls.records)
    return TlsLink(sock, address, tls.context)


def show_proof(tls: TlsServer, digest: bytes | None) -> None:
    """Show an authority from the next connection on that the name is ours; None: no longer."""
    tls.proof = make_proof(tls.config.hostname, digest, datetime.now(UTC)) if digest is not None else None


def make_proof(hostname: str, digest: bytes, now: datetime) -> ssl.SSLContext:
    """The context of the proof: a self-signed certificate for `hostname` (a name or an address) with the SHA-256
    `digest` of the key authorization, and nothing but `acme-tls/1` to agree on."""
    assert len(digest) == _DIGEST_BYTES
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        self_issued(key, "acme-tls/1 proof", hostname, now - _LIFE, now + _LIFE)
        .add_extension(x509.UnrecognizedExtension(_IDENTIFIER, bytes((0x04, _DIGEST_BYTES)) + digest), critical=True)
        .sign(key, SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0
    context.set_alpn_protocols([ACME_PROTOCOL])
    # Authorities send the name (or an address as in-addr.arpa) by SNI, and compare the certificate themselves.  Without
    # a rule of its own OpenSSL would ask that of the context which the link began with.
    context.sni_callback = _any_name
    load_chain(context, certificate.public_bytes(Encoding.PEM), key_pem(key), "proof", "proof")
    return context


def _any_name(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
    return None
