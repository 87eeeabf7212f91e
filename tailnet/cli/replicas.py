"""`tailnet replicas`: which coordinators serve together, as one of them sees it (layer L4).

What it shows is made by services/replicas_view.py.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from derp.text import span
from tailnet.cli.operator_door import ask_server, open_door, token_option
from tailnet.cli.output import console, say_json
from tailnet.cli.tables import print_table
from tailnet.errors import TransportError

_COLUMNS: Final = ("name", "state", "for", "way", "lag", "version", "peers", "sessions", "queued_bytes", "leaving")
_STYLES: Final = {"warning": "yellow", "error": "red"}
_MAX_BYTES: Final = 1024 * 1024  # 64 replicas take 32 KiB


@click.command()
@click.argument("url", required=False)
@token_option
@click.option("--json", "as_json", is_flag=True, help="the whole of it as one JSON object")
def replicas(url: str | None, token_file: str | None, as_json: bool) -> None:
    """Say which coordinators serve together with the one at URL; without URL with that of this machine's settings.

    Their state and for how long, the way to each, how long what it says is on its way, its version and peers, the
    sessions with it since it is known, and what waits for it.  Below that what is wrong, as `tailnet health` has it:
    docs/health.md has every code.

    Exit status 0: all are there; 1: one is missing, or something is wrong; 2: the server cannot be asked.
    """
    seen = ask_server(_ask, url, token_file, as_json, lambda why: {"error": why})
    if as_json:
        say_json(seen)
    else:
        _show(seen)
    sys.exit(1 if seen["missing"] or seen["findings"] else 0)


def _show(seen: Mapping[str, Any]) -> None:
    lines, bus = console(), seen["bus"]
    peers = f"{seen['peers']} peers here, {seen['remote_peers']} known elsewhere, {seen['absent_peers']} absent"
    lines.print(f"{seen['name']} ({seen['replica'][:6]}), version {seen['version']}, bus {bus['kind']}: {peers}")
    if seen["replicas"]:
        print_table(lines, _COLUMNS, [_row(each) for each in seen["replicas"]])
    else:
        lines.print("no other replica is known")
    for finding in seen["findings"]:
        lines.print(f"{finding['severity']}: {finding['code']}: {finding['what']}", style=_STYLES[finding["severity"]])
        lines.print(f"    {finding['advice']}")
    if not seen["findings"]:  # it may be about to come
        for what in seen["missing"]:
            lines.print(f"! {what}", style="yellow")


def _row(other: Mapping[str, Any]) -> Mapping[str, Any]:
    lag = other["lag_seconds"]
    return {
        **other,
        "for": span(other["state_seconds"]),
        "lag": "" if lag is None else f"{lag * 1000:.1f} ms",
    }


async def _ask(url: str, token: str) -> Mapping[str, Any]:
    async with open_door(url, token) as door:
        answer = await door.ask("/debug/replicas", _MAX_BYTES)
    if answer.status == 404:
        raise TransportError(f"{url} serves alone: it has no --bus")
    try:
        found = json.loads(answer.body)
        is_it = isinstance(found["replicas"], list) and isinstance(found["missing"], list)
    except (ValueError, TypeError, KeyError):
        is_it = False
    if not is_it:
        why = "only operators are told" if answer.status in (401, 403) else "is it a coordinator of this version?"
        raise TransportError(f"{url} answers {answer.status}: {why}")
    seen: Mapping[str, Any] = found
    return seen
