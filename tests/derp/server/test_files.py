"""Files written whole, for their owner only; and pairs that are none."""

import stat
from pathlib import Path

import pytest

from derp.server.files import is_pair, replace_file
from tests.support.certificates import issue


def test_a_file_is_replaced_whole_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    replace_file(path, b"one")
    path.chmod(0o644)
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["key"]


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(OSError, match="key"):
        replace_file(tmp_path / "key", b"x")
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def test_pairs() -> None:
    one, other = issue("a.example"), issue("a.example")
    assert is_pair(one.certificate, one.key_pem)
    assert not is_pair(one.certificate, other.key_pem)
    with pytest.raises(ValueError):  # the library's words are its own
        is_pair(one.certificate, b"no key")
