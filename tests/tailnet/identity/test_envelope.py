"""PKCS #7: what OpenSSL and cryptography sign is taken, what was changed anywhere in it is not."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.identity.envelope import open_signed_data
from tailnet.identity.instance import IdentityRefused
from tests.support.clouds import Azure, certify

AZURE = Azure()
CONTENT = AZURE.content()
ENVELOPE = AZURE.envelope(CONTENT)


def refused(der: bytes) -> str:
    with pytest.raises(IdentityRefused) as caught:
        open_signed_data(der)
    return str(caught.value)


def test_an_envelope() -> None:
    signed = open_signed_data(ENVELOPE)
    assert (signed.content, signed.signer) == (CONTENT, AZURE.signer.certificate)
    assert signed.others == (AZURE.intermediate.certificate,)


@pytest.mark.parametrize("options", [[], ["-keyid"], ["-md", "sha512"]])
def test_an_envelope_of_openssl(tmp_path: Path, options: list[str]) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    (tmp_path / "key.pem").write_bytes(
        AZURE.signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "cert.pem").write_bytes(AZURE.signer.pem)
    (tmp_path / "content").write_bytes(CONTENT)
    command = ["openssl", "cms", "-sign", "-binary", "-nodetach", "-outform", "DER", "-signer", "cert.pem", "-inkey"]
    done = subprocess.run(
        [*command, "key.pem", "-in", "content", *options], cwd=tmp_path, capture_output=True, check=True
    )
    assert open_signed_data(done.stdout).content == CONTENT


def test_two_signers_and_none() -> None:
    other = certify("metadata.azure.com", AZURE.intermediate)
    assert "2 signers" in refused(AZURE.envelope(CONTENT, AZURE.signer, other))
    assert "no PKCS #7" in refused(b"")


def test_a_crowd_of_certificates() -> None:
    """All of which name each other as issuers, and whose chain nobody should have to look for."""
    crowd = tuple(certify("intermediate", AZURE.root, is_authority=True) for _ in range(4)) * 4
    assert "more than 16" in refused(AZURE.envelope(CONTENT, extra=(*crowd, AZURE.intermediate)))


def test_changed_content() -> None:
    assert "other content" in refused(ENVELOPE.replace(b"vm-1", b"vm-2"))


def test_a_changed_digest_attribute() -> None:
    """Content and its digest attribute agree again, but the attributes are not what was signed."""
    from cryptography.hazmat.primitives import hashes

    def digest(content: bytes) -> bytes:
        hashed = hashes.Hash(hashes.SHA256())
        hashed.update(content)
        return hashed.finalize()

    changed = CONTENT.replace(b"vm-1", b"vm-2")
    forged = ENVELOPE.replace(CONTENT, changed).replace(digest(CONTENT), digest(changed))
    assert "does not fit" in refused(forged)


def test_a_signer_whose_certificate_is_missing() -> None:
    other = certify("metadata.azure.com", AZURE.intermediate)
    swapped = ENVELOPE.replace(
        AZURE.signer.certificate.serial_number.to_bytes(20), other.certificate.serial_number.to_bytes(20)
    )
    # The serial number stands in the certificate, too: changed in both, the certificate's own signature is broken,
    # which the chain would show; changed in the last place only, the signer is not found.
    at = ENVELOPE.rindex(AZURE.signer.certificate.serial_number.to_bytes(20))
    assert "not in it" in refused(ENVELOPE[:at] + swapped[at:])


@given(at=st.integers(0, len(ENVELOPE) - 1), bit=st.integers(0, 7))
def test_any_bit_counts(at: int, bit: int) -> None:
    """A changed bit is refused, or it is in a certificate or what nobody signs, and the content stays what it was."""
    changed = bytearray(ENVELOPE)
    changed[at] ^= 1 << bit
    try:
        signed = open_signed_data(bytes(changed))
    except IdentityRefused:
        return
    assert signed.content == CONTENT


@given(der=st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(der: bytes) -> None:
    assert refused(der)


@pytest.mark.parametrize("cut", [1, 10, 100, 1000])
def test_cut_and_lengthened(cut: int) -> None:
    assert "no PKCS #7" in refused(ENVELOPE[:-cut])
    assert "no PKCS #7" in refused(ENVELOPE + b"\0" * cut)
