"""How the commands of `derp` speak: plain lines for people, JSON lines for programs (layer L4)."""

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


def open_console(*, stderr: bool = False) -> "Console":
    """Plain lines, never wrapped or marked up; colour only on a terminal."""
    # Imported here: a relay that starts has nothing to show, and clients wait for it.
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)


def print_json(document: dict[str, Any]) -> None:
    """One object, one line."""
    click.echo(json.dumps(document))


def milliseconds(seconds: float | None) -> str:
    """For tables; a dash for None."""
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
