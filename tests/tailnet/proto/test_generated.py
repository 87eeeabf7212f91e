"""The committed classes are what `make proto` makes of the committed .proto files, byte for byte."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "tailnet" / "proto" / "generated"


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("proto")
    done = subprocess.run(
        ["make", "--silent", "proto", f"OUT={out}", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out / "tailnet" / "proto" / "generated"


@pytest.mark.parametrize("name", ["tailnet_pb2.py", "tailnet_pb2.pyi", "agent_pb2.py", "agent_pb2.pyi"])
def test_the_committed_file_is_fresh(regenerated: Path, name: str) -> None:
    fresh, committed = (regenerated / name).read_text(), (COMMITTED / name).read_text()
    assert fresh == committed, "run `make proto` with the grpcio-tools of requirements.lock and commit the result"


def test_nothing_else_lies_in_the_folder(regenerated: Path) -> None:
    made = {path.name for path in regenerated.iterdir()}
    kept = {path.name for path in COMMITTED.iterdir() if path.is_file()}
    assert kept - made == {"__init__.py"}
