"""`tailnet admin store`: what it says to people and to programs, and its exit status."""

import json
import re
import sqlite3
from pathlib import Path

import pytest

from tailnet.cli.root import run
from tailnet.store.rows import Role
from tailnet.store.schema import HEAD_REVISION
from tailnet.store.store import Store
from tests.support.postgresql import PASSWORD
from tests.support.seeds import NOW, fill, peer_id

pytestmark = pytest.mark.stores


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    return store


def failing(args: list[str], capsys: pytest.CaptureFixture[str], status: int = 1) -> str:
    with pytest.raises(SystemExit) as caught:
        run(args)
    assert caught.value.code == status
    return capsys.readouterr().err


def test_check(filled: Store, store_url: str, store_kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(["admin", "store", "check", "--store", store_url])
    lines = capsys.readouterr().out.splitlines()
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[store_kind]
    assert re.fullmatch(rf"{kind} [0-9.]+.*, schema {HEAD_REVISION}, [0-9.]+ [KM]iB", lines[1])
    assert "  agents: 3 rows" in lines
    assert lines[-1] == "it is whole"
    assert PASSWORD not in "".join(lines)
    run(["admin", "store", "check", "--store", store_url, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["rows"]["users"], said["problems"], said["servers"]) == (HEAD_REVISION, 2, [], [])


def test_what_is_wrong_is_a_status(filled: Store, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with filled.writing() as connection:
        connection.exec_driver_sql("UPDATE agents SET logs_bytes = 9")
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as caught:
            run(["admin", "store", "check", "--store", store_url, *more])
        assert caught.value.code == 1
        assert f"agent {peer_id('main')}: 9 bytes of logs are counted" in capsys.readouterr().out


def test_vacuum(filled: Store, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(["admin", "store", "vacuum", "--store", store_url])
    assert re.fullmatch(r"[0-9.]+ [KM]iB before, [0-9.]+ [KM]iB now\n", capsys.readouterr().out)
    run(["admin", "store", "vacuum", "--store", store_url, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert 0 < said["bytes"] <= said["bytes_before"]


def test_backup_and_restore(filled: Store, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "backup.db"
    run(["admin", "store", "backup", str(file), "--store", store_url])
    assert capsys.readouterr().out.startswith(f"{file}: ")
    assert "exists already" in failing(["admin", "store", "backup", str(file), "--store", store_url], capsys)
    other = f"sqlite:///{tmp_path / 'restored.db'}"
    run(["admin", "store", "restore", str(file), "--store", other])
    assert "agents: 3 rows\n" in capsys.readouterr().out
    assert "already: restore into an empty store" in failing(
        ["admin", "store", "restore", str(file), "--store", other], capsys
    )
    restored = Store.open(other)
    user = restored.callers.find_user("alice")
    restored.close()
    assert user is not None
    assert user == filled.callers.find_user("alice")
    run(["admin", "store", "backup", str(tmp_path / "second.db"), "--store", other, "--json"])
    assert json.loads(capsys.readouterr().out)["bytes"] == (tmp_path / "second.db").stat().st_size
    third = f"sqlite:///{tmp_path / 'third.db'}"
    run(["admin", "store", "restore", str(tmp_path / "second.db"), "--store", third, "--json"])
    assert json.loads(capsys.readouterr().out)["rows"]["users"] == 2


@pytest.mark.stores("sqlite")
@pytest.mark.parametrize("command", [["check"], ["vacuum"], ["backup", "b.db"]])
def test_a_store_that_is_not_there_is_not_made(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file" in failing(["admin", "store", *command, "--store", f"sqlite:///{tmp_path}/x.db"], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.stores("sqlite")
def test_a_store_in_use_can_be_looked_after(
    filled: Store, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server reads in a long transaction and writes in between."""
    with filled.reading():
        filled.callers.update_user(filled.callers.find_user("alice").id, NOW, role=Role.ADMIN)  # type: ignore[union-attr]
        run(["admin", "store", "check", "--store", store_url])
        run(["admin", "store", "backup", str(tmp_path / "backup.db"), "--store", store_url])
    capsys.readouterr()
    with sqlite3.connect(tmp_path / "backup.db") as copy:
        assert copy.execute("SELECT username FROM users WHERE role = 'admin'").fetchall() == [("alice",)]
    copy.close()
