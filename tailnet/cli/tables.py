"""Tables for people (layer L4): columns under their heads, one row a line, nothing wrapped."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from derp.cli_output import Lines

_GAP: Final = "  "


def print_table(lines: Lines, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """The heads of the columns, and of each row what stands under them."""
    cells = [[cell(row.get(name)) for name in columns] for row in rows]
    heads = [name.replace("_", " ").upper() for name in columns]
    widths = [max(len(line[at]) for line in (heads, *cells)) for at in range(len(columns))]
    for line in (heads, *cells):
        lines.print(_GAP.join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def print_fields(lines: Lines, fields: Mapping[str, Any], *, with_secrets: bool = False) -> None:
    """One thing, a field a line."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        text = cell(value)
        lines.print(f"{name.ljust(width)}{_GAP}{text}", with_secrets=with_secrets and name == "token")


def cell(value: Any) -> str:
    """A value of JSON as people read it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={cell(each)}" for name, each in value.items()) or "-"
    if isinstance(value, list | tuple):
        return " ".join(map(cell, value)) or "-"
    return str(value)
