"""What commands say on stdout (layer L4): to people or, with --json, to programs."""

import json
from collections.abc import Mapping

import click
from rich.console import Console


def say_json(event: Mapping[str, object]) -> None:
    """One JSON object on a line of stdout, at once."""
    click.echo(json.dumps(event))


def console() -> Console:
    """Stdout for people: colour only on a terminal, lines never folded."""
    return Console(soft_wrap=True, highlight=False)
