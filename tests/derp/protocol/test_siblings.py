import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import RemoteProtocolError
from derp.protocol.siblings import BATCH, CONTROL, MAX_CONTROL_BYTES, batch_head, control_frame, parse_control


def test_a_batch_begins_with_its_length_and_the_key_of_its_source() -> None:
    assert batch_head(b"s" * 32, 0x0102) == bytes((BATCH, 0, 0, 1, 0x22)) + b"s" * 32


def test_a_control_frame_is_a_list_in_msgpack_behind_its_length() -> None:
    frame = control_frame("left", b"k" * 32)

    assert frame[:5] == bytes((CONTROL, 0, 0, 0, 40))
    assert frame[5:] == b"\x92\xa4left\xc4\x20" + b"k" * 32


Items = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=10,
)


@given(name=st.text(min_size=1), rest=st.lists(Items, max_size=4))
def test_what_was_said_is_heard(name: str, rest: list[object]) -> None:
    assert parse_control(control_frame(name, *rest)[5:]) == [name, *rest]


@given(payload=st.binary(max_size=80))
def test_bytes_that_are_no_message_are_the_peers_fault(payload: bytes) -> None:
    try:
        items = parse_control(payload)
    except RemoteProtocolError:
        return
    assert isinstance(items[0], str)


@pytest.mark.parametrize("items", [[], [1], {"left": 1}, "left", None])
def test_a_message_has_a_name(items: object) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_control(msgpack.packb(items))


def test_a_message_that_no_receive_holds_is_our_own_fault() -> None:
    with pytest.raises(AssertionError):
        control_frame("answer", bytes(MAX_CONTROL_BYTES))
