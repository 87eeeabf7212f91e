"""Which file a path names, a lock that ends with its holder, and what is left beside a file that was replaced."""

import os
from pathlib import Path

import pytest

from tailnet.store.sqlite_file import has_log, identify, identify_companions, lock_file, remove_companions


def test_a_file_is_itself_under_any_name(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert identify(one) is None
    one.write_text("x")
    before = identify(one)
    one.write_text("something else")
    assert identify(one) == before is not None
    one.rename(other)
    assert (identify(one), identify(other)) == (None, before)
    one.write_text("x")
    assert identify(one) != before


def test_a_lock_is_one_holders(tmp_path: Path) -> None:
    path = tmp_path / "store.db-server"
    held = lock_file(path)
    with pytest.raises(BlockingIOError):
        lock_file(path)
    os.close(held)
    os.close(lock_file(path))
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="No such file"):
        lock_file(tmp_path / "no" / "store.db-server")


def test_only_what_was_there_is_removed(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    log, index = tmp_path / "store.db-wal", tmp_path / "store.db-shm"
    assert identify_companions(store) == {}
    log.write_text("old")
    index.write_text("old")
    companions = identify_companions(store)
    index.rename(tmp_path / "aside")
    index.write_text("brought along with the new file")
    remove_companions(companions)
    assert (log.exists(), index.read_text()) == (False, "brought along with the new file")
    remove_companions(companions)  # once more is no harm


def test_a_log_with_something_in_it(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    assert not has_log(store)
    (tmp_path / "store.db-wal").touch()
    assert not has_log(store)
    (tmp_path / "store.db-wal").write_text("x")
    assert has_log(store)
