"""schemathesis asks each operation of an API what the API's own description allows, and what it forbids.

No answer may be a defect of ours, none may have a status, a kind or a body that is not described.
"""

import re
from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

# Known to CHECKS since the first description was read.
CHECKED = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
each_mode = pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"]
)


def operations_of(document: dict[str, Any]) -> list[Any]:
    """Every operation that a description has."""
    return [result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()]


def name_of(operation: Any) -> str:
    """What a test of it is called."""
    return f"{operation.method}{operation.path}".replace("/", "_")


@dataclass(frozen=True)
class Walk:
    """How one API is asked.  `examples`: how many requests each operation gets in each mode."""

    base_url: str
    examples: int
    known: Mapping[str, str]  # what stands in paths and queries, and exists
    tokens: Collection[str]  # parameters by which a caller comes in, in lower case: a made one would win over his
    meant: Collection[str] = ()  # text in the description, of which nothing that is made up means anything
    refusing: Collection[str] = ()  # paths where what is made up is refused, and rightly

    async def take(self, client: httpx.AsyncClient, operation: Any, mode: GenerationMode) -> None:
        """Ask one operation, and look at each answer; of what is there and allowed one has to be 200."""
        is_allowed = mode is GenerationMode.POSITIVE
        left_out = {*self.tokens, *(self.meant if is_allowed else ())}
        statuses: set[int] = set()

        async def ask(case: Any) -> httpx.Response:
            sent = case.as_transport_kwargs(base_url=self.base_url)
            headers = {
                name: str(value).encode("latin-1", "replace")
                for name, value in (sent.get("headers") or {}).items()
                if name.lower() not in left_out
            }
            query = {name: value for name, value in (sent.get("params") or {}).items() if name.lower() not in left_out}
            body = {"json": sent["json"]} if "json" in sent else {"content": sent.get("data")}
            return await client.request(sent["method"], sent["url"], headers=headers, params=query, **body)

        @settings(
            max_examples=self.examples,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def look(case: Any) -> None:
            if is_allowed:
                case.path_parameters = self._with_known(case.path_parameters)
                case.query = self._with_known(case.query)
            response = trio.from_thread.run(ask, case)
            statuses.add(response.status_code)
            case.validate_response(response, checks=CHECKS.get_by_names(CHECKED))

        with nullcontext() if is_allowed else suppress(Unsatisfiable):
            # Of some operations nothing is forbidden: they take no parameter and no body.
            await trio.to_thread.run_sync(look)
        are_known = set(re.findall(r"{(\w+)}", operation.path)) <= self.known.keys()
        if is_allowed and operation.method == "get" and are_known and operation.path not in self.refusing:
            assert 200 in statuses, f"else it was a test of refusals: {statuses}"

    def _with_known(self, made: Mapping[str, Any] | None) -> dict[str, Any]:
        return {name: self.known.get(name, value) for name, value in (made or {}).items()}
