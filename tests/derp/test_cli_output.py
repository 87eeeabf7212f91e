"""What people and programs read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from derp.cli_output import milliseconds, open_console, print_json, program, say_what_to_try


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (0.0, "0.0 ms"), (0.01234, "12.3 ms"), (2.5, "2500.0 ms")])
def test_times_in_tables(seconds: float | None, text: str) -> None:
    assert milliseconds(seconds) == text


def test_an_object_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "two\nlines", "number": 1})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"text": "two\nlines", "number": 1}


def test_a_line_is_one_line_without_secrets_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    open_console().print("region \x1b[2J\n(x) at https://u:p@h/ ü")
    open_console().print("Coder-Session-Token: t\x07", with_secrets=True)
    expected = ["region \\x1b[2J\\n(x) at https://<secret>@h/ ü", "Coder-Session-Token: t\\x07"]
    assert capsys.readouterr().out.splitlines() == expected


def test_what_to_try_is_a_shell_s_line_and_a_comment(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["A_B=it's; $x", "printf", "<%s>", "https://[::1]:1/?a=b&c", "A-B=c d", "--pin", "#", "*"]
    say_what_to_try(open_console(), [(words, "what it does; (really) `no` $command")])
    head, line = capsys.readouterr().out.splitlines()
    assert head == "try:"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"<{word}>" for word in words[3:])
    assert done.stderr == ""


def test_whoever_has_not_our_folder_in_his_path_is_told_a_way_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python, script = tmp_path / "python", tmp_path / "derp"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "")
    assert program("derp") == [str(python), "-m", "derp"]
    script.touch(mode=0o755)
    assert program("derp") == [str(script)]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program("derp") == ["derp"]


def test_lines_are_neither_wrapped_nor_marked_up(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]x[/bold] :smile: " * 40
    open_console(stderr=True).print(line)
    assert capsys.readouterr().err == line + "\n"
