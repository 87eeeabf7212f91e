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


def test_lines_are_neither_wrapped_nor_marked_up(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]x[/bold] :smile: " * 40
    open_console(stderr=True).print(line)
    assert capsys.readouterr().err == line + "\n"
