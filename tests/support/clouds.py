"""Clouds for tests: authorities of our own that sign instance identities as AWS, Azure and Google do."""

import json
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SIGNER = "westus.metadata.azure.com"


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@dataclass
class Certified:
    """A key and its certificate."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def certify(
    name: str,
    issuer: Certified | None = None,
    *,
    is_authority: bool = False,
    expires: datetime = NOW + timedelta(days=90),
    usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.CLIENT_AUTH,
    may_sign: bool = True,
) -> Certified:
    """A certificate of `name`, self-signed without an issuer."""
    key = rsa_key()
    signer = issuer.key if issuer is not None else key
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=30))
        .not_valid_after(expires)
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(
            x509.KeyUsage(may_sign, False, not may_sign, False, False, is_authority, is_authority, False, False), True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name.replace(" ", "-"))]), False)
    )
    if usage is not None and not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
    return Certified(key, builder.sign(signer, hashes.SHA256()))


@dataclass
class Aws:
    """One region's key."""

    certified: Certified = field(default_factory=lambda: certify("aws"))

    def document(self, **changes: Any) -> str:
        content = {"instanceId": "i-0123", "region": "eu-west-1", "pendingTime": "2026-05-30T08:00:00Z"} | changes
        return json.dumps(content, indent=2)

    def sign(self, document: str) -> str:
        mark = self.certified.key.sign(document.encode(), padding.PKCS1v15(), hashes.SHA256())
        return b64encode(mark).decode()


@dataclass
class Azure:
    """A root, an intermediate, and a signer below it."""

    root: Certified = field(default_factory=lambda: certify("root", is_authority=True))
    intermediate: Certified = field(init=False)
    signer: Certified = field(init=False)

    def __post_init__(self) -> None:
        self.intermediate = certify("intermediate", self.root, is_authority=True)
        self.signer = certify(SIGNER, self.intermediate)

    def content(self, **changes: Any) -> bytes:
        stamp = {"createdOn": "06/01/26 09:00:00 -0000", "expiresOn": "06/01/26 15:00:00 -0000"}
        return json.dumps({"vmId": "vm-1", "nonce": "", "timeStamp": stamp} | changes).encode()

    def envelope(self, content: bytes, *signers: Certified, extra: tuple[Certified, ...] = ()) -> bytes:
        builder = pkcs7.PKCS7SignatureBuilder().set_data(content)
        for each in signers or (self.signer,):
            builder = builder.add_signer(each.certificate, each.key, hashes.SHA256())
        for each in extra or (self.intermediate,):
            builder = builder.add_certificate(each.certificate)
        return builder.sign(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])

    def sign(self, content: bytes) -> str:
        return b64encode(self.envelope(content)).decode()


@dataclass
class Google:
    """A key set of one RSA and one EC key."""

    rsa: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "r1"}))
    ec: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "e1"}))

    def key_set(self) -> dict[str, Any]:
        return {"keys": [key.as_dict(private=False) for key in (self.rsa, self.ec)]}

    def claims(self, **changes: Any) -> dict[str, Any]:
        at = int(NOW.timestamp())
        engine = {"compute_engine": {"instance_id": "777"}}
        claims = {"iss": "https://accounts.google.com", "aud": "x", "iat": at, "exp": at + 3600, "google": engine}
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def sign(self, claims: dict[str, Any], key: RSAKey | ECKey | None = None, algorithm: str = "RS256") -> str:
        signer = key or self.rsa
        header = {"alg": algorithm, "kid": signer.as_dict(private=False)["kid"]}
        return jws.serialize_compact(header, json.dumps(claims).encode(), signer)


def write_anchors(folder: Path, aws: Aws, azure: Azure, google: Google) -> Path:
    """A directory as --identity-anchors wants it."""
    for name in ("aws", "azure", "google"):
        (folder / name).mkdir(parents=True)
    (folder / "aws" / "eu-west-1.pem").write_bytes(aws.certified.pem)
    (folder / "azure" / "roots.pem").write_bytes(azure.root.pem)
    (folder / "azure" / "intermediates.pem").write_bytes(azure.intermediate.pem)
    (folder / "google" / "jwks.json").write_text(json.dumps(google.key_set()))
    return folder
