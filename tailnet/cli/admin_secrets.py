"""`tailnet admin secrets`: the keys that encrypt what the store keeps for users, and users' SSH keys (layer L4).

Next hop: config/key_file.py, store/credentials.py, services/git_keys.py.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from derp.cli_run import FILE
from tailnet.cli.output import console, say_json
from tailnet.cli.store_options import store_options, store_url
from tailnet.config import load_config
from tailnet.config.key_file import add_key, read_key_file
from tailnet.errors import SecretsError
from tailnet.services.git_keys import rotate_git_key
from tailnet.store.sealing import Sealer
from tailnet.store.store import Store

# Some of it could not be read, as a command that failed.
_UNREADABLE_STATUS: Final = 1
_KEY_FILE: Final = click.option(
    "--secrets-key-file", "key_file", type=FILE, metavar="FILE", help="the keys; without it the settings' ones"
)


@click.group("secrets")
def secrets_group() -> None:
    """Keys that encrypt users' tokens and private keys in the store."""


@secrets_group.command("new-key")
@click.argument("file", type=FILE)
@click.option("--last", is_flag=True, help="at the end, where it only decrypts, until every server has it")
@click.option("--json", "as_json", is_flag=True, help="say the outcome as one JSON object")
def new_key(file: str, last: bool, as_json: bool) -> None:
    """Put a new key on top of FILE, which is made if it is missing.

    The key on top encrypts, all of them decrypt.  Servers take it on SIGHUP; when all have, `reseal` encrypts with it
    what is there already, and the old lines may go.  Keep a copy of FILE apart from copies of the store: without it
    what is encrypted is lost.
    """
    count = add_key(Path(file), last=last)
    if as_json:
        say_json({"file": file, "keys": count})
    else:
        console().print(f"{file}: {count} key{'s' if count > 1 else ''}, the {'last' if last else 'first'} one is new")


@secrets_group.command()
@_KEY_FILE
@store_options
def reseal(key_file: str | None, store: str | None, config: str | None, as_json: bool) -> None:
    """Encrypt with the first key what is encrypted with another one.

    Servers may go on meanwhile, if they have the key already.  Exit status 1 if something cannot be read: it stays as
    it is.
    """
    sealer = _sealer(key_file, config)
    opened = Store.open(store_url(store, config))
    try:
        done = opened.credentials.reseal(sealer)
    finally:
        opened.close()
    if as_json:
        say_json({"resealed": done.resealed, "current": done.current, "unreadable": list(done.unreadable)})
    else:
        console().print(f"{done.resealed} encrypted anew, {done.current} were encrypted with the first key")
        for reason in done.unreadable:
            console().print(f"! {reason}")
    if done.unreadable:
        sys.exit(_UNREADABLE_STATUS)


@secrets_group.command("ssh-key")
@click.argument("username")
@click.option("--rotate", is_flag=True, help="make a new pair; the old one is forgotten")
@_KEY_FILE
@store_options
def ssh_key(
    username: str, rotate: bool, key_file: str | None, store: str | None, config: str | None, as_json: bool
) -> None:
    """Show a user's public SSH key, which he enters at his git server.

    His agents ask for the pair; it is made when one asks first, or here with --rotate.
    """
    opened = Store.open(store_url(store, config))
    try:
        user = opened.callers.find_user(username)
        if user is None:
            raise click.ClickException(f"there is no user {username!r} in {opened.shown}")
        if rotate:
            public_key = rotate_git_key(opened, _sealer(key_file, config), user.id, datetime.now(UTC))
        else:
            row = opened.credentials.git_key(user.id)
            if row is None:
                raise click.ClickException(f"{username} has no SSH key yet: no agent asked for it; --rotate makes one")
            public_key = row.public_key
    finally:
        opened.close()
    if as_json:
        say_json({"username": username, "public_key": public_key.strip()})
    else:
        click.echo(public_key.strip())


def _sealer(key_file: str | None, config: str | None) -> Sealer:
    keys = read_key_file(Path(key_file)) if key_file else load_config(config_file=config).secrets_keys
    if not keys:
        raise SecretsError("there are no keys: name their file with --secrets-key-file, or in the settings")
    return Sealer(keys)
