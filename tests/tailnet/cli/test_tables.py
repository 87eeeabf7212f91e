"""Tables: columns under their heads, and values as people read them."""

import pytest

from tailnet.cli.output import console
from tailnet.cli.tables import cell, print_fields, print_table


def test_columns_stand_under_their_heads(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(console(), ("name", "is_well"), [{"name": "a", "is_well": True}, {"name": "much longer", "x": 1}])
    assert capsys.readouterr().out == "NAME         IS WELL\na            yes\nmuch longer  -\n"
    print_table(console(), ("name",), [])
    assert capsys.readouterr().out == "NAME\n"


def test_a_terminal_obeys_nothing_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(console(), ("name",), [{"name": "\x1b[2Jx [bold]"}])
    print_fields(console(), {"name": "\x1b[2J", "url": "https://u:hunter2@host/"})
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "hunter2" not in out


def test_a_token_is_shown_where_it_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    token = "0123456789abcdef" * 4
    print_fields(console(), {"id": "x", "token": token}, with_secrets=True)
    print_fields(console(), {"id": token, "token": token})
    assert capsys.readouterr().out.count(token) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), ("", "-"), (True, "yes"), (False, "no"), (0, "0"), ([], "-"), (["a", "b"], "a b"), ({}, "-"),
        ({"a": 1, "b": None}, "a=1 b=-"),
    ],
)  # fmt: skip
def test_values(value: object, text: str) -> None:
    assert cell(value) == text
