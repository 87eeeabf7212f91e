"""How commands end: one table of statuses, one sentence and no traceback, versions, completion, secrets in files."""

import io
import os
import re
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from errno import EIO, ENOSPC, EPIPE
from pathlib import Path

import click
import pytest

from derp.cli import cli as derp
from derp.cli_run import (
    ASKED_WRONGLY,
    FAILED,
    INTERRUPTED,
    READER_GONE,
    STATUSES,
    OutputError,
    keep_stdout_from_others,
    run,
    statuses,
)
from derp.config.settings import SETTINGS
from derp.errors import ConfigError, ConnectError, KeyFormatError, ListenError, MapFormatError, RemoteProtocolError
from tailnet.cli.root import cli as tailnet
from tailnet.cli.root import run as run_tailnet
from tailnet.errors import SeedError, StoreError

ROOT = Path(__file__).resolve().parents[2]


def failing(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


def leave(command: click.Command) -> object:
    with pytest.raises(SystemExit) as caught:
        run(command, "derp", [])
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), ASKED_WRONGLY),
        (KeyFormatError("x"), ASKED_WRONGLY),
        (MapFormatError("x"), ASKED_WRONGLY),
        (click.UsageError("x"), ASKED_WRONGLY),
        (ListenError("x"), FAILED),
        (ConnectError("x"), FAILED),
        (RemoteProtocolError("x"), FAILED),
        (StoreError("x"), FAILED),
        (OutputError(OSError(ENOSPC, "No space left on device")), FAILED),
        (OutputError(OSError(EIO, "Input/output error")), FAILED),
        (OutputError(BrokenPipeError(EPIPE, "Broken pipe")), READER_GONE),
        (KeyboardInterrupt(), INTERRUPTED),
        (click.exceptions.Abort(), INTERRUPTED),
        (click.exceptions.Exit(3), 3),
        (SystemExit(1), 1),
    ],
)
@pytest.mark.parametrize("in_a_group", [False, True])
def test_each_error_has_its_status(
    error: BaseException, status: int, in_a_group: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if in_a_group and isinstance(error, click.exceptions.Exit | click.exceptions.Abort | SystemExit):
        pytest.skip("commands raise these themselves, never their tasks")
    raised = BaseExceptionGroup("tasks", [BaseExceptionGroup("inner", [error])]) if in_a_group else error
    assert leave(failing(raised)) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") <= (4 if isinstance(error, click.UsageError) else 1)


def test_ctrl_c_beside_what_it_broke_is_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(failing(BaseExceptionGroup("tasks", [ConnectError("x"), KeyboardInterrupt()]))) == INTERRUPTED
    assert capsys.readouterr().err == ""


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ExceptionGroup):
        run(failing(ExceptionGroup("tasks", [ConfigError("x"), ZeroDivisionError()])), "derp", [])
    with pytest.raises(OSError, match="Broken"):
        run(failing(OSError(ENOSPC, "Broken")), "derp", [])


def test_a_seed_that_makes_no_sense_was_asked_wrongly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tailnet.commands, "failing", failing(SeedError(["a: x", "b: y"])))
    with pytest.raises(SystemExit) as caught:
        run_tailnet(["failing"])
    assert caught.value.code == ASKED_WRONGLY
    assert capsys.readouterr().err == "tailnet: a: x\ntailnet: b: y\n"


def test_good_is_no_exit(capsys: pytest.CaptureFixture[str]) -> None:
    run(derp, "derp", ["genkey"])
    assert "PrivateKey" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "name"), [(derp, "derp"), (tailnet, "tailnet")])
def test_help_has_the_table(command: click.Group, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(command, name, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert statuses() in shown


def test_the_readme_has_the_table() -> None:
    table = (ROOT / "README.md").read_text().partition("| status | meaning |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"(?m)^\| (\d+) \| (.+) \|$", table))
    assert rows == {str(status): meaning for status, meaning in STATUSES.items()}


@pytest.mark.parametrize(("command", "name"), [(derp, "derp"), (tailnet, "tailnet")])
def test_version_says_what_a_report_of_a_fault_needs(
    command: click.Group, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(command, name, ["--version"])
    line = capsys.readouterr().out
    assert re.fullmatch(r"tailnet-derp \d+\.\d+\.\d+ \(Python 3\.\d+\.\d+\S*, .+, trio \d+\.\d+\.\d+\)\n", line)
    assert ssl.OPENSSL_VERSION in line


# Secrets in files.


def genkey_into(path: Path) -> subprocess.CompletedProcess[str]:
    with path.open("ab") as file:
        return subprocess.run(
            [sys.executable, "-m", "derp", "genkey"], stdout=file, stderr=subprocess.PIPE, text=True, check=True
        )


def test_a_key_s_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch()
    os.chmod(path, 0o644)
    done = genkey_into(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert done.stderr.startswith("public key ")
    assert done.stderr.count("\n") == 1


def test_a_file_that_cannot_be_closed_to_others_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    with path.open("w") as file:
        os.chmod(path, 0o644)
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # somebody else's
        assert not keep_stdout_from_others()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        os.chmod(path, 0o600)
        assert keep_stdout_from_others()
        monkeypatch.undo()
        monkeypatch.setattr(sys, "stdout", file)

        def refuse(descriptor: int, mode: int) -> None:
            raise PermissionError(1, "Operation not permitted")

        os.chmod(path, 0o644)
        monkeypatch.setattr(os, "fchmod", refuse)
        assert not keep_stdout_from_others()


def test_pipes_and_what_is_no_file_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as pipe:
        for stdout in (pipe, io.StringIO(), None):
            monkeypatch.setattr(sys, "stdout", stdout)
            assert keep_stdout_from_others()


# Completion.


def complete(line: str, name: str = "derp") -> list[str]:
    """What bash is offered after `line`; the last word is the one that is being written."""
    words = line.split(" ")
    environ = os.environ | {
        f"_{name.upper()}_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", name], env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("derp serve --log-format ", ["plain,auto", "plain,text", "plain,json"]),
        ("derp serve --log-level w", ["plain,warning"]),
        ("derp serve --certmode ", ["plain,manual", "plain,letsencrypt", "plain,gcp"]),
        ("derp serve --key-file ", ["file,"]),
        ("derp serve --cert-dir /e", ["dir,/e"]),
        ("derp serve --config x", ["file,x"]),
        ("derp map lint ma", ["file,ma"]),
        ("derp ping --key-file ", ["file,"]),
        ("derp gen", ["plain,genkey"]),
        ("tailnet serve --log-level e", ["plain,error"]),
        ("tailnet serve --derp-map ", ["file,"]),
        ("tailnet serve --relay-rate-config ", ["file,"]),
        ("tailnet admin import s", ["file,s"]),
    ],
)
def test_values_are_completed(line: str, offered: list[str]) -> None:
    assert complete(line, line.partition(" ")[0]) == offered


def test_every_setting_of_a_few_words_is_completed() -> None:
    assert {row.name for row in SETTINGS if row.words} == {
        "cert_mode",
        "tls_records",
        "acme_challenge",
        "log_format",
        "log_level",
    }


# Standard output.


def child(code: str, **environ: str) -> Callable[[int | None], subprocess.CompletedProcess[bytes]]:
    script = (
        f"import click\nfrom derp.cli_run import run\n@click.command()\ndef command():\n    {code}\nrun(command, 'x')"
    )

    def start(stdout: int | None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", script],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=os.environ | environ,
            check=False,
            timeout=60,
        )

    return start


@pytest.mark.parametrize("code", ["click.echo('a')", "print('a')", "print('a' * 100_000)", "print('a'); exit(1)"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_sentence(code: str, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = child(code, PYTHONUNBUFFERED=unbuffered)(full.fileno())
    assert (done.returncode, done.stderr) == (1, b"x: cannot write the output: No space left on device\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_what_an_encoding_does_not_have_is_written_out(encoding: str) -> None:
    # click itself takes ASCII for a mistake and writes UTF-8.
    code = r"print('Z\u00fcrich \u6771\u4eac \ud800'); click.echo('Z\u00fcrich', err=True)"
    done = child(code, PYTHONIOENCODING=encoding)(subprocess.PIPE)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    zurich = b"Z\xfcrich" if encoding == "latin-1" else b"Z\\xfcrich"
    assert done.stdout == zurich + b" \\u6771\\u4eac \\ud800\n"


def test_no_output_at_all_is_fine() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} -m derp genkey >&-"], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
