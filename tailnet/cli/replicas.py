"""`tailnet replicas`: which coordinators serve together, as one of them sees it (layer L4).

What it shows is made by services/replicas_view.py.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from tailnet.cli.operator_door import ask_server, open_door, token_option
from tailnet.cli.output import console, say_json
from tailnet.cli.tables import print_table
from tailnet.errors import TransportError

_COLUMNS: Final = ("name", "state", "way", "version", "peers", "sessions", "queued_bytes", "leaving")
_MAX_BYTES: Final = 1024 * 1024  # 64 replicas take 32 KiB


@click.command()
@click.argument("url", required=False)
@token_option
@click.option("--json", "as_json", is_flag=True, help="the whole of it as one JSON object")
def replicas(url: str | None, token_file: str | None, as_json: bool) -> None:
    """Say which coordinators serve together with the one at URL; without URL with that of this machine's settings.

    Their state, the way to each, its version, its peers and what waits for it.

    Exit status 0: all are there; 1: one is missing, or the bus is away; 2: the server cannot be asked.
    """
    seen = ask_server(_ask, url, token_file, as_json, lambda why: {"error": why})
    if as_json:
        say_json(seen)
    else:
        _show(seen)
    sys.exit(1 if seen["missing"] or seen["bus"]["trouble"] else 0)


def _show(seen: Mapping[str, Any]) -> None:
    lines, bus = console(), seen["bus"]
    peers = f"{seen['peers']} peers here, {seen['remote_peers']} known elsewhere, {seen['absent_peers']} absent"
    lines.print(f"{seen['name']} ({seen['replica'][:6]}), bus {bus['kind']}: {peers}")
    if seen["replicas"]:
        print_table(lines, _COLUMNS, seen["replicas"])
    else:
        lines.print("no other replica is known")
    for what in (*seen["missing"], *([bus["trouble"]] if bus["trouble"] else [])):
        lines.print(f"! {what}", style="yellow")


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
