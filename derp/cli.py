"""The `derp` command (layer L4): serve, genkey; netcheck, ping, probe, map, invite, admission, ledger, drain have files
of their own.

Results go to stdout, one JSON object a line with --json; how a command ends is cli_run.py's.  The options of `serve`
come from config/settings.py, where derper's names stand too.  Next hop: server/server.py, client/client.py.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import click
import trio

from derp.cli_admission import admission_commands
from derp.cli_drain import drain
from derp.cli_invite import invite
from derp.cli_ledger import ledger_commands
from derp.cli_map import map_commands
from derp.cli_netcheck import netcheck
from derp.cli_output import Lines, open_console, print_json, program, say_what_to_try
from derp.cli_ping import ping
from derp.cli_probe import probe
from derp.cli_run import FILE, completer, keep_stdout_from_others, run, statuses, version_option
from derp.config import RelayConfig, load_config
from derp.config.relay import WORKER_VARIABLE
from derp.config.settings import REFUSED, SETTINGS
from derp.errors import ConfigError
from derp.keys import NodePrivate
from derp.log import set_up_logging
from derp.map import is_address
from derp.text import bracketed, host_port

if TYPE_CHECKING:
    from derp.server.server import RelayServer
    from derp.server.supervisor import Supervisor

_log = logging.getLogger("derp.cli")

_SWITCHES: Final = frozenset(
    [flag for setting in SETTINGS if setting.is_switch for flag in setting.flags]
    + [refused.flag for refused in REFUSED if refused.is_switch]
)
_VALUES: Final = frozenset(
    [flag for setting in SETTINGS if not setting.is_switch for flag in setting.flags]
    + [refused.flag for refused in REFUSED if not refused.is_switch]
    + ["config"]
)


def main() -> None:
    """The command line, to its end."""
    run(cli, "derp")


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=statuses())
@version_option("--version", "-version")
def cli() -> None:
    """A DERP relay, and the tools to see that it works."""


class _DerperCommand(click.Command):
    """A command whose flags are written as Go programs take them: -name, --name, -name=value, and switches alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(go_style(args)))


def go_style(args: Iterable[str]) -> Iterable[str]:
    """Write known flags with two dashes and switches with their value; leave everything else to click."""
    rest = iter(args)
    for arg in rest:
        name, equals, _ = arg.lstrip("-").partition("=")
        dashes = len(arg) - len(arg.lstrip("-"))
        if arg == "--" or dashes not in (1, 2) or not name:
            yield arg
        elif name not in _SWITCHES | _VALUES:
            # Two dashes, or click would read an unknown -name as a bundle of letters.
            yield arg if len(name) == 1 else f"--{arg[dashes:]}"
        elif name in _SWITCHES:
            yield f"--{arg[dashes:]}" if equals else f"--{name}=true"
        elif equals:
            yield f"--{arg[dashes:]}"
        else:
            yield f"--{name}"
            # Its value, even if that begins with a dash: --http-port -1.
            yield from (value for value in [next(rest, None)] if value is not None)


def _settings_as_options(command: Callable[..., None]) -> Callable[..., None]:
    for refused in reversed(REFUSED):
        command = click.option(f"--{refused.flag}", hidden=True)(command)
    for setting in reversed(SETTINGS.settings):
        names = [f"--{flag}" for flag in setting.flags]
        metavar = "[=false]" if setting.is_switch else setting.metavar
        option = click.option(
            *names, setting.name, metavar=metavar, help=setting.help, shell_complete=completer(setting)
        )
        command = option(command)
    return command


@cli.command(cls=_DerperCommand)
@click.option("--config", type=FILE, metavar="FILE", help="settings as TOML; DERP_CONFIG names it too")
@click.option("--json", "as_json", is_flag=True, help="say on stdout what is served as JSON lines")
@_settings_as_options
@version_option("--version", "-version")
def serve(config: str | None, as_json: bool, **given: str | None) -> None:
    """Run a relay until SIGTERM or SIGINT, which drain it.

    SIGHUP reads settings, certificates and limits again, and the log names what waits for a restart.  SIGUSR2 has a new
    process of the same command take over before this one drains.  SIGUSR1 tells the log how it stands.  Each setting
    may also stand in the TOML file, under its long name with underscores, or in the environment as DERP_<NAME>; flags
    are stronger than the environment, that than the file.  Flags of derper are taken with one dash or two.
    """
    for refused in REFUSED:
        text = given.pop(refused.flag.replace("-", "_"))
        if text is not None and text not in refused.harmless:
            raise ConfigError(f"flags: --{refused.flag}: {refused.instead}")
    flags = {name: text for name, text in given.items() if text is not None}
    is_worker = WORKER_VARIABLE in os.environ
    try:
        settings = load_config(flags, config_file=config, is_running=is_worker)
    except ConfigError:
        # Who asked for JSON in words gets that line so, too; the default depends on the settings that do not hold.
        if (flags.get("log_format") or os.environ.get("DERP_LOG_FORMAT")) == "json":
            set_up_logging("json", "info")
        raise
    set_up_logging(settings.log_format, settings.log_level)

    def reread() -> RelayConfig:
        return load_config(flags, config_file=config, is_running=True)

    if is_worker:
        _serve_as_worker(settings, reread)
        return
    for notice in settings.notices:
        _log.warning("! %s", notice)
    if settings.workers > 1:
        _supervise(settings, reread, as_json)
        return
    # Imported here: `derp genkey` need not wait for a server.
    from derp.server.life import live, prepare_process
    from derp.server.server import serve_relay

    prepare_process()
    trio.run(
        live,
        lambda inherited, task_status: serve_relay(settings, reread, inherited, task_status=task_status),
        lambda server: _say_what_is_served(server, settings, as_json),
    )


def _supervise(settings: RelayConfig, reread: Callable[[], RelayConfig], as_json: bool) -> None:
    from derp.server.handover import Inherited
    from derp.server.supervisor import Supervisor, supervise

    supervisor = Supervisor(settings, reread, inherited=Inherited.from_environment(os.environ))
    supervisor.open()
    trio.run(supervise, supervisor, lambda server: _say_what_is_served(server, settings, as_json))


def _serve_as_worker(settings: RelayConfig, reread: Callable[[], RelayConfig]) -> None:
    from derp.server.life import live, prepare_process
    from derp.server.server import serve_relay
    from derp.server.worker import Worker

    worker = Worker.from_environment(os.environ)
    prepare_process()
    trio.run(
        live,
        lambda inherited, task_status: serve_relay(
            worker.share(settings), lambda: worker.share(reread()), inherited, worker, task_status=task_status
        ),
        lambda server: None,  # the supervisor says what is served
    )


def _say_what_is_served(server: "RelayServer | Supervisor", config: RelayConfig, as_json: bool) -> None:
    key = str(config.private_key.public())
    snippet = None
    if server.tls is not None and server.tls.is_self_signed:
        ports = {listening.kind: listening.port for listening in server.listening}
        own_map = server.tls.map_snippet(ports["derp+tls"], ports.get("stun", -1), ports.get("derp+quic", 0))
        snippet = own_map.to_json()
    if as_json:
        for listening in server.listening:
            print_json({"event": "listening", "kind": listening.kind, "host": listening.host, "port": listening.port})
        if snippet is not None:
            print_json({"event": "map", "map": snippet})
        print_json({"event": "serving", "public_key": key})
        return
    console = open_console()
    for listening in server.listening:
        console.print(f"listening on {host_port(listening.host, listening.port)} ({listening.kind})")
    console.print(f"public key {key}")
    if snippet is not None:
        console.print("its certificate is self-signed; clients need this DERP map, which pins it:")
        click.echo(json.dumps(snippet, indent=2))
    _say_what_to_try(console, server)


def _say_what_to_try(console: "Lines", server: "RelayServer | Supervisor") -> None:
    first = server.listening[0]
    host = bracketed({"0.0.0.0": "127.0.0.1", "::": "localhost"}.get(first.host, first.host))  # compared, not bound
    trust: list[str] = []
    pin: list[str] = []
    if server.tls is not None and server.tls.is_self_signed:
        trust, pin = ["-k"], ["--pin", server.tls.pin]
    if server.tls is not None and (name := server.tls.config.hostname) and not is_address(name):
        # The certificate is for the name, and others see none; but only from here are the pages open.
        address = "127.0.0.1" if first.host == "::" else host
        trust, host = [*trust, "--resolve", f"{name}:{first.port}:{address}"], name
    url = f"{'https' if first.kind == 'derp+tls' else 'http'}://{host}:{first.port}"
    say_what_to_try(
        console,
        [
            (["curl", *trust, f"{url}/healthz"], "is it well?"),
            (["curl", *trust, f"{url}/metrics"], "what does it count?"),
            ([*program("derp"), "ping", "--via", f"{url}/derp", *pin], "how far away is it?"),
        ],
    )


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
def genkey(as_json: bool) -> None:
    """Make a key pair; the private half is a secret.

    The text on stdout is what `derp serve --key-file` reads, so `derp genkey > relay.key` makes one.  A file of ours is
    closed to others on this machine before the key is in it.
    """
    private = NodePrivate.generate()
    if not keep_stdout_from_others():
        click.echo("derp: others on this machine can read the file with this secret: chmod 600 it", err=True)
    if as_json:
        print_json({"private_key": private.text(), "public_key": str(private.public())})
        return
    click.echo(json.dumps({"PrivateKey": private.text()}, indent="\t"))
    click.echo(f"public key {private.public()}", err=True)


for command in (netcheck, ping, probe, map_commands, invite, admission_commands, ledger_commands, drain):
    cli.add_command(command)
