"""`tailnet agents`, and which agent a user means by AGENT (layer L4).

AGENT is an id, or a name: of the agent, of its workspace if that has one agent, or `workspace.agent`, with the owner
before it or without.  What the coordinator lists is api/workspaces.py.  Next hop: login.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import click
import trio

from derp.text import fit_to_show
from tailnet.cli.login import Login, login_options, read_login
from tailnet.cli.output import console, say_json
from tailnet.cli.tables import print_table
from tailnet.errors import ConfigError, MalformedField, TransportError
from tailnet.types import PeerID

_PAGE: Final = 100
# Pages that are asked for: nobody has more workspaces, and a server that says so is none of ours.
_MAX_PAGES: Final = 100
_MAX_SHOWN: Final = 10
# What JSON of another form comes to when it is read.
_STRANGE: Final = (KeyError, TypeError, AttributeError, MalformedField)
_COLUMNS: Final = ("agent", "status", "lifecycle", "system", "version", "id")


@dataclass(frozen=True, slots=True)
class KnownAgent:
    """An agent as the coordinator lists it; the workspace and its owner are "" where it was asked for by its id."""

    id: PeerID
    name: str
    workspace: str
    owner: str
    status: str
    lifecycle: str
    system: str
    version: str

    @property
    def label(self) -> str:
        return f"{self.workspace}.{self.name}" if self.workspace else self.name

    def as_event(self) -> dict[str, object]:
        """For --json, and the rows of the table."""
        return {
            "agent": self.label,
            "id": str(self.id),
            "name": self.name,
            "workspace": self.workspace,
            "owner": self.owner,
            "status": self.status,
            "lifecycle": self.lifecycle,
            "system": self.system,
            "version": self.version,
        }


@click.command()
@login_options
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
def agents(as_json: bool, **how: Any) -> None:
    """List the agents of your workspaces, with what to call them in other commands."""
    found = trio.run(list_agents, read_login(**how))
    if as_json:
        for agent in found:
            say_json(agent.as_event())
    elif found:
        print_table(console(), _COLUMNS, [agent.as_event() for agent in found])
    else:
        console().print("none of your workspaces has an agent")


async def list_agents(login: Login) -> list[KnownAgent]:
    """All agents of the user's, by workspace and name.  Raises as Login.ask does."""
    found: list[KnownAgent] = []
    for page_number in range(_MAX_PAGES):
        page = await login.ask(f"/api/v2/workspaces?limit={_PAGE}&offset={page_number * _PAGE}")
        try:
            workspaces = page["workspaces"]
            for workspace in workspaces:
                for resource in workspace["latest_build"]["resources"] or ():
                    found += [
                        _known(agent, workspace["name"], workspace["owner_name"]) for agent in resource["agents"] or ()
                    ]
        except _STRANGE:
            raise TransportError(f"{fit_to_show(login.url)} lists workspaces in a form that is not known") from None
        if len(workspaces) < _PAGE:
            break
    return sorted(found, key=lambda agent: (agent.workspace, agent.name))


async def find_agent(login: Login, text: str) -> KnownAgent:
    """The agent that a user means.  Raises ConfigError that names those there are, and as Login.ask does."""
    try:
        agent_id = PeerID.parse(text)
    except MalformedField:
        return choose_agent(await list_agents(login), text)
    try:
        return _known(await login.ask(f"/api/v2/workspaceagents/{agent_id}"), "", "")
    except ConfigError:
        raise ConfigError(f"no agent has the id {agent_id}, or it is none of yours") from None
    except _STRANGE:
        raise TransportError(f"{fit_to_show(login.url)} describes agents in a form that is not known") from None


def choose_agent(known: Iterable[KnownAgent], text: str) -> KnownAgent:
    """The one that has this name.  Raises ConfigError that names those that have, or all."""
    known = list(known)
    wanted = text.lower()
    named = [agent for agent in known if wanted in _names(agent)]
    if len(named) == 1:
        return named[0]
    shown = fit_to_show(text)
    if named:
        raise ConfigError(f"{shown} may be {_listed(named)}: say which")
    if not known:
        raise ConfigError(f"there is no agent {shown}: none of your workspaces has any")
    raise ConfigError(f"there is no agent {shown}; yours are {_listed(known)}")


def _names(agent: KnownAgent) -> set[str]:
    workspace, name, owner = agent.workspace.lower(), agent.name.lower(), agent.owner.lower()
    return {name, workspace, f"{workspace}.{name}", f"{owner}/{workspace}", f"{owner}/{workspace}.{name}"}


def _listed(known: list[KnownAgent]) -> str:
    more = f" and {len(known) - _MAX_SHOWN} more (`tailnet agents`)" if len(known) > _MAX_SHOWN else ""
    return ", ".join(agent.label for agent in known[:_MAX_SHOWN]) + more


def _known(agent: Mapping[str, Any], workspace: str, owner: str) -> KnownAgent:
    system = "/".join(part for part in (agent.get("operating_system"), agent.get("architecture")) if part)
    return KnownAgent(
        PeerID.parse(agent["id"]),
        str(agent["name"]),
        str(workspace),
        str(owner),
        str(agent.get("status", "")),
        str(agent.get("lifecycle_state", "")),
        system,
        str(agent.get("version", "")),
    )
