"""Objects however cut, what is none, and how often a byte is looked at."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import RemoteProtocolError
from tailnet.proto import json_objects
from tailnet.proto.json_objects import MAX_DEPTH, ObjectCutter

TEXT = st.text(max_size=10) | st.sampled_from(['"', "\\", '\\"', "{", "}", "[]", "\u20ac\U0001f600"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=5)


def cutter(max_bytes: int = 10_000) -> ObjectCutter:
    return ObjectCutter(max_bytes, "a node")


@given(OBJECTS, st.booleans(), st.sampled_from(["", " ", "\r\n\t "]), st.lists(st.integers(1, 30), min_size=1))
def test_what_was_sent_is_read_however_it_is_cut(
    objects: list[dict[str, Any]], as_ascii: bool, between: str, sizes: list[int]
) -> None:
    stream = between.join(json.dumps(each, ensure_ascii=as_ascii) for each in objects).encode("utf-8", "surrogatepass")
    if any("\ud800" <= sign <= "\udfff" for sign in json.dumps(objects, ensure_ascii=False)) and not as_ascii:
        return  # half a character is no UTF-8
    reader, got, at, turn = cutter(), [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        got += reader.receive_data(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert got == objects
    assert cutter().receive_data(stream) == objects


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"[]", "is a JSON object"),
        (b"nonsense", "is a JSON object"),
        (b"{} 7", "is a JSON object"),
        (b'{"a":}', "is not JSON"),
        (b"{]", "is not JSON"),
        (b'{"a":"\xff"}', "is not JSON"),
        (b'{"a":' + b"[" * MAX_DEPTH, f"nested deeper than {MAX_DEPTH}"),
        (b'{"a":"' + b"x" * 10_000, "more than 10000 bytes"),
        (b'{"a":"' + b"x" * 10_000 + b'"}', "more than 10000 bytes"),
    ],
)
def test_what_is_none(stream: bytes, why: str) -> None:
    for pieces in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
        reader = cutter()
        with pytest.raises(RemoteProtocolError, match=why):  # noqa: PT012  # one of the pieces
            for piece in pieces:
                reader.receive_data(piece)


@given(st.binary(max_size=60))
def test_any_bytes_raise_nothing_else(stream: bytes) -> None:
    reader = cutter()
    try:
        for at in range(len(stream)):
            reader.receive_data(stream[at : at + 1])
    except RemoteProtocolError:
        pass


def test_each_byte_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long object that comes byte by byte: the parser sees it once, when it is whole."""
    parsed: list[int] = []

    def loads(text: str) -> Any:
        parsed.append(len(text))
        return json.JSONDecoder().decode(text)

    monkeypatch.setattr(json_objects.json, "loads", loads)
    stream = json.dumps({"a": "}" * 5000}).encode()
    reader, got = cutter(), []
    for at in range(len(stream)):
        got += reader.receive_data(stream[at : at + 1])
    assert got == [{"a": "}" * 5000}]
    assert parsed == [len(stream)]
