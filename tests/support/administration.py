"""Administration for tests: an actor, changes as one writes them, and the HTTP API over a filled store."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tailnet.api.administration.app import create_administration
from tailnet.api.administration.guards import AdministrationServices
from tailnet.auth.administrators import Administrators
from tailnet.config.admin_tokens import parse_admin_tokens
from tailnet.services.administration import operations
from tailnet.services.administration.idempotency import Answer
from tailnet.services.administration.resources import RESOURCES
from tailnet.services.administration.service import Actor, Administration
from tailnet.store.rows import Right
from tailnet.store.store import Store
from tests.support.seeds import make_id, peer_id

TOKEN = "control-plane-token-of-forty-characters-"
OTHER_TOKEN = "another-token-of-more-than-thirty-two-chars"
TOKENS = parse_admin_tokens(f"plane:{TOKEN}\nother:{OTHER_TOKEN}\n")
ACTOR = Actor("local", "somebody@here")
# What stands in the store of tests/support/seeds.py.
ALICE, BOB, DEV, SHOP, MAIN, GPU, WEB = (
    make_id(name) for name in ("alice", "bob", "dev", "shop", "main", "gpu", "web")
)


def put(work: Administration, kind: str, ident: object, **fields: Any) -> Answer:
    """A PUT of that kind."""
    resource = RESOURCES[kind]
    return work.do(ACTOR, operations.put(resource, resource.parse_id(str(ident)), resource.read(json.dumps(fields))))


def patch(work: Administration, kind: str, ident: object, **fields: Any) -> Answer:
    """A part of a thing is changed."""
    resource = RESOURCES[kind]
    body = resource.read(json.dumps(fields), partial=True)
    return work.do(ACTOR, operations.patch(resource, resource.parse_id(str(ident)), body))


def grant(store: Store, workspace: str, user: str, *rights: Right) -> None:
    """An administrator gives somebody exactly these rights on a workspace of seeds.py; without any he takes all."""
    work, ids = Administration(store), (make_id(workspace), make_id(user))
    if rights:
        fields = {"workspace_id": str(ids[0]), "user_id": str(ids[1]), "rights": [each.value for each in rights]}
        put(work, "grant", f"{ids[0]}:{ids[1]}", **fields)
    else:
        work.do(ACTOR, operations.delete(RESOURCES["grant"], ids))


def set_instance(store: Store, agent: str, instance_id: str) -> None:
    """An administrator says on which cloud instance an agent runs, "" for none."""
    patch(Administration(store), "agent", make_id(agent), instance_id=instance_id)


def revoke_issued(store: Store, agent: str) -> int:
    """An administrator ends an agent's issued tokens.  Returns how many there were."""
    body = Administration(store).do(ACTOR, operations.revoke_issued_tokens(peer_id(agent))).body
    assert isinstance(body, dict)
    return int(body["revoked"])


def agent_line(name: str, /, **fields: Any) -> bytes:
    """A line of a bulk change: an agent of alice's workspace, with a token of its own."""
    line = {"kind": "agent", "id": str(make_id(name)), "name": name, "workspace_id": str(DEV)}
    return json.dumps({**line, "token": str(make_id(f"token of {name}")), **fields}).encode() + b"\n"


@dataclass
class AdminWorld:
    """The administration API over a filled store."""

    store: Store
    services: AdministrationServices

    @asynccontextmanager
    async def client(self, token: str = TOKEN, address: str = "203.0.113.9") -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(
            create_administration(self.services), raise_app_exceptions=False, client=(address, 4711)
        )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = "http://tailnet.example.com/api/v2/admin/"
        async with httpx.AsyncClient(transport=transport, base_url=url, headers=headers) as client:
            yield client


def make_admin_world(store: Store, rate_limit: int = 0) -> AdminWorld:
    return AdminWorld(store, AdministrationServices(Administration(store), Administrators(TOKENS), rate_limit))


def everything(store: Store) -> list[Any]:
    """All rows of all tables but what counts: to see that nothing was half-written."""
    from tailnet.store.schema import counters, metadata

    with store.reading() as connection:
        return [
            (table.name, sorted(map(repr, connection.execute(table.select()).all())))
            for table in metadata.sorted_tables
            if table is not counters
        ]
