"""schemathesis asks every operation of the administration API what its description allows and forbids, as
tests/tailnet/api/test_schemathesis.py does with the public one."""

import re
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import httpx
import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from tests.support.administration import ALICE, BOB, DEV, MAIN, AdminWorld
from tests.support.openapi_document import administration_document
from tests.support.seeds import make_id

EXAMPLES = 6
SCHEMA = schemathesis.openapi.from_dict(administration_document())
WANTED = CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
# What stands in paths and exists.
KNOWN = {
    "user": str(ALICE),
    "token": "alicexxxxx",
    "workspace": str(DEV),
    "grant": f"{DEV}:{BOB}",
    "agent": str(MAIN),
    "app": str(make_id("editor of main")),
    "script": str(make_id("start of main")),
    "code": "conflict",
}
# Parameters that are text in the description, and of which nothing that is made up means anything.
MEANT = {"cursor", "limit", "If-Match", "If-None-Match"}


def operations() -> Iterator[Any]:
    for result in SCHEMA.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/bulk"):
            continue  # JSON lines, which it cannot write: test_transfer.py does
        yield pytest.param(operation, id=f"{operation.method}{operation.path}".replace("/", "_"))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
@pytest.mark.parametrize("operation", list(operations()))
async def test_what_is_answered_is_described(world: AdminWorld, operation: Any, mode: GenerationMode) -> None:
    statuses: set[int] = set()
    async with world.client() as client:

        async def ask(case: Any) -> httpx.Response:
            sent = case.as_transport_kwargs(base_url="http://tailnet.example.com")
            headers = {
                name: str(value).encode("latin-1", "replace")
                for name, value in (sent.get("headers") or {}).items()
                if name.lower() != "authorization" and (mode is GenerationMode.NEGATIVE or name not in MEANT)
            }
            query = {
                name: value
                for name, value in (sent.get("params") or {}).items()
                if mode is GenerationMode.NEGATIVE or name not in MEANT
            }
            body = {"json": sent["json"]} if "json" in sent else {"content": sent.get("data")}
            return await client.request(sent["method"], sent["url"], headers=headers, params=query, **body)

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
            await trio.to_thread.run_sync(look)
    are_known = set(re.findall(r"{(\w+)}", operation.path)) <= set(KNOWN) - {"grant"}
    # Events are not kept here, and 404 says how to have them.
    expected = {404} if operation.path == "/api/v2/admin/events" else {200, 400}
    if mode is GenerationMode.POSITIVE and operation.method == "get" and are_known and not statuses & expected:
        raise AssertionError(f"else it was a test of refusals: {statuses}")
