"""`tailnet cp`: files and folders to an agent and from it, by OpenSSH's scp through the tailnet (layer L4).

scp is the well-kept program that every user knows: it has progress, modes, times and wildcards, and it speaks SFTP with
genuine agents and ours.  What it is told is all that is here.  Next hop: ssh.py.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import click

from derp.text import fit_to_show
from tailnet.cli.login import read_login
from tailnet.cli.reach import reach_options
from tailnet.cli.ssh import become, host_alias, port_option, ssh_options
from tailnet.errors import ConfigError

# What begins so is of this machine, whatever follows.
_LOCAL_STARTS: Final = ("/", ".", "~")


class Place(NamedTuple):
    """A file or a folder; `agent` "": of this machine."""

    agent: str
    path: str


@click.command()
@reach_options
@port_option
@click.option("-r", "--recursive", is_flag=True, help="folders, with all that is in them")
@click.option("-p", "--preserve", is_flag=True, help="times and modes as they are")
@click.option("-q", "--quiet", is_flag=True, help="no progress")
@click.argument("places", nargs=-1, required=True, metavar="SOURCE... DESTINATION")
def cp(
    places: tuple[str, ...],
    recursive: bool,
    preserve: bool,
    quiet: bool,
    port: int,
    relay_only: bool,
    wait: float,
    **how: Any,
) -> None:
    """Copy files to an agent or from it, with OpenSSH's scp: what is there is AGENT:PATH, from its home directory.

    A local name with a colon begins with ./ or /. The exit status is scp's.

    Examples: `tailnet cp notes.txt dev.main:`, `tailnet cp -r dev.main:project .`
    """
    parsed = [parse_place(text) for text in places]
    agent = check_places(parsed)
    login = read_login(**how)
    options = ssh_options(login, agent, port, relay_only, wait)
    flags = ["-r"] * recursive + ["-p"] * preserve + ["-q"] * quiet
    become("scp", [*flags, *options, "--", *(scp_word(place) for place in parsed)], login)


def parse_place(text: str) -> Place:
    """Read `AGENT:PATH` or a local path.  Raises ConfigError."""
    agent, colon, path = text.partition(":")
    if not text:
        raise ConfigError("a path is empty: `.` is this folder, and AGENT: the agent's home directory")
    if not colon or text.startswith(_LOCAL_STARTS):
        return Place("", text)
    if not agent:
        raise ConfigError(f"{fit_to_show(text)}: which agent? A local name with a colon begins with ./")
    return Place(agent, path)


def check_places(places: Sequence[Place]) -> str:
    """The agent that files go to or come from.  Raises ConfigError."""
    *sources, destination = places
    if not sources:
        raise ConfigError("say what to copy, and then where to: tailnet cp notes.txt dev.main:")
    agents = {place.agent for place in sources}
    if destination.agent and agents == {""}:
        return destination.agent
    if not destination.agent and len(agents) == 1 and "" not in agents:
        return agents.pop()
    if not destination.agent and agents == {""}:
        raise ConfigError(
            "all of these are on this machine: what is on an agent is AGENT:PATH, as in dev.main:notes.txt"
        )
    raise ConfigError("files go from this machine to one agent, or from one agent to this machine: copy in two steps")


def scp_word(place: Place) -> str:
    """As scp understands it: without a slash before the colon a name is one of another machine."""
    if place.agent:
        return f"{host_alias(place.agent)}:{place.path}"
    return place.path if place.path.startswith(("/", "./", "../")) else f"./{place.path}"
