"""A user's agents as a coordinator's HTTP API lists them, and which one is meant by a name.  Layer L3.

An agent's names: its id; the name of the agent, or of its workspace if that has one agent; `workspace.agent`, with the
owner before it (`owner/workspace.agent`) or without.  What the coordinator lists is tailnet/api/workspaces.py.
Callers: tailnet/cli, tailnet/node/tunnel.py.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from derp.text import fit_to_show
from tailnet.errors import ConfigError, MalformedField, TransportError
from tailnet.transport.fetch import Asker
from tailnet.types import PeerID

ASK_SECONDS: Final = 20.0
# A page of a hundred workspaces, of which each agent with its definitions is some ten kilobytes.
MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
_PAGE: Final = 100
# Pages that are asked for: nobody has more workspaces, and a server that says so is none of ours.
_MAX_PAGES: Final = 100
_MAX_SHOWN: Final = 10
# What JSON of another form comes to when it is read.
_STRANGE: Final = (KeyError, TypeError, AttributeError, MalformedField)


@dataclass(frozen=True, slots=True)
class Login:
    """Where, and as whom."""

    url: str
    token: str = field(repr=False)

    async def ask(self, path: str) -> Any:
        """The JSON that the coordinator answers with.  Raises TransportError: not reached, or refused; ConfigError:
        there is no such thing."""
        async with Asker(self.url, token=self.token, verified=True, timeout_seconds=ASK_SECONDS) as asker:
            answer = await asker.ask(path, MAX_ANSWER_BYTES)
        shown = fit_to_show(self.url)
        if answer.status == HTTPStatus.UNAUTHORIZED:
            raise TransportError(f"{shown} does not take the token: `tailnet login {shown}` stores a new one")
        try:
            page = json.loads(answer.body)
            said = page.get("message", "") if isinstance(page, dict) else ""
        except (ValueError, RecursionError):
            raise TransportError(f"{shown} answers {answer.status} and no JSON: is it a coordinator?") from None
        if answer.status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST):
            raise ConfigError(f"{shown} knows no {path}: {fit_to_show(str(said))}")
        if answer.status != HTTPStatus.OK:
            raise TransportError(f"{shown} answers {answer.status}: {fit_to_show(str(said))}")
        return page


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
