"""What people and programs read."""

import json

import pytest

from derp.cli_output import milliseconds, open_console, print_json


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


def test_lines_are_neither_wrapped_nor_marked_up(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]x[/bold] :smile: " * 40
    open_console(stderr=True).print(line)
    assert capsys.readouterr().err == line + "\n"
