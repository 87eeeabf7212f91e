"""One spelling for every form of a target."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.protocol.target import authority, origin_form


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/derp", "/derp"),
        ("/derp?a=%64", "/derp?a=%64"),
        ("http://relay.example/derp", "/derp"),
        ("HTTP://relay.example:80/derp/probe?x=1", "/derp/probe?x=1"),
        ("https://[2001:db8::1]:443/derp", "/derp"),
        ("http://relay.example", "/"),
        ("http://relay.example?x=1", "/?x=1"),
        ("http://user:word@relay.example/healthz", "/healthz"),
        ("http:///derp", "/derp"),
        ("/%64er%70", "/derp"),
        ("/generate%5f204", "/generate_204"),
        ("http://relay.example/%67enerate_204?%67", "/generate_204?%67"),
        ("/derp%2fprobe", "/derp%2Fprobe"),
        ("/derp%3fx", "/derp%3Fx"),
        ("/%2564erp", "/%2564erp"),
        ("/100%", "/100%"),
        ("/%zz", "/%zz"),
        ("*", "*"),
        ("relay.example:443", "relay.example:443"),
        ("ftp://relay.example/derp", "ftp://relay.example/derp"),
        ("", ""),
    ],
)
def test_forms(target: str, expected: str) -> None:
    assert origin_form(target) == expected
    assert origin_form(expected) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/derp", None),
        ("*", None),
        ("relay.example:443", None),
        ("http://relay.example/derp", "relay.example"),
        ("http://relay.example:8080?x", "relay.example:8080"),
        ("http://user:word@[2001:db8::1]/derp", "[2001:db8::1]"),
        ("//elsewhere.example/derp", None),
    ],
)
def test_authorities(target: str, expected: str | None) -> None:
    assert authority(target) == expected


@given(st.text(max_size=30) | st.text("%/:?@ahtp64eEfF0", max_size=30))
def test_any_text_has_one_spelling_or_stays(target: str) -> None:
    once = origin_form(target)
    assert once == target or once.startswith("/")
    # A character that was encoded twice is decoded once.
    if "%25" not in once:
        assert origin_form(once) == once
