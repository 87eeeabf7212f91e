"""`tailnet ssh`: OpenSSH's client through the tailnet, and what it calls as its ProxyCommand (layer L4).

An agent serves SSH on port 1 of its address.  It asks for no key, since the tunnel has proved who is calling; its host
key proves nothing more and is new with each start, so it is not kept.  Next hop: reach.py, tailnet/node/tunnel.py.
"""

import os
import shlex
import shutil
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click
import trio

from derp.cli_output import program
from derp.text import error_text
from tailnet.cli.login import read_login
from tailnet.cli.reach import dial_port, open_reached, reach_options, run_interruptible
from tailnet.client.agents import KnownAgent, Login, find_agent
from tailnet.errors import ConfigError, TransportError

if TYPE_CHECKING:
    from tailnet.node.streams import TunnelStream

SSH_PORT: Final = 1
# How agents are called in an ssh_config, of which config_ssh.py writes its part.
HOST_PREFIX: Final = "tailnet."
SETTINGS: Final = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR"}
_RECEIVE_BYTES: Final = 64 * 1024
# What follows AGENT is the remote command's, also when it looks like an option.
_CONTEXT: Final = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def port_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --port."""
    option = click.option(
        "--port", default=SSH_PORT, show_default=True, type=click.IntRange(1, 65535), help="of the agent's SSH"
    )
    return option(command)


@click.command(context_settings=_CONTEXT)
@reach_options
@port_option
@click.option("--stdio", is_flag=True, help="carry standard input and output: as ProxyCommand of ssh")
@click.option("--host-prefix", default="", metavar="TEXT", help="take this off AGENT: with --stdio, for `config-ssh`")
@click.argument("agent")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(
    agent: str,
    command: tuple[str, ...],
    stdio: bool,
    host_prefix: str,
    port: int,
    relay_only: bool,
    wait: float,
    **how: Any,
) -> None:
    """Open a shell on AGENT (an id, a name, or workspace.agent), or run COMMAND there, with OpenSSH's ssh.

    Options stand before AGENT. The exit status is ssh's: that of COMMAND, or 255.
    """
    login = read_login(**how)
    if stdio:
        if command:
            raise ConfigError("--stdio carries bytes and runs no command: leave one of them out")
        check_stdio()
        agent = agent.removeprefix(host_prefix)

        async def work() -> None:
            await _carry(login, await find_agent(login, agent), port, relay_only, wait)

        run_interruptible(work)
        return
    options = ssh_options(login, agent, port, relay_only, wait)
    become("ssh", [*options, "--", host_alias(agent), *command], login)


def become(name: str, words: Sequence[str], login: Login) -> None:
    """Go on as one of OpenSSH's programs, whose ProxyCommand finds the same coordinator.  Raises ConfigError."""
    path = shutil.which(name)
    if path is None:
        raise ConfigError(f"there is no `{name}` on this machine: install OpenSSH's client")
    sys.stdout.flush()
    os.execve(path, [name, *words], ssh_environment(login, os.environ))


def ssh_options(login: Login, agent: str, port: int, relay_only: bool, wait: float) -> list[str]:
    """Those of ssh and scp that lead to an agent through us."""
    words = ["--wait", f"{wait:g}", "--port", str(port)]
    words += ["--relay-only"] * relay_only + ["--insecure-http"] * login.url.startswith("http:")
    settings = {"ProxyCommand": proxy_command(*words, "--", agent), **SETTINGS}
    return [each for name, value in settings.items() for each in ("-o", f"{name}={value}")]


def host_alias(agent: str) -> str:
    """What ssh calls an agent: for the user's own ssh_config, and in messages."""
    return HOST_PREFIX + "".join(each if (each.isalnum() and each.isascii()) or each in ".-" else "-" for each in agent)


def proxy_command(*words: str) -> str:
    """What ssh runs to come to an agent, for its settings: there a % is the beginning of a name."""
    return shlex.join([*program("tailnet"), "ssh", "--stdio", *words]).replace("%", "%%")


def ssh_environment(login: Login, environ: Mapping[str, str]) -> dict[str, str]:
    """As `tailnet ssh --stdio` finds the same coordinator; a command line would show the token to everybody here."""
    return {**environ, "CODER_URL": login.url, "CODER_SESSION_TOKEN": login.token}


def check_stdio() -> None:
    """Raises ConfigError for what cannot be waited for, or would be the wrong thing to write to."""
    if os.isatty(1):
        raise ConfigError("--stdio is for ssh, as its ProxyCommand; for a shell leave it out")
    for descriptor in (0, 1):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError("--stdio wants pipes or sockets as standard input and output, no files")


async def _carry(login: Login, agent: KnownAgent, port: int, relay_only: bool, wait: float) -> None:
    async with open_reached(login, agent, relay_only=relay_only, wait_seconds=wait) as client:
        await carry_stdio(await dial_port(client, agent, port, wait))


async def carry_stdio(remote: "TunnelStream") -> None:
    """Standard input to the agent, and what it says to standard output, until it has said its last.

    Raises TransportError when the connection breaks.
    """
    async with trio.lowlevel.FdStream(os.dup(0)) as source, trio.lowlevel.FdStream(os.dup(1)) as sink:

        async def send() -> None:
            while part := await source.receive_some(_RECEIVE_BYTES):
                await remote.send_all(part)
            await remote.send_eof()

        try:
            async with remote, trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while part := await remote.receive_some():
                    await sink.send_all(part)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError) as group:
            remote.abort()
            raise TransportError(f"the connection broke: {error_text(group.exceptions[0])}") from None
