"""How the command line answers, and how it fails."""

import subprocess
import sys

import pytest

from tailnet.cli import root


def leave(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        root.run(args)
    captured = capsys.readouterr()
    return caught.value.code, captured.out, captured.err


@pytest.mark.parametrize("args", [["--help"], ["serve", "--help"], ["admin", "-h"], ["admin", "import", "--help"]])
def test_help(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    root.run(args)
    assert "Usage: tailnet" in capsys.readouterr().out


def test_every_setting_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["serve", "--help"])
    text = capsys.readouterr().out
    for flag in ("--listen", "--stun-listen", "--store", "--dev", "--derp-map", "--region-scores", "--agent-ping"):
        assert flag in text


@pytest.mark.parametrize("args", [["serv"], ["serve", "--lisen", "x"], ["admin", "import"]])
def test_asked_wrongly(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = leave(args, capsys)
    assert (status, out) == (2, "")
    assert "Error:" in err


def test_a_wrong_setting(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = leave(["serve", "--listen", "nonsense"], capsys)
    assert status == 2
    assert err.startswith("tailnet: flags: --listen: wants an address with a port")


def test_a_reader_that_has_seen_enough() -> None:
    code = "from tailnet.cli import main; import sys; sys.argv = ['tailnet', 'serve', '--help']; main()"
    # head closes the pipe after one line.
    done = subprocess.run(
        ["/bin/sh", "-c", f'{sys.executable} -c "$0" | head -1', code], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("Usage: tailnet serve")
    assert "Traceback" not in done.stderr
