"""`tailnet serve`: the coordinator with its relay, until SIGTERM (layer L4).

The options come from tailnet/config/.  With --dev it needs nothing: a store for this run only, a demo user with a
workspace and an agent, and the lines to try.  Next hop: server/server.py.
"""

import json
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import click
import trio

from derp.cli_output import say_what_to_try
from derp.cli_run import FILE, completer
from derp.errors import ConfigError
from derp.log import set_up_logging
from derp.text import bracketed, without_secrets
from tailnet.cli.output import console, say_json
from tailnet.config import SETTINGS, CoordinatorConfig, load_config
from tailnet.store.importing import import_seed
from tailnet.store.seed import parse_seed
from tailnet.store.store import Store
from tailnet.store.writer import SWITCH_SECONDS

if TYPE_CHECKING:
    from tailnet.server.server import CoordinatorServer

_log = logging.getLogger("tailnet.cli")


@dataclass(frozen=True, slots=True)
class Demo:
    """What --dev made: plain values to try."""

    username: str
    user_token: str
    agent_id: str
    agent_token: str


def _settings_as_options(command: Callable[..., None]) -> Callable[..., None]:
    for setting in reversed(SETTINGS.settings):
        if setting.is_switch:
            option = click.option(
                f"{setting.flag}/--no-{setting.flag[2:]}", setting.name, default=None, help=setting.help
            )
        else:
            flags = [f"--{flag}" for flag in setting.flags]
            option = click.option(
                *flags, setting.name, metavar=setting.metavar, help=setting.help, shell_complete=completer(setting)
            )
        command = option(command)
    return command


@click.command()
@click.option("--config", type=FILE, metavar="FILE", help="settings as TOML; TAILNET_CONFIG names it too")
@click.option("--json", "as_json", is_flag=True, help="say on stdout what is served as JSON lines")
@_settings_as_options
def serve(config: str | None, as_json: bool, **given: str | bool | None) -> None:
    """Serve API, RPC and relay on one port until SIGTERM or SIGINT, which drain it.

    SIGHUP reads settings, DERP maps and certificates again, and the log names what waits for a restart.  SIGUSR2 has a
    new process of the same command take over before this one drains.  SIGUSR1 tells the log how it stands.  Each
    setting may also stand in the TOML file, under its long name with underscores, or in the environment as
    TAILNET_<NAME>; flags are stronger than the environment, that than the file.
    """
    flags = {
        name: str(value).lower() if SETTINGS.by_name[name].is_switch else str(value)
        for name, value in given.items()
        if value is not None
    }
    try:
        settings = load_config(flags, config_file=config)
    except ConfigError:
        # Who asked for JSON in words gets that line so, too; the default depends on the settings that do not hold.
        if (flags.get("log_format") or os.environ.get("TAILNET_LOG_FORMAT")) == "json":
            set_up_logging("json", "info")
        raise
    set_up_logging(settings.log_format, settings.log_level)
    # Imported here: `tailnet admin` need not wait for a server.
    from derp.server.life import live, prepare_process
    from tailnet.server.server import serve_coordinator

    prepare_process()
    sys.setswitchinterval(SWITCH_SECONDS)
    for notice in settings.notices:
        _log.warning("! %s", notice)
    with ExitStack() as stack:
        demo = None
        if settings.dev:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tailnet-dev-"))
            settings = replace(settings, store=f"sqlite:///{Path(folder) / 'tailnet.db'}")
            demo = make_demo(settings.store)

        def reread() -> CoordinatorConfig:
            again = load_config(flags, config_file=config)
            return replace(again, store=settings.store) if again.dev and settings.dev else again

        trio.run(
            live,
            lambda inherited, task_status: serve_coordinator(settings, reread, inherited, task_status=task_status),
            lambda server: _say_what_is_served(server, demo, as_json),
        )


def make_demo(store_url: str) -> Demo:
    """Put a user, a workspace and an agent with fresh tokens into a store.  Raises StoreError."""
    # A name of its own each time: a store that is kept may have the demo of an earlier run.
    username = f"demo-{secrets.token_hex(3)}"
    # The form of the field's session tokens; token_hex has only what it allows.
    user_token = f"{secrets.token_hex(5)}-{secrets.token_hex(11)}"
    user_id, agent_id, agent_token = str(uuid4()), str(uuid4()), str(uuid4())
    agent = {
        "id": agent_id,
        "token": agent_token,
        "name": "main",
        "workspace_id": str(uuid4()),
        "workspace_name": "demo",
        "owner_id": user_id,
    }
    users = [{"id": user_id, "username": username, "token": user_token}]
    store = Store.open(store_url)
    try:
        import_seed(store, parse_seed(json.dumps({"users": users, "agents": [agent]})), datetime.now(UTC))
    finally:
        store.close()
    return Demo(username, user_token, agent_id, agent_token)


def _say_what_is_served(server: "CoordinatorServer", demo: Demo | None, as_json: bool) -> None:
    places = [(each.kind, bracketed(each.host), each.port) for each in server.listening]
    if as_json:
        for kind, host, port in places:
            say_json({"event": "listening", "kind": kind, "host": host, "port": port})
        if demo is not None:
            say_json({"event": "demo"} | {name: getattr(demo, name) for name in Demo.__slots__})
        say_json({"event": "serving", "store": without_secrets(server.config.store)})
        return
    out = console()
    for kind, host, port in places:
        if kind == "stun":
            out.print(f"answering STUN on {host}:{port}")
        elif kind == "derp+quic":
            out.print(f"the relay is served over QUIC, too, on {host}:{port}")
        else:
            out.print(f"listening on {'https' if kind.endswith('+tls') else 'http'}://{host}:{port}")
    out.print(f"store {without_secrets(server.config.store)}")
    kind, host, port = next(place for place in places if place[0] != "stun")
    here = {"0.0.0.0": "127.0.0.1", "[::]": "127.0.0.1"}.get(host, host)  # compared, not bound
    url = f"{'https' if kind.endswith('+tls') else 'http'}://{here}:{port}"
    if demo is not None:
        out.print(f"pages for people: {url}/ with the session token {demo.user_token}")
    say_what_to_try(out, what_to_try(url, demo, is_trusted=server.tls is None or not server.tls.is_self_signed))


def what_to_try(url: str, demo: Demo | None, *, is_trusted: bool) -> list[tuple[list[str], str]]:
    """Command lines, and what each is good for."""
    curl = ["curl"] if is_trusted else ["curl", "-k"]
    lines = [([*curl, f"{url}/readyz"], "is it well?"), ([*curl, f"{url}/debug/tailnet?format=json"], "who is here?")]
    if demo is not None:
        connection = f"{url}/api/v2/workspaceagents/{demo.agent_id}/connection"
        token = f"Coder-Session-Token: {demo.user_token}"
        environment = [f"CODER_AGENT_URL={url}", f"CODER_AGENT_TOKEN={demo.agent_token}"]
        lines += [
            ([*curl, "-H", token, connection], "what a client asks first"),
            ([*environment, "tailnet", "agent"], "the demo agent"),
        ]
    return lines
