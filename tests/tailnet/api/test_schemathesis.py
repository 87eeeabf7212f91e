"""schemathesis asks every operation of the public API but those that answer without an end."""

from typing import Any

import pytest
from schemathesis import GenerationMode

from tailnet.config import CoordinatorConfig
from tailnet.store.rows import EventType, Role
from tailnet.store.store import Store
from tailnet.tokens import COOKIE
from tests.support.api_world import LOCAL, World, make_world
from tests.support.described_api import Walk, each_mode, name_of, operations_of
from tests.support.openapi_document import document
from tests.support.seeds import NOW, agent_token, defined_document, fill, make_id, peer_id, user_token

WALK = Walk(
    base_url="http://localhost",
    examples=8,  # some 40 operations twice: half a minute in all
    known={"workspaceagent": str(peer_id("main")), "user": "alice", "workspacename": "dev"},
    tokens={"cookie", "authorization", "coder-session-token", COOKIE},
    meant={"wait"},  # for something that happens, and nothing does
    refusing={
        "/debug/{name}": "no page has such a name",
        "/debug/agent": "no agent has such an id",
        "/api/v2/workspaceagents/me/external-auth": "it wants one parameter of two, and one that names a provider",
        "/api/v2/workspaceagents/me/gitauth": "the same",
        "/api/v2/workspaceagents/{workspaceagent}/watch-metadata-ws": "without an upgrade it is 426",
        "/api/v2/workspaceagents/{workspaceagent}/containers/watch": "the same",
        "/api/v2/workspaceagents/{workspaceagent}/containers": "no agent is connected, which could be asked",
        "/api/v2/workspaceagents/{workspaceagent}/listening-ports": "the same",
    },
)
RELAYS_TOKEN = "s3cret-of-relays"
TOKENS = {"user": user_token("alice"), "agent": agent_token("main"), "relay": RELAYS_TOKEN}
# Of administrators alone.
ADMINISTRATION = "/api/v2/admin/"


def operations() -> list[Any]:
    found = []
    for operation in operations_of(document()):
        good = {status: each for status, each in operation.definition.raw["responses"].items() if status[0] in "12"}
        kinds = {kind for answer in good.values() for kind in answer.get("content", {})}
        if set(good) == {"101"} or "text/event-stream" in kinds:
            continue  # a websocket, or a stream without an end
        found.append(operation)
    return found


@pytest.fixture
def world(store: Store) -> World:
    made = make_world(store, CoordinatorConfig(events=True, api_rate_limit=0, relays_token=RELAYS_TOKEN))
    fill(store, defined_document())
    return made


@each_mode
@pytest.mark.parametrize("operation", operations(), ids=name_of)
async def test_what_is_answered_is_described(world: World, operation: Any, mode: GenerationMode) -> None:
    caller = operation.definition.raw.get("x-caller")
    if operation.path.startswith(ADMINISTRATION):
        world.store.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN)
        world.services.events.note(peer_id("main"), EventType.READY)
        await world.outbox.flush()
    async with world.client(LOCAL) as client:
        if caller in TOKENS:  # by the one way that every caller may take
            client.headers["Authorization"] = f"Bearer {TOKENS[caller]}"
        await WALK.take(client, operation, mode)
