"""`tailnet config-ssh`: its own lines and no others, as OpenSSH itself reads them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from tailnet.cli.config_ssh import BEGIN, END, replaced, section
from tailnet.cli.root import cli
from tailnet.errors import ConfigError

OTHERS = "Host work\n    User me\n"


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(OTHERS)
    path.chmod(0o640)
    for _ in range(2):
        said = CliRunner().invoke(cli, ["config-ssh", "--file", str(path)])
        assert said.exit_code == 0, said.output
        assert path.read_text() == OTHERS + "\n" + "".join(f"{line}\n" for line in section())
    assert path.stat().st_mode & 0o777 == 0o640
    assert CliRunner().invoke(cli, ["config-ssh", "--remove", "--file", str(path)]).exit_code == 0
    assert path.read_text() == OTHERS + "\n"
    assert [each.name for each in tmp_path.iterdir()] == ["config"]


def test_a_first_config(tmp_path: Path) -> None:
    path = tmp_path / "ssh" / "config"
    CliRunner().invoke(cli, ["config-ssh", "--file", str(path)])
    assert path.read_text().splitlines() == section()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}"])
def test_half_of_it(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not stand there once each"):
        replaced(text, section())
    (tmp_path / "config").write_text(text)
    said = CliRunner().invoke(cli, ["config-ssh", "--file", str(tmp_path / "config")])
    assert isinstance(said.exception, ConfigError)
    assert (tmp_path / "config").read_text() == text


def test_nothing_to_remove() -> None:
    assert replaced(OTHERS, []) == OTHERS


@pytest.mark.skipif(shutil.which("ssh") is None, reason="wants OpenSSH's client")
def test_openssh_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "config"
    CliRunner().invoke(cli, ["config-ssh", "--file", str(path)])
    for host, is_ours in (("tailnet.dev.main", True), ("work", False)):
        read = subprocess.run(["ssh", "-G", "-F", str(path), host], capture_output=True, text=True, check=True).stdout
        assert ("ssh --stdio --host-prefix tailnet. -- %n\n" in read) == is_ours
