"""Certificates for tests, made on the spot: an authority, leaves, self-signed ones, meta certificates."""

import ipaddress
import ssl
import tempfile
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def pin(self) -> str:
        return f"sha256-raw:{self.certificate.fingerprint(hashes.SHA256()).hex()}"


def issue(
    *names: str,
    common_name: str = "",
    issuer: Issued | None = None,
    is_authority: bool = False,
    serial: int | None = None,
    valid: tuple[timedelta, timedelta] = (timedelta(days=-1), timedelta(days=30)),
    ed25519_key: bool = False,
) -> Issued:
    """A certificate for these DNS names and addresses; self-signed without issuer."""
    key: PrivateKey = ed25519.Ed25519PrivateKey.generate() if ed25519_key else ec.generate_private_key(ec.SECP256R1())
    text = common_name or (names[0] if names else "test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a meta certificate's name is longer than X.520 allows, and it has to be
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text, _validate=False)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial if serial is not None else x509.random_serial_number())
        .not_valid_before(now + valid[0])
        .not_valid_after(now + valid[1])
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    # What OpenSSL's strict check wants, which Python switches on from 3.13.
    issuer_key = (issuer.key if issuer else key).public_key()
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), False)
    if is_authority:
        builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), False)
    signer = issuer.key if issuer else key
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Issued(builder.sign(signer, algorithm), key)


def issue_meta(server_key: bytes, *, serial: int = 2) -> Issued:
    """The certificate by which a relay tells its DERP key inside TLS."""
    return issue(common_name=f"derpkey{server_key.hex()}", serial=serial, ed25519_key=True)


def server_context(*chain: Issued, tls12: bool = False) -> ssl.SSLContext:
    """A server's context that sends this chain; the first one's key is used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.TemporaryDirectory() as folder:
        chain_file, key_file = Path(folder, "chain.pem"), Path(folder, "key.pem")
        chain_file.write_bytes(b"".join(one.pem for one in chain))
        key_file.write_bytes(chain[0].key_pem)
        context.load_cert_chain(chain_file, key_file)
    return context


def client_context(authority: Issued) -> ssl.SSLContext:
    """A client's context that trusts this authority alone."""
    return ssl.create_default_context(cadata=authority.pem.decode())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
