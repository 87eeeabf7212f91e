"""What was sealed opens with its key, where it lay, and unchanged; nothing else opens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import SecretsError
from tailnet.store.sealing import KEY_BYTES, Sealer

OLD, NEW = bytes(KEY_BYTES), bytes(range(KEY_BYTES))
PLAIN = b"gho_16C7e42F292c6912E7710c838347Ae178B4a"


@given(plain=st.binary(max_size=200), place=st.text(max_size=40))
def test_round_trip(plain: bytes, place: str) -> None:
    sealer = Sealer([NEW])
    sealed = sealer.seal(plain, place)
    assert sealer.open(sealed, place) == plain
    assert len(sealed) == 1 + 8 + 12 + len(plain) + 16


def test_the_same_twice_is_not_the_same() -> None:
    sealer = Sealer([NEW])
    first, second = sealer.seal(PLAIN, "x"), sealer.seal(PLAIN, "x")
    assert first != second
    assert PLAIN[:8] not in first
    assert NEW[:8] not in first


def test_no_bit_may_change() -> None:
    sealer = Sealer([NEW])
    sealed = sealer.seal(PLAIN, "x")
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(SecretsError):
            sealer.open(changed, "x")
    for length in range(len(sealed)):
        with pytest.raises(SecretsError):
            sealer.open(sealed[:length], "x")


def test_a_row_of_another_user_does_not_open_here() -> None:
    sealer = Sealer([NEW])
    with pytest.raises(SecretsError, match="somebody changed the store"):
        sealer.open(sealer.seal(PLAIN, "link of alice"), "link of bob")


def test_keys_are_exchanged() -> None:
    old = Sealer([OLD]).seal(PLAIN, "x")
    both = Sealer([NEW, OLD])
    assert both.open(old, "x") == PLAIN
    assert not both.is_current(old)
    fresh = both.seal(PLAIN, "x")
    assert both.is_current(fresh)
    late = Sealer([NEW])
    assert late.open(fresh, "x") == PLAIN
    with pytest.raises(SecretsError, match="--secrets-key-file has to have that one") as caught:
        late.open(old, "x")
    assert PLAIN.decode() not in str(caught.value)
    late.take([OLD])
    assert late.open(old, "x") == PLAIN


def test_without_a_key_nothing_is_kept() -> None:
    none = Sealer()
    assert not none.has_keys
    assert not none.is_current(Sealer([NEW]).seal(PLAIN, "x"))
    with pytest.raises(SecretsError, match="--secrets-key-file"):
        none.seal(PLAIN, "x")
    with pytest.raises(SecretsError):
        none.open(Sealer([NEW]).seal(PLAIN, "x"), "x")
