"""deploy/derp.service and deploy/tailnet.service, judged by systemd itself."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from derp.config.relay import RelayConfig
from derp.keys import NodePrivate

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = [DEPLOY / "derp.service", DEPLOY / "tailnet.service"]
# In tenths; 9.6 is what a service without any sandbox gets.
MAX_EXPOSURE = 20


@pytest.fixture(params=UNITS, ids=lambda path: path.stem)
def unit(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A unit with a command that exists here: verify looks for it."""
    original: Path = request.param
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: .ci/run installs it")
    text, count = re.subn(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", original.read_text())
    assert count == 1
    copy = tmp_path / original.name
    copy.write_text(text)
    return copy


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_systemd_understands_every_line(unit: Path) -> None:
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stderr) == (0, "")
    # It says so when a line is misspelt, and still ends with 0: the text is what counts.
    unit.write_text(unit.read_text().replace("ProtectClock", "ProtectClocks"))
    assert "ProtectClocks" in analyze("verify", "--man=no", str(unit)).stderr


def test_the_sandbox_is_tight(unit: Path) -> None:
    limits = ["--offline=true", f"--threshold={MAX_EXPOSURE}"]
    done = analyze("security", *limits, str(unit))
    assert done.returncode == 0, done.stdout[-300:]
    unit.write_text(re.sub(r"(?m)^(Protect|Restrict|Private|SystemCall).*\n", "", unit.read_text()))
    assert analyze("security", *limits, str(unit)).returncode != 0


def test_systemd_waits_for_the_drain(unit: Path) -> None:
    found = re.search(r"(?m)^TimeoutStopSec=(\d+)s$", unit.read_text())
    assert found is not None
    assert int(found[1]) > RelayConfig(NodePrivate.generate()).drain_seconds


def test_it_may_open_a_file_for_each_connection(unit: Path) -> None:
    found = re.search(r"(?m)^LimitNOFILE=(\d+)$", unit.read_text())
    assert found is not None
    assert int(found[1]) > RelayConfig(NodePrivate.generate()).max_connections
