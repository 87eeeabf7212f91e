"""A signed text is whole, unchanged and by whom it says, or there is one sentence of what is wrong."""

import pytest

from derp.admission.receipt import check_receipt, sign_receipt
from derp.admission.signed import IssuerPrivate
from derp.errors import SignedFormatError

PRIVATE = IssuerPrivate(b"p" * 32)
TEXT = b"day,bytes\n2026-11-30,5\n"
DOCUMENT = TEXT + b"# " + sign_receipt(PRIVATE, TEXT, {"rows": 1}) + b"\n"


def test_whoever_signed_it_and_what_he_says() -> None:
    assert check_receipt(DOCUMENT, [PRIVATE.public()]) == (PRIVATE.public(), {"rows": 1})
    as_json = TEXT + b'{"signature": "' + sign_receipt(PRIVATE, TEXT, {}) + b'"}'
    assert check_receipt(as_json, [PRIVATE.public()])[1] == {}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (DOCUMENT.replace(b",5", b",6"), "was changed after it was signed"),
        (b"2026-11-29,1\n" + DOCUMENT, "was changed after it was signed"),
        (TEXT, "has no signature in its last line"),
        (b"", "has no signature in its last line"),
        (DOCUMENT[:-9], "has a signature that does not fit"),
        (TEXT + b"# " + PRIVATE.sign("derp-ledger", b"[]"), "is signed, but not as this program knows it"),
    ],
)
def test_what_is_wrong_with_it(document: bytes, reason: str) -> None:
    with pytest.raises(SignedFormatError, match=reason):
        check_receipt(document, [PRIVATE.public()])


def test_somebody_else_is_not_believed() -> None:
    with pytest.raises(SignedFormatError, match="none of the issuers"):
        check_receipt(DOCUMENT, [IssuerPrivate(b"q" * 32).public()])


def test_every_changed_byte_is_found() -> None:
    for at in range(len(DOCUMENT) - 1):
        changed = bytearray(DOCUMENT)
        changed[at] ^= 1
        if bytes(changed).rstrip() == DOCUMENT.rstrip():
            continue
        try:
            check_receipt(bytes(changed), [PRIVATE.public()])
        except SignedFormatError:
            continue
        # What stands before the signature's line is a mark for readers; the last digit of base64 has spare bits.
        assert at in (DOCUMENT.rindex(b"\n# ") + 1, DOCUMENT.rindex(b"\n# ") + 2, len(DOCUMENT) - 2)
