"""`tailnet login` and `logout`, and with which URL and token a user's commands come to a coordinator (layer L4).

By options, by the environment (CODER_URL, CODER_SESSION_TOKEN), or as stored by `login` in a file of the user's own
under XDG_CONFIG_HOME.  A stored token goes to the server that it was stored for and to no other.
Callers: agents.py and the commands that reach agents.
"""

import json
import os
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
import trio

from derp.config.load import is_local
from derp.text import error_text, fit_to_show
from tailnet.cli.output import console, say_json
from tailnet.client.agents import Login
from tailnet.errors import ConfigError

_MAX_FILE_BYTES: Final = 16 * 1024
_MAX_TOKEN_CHARACTERS: Final = 4_096
_ME: Final = "/api/v2/users/me"


def login_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --url, --token and --insecure-http, to be given to `read_login`."""
    for option in (
        click.option("--insecure-http", is_flag=True, help="send the token to another machine without TLS"),
        click.option("--token", envvar="CODER_SESSION_TOKEN", show_envvar=True, help="a session token of a user"),
        click.option(
            "--url", envvar="CODER_URL", show_envvar=True, help="the coordinator; else that of `tailnet login`"
        ),
    ):
        command = option(command)
    return command


def read_login(url: str | None, token: str | None, insecure_http: bool) -> Login:
    """Who we are, from options and environment, and what is stored for the rest.  Raises ConfigError."""
    if url and token:
        return Login(checked_url(url, insecure_http), checked_token(token))
    stored = read_stored()
    if url:
        url = checked_url(url, insecure_http)
    elif stored is not None:
        url = stored.url  # `login` has checked it
    if not url:
        raise ConfigError("which coordinator? `tailnet login URL` stores it; or give --url, or set CODER_URL")
    if token:
        return Login(url, checked_token(token))
    if stored is None or stored.url != url:
        shown = fit_to_show(url)
        raise ConfigError(f"no token for {shown}: `tailnet login {shown}` stores one; or set CODER_SESSION_TOKEN")
    return stored


def checked_url(url: str, insecure_http: bool) -> str:
    """The URL of a coordinator, without a slash at its end.  Raises ConfigError for one that is none, or that would
    show the token to others."""
    shown = fit_to_show(url)
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ConfigError(f"{shown}: must look like https://tailnet.example.org") from None
    if not is_sound or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"{shown}: must look like https://tailnet.example.org")
    if parts.scheme == "http" and not insecure_http and not is_local(str(parts.hostname)):
        raise ConfigError(f"{shown}: the token would travel in the clear: use https, or say --insecure-http")
    return url.rstrip("/")


def checked_token(token: str) -> str:
    """A token that fits into a header.  Raises ConfigError."""
    token = token.strip()
    if not token or len(token) > _MAX_TOKEN_CHARACTERS or not (token.isascii() and token.isprintable()):
        raise ConfigError("the token is empty, or is none: it is one line of letters and digits")
    return token


# --- what is stored ---


def stored_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The file of `tailnet login`."""
    base = environ.get("XDG_CONFIG_HOME", "")
    # A relative one is invalid, says the specification of these folders.
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    return folder / "tailnet" / "login.json"


def read_stored() -> Login | None:
    """What `tailnet login` stored; None if nothing.  Raises ConfigError for a file that is broken or open to others."""
    path = stored_path()
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ConfigError(f"{path}: others can read the token in it: `chmod 600 {path}`, and use a new token")
            document = json.loads(file.read(_MAX_FILE_BYTES))
        return Login(str(document["url"]), checked_token(str(document["token"])))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error_text(error)}") from None
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"{path}: is no login: `tailnet login URL` writes a new one") from None


def store(login: Login) -> Path:
    """Keep a login for later commands.  Raises ConfigError."""
    path = stored_path()
    try:
        replace_file(path, json.dumps({"url": login.url, "token": login.token}), 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error_text(error)}") from None
    return path


def replace_file(path: Path, text: str, mode: int) -> None:
    """Write a file of the user's whole or not at all; its folder is made if it is missing.  Raises OSError."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


# --- the commands ---


@click.command()
@click.argument("url", envvar="CODER_URL")
@click.option("--token", envvar="CODER_SESSION_TOKEN", show_envvar=True, help="a session token; else it is asked for")
@click.option("--insecure-http", is_flag=True, help="send the token to another machine without TLS")
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
def login(url: str, token: str | None, insecure_http: bool, as_json: bool) -> None:
    """Store URL and a user's session token for later commands, once the coordinator has taken them.

    Without --token it is asked for, without echo, or read from standard input if that is no terminal.
    """
    url = checked_url(url, insecure_http)
    new = Login(url, checked_token(token or _read_token()))
    who = trio.run(new.ask, _ME)
    name = str(who.get("username", "")) if isinstance(who, dict) else ""
    path = store(new)
    if as_json:
        say_json({"event": "login", "url": url, "username": name, "file": str(path)})
    else:
        console().print(f"logged in to {url} as {name}; the token is in {path}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
def logout(as_json: bool) -> None:
    """Forget what `tailnet login` stored; the token itself stays good until its owner revokes it."""
    path = stored_path()
    try:
        path.unlink()
        was_there = True
    except FileNotFoundError:
        was_there = False
    except OSError as error:
        raise ConfigError(f"{path}: cannot be removed: {error_text(error)}") from None
    if as_json:
        say_json({"event": "logout", "was_logged_in": was_there})
    else:
        console().print(f"logged out: {path} is gone" if was_there else "nobody was logged in")


def _read_token() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Token", hide_input=True, err=True))
    return sys.stdin.readline(_MAX_TOKEN_CHARACTERS + 1)
