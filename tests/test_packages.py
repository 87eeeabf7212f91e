"""What a program gets from `import derp` and `import tailnet`, and what the distributions hold."""

import ast
import importlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def stub_names(package: str) -> dict[str, tuple[str, str]]:
    """Name -> (file, its name there), as __init__.pyi says."""
    tree = ast.parse((ROOT / package / "__init__.pyi").read_text())
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("package", ["derp", "tailnet"])
def test_names_are_what_the_stub_says(package: str) -> None:
    module = importlib.import_module(package)
    assert stub_names(package) == module._PLACES
    for name, (file, attribute) in module._PLACES.items():
        assert getattr(module, name) is getattr(importlib.import_module(file), attribute)
        assert name in dir(module)
    assert module.__version__ == PYPROJECT["project"]["version"]
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


@pytest.mark.parametrize("package", ["derp", "tailnet"])
def test_a_bare_import_loads_nothing_else(package: str) -> None:
    code = f"import sys, {package}; print([name for name in sys.modules if name.startswith('{package}.')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout == "[]\n"


def test_metadata() -> None:
    said = metadata("tailnet-derp")
    assert said["License-Expression"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert said["Author"]
    assert {line.split(",")[0] for line in said.get_all("Project-URL", [])} == {"Repository", "Issues", "Changelog"}


def test_distributions(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    # What git tracks, so that nothing that lies about here gets in.
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    for what in ("build_sdist", "build_wheel"):
        script = f"import sys; from setuptools import build_meta; build_meta.{what}(sys.argv[1])"
        built = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], cwd=clone, capture_output=True, text=True, check=False
        )
        assert built.returncode == 0, built.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    wanted = {"CHANGELOG.md", "LICENSE", "SECURITY.md", "deploy/derp.service", "deploy/alerts.yml", "examples/meet.py"}
    assert wanted - names == set()
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = set(wheel.namelist())
    assert {"derp/__init__.pyi", "derp/py.typed", "tailnet/__init__.pyi", "tailnet/cli/demo.py"} - packed == set()
    assert [name for name in packed if name.startswith(("tests", "bench"))] == []
