"""`tailnet agent`: a workspace's agent, until SIGTERM (layer L4).

It comes in with an agent's token: by option, by environment (CODER_AGENT_URL, CODER_AGENT_TOKEN), or in a file that
may be a credential of systemd.  The second SIGTERM ends it at once.  Next hop: tailnet/agent/agent.py.
"""

import logging
import signal
from typing import TYPE_CHECKING, Final

import click
import trio

from derp.cli_run import FILE
from derp.log import set_up_logging
from derp.transport.notify import notify_manager
from derp.transport.platform import raise_open_files
from tailnet.cli.login import checked_token, checked_url
from tailnet.cli.operator_door import read_token
from tailnet.errors import ConfigError

if TYPE_CHECKING:
    from tailnet.agent.agent import Settings

_log = logging.getLogger("tailnet.agent")

_FORMS: Final = ("auto", "text", "json")
_LEVELS: Final = ("debug", "info", "warning", "error")


@click.command()
@click.option("--url", envvar="CODER_AGENT_URL", show_envvar=True, help="the coordinator")
@click.option("--token", envvar="CODER_AGENT_TOKEN", show_envvar=True, help="the agent's token")
@click.option("--token-file", envvar="CODER_AGENT_TOKEN_FILE", show_envvar=True, type=FILE, metavar="FILE",
              help="the token in a file, which no list of processes shows")  # fmt: skip
@click.option("--insecure-http", is_flag=True, help="send the token to another machine without TLS")
@click.option("--ports", default="9-65535", show_default=True, metavar="PORTS",
              help='ports of this machine\'s loopback that users reach, as in 8080,3000-3999; "" for none')  # fmt: skip
@click.option("--relay-only", is_flag=True, help="no direct connections: by relays alone")
@click.option("--agent-forwarding", is_flag=True, help="let users bring the keys of their SSH agents along")
@click.option("--no-file-transfer", is_flag=True, help="no sftp, scp and rsync")
@click.option("--stop-seconds", default=60.0, show_default=True, type=click.FloatRange(0, 3600),
              help="for the scripts that run at the end")  # fmt: skip
@click.option(
    "--log-format", default="auto", show_default=True, type=click.Choice(_FORMS), help="of the log, on stderr"
)
@click.option("--log-level", default="info", show_default=True, type=click.Choice(_LEVELS), help="how much is said")
def agent(
    url: str | None,
    token: str | None,
    token_file: str | None,
    insecure_http: bool,
    ports: str,
    relay_only: bool,
    agent_forwarding: bool,
    no_file_transfer: bool,
    stop_seconds: float,
    log_format: str,
    log_level: str,
) -> None:
    """Be a workspace's agent: run its scripts, tell the coordinator how it is, and let its users in.

    Whoever is a user of the workspace gets a shell as the user who runs this: run it as nobody else's.  It ends with
    SIGTERM or Ctrl-C, after the scripts that are to run then; the second one ends it at once.
    """
    if not url:
        raise ConfigError("which coordinator? give --url, or set CODER_AGENT_URL")
    if token_file and not token:
        token = read_token(token_file)
    if not token:
        raise ConfigError("as which agent? set CODER_AGENT_TOKEN, or give --token-file")
    from tailnet.agent.agent import Settings
    from tailnet.agent.forwarding import parse_ports

    settings = Settings(
        url=checked_url(url, insecure_http),
        token=checked_token(token),
        ports=parse_ports(ports),
        is_direct=not relay_only,
        allow_agent_forwarding=agent_forwarding,
        is_file_transfer_allowed=not no_file_transfer,
        stop_seconds=stop_seconds,
    )
    set_up_logging(log_format, log_level)
    raise_open_files()
    trio.run(_live, settings)


async def _live(settings: "Settings") -> None:
    from tailnet.agent.agent import open_agent

    # Signals first: one that arrives at once must not end us half-way.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_agent(settings) as running, trio.open_nursery() as nursery:

            async def tell_ready() -> None:
                await running.connected.wait()
                notify_manager("READY=1")

            async def stop() -> None:
                await running.stop()
                nursery.cancel_scope.cancel()

            nursery.start_soon(tell_ready)
            _log.info("= %s: stopping", signal.Signals(await anext(signals)).name)
            notify_manager("STOPPING=1")
            nursery.start_soon(stop)
            _log.warning("! second %s: leaving at once", signal.Signals(await anext(signals)).name)
            nursery.cancel_scope.cancel()
