"""How the commands of `derp` speak: plain lines for people, JSON lines for programs (layer L4)."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from derp.text import fit_to_show, printable

if TYPE_CHECKING:
    from rich.console import Console

    from derp.map import DERPMap


MAX_NAME: Final = 64  # of a name in a table: more than any sensible one has, and no table is wider


class Lines:
    """Plain lines for people, never wrapped or marked up; colour only on a terminal.

    Whatever stands in a line, a terminal obeys none of it, and a secret in it is masked: names come from maps, reasons
    from servers, URLs from settings.
    """

    def __init__(self, console: "Console") -> None:
        self._console = console

    def print(self, line: str, *, style: str | None = None, with_secrets: bool = False) -> None:
        """One line, whatever `line` holds.  `with_secrets`: it is there to tell one, such as a demo's token."""
        self._console.print(printable(line, len(line)) if with_secrets else fit_to_show(line), style=style)


def open_console(*, stderr: bool = False) -> Lines:
    """Standard output, or standard error."""
    # Imported here: a relay that starts has nothing to show, and clients wait for it.
    from rich.console import Console

    return Lines(Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False))


def print_mistakes(derp_map: "DERPMap") -> None:
    """What is wrong with a map that is used all the same, on stderr."""
    from derp.netcheck.lint import errors, lint

    for mistake in errors(lint(derp_map.to_json())):
        open_console(stderr=True).print(f"mistake in the map: {mistake}", style="yellow")


def program(name: str) -> list[str]:
    """How to call one of our commands from a shell like the one that called us."""
    if shutil.which(name) is not None:
        return [name]
    # A virtual environment that is not active: its commands lie beside its interpreter.
    beside = Path(sys.executable).with_name(name)
    return [str(beside)] if beside.exists() else [sys.executable, "-m", name]


def say_what_to_try(lines: Lines, commands: Iterable[tuple[Sequence[str], str]]) -> None:
    """Command lines that a shell takes as they stand, and what each is good for."""
    lines.print("try:", style="bold")
    for words, meaning in commands:
        lines.print(f"  {' '.join(map(_word, words))}  # {meaning}", with_secrets=True)


def _word(word: str) -> str:
    # NAME=value before a command is an assignment only as long as its name is not in quotes.
    name, equals, value = word.partition("=")
    return f"{name}={shlex.quote(value)}" if equals and name.isidentifier() else shlex.quote(word)


def print_json(document: dict[str, Any]) -> None:
    """One object, one line."""
    click.echo(json.dumps(document))


def milliseconds(seconds: float | None) -> str:
    """For tables; a dash for None."""
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
