"""`tailnet admin`: changes of the store from outside of a server, which sees them within a second (layer L4)."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from derp.cli_run import FILE
from derp.text import error_text, fit_to_show
from tailnet.cli.admin_secrets import secrets_group
from tailnet.cli.admin_store import store_group
from tailnet.cli.bundle import bundle
from tailnet.cli.output import console, say_json
from tailnet.cli.store_options import store_options, store_url
from tailnet.errors import SeedError
from tailnet.store.importing import NOTHING, SeedOutcome, Tally, import_seed
from tailnet.store.rows import Role
from tailnet.store.seed import MAX_SEED_BYTES, parse_seed
from tailnet.store.store import Store

_STDIN: Final = "-"


@click.group()
def admin() -> None:
    """Change what is in the store."""


admin.add_command(store_group)
admin.add_command(secrets_group)
admin.add_command(bundle)


@admin.command("import")
@click.argument("file", type=FILE)
@store_options
def import_file(file: str, store: str | None, config: str | None, as_json: bool) -> None:
    """Import users, agents and grants from FILE (JSON; - is stdin).

    The file is {"users": [{id, username, token}], "agents": [{id, token, name, workspace_id, workspace_name,
    owner_id}]}, with ids and plain tokens chosen by whoever wrote it; the store keeps digests of the tokens.  An owner
    has every right on its workspaces.  An agent may also have an instance_id, the cloud's, and lists of apps, scripts
    and metadata, in the spelling of the API, which its manifest then carries; such a list is the whole list of that
    agent.  A user may have a "role" (user, auditor, admin), and "grants": [{workspace_id, user_id, rights}] lists
    rights (read, ssh, application-connect, update) on workspaces of others; an empty list takes them away.  All of it
    is stored or, if anything is wrong, nothing; what is there already stays, so importing a file twice changes nothing.
    """
    name = "stdin" if file == _STDIN else file
    seed = parse_seed(_read(file), name)
    for warning in seed.warnings:
        click.echo(f"tailnet: warning: {fit_to_show(warning)}", err=True)
    opened = _open(store, config)
    try:
        outcome = import_seed(opened, seed, datetime.now(UTC), name)
    finally:
        opened.close()
    _say_outcome(outcome, as_json)


@admin.command()
@click.argument("username")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    help="auditor: reads every workspace; admin: has every right on each, sees metrics and debug pages from anywhere",
)
@click.option("--admin/--no-admin", "is_admin", default=None, help="the same as --role admin, and --role user")
@click.option("--active/--inactive", default=None, help="an inactive user is signed out everywhere")
@store_options
def user(
    username: str,
    role: str | None,
    is_admin: bool | None,
    active: bool | None,
    store: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Show a user, or change what it may do."""
    if role is not None and is_admin is not None:
        raise click.UsageError("--role and --admin say the same: give one of them")
    wanted = Role(role) if role is not None else None
    if is_admin is not None:
        wanted = Role.ADMIN if is_admin else Role.USER
    opened = _open(store, config)
    try:
        found = opened.callers.find_user(username)
        if found is None:
            raise click.ClickException(f"there is no user {username!r} in {opened.shown}")
        if wanted is not None or active is not None:
            opened.callers.update_user(found.id, datetime.now(UTC), active=active, role=wanted)
            found = opened.callers.find_user(username) or found
    finally:
        opened.close()
    shown = {"id": str(found.id), "username": found.username, "active": found.active, "role": found.role.value}
    shown["admin"] = found.admin  # for programs of before there were roles
    if as_json:
        say_json(shown)
    else:
        console().print(", ".join(f"{key} {str(value).lower()}" for key, value in shown.items()))


def _open(store: str | None, config: str | None) -> Store:
    return Store.open(store_url(store, config))


def _read(file: str) -> bytes:
    try:
        if file == _STDIN:
            return sys.stdin.buffer.read(MAX_SEED_BYTES + 1)
        with Path(file).open("rb") as opened:
            return opened.read(MAX_SEED_BYTES + 1)
    except OSError as error:
        raise SeedError([f"{file}: cannot be read: {error_text(error)}"]) from None


def _say_outcome(outcome: SeedOutcome, as_json: bool) -> None:
    tallies: dict[str, Tally] = {"users": outcome.users, "workspaces": outcome.workspaces, "agents": outcome.agents}
    if outcome.grants != NOTHING:
        tallies["grants"] = outcome.grants
    if as_json:
        counted: dict[str, Any] = {
            name: {"added": tally.added, "changed": tally.changed, "unchanged": tally.unchanged}
            for name, tally in tallies.items()
        }
        say_json(counted)
        return
    for name, tally in tallies.items():
        console().print(f"{name}: {tally.added} added, {tally.changed} changed, {tally.unchanged} unchanged")
