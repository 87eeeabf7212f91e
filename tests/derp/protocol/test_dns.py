"""The TXT question: byte vectors of RFC 1035's layout, every cut, and nothing but RemoteProtocolError for nonsense."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.protocol.dns import encode_txt_query, parse_txt_answer

QUERY = encode_txt_query("rollout.example.org", 0x1234)
NAMED = b"\xc0\x0c"  # a pointer to the name in the question


def record(kind: int, payload: bytes, name: bytes = NAMED) -> bytes:
    return name + struct.pack("!HHIH", kind, 1, 60, len(payload)) + payload


def answer(*records: bytes, flags: int = 0x8180, query: bytes = QUERY, ident: int = 0x1234) -> bytes:
    return struct.pack("!6H", ident, flags, 1, len(records), 0, 0) + query[12:] + b"".join(records)


def test_a_question_byte_by_byte() -> None:
    head = "1234 0100 0001 0000 0000 0000"
    assert bytes.fromhex(head) + b"\7rollout\7example\3org\0" + bytes.fromhex("0010 0001") == QUERY
    assert encode_txt_query("rollout.example.org.", 0x1234) == QUERY


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", "192.0.2.1", "x" * 64, "bücher.example", ".".join(["x" * 60] * 5), "a." * 200]
)
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    with pytest.raises(LocalProtocolError, match="is no DNS name"):
        encode_txt_query(name, 1)


def test_the_longest_names_may_be_asked_for() -> None:
    name = ".".join(["x" * 63] * 3 + ["x" * 61])
    assert len(name) == 253
    assert encode_txt_query(name, 1)
    with pytest.raises(LocalProtocolError, match="longer than 253"):
        encode_txt_query(f"{name}x", 1)


def test_records_in_one_and_in_several_pieces() -> None:
    spelt = b"\7rollout\7example\3org\0"
    alias = record(5, b"\5alias" + NAMED)
    whole = answer(alias, record(16, b"\x0250", name=spelt), record(16, b"\x01a\x00\x02bc"), record(16, b""))
    assert parse_txt_answer(whole, QUERY) == [b"50", b"abc", b""]
    assert parse_txt_answer(whole + b"additions", QUERY) == [b"50", b"abc", b""]
    loud = whole.replace(b"rollout", b"rOLLout", 1)
    assert parse_txt_answer(loud, QUERY) == [b"50", b"abc", b""]


def test_nothing_there() -> None:
    assert parse_txt_answer(answer(), QUERY) == []
    assert parse_txt_answer(answer(flags=0x8183), QUERY) == []  # no such name


@pytest.mark.parametrize(
    "other",
    [
        b"",
        QUERY,
        answer(record(16, b"\x0250"), ident=0x1235),
        answer(record(16, b"\x0250"), query=encode_txt_query("rollout.example.net", 0x1234)),
        answer(record(16, b"\x0250"), flags=0x0180),
        answer(record(16, b"\x0250"))[: len(QUERY) - 1],
        answer().replace(b"\0\x01\0\0\0\0\0\0", b"\0\x02\0\0\0\0\0\0", 1),
    ],
)
def test_what_answers_something_else_is_passed_over(other: bytes) -> None:
    assert parse_txt_answer(other, QUERY) is None


@pytest.mark.parametrize(("flags", "text"), [(0x8182, "error 2"), (0x8185, "error 5"), (0x8380, "does not fit")])
def test_a_server_that_will_not_say(flags: int, text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=text):
        parse_txt_answer(answer(flags=flags), QUERY)


def test_every_cut_is_seen() -> None:
    whole = answer(record(16, b"\x0250"), record(16, b"\x0251"))
    for end in range(len(QUERY), len(whole)):
        with pytest.raises(RemoteProtocolError, match="cut or malformed"):
            parse_txt_answer(whole[:end], QUERY)


def test_a_string_longer_than_its_record() -> None:
    with pytest.raises(RemoteProtocolError, match="cut or malformed"):
        parse_txt_answer(answer(record(16, b"\x0550")), QUERY)


@given(st.binary(max_size=200), st.integers(0, 65535))
def test_nonsense_behind_the_question_raises_nothing_else(tail: bytes, count: int) -> None:
    datagram = struct.pack("!6H", 0x1234, 0x8180, 1, count, 0, 0) + QUERY[12:] + tail
    with contextlib.suppress(RemoteProtocolError):
        parse_txt_answer(datagram, QUERY)
