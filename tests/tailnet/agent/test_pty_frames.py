"""What clients of the reconnecting PTY send: whole, in pieces, in Go's manner, and nonsense."""

import json
import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.agent.pty_frames import MAX_REQUEST_BYTES, Attach, PtyFrames, Request
from tailnet.errors import RemoteProtocolError
from tests.support.terminals import request_bytes, wish_bytes

ID = UUID("5f4dcc3b-aa76-4d61-8327-deb882cf99aa")


def attached() -> PtyFrames:
    frames = PtyFrames()
    assert frames.receive_data(wish_bytes(ID)) == []
    return frames


def test_the_first_frame() -> None:
    frames = PtyFrames()
    sent = wish_bytes(ID, 30, 100, "top", Container="web", ContainerUser="root", BackendType="screen")
    for byte in sent[:-1]:
        assert frames.receive_data(bytes([byte])) == []
        assert frames.attach is None
    assert frames.receive_data(sent[-1:] + request_bytes("ls\r", 25, 90)) == [Request(b"ls\r", 25, 90)]
    assert frames.attach == Attach(ID, 30, 100, "top", "web", "root")


def test_an_older_client_and_one_that_omits() -> None:
    frames = PtyFrames()
    text = json.dumps({"id": str(ID), "height": None}).encode()
    frames.receive_data(struct.pack("<H", len(text)) + text)
    assert frames.attach == Attach(ID)


@pytest.mark.parametrize(
    ("sent", "requests"),
    [
        (b"{}", [Request()]),
        (b'{"data":"a"}{"data":"b"}', [Request(b"a"), Request(b"b")]),
        (b' \n{"height":1,"width":2}\r\n', [Request(height=1, width=2)]),
        (b'{"DATA":"a","Data":"b"}', [Request(b"b")]),
        (b'{"data":null,"more":true,"less":1e3}', [Request()]),
        (b'{"data":"}{\\"\\\\"}', [Request(b'}{"\\')]),
        (b'{"data":"\\u00fc\\ud83d\\ude00"}', [Request("ü😀".encode())]),
        (b'{"data":"\\ud83d"}', [Request("\ufffd".encode())]),
        (b'{"data":"\xff"}', [Request("\ufffd".encode())]),
        (b'{"data":"\\u0003"}', [Request(b"\x03")]),
    ],
)
def test_requests(sent: bytes, requests: list[Request]) -> None:
    assert attached().receive_data(sent) == requests
    frames = attached()
    assert [each for byte in sent for each in frames.receive_data(bytes([byte]))] == requests


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"[]", "is a JSON object"),
        (b"5", "is a JSON object"),
        (b'{"data":{"a":1}}', "nothing nested"),
        (b'{"data":[', "nothing nested"),
        (b'{"data":1}', "data is a text"),
        (b'{"height":70000}', "height is a number"),
        (b'{"width":-1}', "width is a number"),
        (b'{"width":1.5}', "width is a number"),
        (b'{"width":true}', "width is a number"),
        (b'{"width":"80"}', "width is a number"),
        (b'{"width":' + b"9" * 5000 + b"}", "is no JSON"),
        (b"{,}", "is no JSON"),
        (b'{"data":"\n"}', "is no JSON"),
        (b'{"data":"' + b"x" * MAX_REQUEST_BYTES, "is larger than"),
        (b'{"data":"' + b"\\" * (MAX_REQUEST_BYTES + 1), "is larger than"),
    ],
)
def test_what_is_no_request(sent: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        attached().receive_data(sent)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is no JSON"),
        (b"null", "is a JSON object"),
        (b"{}", "named by a UUID"),
        (b'{"ID":"x"}', "named by a UUID"),
        (b'{"ID":5}', "id is a text"),
        (b'{"ID":"' + str(ID).encode() + b'","Height":70000}', "height is a number"),
        (b"[" * 60_000, "is no JSON"),
    ],
)
def test_what_is_no_first_frame(text: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        PtyFrames().receive_data(struct.pack("<H", len(text)) + text)


@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.integers(0, 65535), st.integers(0, 65535))),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_however_it_is_cut(said: list[tuple[str, int, int]], sizes: list[int]) -> None:
    sent = wish_bytes(ID) + b"".join(
        json.dumps({"data": data, "height": height, "width": width}, ensure_ascii=bool(height % 2)).encode()
        for data, height, width in said
    )
    frames, requests, at, which = PtyFrames(), [], 0, 0
    while at < len(sent):
        size = sizes[which % len(sizes)]
        requests += frames.receive_data(sent[at : at + size])
        at, which = at + size, which + 1
    assert requests == [Request(data.encode(), height, width) for data, height, width in said]
