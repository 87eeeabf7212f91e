"""Rows and tables: what follows from a row, how defaults are shown, how one table is embedded in another."""

from dataclasses import dataclass, field

import pytest

from derp.config import parse
from derp.config.setting import Setting, Table, shown


@dataclass(frozen=True)
class Inner:
    size: int = 2 << 20
    wait_seconds: float = 90.0


@dataclass(frozen=True)
class Outer:
    listen: tuple[tuple[str, int], ...] = (("", 443), ("::1", 1))
    on: bool = True
    inner: Inner = field(default_factory=Inner)


ROWS = (
    Setting("size", parse.whole(1, 9), "BYTES", "how much, {default} by default; more than --wait", elsewhere=("big",)),
    Setting("wait", parse.duration(1, 9), "DURATION", "how long, {default} by default", "wait_seconds", alias="w"),
)


def test_what_follows_from_a_row() -> None:
    table = Table("X_", Inner, ROWS)
    size, wait = table
    assert (wait.flags, wait.flag, wait.shown_flag, wait.environment) == (
        ("wait", "w"),
        "--wait",
        "--wait/-w",
        "X_WAIT",
    )
    assert (size.shown_flag, size.path, wait.path) == ("--size", "size", "wait_seconds")
    assert size.help == "how much, 2 MiB by default; more than --wait"
    assert wait.help == "how long, 90s by default"
    assert table.config_variable == "X_CONFIG"


def test_words_for_shells() -> None:
    assert Setting("a", parse.boolean, "", "").words == ()  # the flag alone says it
    assert Setting("a", parse.OneOf("b", "c"), "", "").words == ("b", "c")
    assert Setting("a", parse.string, "", "").words == ()


def test_an_embedded_row_is_an_attribute_of_a_value_inside() -> None:
    rows = [row.embedded("in_", "inner", former=("big_wait",) if row.name == "wait" else ()) for row in ROWS]
    table = Table("X_", Outer, rows)
    size, wait = table
    assert (size.name, size.path, size.elsewhere) == ("in_size", "inner.size", ())
    assert (wait.flags, wait.help) == (("in-wait", "big-wait"), "how long, 90s by default")
    assert table.by_variable["X_BIG_WAIT"] is wait
    built = Setting("c", parse.path, "FILE", "", part_of="key").embedded("in_", "inner")
    assert (built.path, built.part_of) == ("inner.key", "inner.key")


def test_one_name_one_setting() -> None:
    with pytest.raises(AssertionError, match="no name means two settings"):
        Table("X_", Inner, (ROWS[0], Setting("a", parse.string, "A", "", former=("size",))))


def test_a_default_that_is_not_there_is_a_mistake_of_the_table() -> None:
    with pytest.raises(KeyError):
        Table("X_", Inner, (Setting("a", parse.string, "A", "{default}"),))


@pytest.mark.parametrize(
    ("value", "metavar", "text"),
    [
        (60.0, "DURATION", "60s"),
        (120.0, "DURATION", "2m"),
        (7200.0, "DURATION", "2h"),
        (150.0, "DURATION", "150s"),
        (0.5, "DURATION", "500ms"),
        (512, "PACKETS", "512"),
        (2 << 20, "BYTES", "2 MiB"),
        (131_072, "BYTES", "128 KiB"),
        (1000, "BYTES", "1000"),
        (5000.0, "NUMBER", "5000"),
        (False, "", "false"),
        ("info", "LEVEL", "info"),
        ((("", 443), ("::1", 1)), "ADDRESS,...", ":443,[::1]:1"),
    ],
)
def test_defaults_as_one_would_write_them(value: object, metavar: str, text: str) -> None:
    assert shown(value, metavar) == text
