"""A small world for tests of the store, the callers and the API: two owners, three agents, plain tokens."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid5

from tailnet.store.importing import SeedOutcome, import_seed
from tailnet.store.seed import parse_seed
from tailnet.store.store import Store
from tailnet.types import PeerID

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
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
