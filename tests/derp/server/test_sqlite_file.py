"""A file of SQLite is its owner's alone, keeps what a whole transaction did, and says for what it cannot be used."""

import re
import stat
from pathlib import Path

import pytest

from derp.errors import ConfigError
from derp.server.sqlite_file import transaction

SCHEMA = "CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY);"


def numbers(path: Path) -> list[int]:
    with transaction(path, SCHEMA, "as a list") as connection:
        return [number for (number,) in connection.execute("SELECT number FROM numbers ORDER BY number")]


def test_what_a_transaction_did_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "list"
    with transaction(path, SCHEMA, "as a list") as connection:
        connection.execute("INSERT INTO numbers VALUES (1)")
    with pytest.raises(ZeroDivisionError), transaction(path, SCHEMA, "as a list") as connection:
        connection.executemany("INSERT INTO numbers VALUES (?)", ((2 // divisor,) for divisor in (1, 0)))
    with pytest.raises(ConfigError, match="UNIQUE"), transaction(path, SCHEMA, "as a list") as connection:
        connection.executemany("INSERT INTO numbers VALUES (?)", [(3,), (1,)])
    assert numbers(path) == [1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_none_is_named_with_its_purpose(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("something else, and long enough to be no database" * 50)
    missing = tmp_path / "nowhere" / "list"
    for wrong, reason in (
        (path, "cannot be used as a list: file is not a database"),
        (missing, "cannot be used as a list: No such file"),
        (tmp_path, "cannot be used as a list: unable to open database file"),
    ):
        with pytest.raises(ConfigError, match=re.escape(str(wrong)) + ": " + reason):
            numbers(wrong)
