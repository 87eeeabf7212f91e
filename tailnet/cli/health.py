"""`tailnet health`: what is wrong with a running server, for people and for monitoring (layer L4).

What it shows is made by api/health.py.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from tailnet.cli.operator_door import ask_server, open_door, token_option
from tailnet.cli.output import console, say_json
from tailnet.errors import TransportError
from tailnet.health.text import health_lines

# As monitors of the Nagios family understand them.
EXIT_STATUS: Final = {"ok": 0, "warning": 1, "unknown": 1, "error": 2}
_STYLES: Final = {"warning": "yellow", "error": "red"}
# A report with each of a thousand agents flapping.
_MAX_BYTES: Final = 4 * 1024 * 1024


@click.command()
@click.argument("url", required=False)
@token_option
@click.option("--json", "as_json", is_flag=True, help="the report as one JSON object")
def health(url: str | None, token_file: str | None, as_json: bool) -> None:
    """Say what is wrong with the server at URL, and what to do; without URL with the one of this machine's settings.

    All of it is for operators: over loopback, from --debug-allow, or with an administrator's token; others get the
    state alone.  docs/health.md has every code.

    Exit status 0: ok; 1: warnings, or not measured yet; 2: errors, or the server cannot be asked.
    """
    page = ask_server(_ask, url, token_file, as_json, lambda why: {"state": "error", "reason": why})
    if as_json:
        say_json(page)
    else:
        for line in health_lines(page):
            console().print(line, style=_STYLES.get(line.partition(":")[0], ""))
    sys.exit(EXIT_STATUS[page["state"]])


async def _ask(url: str, token: str) -> Mapping[str, Any]:
    async with open_door(url, token) as door:
        answer = await door.ask("/health", _MAX_BYTES)
    try:
        page = json.loads(answer.body)
        is_report = page["state"] in EXIT_STATUS
    except (ValueError, TypeError, KeyError):
        is_report = False
    if not is_report:
        said = f"{url} answers {answer.status}"
        if answer.status in (401, 403):
            raise TransportError(f"{said}: the token is none of an administrator of it")
        raise TransportError(f"{said} and no health report: is it a coordinator of this version?")
    found: Mapping[str, Any] = page
    return found
