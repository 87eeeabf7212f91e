"""`tailnet drain`: have a running coordinator send its peers away, and wait until it has ended (layer L4).

What it does is derp/cli_drain.py's; a replica takes longer, since its peers go to the others in waves.
"""

import click

from derp.cli_admission import seconds_of
from derp.cli_drain import drain_process


@click.command()
@click.argument("pid", type=click.IntRange(min=1), metavar="PID")
@click.option("--replace", is_flag=True, help="have a new process of the same command take its place first")
@click.option("--within", default="3m", show_default=True, callback=seconds_of, metavar="DURATION", help="wait so long")
def drain(pid: int, replace: bool, within: float) -> None:
    """Send the peers of a running coordinator away, and end it; returns when it has ended.

    PID is that of `tailnet serve`: $MAINPID for systemd, 1 in a container.  One of several replicas says that it is not
    ready, and sends its peers to the others in waves: --replica-notice, --replica-drain and --drain together are the
    longest it takes.  Without --replace this is SIGTERM, with it SIGUSR2.
    """
    drain_process(pid, replace=replace, within=within)
