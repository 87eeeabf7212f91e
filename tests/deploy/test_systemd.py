"""The units of deploy/, judged by systemd itself; their commands, judged by the programs."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from derp.cli import cli as derp
from derp.config.relay import RelayConfig
from derp.keys import NodePrivate
from tailnet.agent.agent import LAST_SECONDS, STOP_SECONDS
from tailnet.agent.processes import GRACE_SECONDS
from tailnet.cli.root import cli as tailnet
from tailnet.config import CoordinatorConfig
from tests.support.missing import missing

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SERVERS = [DEPLOY / "derp.service", DEPLOY / "tailnet.service"]
AGENT = DEPLOY / "tailnet-agent.service"
UNITS = [*SERVERS, AGENT, DEPLOY / "derp-probe.service"]
PROGRAMS = {"derp": derp, "tailnet": tailnet}
# In tenths; 9.6 is what a service without any sandbox gets.
MAX_EXPOSURE = 20


@pytest.fixture(params=UNITS, ids=lambda path: path.stem)
def unit(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A unit with a command that exists here: verify looks for it."""
    original: Path = request.param
    if shutil.which("systemd-analyze") is None:
        missing("no systemd-analyze here: .ci/run installs it")
    text, count = re.subn(r"(?m)^(ExecStart|ExecStop)=/opt\S+", r"\1=/bin/true", original.read_text())
    assert count >= 1
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


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_its_commands_are_understood(path: Path) -> None:
    commands = re.findall(r"(?m)^#?ExecStart=/opt/(?:derp|tailnet)/bin/(.+)$", path.read_text())
    assert commands
    for command in commands:
        program, *words = shlex.split(command)
        # --help after them: everything before it is parsed, nothing is run.
        result = CliRunner().invoke(PROGRAMS[program], [*words, "--help"])
        assert result.exit_code == 0, (command, result.output)


@pytest.mark.parametrize("path", SERVERS, ids=lambda path: path.stem)
def test_systemd_waits_for_the_drain(path: Path) -> None:
    found = re.search(r"(?m)^TimeoutStopSec=(\d+)s$", path.read_text())
    assert found is not None
    assert int(found[1]) > RelayConfig(NodePrivate.generate()).drain_seconds


def test_replicas_have_the_time_that_their_peers_need() -> None:
    config = CoordinatorConfig()
    needed = config.replica_notice_seconds + config.replica_drain_seconds + config.drain_seconds
    found = re.search(r"(?m)^TimeoutStopSec=(\d+)s$", (DEPLOY / "tailnet.service").read_text())
    _, _, pod = (DEPLOY / "kubernetes.yaml").read_text().partition("name: tailnet")
    grace, within = re.search(r"GracePeriodSeconds: (\d+)", pod), re.search(r"--within=(\d+)s", pod)
    assert found is not None
    assert grace is not None
    assert within is not None
    assert needed < int(found[1])
    assert needed < int(within[1]) < int(grace[1])


@pytest.mark.parametrize("path", SERVERS, ids=lambda path: path.stem)
def test_it_is_asked_when_it_serves_and_told_how_to_replace_it(path: Path) -> None:
    """What servers say is in test_lives.py."""
    text = path.read_text()
    assert "\nType=notify\n" in text
    assert f"#   systemctl kill --kill-whom=main -s USR2 {path.stem}\n" in text
    assert "\nExecReload=/bin/kill -HUP $MAINPID\n" in text


@pytest.mark.parametrize("path", SERVERS, ids=lambda path: path.stem)
def test_it_may_open_a_file_for_each_connection(path: Path) -> None:
    found = re.search(r"(?m)^LimitNOFILE=(\d+)$", path.read_text())
    assert found is not None
    assert int(found[1]) > RelayConfig(NodePrivate.generate()).max_connections


def test_an_agent_has_the_time_that_its_last_scripts_have() -> None:
    text = AGENT.read_text()
    found = re.search(r"(?m)^TimeoutStopSec=(\d+)s$", text)
    assert found is not None
    assert int(found[1]) > STOP_SECONDS + LAST_SECONDS + GRACE_SECONDS
    # Else its scripts and sessions would be told before it, and their ends be nobody's report.
    assert "\nKillMode=mixed\n" in text
    assert "\nTimeoutStartSec=infinity\n" in text, "a coordinator that is not there yet is no failure"


def test_no_list_of_processes_shows_an_agent_s_token() -> None:
    (command,) = re.findall(r"(?m)^ExecStart=(.+)$", AGENT.read_text())
    assert "--token-file ${CREDENTIALS_DIRECTORY}/token" in command
    assert "--token " not in command
