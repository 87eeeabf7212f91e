"""`tailnet admin user|workspace|agent|app|script ...`: the commands that all kinds have."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tailnet.cli.root import run
from tailnet.store.store import Store
from tests.support.administration import everything
from tests.support.seeds import defined_document, fill, make_id, peer_id


class Admin:
    """Runs commands on a store, and reads what they say."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = url
        self._capsys = capsys

    def say(self, *words: str) -> str:
        self._capsys.readouterr()
        run(["admin", *words, "--store", self._url])
        return self._capsys.readouterr().out

    def json(self, *words: str) -> Any:
        return json.loads(self.say(*words, "--json"))

    def lines(self, *words: str) -> list[Any]:
        return [json.loads(line) for line in self.say(*words, "--json").splitlines()]

    def fail(self, *words: str, status: int = 1) -> str:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(["admin", *words, "--store", self._url])
        assert caught.value.code == status
        captured = self._capsys.readouterr()
        assert captured.out == ""
        return captured.err


@pytest.fixture
def admin(store: Store, store_url: str, capsys: pytest.CaptureFixture[str]) -> Admin:
    fill(store, defined_document())
    return Admin(store_url, capsys)


def test_a_user_s_life(admin: Admin, store: Store) -> None:
    made = admin.json("user", "create", "--username", "carol", "--role", "auditor")
    assert (made["username"], made["role"], made["active"]) == ("carol", "auditor", True)
    assert admin.json("user", "show", "carol") == made
    assert admin.json("user", "update", "carol", "--no-active")["active"] is False
    assert admin.json("user", "update", made["id"], "--username", "caroline")["role"] == "auditor"
    table = admin.say("user", "list", "--match", "CARO").splitlines()
    assert table[0].split() == ["USERNAME", "ID", "ACTIVE", "ROLE", "CREATED", "AT"]
    assert table[1].split()[:4] == ["caroline", made["id"], "no", "auditor"]
    assert [each["username"] for each in admin.lines("user", "list", "--role", "auditor")] == ["caroline"]
    assert admin.json("user", "delete", "caroline", "--yes") == {"deleted": made["id"]}
    assert "there is no user 'caroline'" in admin.fail("user", "show", "caroline")
    assert [each["action"] for each in store.audit.page({"kind": "user"}, None, 9)] == [
        "delete",
        "update",
        "update",
        "create",
    ]


def test_things_of_others_by_their_names(admin: Admin) -> None:
    workspace = admin.json("workspace", "create", "--owner", "bob", "--name", "lab", "--id", str(make_id("lab")))
    assert (workspace["owner_id"], workspace["id"]) == (str(make_id("bob")), str(make_id("lab")))
    agent = admin.json("agent", "create", "--workspace", "bob/lab", "--name", "new", "--environment", "A=1=2")
    assert (agent["workspace_id"], agent["environment"], len(agent["token"])) == (workspace["id"], {"A": "1=2"}, 36)
    assert "token" not in admin.json("agent", "show", "new")
    sub = admin.json("agent", "create", "--workspace", "lab", "--name", "sub", "--parent", "new")
    assert sub["parent_id"] == agent["id"]
    app = admin.json("app", "create", "--agent", "new", "--slug", "x", "--hidden")
    assert (app["agent_id"], app["hidden"]) == (agent["id"], True)
    assert [each["id"] for each in admin.lines("app", "list", "--agent", "new")] == [app["id"]]
    assert [each["name"] for each in admin.lines("agent", "list", "--owner", "bob", "--workspace", "lab")] != []
    assert admin.json("agent", "delete", "new", "--yes") == {"deleted": agent["id"], "sub_agents": 1, "apps": 1}


def test_fields_of_a_file(admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    token = str(make_id("a token"))
    body = {"name": "filed", "workspace_id": str(make_id("dev")), "token": token, "apps": [], "directory": "/a"}
    path = tmp_path / "agent.json"
    path.write_text(json.dumps(body))
    made = admin.json("agent", "create", "--file", str(path), "--directory", "/b")
    assert (made["name"], made["directory"], "token" in made) == ("filed", "/b", False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"apps": [], "motd_path": "/m"}')))
    assert admin.json("agent", "update", "main", "--file", "-")["motd_path"] == "/m"
    assert store.apps.definitions(peer_id("main")).apps == []
    path.write_text("{")
    assert "is no JSON" in admin.fail("user", "create", "--file", str(path), status=2)
    path.write_text("[]")
    assert "wants one JSON object" in admin.fail("user", "create", "--file", str(path), status=2)
    assert "cannot be read" in admin.fail("user", "create", "--file", str(tmp_path / "none"))


def test_mistakes_are_told_and_change_nothing(admin: Admin, store: Store) -> None:
    before = everything(store)
    assert "username: is that of user" in admin.fail("user", "create", "--username", "bob")
    assert "username: is missing" in admin.fail("user", "create")
    assert "exists already" in admin.fail("user", "create", "--username", "x", "--id", str(make_id("bob")))
    assert "wants a UUID" in admin.fail("user", "create", "--username", "x", "--id", "x")
    assert "there is no user 'nobody'" in admin.fail("workspace", "create", "--owner", "nobody", "--name", "x")
    assert "Invalid value" in admin.fail("user", "update", "alice", "--role", "owner", status=2)
    assert "NAME=VALUE" in admin.fail("agent", "update", "main", "--environment", "A", status=2)
    assert "add --yes" in admin.fail("user", "delete", "alice", status=2)
    assert "active: wants true or false" in admin.fail("user", "list", "--active", "maybe")
    assert everything(store) == before


def test_a_table_has_a_bound_and_programs_none(admin: Admin) -> None:
    assert len(admin.say("agent", "list", "--limit", "2").splitlines()) == 3
    assert len(admin.lines("agent", "list", "--limit", "0")) == 3
