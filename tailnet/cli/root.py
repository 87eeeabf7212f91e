"""The group of commands (layer L4).

Results go to stdout, one JSON object a line with --json; the log and errors go to stderr.  How a command ends is
derp/cli_run.py's.  Next hop: serve.py, admin.py, ping.py.
"""

from importlib import import_module
from typing import Final

import click

from derp.cli_run import run as run_command
from derp.cli_run import statuses, version_option
from tailnet.errors import SeedError

# Which module has which command.  A module is loaded when its command runs: OpenSSH starts `tailnet ssh` for each
# connection, and all modules together take three times as long to load as that one's (0.9 s instead of 0.3).
_MODULES: Final = {
    "admin": "admin",
    "agent": "agent",
    "agents": "agents",
    "config-ssh": "config_ssh",
    "cp": "cp",
    "demo": "demo",
    "drain": "drain",
    "health": "health",
    "login": "login",
    "logout": "login",
    "netcheck": "netcheck",
    "ping": "ping",
    "port-forward": "port_forward",
    "replicas": "replicas",
    "serve": "serve",
    "speedtest": "speedtest",
    "ssh": "ssh",
}


class _Commands(click.Group):
    """The commands of _MODULES, each loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_MODULES, *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULES and cmd_name not in self.commands:
            module = import_module(f"tailnet.cli.{_MODULES[cmd_name]}")
            self.add_command(getattr(module, cmd_name.replace("-", "_")))
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=statuses())
@version_option("--version")
def cli() -> None:
    """A tailnet's coordinator with its embedded DERP relay, and what its users reach agents with."""


def run(args: list[str] | None = None) -> None:
    """Run the command line, sys.argv if `args` is None, and leave with its status."""
    run_command(cli, "tailnet", args, wrongly=(SeedError,))
