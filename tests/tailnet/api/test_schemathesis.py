"""schemathesis asks every operation what the API's own description allows, and what it forbids: no answer may be a
defect of ours, none may have a status, a kind or a body that is not described."""

import re
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from tailnet.tokens import COOKIE
from tests.support.api_world import LOCAL, World
from tests.support.openapi_document import document
from tests.support.seeds import agent_token, defined_document, fill, peer_id, user_token

# Some 40 operations twice: half a minute in all.
EXAMPLES = 8
SCHEMA = schemathesis.openapi.from_dict(document())
WANTED = CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
# Where what schemathesis makes up is refused, and rightly.
REFUSING = {
    "/debug/{name}": "no page has such a name",
    "/debug/agent": "no agent has such an id",
    "/api/v2/workspaceagents/me/external-auth": "it wants one parameter of two, and one that names a provider",
    "/api/v2/workspaceagents/me/gitauth": "the same",
    "/api/v2/admin/events": "it is for administrators, and whoever asks here is none",
    "/api/v2/workspaceagents/{workspaceagent}/watch-metadata-ws": "without an upgrade it is 426",
}
# What stands in paths and exists.
KNOWN = {"workspaceagent": str(peer_id("main")), "user": "alice", "workspacename": "dev"}
TOKEN_HEADERS = {"cookie", "authorization", "coder-session-token"}
TOKENS = {"user": user_token("alice"), "agent": agent_token("main"), "operator": "", None: ""}


def operations() -> Iterator[Any]:
    for result in SCHEMA.get_all_operations():
        operation = result.ok()
        raw = operation.definition.raw
        good = {status: answer for status, answer in raw["responses"].items() if status[0] in "12"}
        kinds = {kind for answer in good.values() for kind in answer.get("content", {})}
        if set(good) == {"101"} or "text/event-stream" in kinds:
            continue  # a websocket, or a stream without an end
        yield pytest.param(operation, raw.get("x-caller"), id=f"{operation.method}{operation.path}".replace("/", "_"))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
@pytest.mark.parametrize(("operation", "caller"), list(operations()))
async def test_what_is_answered_is_described(
    world: World, operation: Any, caller: str | None, mode: GenerationMode
) -> None:
    fill(world.store, defined_document())
    world.services = replace(world.services, config=replace(world.services.config, api_rate_limit=0))
    statuses: set[int] = set()
    async with world.client(LOCAL, TOKENS[caller]) as client:

        async def ask(case: Any) -> httpx.Response:
            sent = case.as_transport_kwargs(base_url="http://localhost")
            # The description names every way to give a token; ours is in a header, and a made one would win.
            headers = {
                name: value for name, value in (sent.get("headers") or {}).items() if name.lower() not in TOKEN_HEADERS
            }
            query = {name: value for name, value in (sent.get("params") or {}).items() if name != COOKIE}
            url = sent["url"]
            body = {"json": sent["json"]} if "json" in sent else {"content": sent.get("data")}
            return await client.request(sent["method"], url, headers=headers, params=query, **body)

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def look(case: Any) -> None:
            if mode is GenerationMode.POSITIVE:
                known = {name: value for name, value in KNOWN.items() if name in (case.path_parameters or {})}
                case.path_parameters = (case.path_parameters or {}) | known
            response = trio.from_thread.run(ask, case)
            statuses.add(response.status_code)
            case.validate_response(response, checks=WANTED)

        with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
            # Of some operations nothing is forbidden: they take no parameter and no body.
            await trio.to_thread.run_sync(look)
    are_known = set(re.findall(r"{(\w+)}", operation.path)) <= set(KNOWN)
    if mode is GenerationMode.POSITIVE and operation.method == "get" and operation.path not in REFUSING and are_known:
        assert 200 in statuses, "else it was a test of refusals"
