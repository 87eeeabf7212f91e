"""`tailnet admin`: imports of files, what they say, and how they fail."""

import io
import json
import sys
from pathlib import Path
from uuid import UUID

import pytest

from tailnet.cli.root import run
from tailnet.store.store import Store
from tests.support.seeds import AgentSpec, agent_token, fill, seed_document


@pytest.fixture
def seed_file(tmp_path: Path) -> Path:
    path = tmp_path / "seed.json"
    path.write_text(json.dumps(seed_document()))
    return path


def failing(args: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    with pytest.raises(SystemExit) as caught:
        run(args)
    assert caught.value.code == status
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_import(seed_file: Path, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(["admin", "import", str(seed_file), "--store", store_url])
    assert capsys.readouterr().out == (
        "users: 2 added, 0 changed, 0 unchanged\n"
        "workspaces: 2 added, 0 changed, 0 unchanged\n"
        "agents: 3 added, 0 changed, 0 unchanged\n"
    )
    run(["admin", "import", str(seed_file), "--store", store_url, "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "users": {"added": 0, "changed": 0, "unchanged": 2},
        "workspaces": {"added": 0, "changed": 0, "unchanged": 2},
        "agents": {"added": 0, "changed": 0, "unchanged": 3},
    }
    store = Store.open(store_url)
    assert store.get_agent_by_token(UUID(agent_token("web"))) is not None
    store.close()


def test_import_from_stdin(store_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(seed_document()).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    run(["admin", "import", "-", "--store", store_url])
    assert "agents: 3 added" in capsys.readouterr().out


@pytest.mark.stores("sqlite")  # whose files are looked for
def test_the_store_of_the_settings(
    seed_file: Path, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILNET_STORE", store_url)
    run(["admin", "import", str(seed_file)])
    assert (tmp_path / "tailnet.db").exists()
    other = tmp_path / "other.toml"
    other.write_text(f'store = "sqlite:///{tmp_path}/other.db"\n')
    monkeypatch.delenv("TAILNET_STORE")
    run(["admin", "import", str(seed_file), "--config", str(other)])
    assert (tmp_path / "other.db").exists()


def test_every_mistake_is_a_line(seed_file: Path, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = seed_document()
    document["agents"][0]["id"] = "x"
    document["agents"][2]["owner_id"] = ""
    seed_file.write_text(json.dumps(document))
    lines = failing(["admin", "import", str(seed_file), "--store", store_url], capsys).splitlines()
    assert [line.split(": ")[2] for line in lines] == ["agents[0].id", "agents[2].owner_id"]
    assert all(line.startswith(f"tailnet: {seed_file}: ") for line in lines)
    # The file was wrong, so the store was not even made.
    assert not Path(store_url.removeprefix("sqlite:///")).exists()


def test_a_clash_with_the_store(
    store: Store, store_url: str, seed_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    document = seed_document((AgentSpec("new", "lab", "carol"),))
    document["users"][0]["username"] = "alice"
    seed_file.write_text(json.dumps(document))
    assert "users[0].username: belongs to user" in failing(
        ["admin", "import", str(seed_file), "--store", store_url], capsys
    )


def test_files_that_cannot_be_read(tmp_path: Path, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no[bold].json"
    line = failing(["admin", "import", str(missing), "--store", store_url], capsys)
    assert line == f"tailnet: {missing}: cannot be read: No such file or directory\n"
    assert "Is a directory" in failing(["admin", "import", str(tmp_path), "--store", store_url], capsys)


def test_a_store_that_is_none(seed_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for url, words in (
        ("mysql://u:hunter2@h/d", "mysql is not supported"),
        (f"postgresql://u:hunter2@/d?host={tmp_path}", "postgresql+psycopg://<secret>@/d"),
        ("u:hunter2", "not a URL"),
    ):
        said = failing(["admin", "import", str(seed_file), "--store", url], capsys, 1)
        assert words in said
        assert "hunter2" not in said


def test_warnings_go_to_stderr(seed_file: Path, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = seed_document()
    document["users"][0]["token"] = "hunter2"
    seed_file.write_text(json.dumps(document))
    run(["admin", "import", str(seed_file), "--store", store_url])
    captured = capsys.readouterr()
    assert "1 user tokens are shorter" in captured.err
    assert "hunter2" not in captured.err + captured.out


def test_who_calls_it_as_before_is_told(store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = failing(["admin", "user", "alice", "--store", store_url], capsys, 2)
    assert "`tailnet admin user show alice` shows one" in said


def test_an_import_is_in_the_account(seed_file: Path, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second one changes nothing
        run(["admin", "import", str(seed_file), "--store", store_url])
    capsys.readouterr()
    run(["admin", "audit", "--store", store_url, "--json"])
    row = json.loads(capsys.readouterr().out)
    assert (row["action"], row["target"], row["actor_kind"]) == ("import", str(seed_file), "local")
    assert row["after"]["agents"] == {"created": 3, "changed": 0}
