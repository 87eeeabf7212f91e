"""What commands say on stdout (layer L4): to people or, with --json, to programs."""

import json
from collections.abc import Mapping

import click

from derp.cli_output import Lines, open_console


def say_json(event: Mapping[str, object]) -> None:
    """One JSON object on a line of stdout, at once."""
    click.echo(json.dumps(event))


def console() -> Lines:
    """Stdout for people."""
    return open_console()
