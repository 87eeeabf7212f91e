"""The description of the administration API: what is kept is what the code gives, and it has real schemas."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.openapi_document import KEPT_ADMINISTRATION, administration_document, as_kept, references

DESCRIBED = administration_document()
SCHEMAS = DESCRIBED["components"]["schemas"]
PATHS = sorted(DESCRIBED["paths"])


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DESCRIBED["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_what_is_kept_is_what_the_code_gives() -> None:
    assert KEPT_ADMINISTRATION.read_text() == as_kept(DESCRIBED), "the API changed: run `make openapi`"


@pytest.mark.parametrize("path", PATHS)
def test_every_operation_is_described(path: str) -> None:
    for method, operation in DESCRIBED["paths"][path].items():
        assert operation["summary"]
        assert operation["operationId"]
        answers = operation["responses"]
        good = [status for status in answers if status[0] == "2"]
        assert good, method
        for status in good:
            if status != "204" and "problems" not in path:
                (content,) = answers[status]["content"].values()
                assert "$ref" in content["schema"], (path, method, status)
        problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
        assert answers["4XX"]["content"] == {"application/problem+json": problem}
        if method in ("put", "patch") or (method == "post" and "revoke" not in path):
            assert operation["requestBody"]["content"], (path, method)
        assert operation["security"] == ([{"AdminToken": []}] if "problems" not in path else [])
        wanted = set(re.findall(r"{(\w+)}", path))
        assert wanted == {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names)) > 40


def test_every_reference_leads_somewhere() -> None:
    names = {each.rpartition("/")[2] for each in references(DESCRIBED)}
    assert names <= set(SCHEMAS)
    assert {"UserGiven", "AgentChange", "BulkLine", "BulkResult", "Problem", "AgentPage"} <= names


def test_schemas_are_real() -> None:
    agent = SCHEMAS["AgentGiven"]
    assert agent["required"] == ["workspace_id", "name"]
    assert agent["additionalProperties"] is False
    assert agent["properties"]["name"]["maxLength"] == 256
    assert "required" not in SCHEMAS["AgentChange"]
    assert set(SCHEMAS["UserShown"]["properties"]) == {"id", "username", "active", "role", "created_at", "updated_at"}
    assert len(SCHEMAS["BulkLine"]["oneOf"]) == 7
