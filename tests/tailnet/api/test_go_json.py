"""The bytes that Go's encoder would write."""

import json

import pytest

from tailnet.api.go_json import go_json


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, b"null\n"),
        ({"a": [1, True, None], "b": "x"}, b'{"a":[1,true,null],"b":"x"}\n'),
        ("<a href='x'>&</a>", b"\"\\u003ca href='x'\\u003e\\u0026\\u003c/a\\u003e\"\n"),
        ("ü\u2028", '"ü\\u2028"\n'.encode()),
        ({}, b"{}\n"),
    ],
)
def test_bytes(value: object, text: bytes) -> None:
    assert go_json(value) == text
    assert json.loads(go_json(value)) == value


def test_half_a_surrogate_pair_is_no_crash() -> None:
    assert go_json("a\ud800") == b'"a?"\n'
