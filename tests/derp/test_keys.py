"""Keys as the genuine tools write them; nothing secret in any text; comparison of secrets."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import KeyFormatError
from derp.keys import MeshKey, NodePrivate, NodePublic, short_key
from tests.vectors.derp import PUBLIC, VECTORS

raw_keys = st.binary(min_size=32, max_size=32)
RAW = bytes(range(0x80, 0xA0))


@pytest.mark.parametrize("name", VECTORS["keys"])
def test_public_keys_are_those_of_the_genuine_implementation(name: str) -> None:
    private = NodePrivate.parse(VECTORS["keys"][name]["private"])
    assert private.public() == NodePublic(PUBLIC[name])
    assert private.text() == VECTORS["keys"][name]["private"]


@given(raw_keys)
def test_text_forms_round_trip(raw: bytes) -> None:
    assert NodePublic.parse(str(NodePublic(raw))) == NodePublic(raw)
    assert NodePrivate.parse(NodePrivate(raw).text()) == NodePrivate(raw)
    assert MeshKey.parse(MeshKey(raw).text()) == MeshKey(raw)


def test_text_forms_are_those_of_the_field() -> None:
    assert str(NodePublic(RAW)) == "nodekey:" + RAW.hex()
    assert NodePrivate(RAW).text() == "privkey:" + RAW.hex()
    assert MeshKey(RAW).text() == RAW.hex()
    # The short form keeps 30 bits, as five base64 digits in brackets.
    assert NodePublic(RAW).short() == short_key(RAW) == "[gIGCg]"


def test_blanks_around_and_capital_digits_are_taken() -> None:
    assert MeshKey.parse(f" {RAW.hex().upper()}\n") == MeshKey(RAW)
    assert NodePublic.parse(f"\tnodekey:{RAW.hex().upper()} ") == NodePublic(RAW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nodekey:",
        RAW.hex(),
        "privkey:" + RAW.hex(),
        "nodekey:" + RAW.hex()[:-1],
        "nodekey:" + RAW.hex() + "0",
        "nodekey:" + RAW.hex()[:-1] + "g",
        "nodekey:" + RAW.hex()[:-2] + " 0",
        "nodekey: " + RAW.hex(),
        "nodekey:" + RAW.hex()[:-1] + "\u0663",
        "nodekey:" + RAW.hex()[:-1] + "\uff11",
        "NODEKEY:" + RAW.hex(),
    ],
)
def test_what_is_no_public_key_is_refused_and_repeated_to_its_writer(text: str) -> None:
    with pytest.raises(KeyFormatError, match="node public key") as caught:
        NodePublic.parse(text)
    assert len(str(caught.value)) < 300


def test_a_malformed_public_key_is_shown() -> None:
    text = "nodekey:" + RAW.hex()[:-1]
    with pytest.raises(KeyFormatError, match=f"got '{text}'"):
        NodePublic.parse(text)


@pytest.mark.parametrize("kind", [NodePrivate, MeshKey])
@pytest.mark.parametrize("body", [RAW.hex()[:-1], RAW.hex() + "00", RAW.hex()[:-1] + "g", RAW.hex()[:32] + " " * 32])
def test_a_malformed_secret_is_not_repeated(kind: type[NodePrivate] | type[MeshKey], body: str) -> None:
    text = "privkey:" + body if kind is NodePrivate else body
    with pytest.raises(KeyFormatError) as caught:
        kind.parse(text)
    assert body[:16] not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("kind", [NodePublic, NodePrivate, MeshKey])
@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_keys_have_32_bytes(kind: type, length: int) -> None:
    with pytest.raises(KeyFormatError, match=f"32 bytes, got {length}"):
        kind(bytes(length))


@pytest.mark.parametrize("kind", [NodePrivate, MeshKey])
def test_secrets_are_not_printed(kind: type[NodePrivate] | type[MeshKey]) -> None:
    secret = kind(RAW)
    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]}", "%s" % secret):  # noqa: UP031
        assert text.strip("[]") == f"{kind.__name__}(<secret>)"


@given(raw_keys, raw_keys)
def test_secrets_are_equal_when_their_bytes_are(first: bytes, second: bytes) -> None:
    assert (MeshKey(first) == MeshKey(second)) is (first == second)
    assert MeshKey(first) == MeshKey(bytes(bytearray(first)))
    assert hash(MeshKey(first)) == hash(MeshKey(bytes(bytearray(first))))


def test_kinds_of_secrets_do_not_mix() -> None:
    assert MeshKey(RAW) != NodePrivate(RAW)
    assert NodePrivate(RAW) != MeshKey(RAW)
    assert MeshKey(RAW) != RAW
    assert len({MeshKey(RAW), NodePrivate(RAW), MeshKey(RAW)}) == 2


def test_secrets_survive_a_copy() -> None:
    for again in (copy.copy(MeshKey(RAW)), copy.deepcopy(MeshKey(RAW)), pickle.loads(pickle.dumps(MeshKey(RAW)))):
        assert again == MeshKey(RAW)


def test_generated_keys_differ_and_work() -> None:
    first, second = NodePrivate.generate(), NodePrivate.generate()
    assert first != second
    assert first.public() != second.public()


@given(raw_keys)
def test_clamping_does_not_change_the_address(raw: bytes) -> None:
    # RFC 7748: three low bits and the two high ones are fixed by the curve, whatever a file says.
    clamped = bytearray(raw)
    clamped[0] &= 248
    clamped[31] = clamped[31] & 127 | 64
    assert NodePrivate(raw).public() == NodePrivate(bytes(clamped)).public()
