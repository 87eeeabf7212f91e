"""Version checks: what is served, and the sentences of the refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.proto.version import CURRENT, Version, VersionRefused, check_version, parse_version


@pytest.mark.parametrize("minor", range(CURRENT.minor + 1))
def test_every_minor_up_to_ours_is_served(minor: int) -> None:
    assert check_version(f"2.{minor}") == Version(2, minor)


def test_an_absent_version_is_the_oldest() -> None:
    assert check_version(None) == (2, 0)


@pytest.mark.parametrize(
    ("asked", "detail"),
    [
        ("2.99", "server is at version 2.4, behind requested minor version 2.99"),
        ("2.5", "server is at version 2.4, behind requested minor version 2.5"),
        ("3.0", "server is at version 2.4, behind requested major version 3.0"),
        ("1.0", "version 1.0 is no longer supported"),
        ("0.9", "version 0.9 is no longer supported"),
        ("", "invalid version string: "),
        ("2", "invalid version string: 2"),
        ("2.", "invalid version string: 2."),
        ("2.0.1", "invalid version string: 2.0.1"),
        ("2.-1", "invalid version string: 2.-1"),
        ("+2.0", "invalid version string: +2.0"),
        ("2.٣", "invalid version string: 2.٣"),
        ("2.1_0", "invalid version string: 2.1_0"),
        ("2.123456", "invalid version string: 2.123456"),
    ],
)
def test_refusals_say_why(asked: str, detail: str) -> None:
    with pytest.raises(VersionRefused) as refused:
        check_version(asked, current=Version(2, 4))
    assert refused.value.detail == detail
    assert refused.value.message == "Unknown or unsupported API version"
    assert refused.value.field == "version"


def test_a_refusal_does_not_echo_a_novel() -> None:
    with pytest.raises(VersionRefused) as refused:
        parse_version("9" * 100_000)
    assert len(str(refused.value)) < 120


@given(st.text(max_size=20))
def test_any_text_is_served_or_refused(text: str) -> None:
    try:
        version = check_version(text)
    except VersionRefused:
        return
    assert version <= CURRENT
    assert version.major == 2
