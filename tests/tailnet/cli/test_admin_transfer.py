"""`tailnet admin export`, and `import` of what it wrote."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tailnet.cli.root import run
from tailnet.store.store import Store
from tests.support.administration import agent_line
from tests.support.seeds import defined_document, fill
from tests.tailnet.cli.test_admin_resources import Admin


@pytest.fixture
def admin(store: Store, store_url: str, capsys: pytest.CaptureFixture[str]) -> Admin:
    fill(store, defined_document())
    return Admin(store_url, capsys)


def test_from_one_store_into_another(admin: Admin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "export.jsonl"
    admin.say("export", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "cannot be written: File exists" in admin.fail("export", str(path))
    other = Admin(f"sqlite:///{tmp_path}/other.db", capsys)
    assert other.json("import", str(path))["agents"] == {"added": 3, "changed": 0, "unchanged": 0}
    assert other.say("export") == path.read_text() == admin.say("export")
    assert other.say("import", str(path)).splitlines()[0] == "users: 0 added, 0 changed, 2 unchanged"


def test_a_line_that_is_wrong(admin: Admin, tmp_path: Path, store: Store) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(agent_line("new") + b'{"kind": "agent"}\n')
    said = admin.fail("import", str(path), status=2)
    assert f"{path}: line 2: some fields are wrong" in said
    assert len(store.administration.page(_agent(), {}, None, 10)) == 3


def _agent() -> Any:
    from tailnet.store.administration.kinds import AGENT

    return AGENT


def test_a_seed_is_a_seed(store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "seed.json"
    path.write_text(json.dumps(defined_document()))
    run(["admin", "import", str(path), "--store", store_url])
    assert "agents: 3 added" in capsys.readouterr().out
