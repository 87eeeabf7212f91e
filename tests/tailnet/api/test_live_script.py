"""The script of pages: its address changes with it, and it is in the wheel."""

import hashlib
import tomllib
from pathlib import Path

from tailnet.api import live_script

ROOT = Path(__file__).parents[3]


def test_its_address_names_what_it_is() -> None:
    digest = hashlib.sha256((ROOT / "tailnet/api/live.js").read_bytes()).hexdigest()
    assert f"/live.js?v={digest[:16]}" == live_script.SCRIPT_PATH


def test_it_is_packed() -> None:
    kept = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["tailnet"]
    assert any((ROOT / "tailnet/api/live.js") in (ROOT / "tailnet").glob(each) for each in kept)


def test_it_makes_no_code_of_text() -> None:
    script = live_script.SCRIPT.decode()
    assert not [word for word in ("eval(", "Function(", 'setTimeout("', "document.write") if word in script]
