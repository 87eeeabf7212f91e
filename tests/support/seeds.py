"""A small world for tests of the store, the callers and the API: two owners, three agents, plain tokens."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from tailnet.store.importing import SeedOutcome, import_seed
from tailnet.store.rows import PresenceChange
from tailnet.store.schema import HEAD_REVISION
from tailnet.store.seed import parse_seed
from tailnet.store.store import Store
from tailnet.types import PeerID

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
# Counters that a new store has by itself.
OUR_SCHEMA = f"schema {HEAD_REVISION} is for programs from"
OWN_COUNTERS = {"callers", OUR_SCHEMA}
_NAMESPACE = UUID("12345678-1234-5678-1234-567812345678")


def make_id(name: str) -> UUID:
    return uuid5(_NAMESPACE, name)


def peer_id(name: str) -> PeerID:
    return PeerID(make_id(name).bytes)


def user_token(username: str) -> str:
    """`<10>-<22>`, as the control plane makes them."""
    return f"{username:x<10}-{username:y<22}"


@dataclass(frozen=True)
class AgentSpec:
    name: str
    workspace: str
    owner: str


DEFAULT_AGENTS = (
    AgentSpec("main", "dev", "alice"),
    AgentSpec("gpu", "dev", "alice"),
    AgentSpec("web", "shop", "bob"),
)


def seed_document(agents: tuple[AgentSpec, ...] = DEFAULT_AGENTS) -> dict[str, list[dict[str, str]]]:
    owners = sorted({agent.owner for agent in agents})
    return {
        "users": [{"id": str(make_id(name)), "username": name, "token": user_token(name)} for name in owners],
        "agents": [
            {
                "id": str(make_id(agent.name)),
                "token": str(make_id(f"token of {agent.name}")),
                "name": agent.name,
                "workspace_id": str(make_id(agent.workspace)),
                "workspace_name": agent.workspace,
                "owner_id": str(make_id(agent.owner)),
            }
            for agent in agents
        ],
    }


def agent_token(name: str) -> str:
    return str(make_id(f"token of {name}"))


def fill(store: Store, document: object | None = None) -> SeedOutcome:
    text = json.dumps(seed_document() if document is None else document)
    return import_seed(store, parse_seed(text), NOW)


def came(store: Store, agent_id: PeerID, at: datetime, server: str = "") -> None:
    """A server saw an agent connect."""
    store.presence.record([PresenceChange(agent_id, came_at=at)], server, at, timedelta(seconds=30))


def left(store: Store, agent_id: PeerID, at: datetime, server: str = "") -> None:
    """And saw its connection end."""
    store.presence.record([PresenceChange(agent_id, left_at=at)], server, at, timedelta(seconds=30))


def definitions(of: str = "main") -> dict[str, list[dict[str, object]]]:
    """Apps, scripts and metadata of an agent as a seed has them; ids are made of its name."""
    check = {"url": "http://localhost:13337/healthz", "interval": 5, "threshold": 6}
    return {
        "apps": [
            {
                "id": str(make_id(f"editor of {of}")),
                "slug": "editor",
                "display_name": "Editor",
                "url": "http://localhost:13337",
                "icon": "/icon/code.svg",
                "subdomain": True,
                "subdomain_name": "editor--main--dev--alice",
                "sharing_level": "authenticated",
                "healthcheck": check,
                "open_in": "tab",
                "tooltip": "Opens\nin a tab",
            },
            {"id": str(make_id(f"shell of {of}")), "slug": "shell", "command": "htop\n", "hidden": True},
        ],
        "scripts": [
            {
                "id": str(make_id(f"start of {of}")),
                "log_source_id": str(make_id("a source")),
                "log_path": "start.log",
                "script": "#!/bin/sh\nset -e\n\techo started\n",
                "run_on_start": True,
                "start_blocks_login": True,
                "timeout": 30_000_000_000,
                "display_name": "Start",
            },
            {"id": str(make_id(f"nightly of {of}")), "cron": "0 3 * * *"},
        ],
        "metadata": [
            {"key": "cpu", "display_name": "CPU", "script": "uptime", "interval": 10, "timeout": 1},
            {"key": "disk", "script": "df -h"},
        ],
    }


def defined_document() -> Any:
    """The small world, whose agent `main` has everything that a seed can give it."""
    document: Any = seed_document()
    document["agents"][0] |= definitions()
    return document
