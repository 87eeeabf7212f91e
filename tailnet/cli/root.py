"""The group of commands (layer L4).

Results go to stdout, one JSON object a line with --json; the log and errors go to stderr.  How a command ends is
derp/cli_run.py's.  Next hop: serve.py, admin.py, ping.py.
"""

import click

from derp.cli_run import run as run_command
from derp.cli_run import statuses, version_option
from tailnet.cli.admin import admin
from tailnet.cli.agent import agent
from tailnet.cli.agents import agents
from tailnet.cli.config_ssh import config_ssh
from tailnet.cli.cp import cp
from tailnet.cli.demo import demo
from tailnet.cli.health import health
from tailnet.cli.login import login, logout
from tailnet.cli.netcheck import netcheck
from tailnet.cli.ping import ping
from tailnet.cli.port_forward import port_forward
from tailnet.cli.serve import serve
from tailnet.cli.speedtest import speedtest
from tailnet.cli.ssh import ssh
from tailnet.errors import SeedError


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=statuses())
@version_option("--version")
def cli() -> None:
    """A tailnet's coordinator with its embedded DERP relay, and what its users reach agents with."""


cli.add_command(serve)
cli.add_command(admin)
cli.add_command(demo)
cli.add_command(health)
cli.add_command(login)
cli.add_command(logout)
cli.add_command(agent)
cli.add_command(agents)
cli.add_command(ping)
cli.add_command(netcheck)
cli.add_command(port_forward)
cli.add_command(ssh)
cli.add_command(cp)
cli.add_command(config_ssh)
cli.add_command(speedtest)


def run(args: list[str] | None = None) -> None:
    """Run the command line, sys.argv if `args` is None, and leave with its status."""
    run_command(cli, "tailnet", args, wrongly=(SeedError,))
