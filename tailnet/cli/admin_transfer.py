"""`tailnet admin import` and `export` (layer L4): users, workspaces and agents from files, and into them.

Two forms come in: a seed (store/seed.py), one JSON object with plain tokens, and JSON lines, which `export` writes
(services/administration/lines.py).
"""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from derp.cli_run import FILE
from derp.text import error_text, fit_to_show
from tailnet.cli.admin_work import administration, local_actor
from tailnet.cli.output import console, say_json
from tailnet.cli.store_options import store_options
from tailnet.errors import SeedError
from tailnet.services.administration.importing import import_lines, is_lines
from tailnet.services.administration.lines import export_lines
from tailnet.store.importing import NOTHING, SeedOutcome, Tally, import_seed
from tailnet.store.seed import MAX_SEED_BYTES, parse_seed

_STDIN: Final = "-"


@click.command("import")
@click.argument("file", type=FILE)
@store_options
def import_file(file: str, store: str | None, config: str | None, as_json: bool) -> None:
    """Import users, agents and grants from FILE (JSON, or what `export` wrote; - is stdin).

    The file is {"users": [{id, username, token}], "agents": [{id, token, name, workspace_id, workspace_name,
    owner_id}]}, with ids and plain tokens chosen by whoever wrote it; the store keeps digests of the tokens.  An owner
    has every right on its workspaces.  An agent may also have an instance_id, the cloud's, and lists of apps, scripts
    and metadata, in the spelling of the API, which its manifest then carries; such a list is the whole list of that
    agent.  A user may have a "role" (user, auditor, admin), and "grants": [{workspace_id, user_id, rights}] lists
    rights (read, ssh, application-connect, update) on workspaces of others; an empty list takes them away.  All of it
    is stored or, if anything is wrong, nothing; what is there already stays, so importing a file twice changes nothing.

    Or it has one object a line, {"kind": "user", "id": ...}, as `export` writes them (docs/admin.md).
    """
    name = "stdin" if file == _STDIN else file
    text = _read(file)
    if is_lines(text):
        with administration(store, config) as work:
            counts = import_lines(work, local_actor(), text, name)
        tallies = {
            f"{kind}s": Tally(each["created"], each["changed"], each["unchanged"]) for kind, each in counts.items()
        }
        _say(tallies, as_json)
        return
    seed = parse_seed(text, name)
    for warning in seed.warnings:
        click.echo(f"tailnet: warning: {fit_to_show(warning)}", err=True)
    with administration(store, config) as work:
        outcome = import_seed(work.store, seed, datetime.now(UTC), name, actor=local_actor())
    _say(_tallies(outcome), as_json)


@click.command("export")
@click.argument("file", type=FILE, default=_STDIN)
@click.option("--store", metavar="URL", help="the store; without it the settings' one, as for `tailnet serve`")
@click.option("--config", type=FILE, metavar="FILE", help="settings as TOML; TAILNET_CONFIG names it too")
def export(file: str, store: str | None, config: str | None) -> None:
    """Write all that administrators set, of one moment, to FILE (stdout by default), one JSON object a line.

    Users, tokens (as digests), workspaces, grants, and agents with what they should run: `import` of it makes them
    again.  What agents reported, and keys, are in `tailnet admin store backup`.  A FILE must not exist yet, and is for
    its owner only.
    """
    with administration(store, config) as work:
        if file == _STDIN:
            for line in export_lines(work.store):
                click.echo(line, nl=False)
            return
        try:
            with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as opened:
                opened.writelines(export_lines(work.store))
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise click.ClickException(f"{file}: cannot be written: {error_text(error)}") from None


def _read(file: str) -> bytes:
    try:
        if file == _STDIN:
            return sys.stdin.buffer.read(MAX_SEED_BYTES + 1)
        with Path(file).open("rb") as opened:
            return opened.read(MAX_SEED_BYTES + 1)
    except OSError as error:
        raise SeedError([f"{file}: cannot be read: {error_text(error)}"]) from None


def _tallies(outcome: SeedOutcome) -> dict[str, Tally]:
    return {name: tally for name, tally in outcome.tallies.items() if name != "grants" or tally != NOTHING}


def _say(tallies: dict[str, Tally], as_json: bool) -> None:
    if as_json:
        counted: dict[str, Any] = {
            name: {"added": tally.added, "changed": tally.changed, "unchanged": tally.unchanged}
            for name, tally in tallies.items()
        }
        say_json(counted)
        return
    for name, tally in tallies.items():
        console().print(f"{name}: {tally.added} added, {tally.changed} changed, {tally.unchanged} unchanged")
