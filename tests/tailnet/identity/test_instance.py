"""What the three kinds have in common."""

import pytest

from tailnet.identity.instance import MAX_PROOF_BYTES, IdentityRefused, decode_base64


@pytest.mark.parametrize("text", ["aGFsbG8=", "aGFs\nbG8=\n", " aGFsbG8= "])
def test_base64(text: str) -> None:
    assert decode_base64(text) == b"hallo"


@pytest.mark.parametrize("text", ["aGFsbG8", "aGFs_G8=", "\xff", "A" * (MAX_PROOF_BYTES + 1)])
def test_what_is_none(text: str) -> None:
    with pytest.raises(IdentityRefused, match="signature"):
        decode_base64(text)
