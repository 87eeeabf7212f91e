"""CMS SignedData with one signer (RFC 5652), decoded and checked: `cryptography` writes it, but does not verify it.

Layer L2.  Strict DER through cryptography's own ASN.1; of all that RFC 5652 allows only what clouds send: RSA with
PKCS #1 v1.5 or ECDSA, SHA-256 to SHA-512, content inside, signed attributes.  Whether the signer is to be believed is
the caller's question: the chain is x509.verification's.
"""

from dataclasses import dataclass
from typing import Annotated, Final, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from tailnet.identity.instance import IdentityRefused

_SIGNED_DATA: Final = x509.ObjectIdentifier("1.2.840.113549.1.7.2")
_DATA: Final = x509.ObjectIdentifier("1.2.840.113549.1.7.1")
_CONTENT_TYPE: Final = x509.ObjectIdentifier("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST: Final = x509.ObjectIdentifier("1.2.840.113549.1.9.4")
_DIGESTS: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256,
    "2.16.840.1.101.3.4.2.2": hashes.SHA384,
    "2.16.840.1.101.3.4.2.3": hashes.SHA512,
}
# rsaEncryption names no digest: that of digestAlgorithm is meant.  The others must name the same one.
_RSA_ENCRYPTION: Final = "1.2.840.113549.1.1.1"
_SIGNATURE_DIGESTS: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "1.2.840.113549.1.1.11": hashes.SHA256,
    "1.2.840.113549.1.1.12": hashes.SHA384,
    "1.2.840.113549.1.1.13": hashes.SHA512,
    "1.2.840.10045.4.3.2": hashes.SHA256,
    "1.2.840.10045.4.3.3": hashes.SHA384,
    "1.2.840.10045.4.3.4": hashes.SHA512,
}
# RSA below 2,048 bits can be factored; no cloud signs with it.
_MIN_RSA_BITS: Final = 2048
# Genuine envelopes have two or three.  Of many, which all name each other as issuers, the search for a chain costs its
# checker 12 ms; a genuine one costs 0.2.
_MAX_CERTIFICATES: Final = 16
_SET_TAG: Final = 0x31


@asn1.sequence
class _Algorithm:
    oid: x509.ObjectIdentifier
    parameters: asn1.Null | None


@asn1.sequence
class _Attribute:
    oid: x509.ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _IssuerAndSerial:
    issuer: asn1.TLV
    serial: int


@asn1.sequence
class _SignerInfo:
    version: int
    signer: _IssuerAndSerial | Annotated[bytes, asn1.Implicit(0)]
    digest: _Algorithm
    signed_attributes: Annotated[list[_Attribute] | None, asn1.Implicit(0)]
    signature_algorithm: _Algorithm
    signature: bytes
    unsigned_attributes: Annotated[list[_Attribute] | None, asn1.Implicit(1)]


@asn1.sequence
class _Content:
    oid: x509.ObjectIdentifier
    octets: Annotated[bytes | None, asn1.Explicit(0)]


@asn1.sequence
class _SignedData:
    version: int
    digests: asn1.SetOf[_Algorithm]
    content: _Content
    # A set, but OpenSSL does not sort it.
    certificates: Annotated[list[x509.Certificate] | None, asn1.Implicit(0)]
    signers: asn1.SetOf[_SignerInfo]


@asn1.sequence
class _ContentInfo:
    oid: x509.ObjectIdentifier
    signed_data: Annotated[_SignedData, asn1.Explicit(0)]


@dataclass(frozen=True, slots=True)
class Signed:
    """Content whose signature holds, who signed it, and the other certificates of the envelope."""

    content: bytes
    signer: x509.Certificate
    others: tuple[x509.Certificate, ...]


def open_signed_data(der: bytes) -> Signed:
    """Decode and check the signature.  Raises IdentityRefused."""
    try:
        envelope = asn1.decode_der(_ContentInfo, der)
    except (ValueError, TypeError, x509.InvalidVersion):  # the last is of a certificate in it
        _refuse("it is no PKCS #7 signed data")
    data = envelope.signed_data
    if envelope.oid != _SIGNED_DATA or data.content.oid != _DATA or data.content.octets is None:
        _refuse("it is no PKCS #7 signed data that holds what it signs")
    signers = data.signers.as_list()
    if len(signers) != 1:
        _refuse(f"it has {len(signers)} signers instead of one")
    info = signers[0]
    certificates = data.certificates or []
    if len(certificates) > _MAX_CERTIFICATES:
        _refuse(f"it has more than {_MAX_CERTIFICATES} certificates")
    signer = _find_signer(info, certificates)
    digest = _digest_of(info)
    _check_attributes(info, data.content.octets, digest)
    _check_signature(info, signer, digest)
    return Signed(data.content.octets, signer, tuple(each for each in certificates if each != signer))


def _refuse(reason: str) -> NoReturn:
    raise IdentityRefused(f"the signature: {reason}")


def _find_signer(info: _SignerInfo, certificates: list[x509.Certificate]) -> x509.Certificate:
    for certificate in certificates:
        if isinstance(info.signer, bytes):
            try:
                identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            except (x509.ExtensionNotFound, ValueError):
                continue
            if identifier.digest == info.signer:
                return certificate
        elif certificate.serial_number == info.signer.serial and certificate.issuer.public_bytes() == _whole(
            info.signer.issuer
        ):
            return certificate
    _refuse("its signer's certificate is not in it")


def _digest_of(info: _SignerInfo) -> hashes.HashAlgorithm:
    digest = _DIGESTS.get(info.digest.oid.dotted_string)
    if digest is None:
        _refuse("its digest is none of SHA-256, SHA-384 and SHA-512")
    algorithm = info.signature_algorithm.oid.dotted_string
    if algorithm != _RSA_ENCRYPTION and _SIGNATURE_DIGESTS.get(algorithm) is not digest:
        _refuse("its signature algorithm is not supported, or does not fit its digest")
    return digest()


def _check_attributes(info: _SignerInfo, content: bytes, digest: hashes.HashAlgorithm) -> None:
    """Signed attributes stand for the content by its digest: RFC 5652 section 5.4."""
    if not info.signed_attributes:
        _refuse("it has no signed attributes")
    values: dict[x509.ObjectIdentifier, list[asn1.TLV]] = {}
    for attribute in info.signed_attributes:
        if attribute.oid in values:
            _refuse("an attribute of it stands twice")
        values[attribute.oid] = attribute.values.as_list()
    hashed = hashes.Hash(digest)
    hashed.update(content)
    wanted = {
        _MESSAGE_DIGEST: b"\x04" + _length(digest.digest_size) + hashed.finalize(),
        _CONTENT_TYPE: asn1.encode_der(_DATA),
    }
    for oid, encoded in wanted.items():
        found = values.get(oid, [])
        if len(found) != 1 or _whole(found[0]) != encoded:
            _refuse("its signed attributes are of other content")


def _check_signature(info: _SignerInfo, signer: x509.Certificate, digest: hashes.HashAlgorithm) -> None:
    # What is signed is the attributes as a SET; in the envelope they carry the tag [0] instead.
    attributes = b"".join(asn1.encode_der(each) for each in info.signed_attributes or ())
    signed = bytes((_SET_TAG,)) + _length(len(attributes)) + attributes
    try:
        key = signer.public_key()
        if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
            key.verify(info.signature, signed, padding.PKCS1v15(), digest)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(info.signature, signed, ec.ECDSA(digest))
        else:
            _refuse("its key is neither RSA of 2,048 bits or more nor ECDSA")
    except InvalidSignature:
        _refuse("it does not fit its content")
    except (ValueError, UnsupportedAlgorithm):
        _refuse("its key cannot be read")


def _whole(element: asn1.TLV) -> bytes:
    return bytes(element.tag_bytes) + _length(len(element.data)) + bytes(element.data)


def _length(size: int) -> bytes:
    """A length in DER."""
    if size < 0x80:
        return bytes((size,))
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((0x80 | len(octets),)) + octets
