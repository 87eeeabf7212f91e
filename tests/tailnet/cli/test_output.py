"""What goes to stdout, for people and for programs."""

import pytest

from tailnet.cli.output import console, say_json


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"a": "b\nc"})
    assert capsys.readouterr().out == '{"a": "b\\nc"}\n'


def test_people_get_whole_lines_without_colour_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    line = "x " * 200
    console().print(line, style="bold")
    assert capsys.readouterr().out == line + "\n"
