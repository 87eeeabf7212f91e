"""`tailnet admin secrets`: keys that are exchanged while nothing is lost, and users' SSH keys."""

import json
from pathlib import Path

import pytest

from tailnet.cli.root import run
from tailnet.config.key_file import add_key, read_key_file
from tailnet.services.git_keys import GitKeys
from tailnet.store.sealing import Sealer
from tailnet.store.store import Store
from tests.support.seeds import fill, make_id


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    return store


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.keys"
    add_key(path)
    return path


def test_a_key_is_made_and_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    run(["admin", "secrets", "new-key", str(path)])
    assert capsys.readouterr().out.endswith("keys: 1 key, the first one is new\n")
    run(["admin", "secrets", "new-key", str(path), "--json"])
    said = capsys.readouterr().out
    assert json.loads(said) == {"file": str(path), "keys": 2}
    assert path.read_text().splitlines()[0] not in said


async def test_keys_are_exchanged(
    filled: Store, store_url: str, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = read_key_file(key_file)
    pair = await GitKeys(filled, Sealer(old)).read(make_id("alice"))
    add_key(key_file)
    command = ["admin", "secrets", "reseal", "--store", store_url, "--secrets-key-file", str(key_file)]
    run(command)
    assert capsys.readouterr().out == "1 encrypted anew, 0 were encrypted with the first key\n"
    run([*command, "--json"])
    assert json.loads(capsys.readouterr().out) == {"resealed": 0, "current": 1, "unreadable": []}
    new = read_key_file(key_file)[:1]
    assert await GitKeys(filled, Sealer(new)).read(make_id("alice")) == pair


async def test_what_cannot_be_read_is_said_and_stays(
    filled: Store, store_url: str, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await GitKeys(filled, Sealer([bytes(32)])).read(make_id("alice"))
    before = filled.credentials.git_key(make_id("alice"))
    with pytest.raises(SystemExit) as caught:
        run(["admin", "secrets", "reseal", "--store", store_url, "--secrets-key-file", str(key_file)])
    assert caught.value.code == 1
    assert f"! the SSH key of user {make_id('alice')} was encrypted with key" in capsys.readouterr().out
    assert filled.credentials.git_key(make_id("alice")) == before


def test_a_user_s_public_key(
    filled: Store, store_url: str, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "tailnet.toml"
    settings.write_text(f'store = "{store_url}"\nsecrets_key_file = "{key_file}"\n')
    command = ["admin", "secrets", "ssh-key", "alice", "--config", str(settings)]
    with pytest.raises(SystemExit):
        run(command)
    assert "alice has no SSH key yet" in capsys.readouterr().err
    run([*command, "--rotate"])
    made = capsys.readouterr().out
    assert made.startswith("ssh-ed25519 ")
    run(command)
    assert capsys.readouterr().out == made
    run([*command, "--rotate", "--json"])
    again = json.loads(capsys.readouterr().out)
    assert again["username"] == "alice"
    assert again["public_key"] != made.strip()


@pytest.mark.parametrize("command", ["reseal", "ssh-key alice --rotate", "ssh-key nobody"])
def test_what_is_missing_is_said(
    filled: Store, store_url: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["admin", "secrets", *command.split(), "--store", store_url])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert ("no user 'nobody'" if "nobody" in command else "--secrets-key-file") in said
