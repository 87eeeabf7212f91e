"""Signed documents: what is believed, and the sentence for everything that is not."""

import re

import pytest

from derp.admission.signed import Issuer, IssuerPrivate, open_signed
from derp.errors import KeyFormatError, SignedFormatError

PRIVATE = IssuerPrivate(bytes(range(32)))
OTHER = IssuerPrivate(bytes(32))
TRUSTED = [PRIVATE.public()]


def test_a_document_is_one_line_with_everything_in_it() -> None:
    document = PRIVATE.sign("derp-key-set", b"payload")
    issuer = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"  # of RFC 8032's curve, for this seed
    assert document.startswith(f"derp-key-set.1.{issuer}.cGF5bG9hZA.".encode())
    assert open_signed(document + b"\n", "derp-key-set", TRUSTED) == (PRIVATE.public(), b"payload")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda document: b"", "is no derp-key-set"),
        (lambda document: b"\xff" + document, "is no derp-key-set"),
        (lambda document: document.replace(b"derp-key-set", b"derp-other"), "is no derp-key-set"),
        (lambda document: document.replace(b".1.", b".2.", 1), "is of version '2', and this relay reads version 1"),
        (lambda document: document[: len(document) // 2], "was cut, or changed|does not fit"),
        (lambda document: document[:-1], "does not fit"),
        (lambda document: document[:-3] + b"AAA", "does not fit"),
        (lambda document: document.replace(b"cGF5", b"cGF6"), "does not fit"),
        (lambda document: document + b".x", "is no whole derp-key-set"),
        (lambda document: document.replace(b".03a1", b".zza1"), "does not say whose it is"),
        (
            lambda document: OTHER.sign("derp-key-set", b"payload"),
            "is none of the issuers that are trusted here|none of",
        ),
    ],
)
def test_what_is_not_believed_says_why(change: object, reason: str) -> None:
    changed = change(PRIVATE.sign("derp-key-set", b"payload"))  # type: ignore[operator]  # a lambda of the table
    with pytest.raises(SignedFormatError, match=reason):
        open_signed(changed, "derp-key-set", TRUSTED)


def test_every_cut_and_every_flipped_bit_is_refused() -> None:
    document = PRIVATE.sign("derp-key-set", b"payload")
    for at in range(len(document) - 1):  # the last digit of base64 has bits that mean nothing
        flipped = bytearray(document)
        flipped[at] ^= 1
        for bad in (document[:at], bytes(flipped)):
            with pytest.raises(SignedFormatError):
                open_signed(bad, "derp-key-set", TRUSTED)


def test_keys_have_text_forms_that_are_told_apart() -> None:
    public = PRIVATE.public()
    assert Issuer.parse(str(public)) == public
    assert IssuerPrivate.parse(PRIVATE.text()) == PRIVATE
    assert PRIVATE.raw.hex() not in repr(PRIVATE)
    for text in ("", "issuerkey:", "issuerkey:" + "0" * 63, "nodekey:" + "0" * 64, "issuerkey:" + "0 " * 32):
        with pytest.raises(KeyFormatError):
            Issuer.parse(text)
    with pytest.raises(KeyFormatError) as caught:
        IssuerPrivate.parse("issuerprivkey:" + "ab" * 31)
    assert not re.search("abab", str(caught.value))
