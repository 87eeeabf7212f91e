"""How commands ask a running server as its operator (layer L4): over loopback, or with an administrator's token."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import click
import trio

from derp.cli_run import FILE
from derp.config.load import is_local
from derp.text import error_text, fit_to_show, host_port
from tailnet.cli.output import console, say_json
from tailnet.config import CoordinatorConfig, load_config
from tailnet.errors import ConfigError, TransportError
from tailnet.transport.fetch import Asker

# A run of all health checks takes ten seconds at the most.
ASK_SECONDS: Final = 20.0
_MAX_TOKEN_BYTES: Final = 4_096
_UNREACHABLE: Final = 2
_UNSPECIFIED: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


Answer = TypeVar("Answer")


def token_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --token-file as `token_file`."""
    return click.option(
        "--token-file",
        type=FILE,
        metavar="FILE",
        help="an administrator's token, for a server that does not see us come over loopback",
    )(command)


def read_token(token_file: str | None) -> str:
    """The token in a file, "" without one.  Raises ConfigError."""
    if token_file is None:
        return ""
    try:
        with Path(token_file).open("rb") as file:
            return file.read(_MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--token-file {token_file}: cannot be read: {error_text(error)}") from None


def open_door(url: str, token: str) -> Asker:
    """Who asks the server at `url`.  Raises ConfigError for what is no such URL, or would show the token to others."""
    shown = fit_to_show(url)
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0
    except ValueError:
        has_port = False
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port or parts.query:
        raise ConfigError(f"{shown}: must look like http://127.0.0.1:3000")
    is_here = is_local(parts.hostname)
    if token and parts.scheme == "http" and not is_here:
        raise ConfigError(f"{shown}: the token would travel in the clear: use https, or run this on that machine")
    # Our own machine answers by an address that is in no certificate, and needs no token.
    verified = parts.scheme == "http" or not is_here or bool(token)
    return Asker(url, token=token, verified=verified, timeout_seconds=ASK_SECONDS)


def ask_server(
    ask: Callable[[str, str], Awaitable[Answer]],
    url: str | None,
    token_file: str | None,
    as_json: bool,
    unreachable: Callable[[str], dict[str, str]],
) -> Answer:
    """What `ask(url, token)` is answered; without `url` by the server of this machine's settings.

    Where that raises TransportError, the reason is said, as JSON in the words of `unreachable`, and the program ends.
    """
    try:
        return trio.run(ask, url or own_url(load_config()), read_token(token_file))
    except TransportError as error:
        if as_json:
            say_json(unreachable(str(error)))
        else:
            console().print(f"error: {error}", style="red")
        sys.exit(_UNREACHABLE)


def own_url(config: CoordinatorConfig) -> str:
    """Where the server of these settings is reached from its own machine."""
    host, port = config.listen[0]
    host = _UNSPECIFIED.get(host, host)
    scheme = "http" if config.tls is None else "https"
    return f"{scheme}://{host_port(host, port)}"
