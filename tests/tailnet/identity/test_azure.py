"""Azure's attested documents: who signed, whom that leads to, and when."""

from base64 import b64encode
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from tailnet.identity.anchors import Anchors
from tailnet.identity.azure import verify_azure
from tailnet.identity.instance import CLOCK_SKEW_SECONDS, IdentityRefused, Instance
from tests.support.clouds import NOW, SIGNER, Azure, Certified, certify

AT = NOW.timestamp()


def refused(signature: str, anchors: Anchors, now: float = AT) -> str:
    with pytest.raises(IdentityRefused) as caught:
        verify_azure(signature, anchors, now)
    return str(caught.value)


def signed_by(azure: Azure, signer: Certified, *extra: Certified) -> str:
    return b64encode(azure.envelope(azure.content(), signer, extra=extra)).decode()


def test_a_document_and_once_more(azure: Azure, anchors: Anchors) -> None:
    for _ in range(2):
        assert verify_azure(azure.sign(azure.content()), anchors, AT) == Instance("vm-1")


def test_an_intermediate_of_ours(azure: Azure, anchors: Anchors) -> None:
    alone = b64encode(azure.envelope(azure.content(), extra=(azure.root,))).decode()
    assert verify_azure(alone, anchors, AT).instance_id == "vm-1"
    assert "does not lead" in refused(alone, replace(anchors, azure_intermediates=()))


def test_another_chain(azure: Azure, anchors: Anchors) -> None:
    stranger = Azure()
    assert "does not lead" in refused(stranger.sign(stranger.content()), anchors)
    # Its own root in the envelope makes nobody trusted.
    assert "does not lead" in refused(
        signed_by(stranger, stranger.signer, stranger.root, stranger.intermediate), anchors
    )


@pytest.mark.parametrize(
    "name", ["example.org", "metadata.azure.com.example.org", "xmetadata.azure.com", "metadata.azure.org"]
)
def test_other_names(azure: Azure, anchors: Anchors, name: str) -> None:
    assert "metadata service" in refused(signed_by(azure, certify(name, azure.intermediate)), anchors)


@pytest.mark.parametrize("name", [SIGNER, "metadata.azure.us", "x.y.metadata.azure.cn", "metadata.microsoftazure.de"])
def test_its_names(azure: Azure, anchors: Anchors, name: str) -> None:
    signature = signed_by(azure, certify(name, azure.intermediate))
    assert verify_azure(signature, anchors, AT).instance_id == "vm-1"


def test_certificates_that_may_not_sign(azure: Azure, anchors: Anchors) -> None:
    mailer = certify(SIGNER, azure.intermediate, usage=ExtendedKeyUsageOID.EMAIL_PROTECTION)
    cipher = certify(SIGNER, azure.intermediate, may_sign=False)
    authority = certify(SIGNER, azure.intermediate, is_authority=True)
    for signer in (mailer, cipher, authority):
        assert "may not sign" in refused(signed_by(azure, signer), anchors)
    unnamed = certify(SIGNER, azure.intermediate, usage=None)
    assert verify_azure(signed_by(azure, unnamed), anchors, AT).instance_id == "vm-1"


def test_an_expired_signer(azure: Azure, anchors: Anchors) -> None:
    old = certify(SIGNER, azure.intermediate, expires=NOW - timedelta(seconds=1))
    assert "has expired" in refused(signed_by(azure, old), anchors)


def test_clocks(azure: Azure, anchors: Anchors) -> None:
    signature = azure.sign(azure.content())
    created, expires = AT - 3 * 3600, AT + 3 * 3600
    for now in (created - CLOCK_SKEW_SECONDS, expires + CLOCK_SKEW_SECONDS):
        assert verify_azure(signature, anchors, now).instance_id == "vm-1"
    assert "future" in refused(signature, anchors, created - CLOCK_SKEW_SECONDS - 1)
    assert "expired" in refused(signature, anchors, expires + CLOCK_SKEW_SECONDS + 1)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"vmId": 3}', b'{"vmId": ""}', b"\xff", b'{"vmId": "a", "timeStamp": {}}']
)
def test_signed_nonsense(azure: Azure, anchors: Anchors, content: bytes) -> None:
    assert "document" in refused(azure.sign(content), anchors)


def test_no_roots_and_no_base64(azure: Azure, anchors: Anchors) -> None:
    assert "trusts no Azure" in refused(azure.sign(azure.content()), Anchors())
    assert "base64" in refused("-", anchors)


AZURE = Azure()
ENVELOPE = AZURE.envelope(AZURE.content())
TRUSTING = Anchors(azure_roots=(AZURE.root.certificate,))


@given(at=st.integers(0, len(ENVELOPE) - 1), bit=st.integers(0, 7))
def test_any_bit_of_it_counts(at: int, bit: int) -> None:
    changed = bytearray(ENVELOPE)
    changed[at] ^= 1 << bit
    try:
        instance = verify_azure(b64encode(changed).decode(), TRUSTING, AT)
    except IdentityRefused:
        return
    assert instance == Instance("vm-1")  # it was a bit of the certificate that comes along and is not needed
