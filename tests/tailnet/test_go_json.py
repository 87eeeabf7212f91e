"""The bytes that Go's encoder would write."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from tailnet.go_json import go_json, go_time


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


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05Z"),
        (datetime(2026, 1, 2, 3, 4, 10, 678900, tzinfo=UTC), "2026-01-02T03:04:10.6789Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 1, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:04:05.000001Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00Z"),
    ],
)
def test_times(moment: datetime, text: str) -> None:
    assert go_time(moment) == text
