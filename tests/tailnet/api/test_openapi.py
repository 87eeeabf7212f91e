"""The API's description: what is kept is what the code gives, no route lacks a guard, and the five published documents
of the Agents API hold for ours, but for what is argued here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import Route

from tailnet.api.openapi import SECURITY_SCHEMES, caller_of, routes_of
from tests.support.openapi_document import KEPT, as_kept, document, make_app, references

DESCRIBED = document()
PUBLISHED = json.loads((Path(__file__).parents[2] / "vectors" / "api_documents.json").read_text())

# Routes that anybody may call: why.
OPEN = {
    "/healthz": "load balancers have no token; it says that the process answers",
    "/readyz": "the same; its reasons name no peer",
    "/": "it says what this is, and whether it is well; agents only to whoever is signed in",
    "/login": "there one proves who one is",
    "/logout": "who has no session may end none",
    **dict.fromkeys(
        ("/live.js", "/terminal.js", "/terminal.css", "/xterm.js", "/xterm-addon-fit.js", "/xterm.css"),
        "scripts and styles of pages have no secret",
    ),
    "/health": "strangers get the state alone, and cause no measurement",
    "/docs": "what can be asked is no secret",
    "/api/v2/openapi.json": "the same, for programs",
    "/{path:path}": "unknown websockets, which get a 404",
    "/api/v2/buildinfo": "SDKs ask for the version before they have a token",
    "/api/v2/auth/changed": "its signature proves who calls",
    "/api/v2/relays/issuer": "a public key",
    "/api/v2/relays/verify": "stock derpers show no token; whoever knows a key learns whether it is announced",
    "/api/v2/workspaceagents/aws-instance-identity": "the body proves who calls",
    "/api/v2/workspaceagents/azure-instance-identity": "the body proves who calls",
    "/api/v2/workspaceagents/google-instance-identity": "the body proves who calls",
}

# Operations of the documents that may be missing: why.
LATER: dict[str, str] = {}

# What a document says and the reference does not do, or what only other documents say: why.
OTHERWISE = {
    "POST /workspaceagents/me/log-source status 200": "the reference answers 201, and SDKs demand it",
    "POST /workspaceagents/me/app-health body value healths.*=disabled": "the reference refuses it",
    "POST /workspaceagents/me/report-stats body conns_by_proto": "the older name, which is read too",
    "POST /workspaceagents/me/report-stats body num_comms": "the older name, which is read too",
    "PATCH /workspaceagents/me/app-status body icon": "the reference reads it over",
    "PATCH /workspaceagents/me/app-status body needs_user_attention": "the reference reads it over",
    "PATCH /workspaceagents/me/app-status answer": "the reference answers null",
    "PATCH /workspaceagents/me/logs answer": "the reference answers null",
    "GET /workspaceagents/me/reinit answer": "a stream of events, whose data OpenAPI 3.1 cannot describe",
    "GET /workspaceagents/{workspaceagent} answer parent_id.": "the reference sends a UUID or null",
    "GET /workspaceagents/{workspaceagent} answer login_before_ready": "only the oldest documents have it",
    "GET /workspaceagents/{workspaceagent} answer startup_script": "only the oldest documents have it",
    "GET /workspaceagents/{workspaceagent} answer startup_script_timeout_seconds": "only the oldest documents have it",
}
# What an object without a schema has at any place: an app's definition, a map as others wrote it.
ANYTHING: dict[str, Any] = {}


def test_what_is_kept_is_what_the_code_gives() -> None:
    assert KEPT.read_text() == as_kept(DESCRIBED), "the API changed: run `make openapi`"


def test_no_route_lacks_a_guard() -> None:
    unguarded = set()
    for route in routes_of(make_app()):
        guarded = isinstance(route, APIRoute | APIWebSocketRoute) and caller_of(route.dependant) is not None
        if not guarded:
            assert isinstance(route, Route | APIRoute | APIWebSocketRoute), route
            unguarded.add(route.path)
    assert unguarded <= set(OPEN), "a route that anybody may call: add its guard, or its reason to OPEN"
    assert "/healthz" in unguarded, "the walk saw the routes"


def test_a_route_without_a_guard_is_seen() -> None:
    app = make_app()
    app.add_api_route("/leak", lambda: None)
    assert [route.path for route in routes_of(app) if isinstance(route, APIRoute) and route.path == "/leak"]
    assert caller_of(next(route.dependant for route in routes_of(app) if getattr(route, "path", "") == "/leak")) is None  # type: ignore[attr-defined]  # asked by its path


@pytest.mark.parametrize("path", sorted(DESCRIBED["paths"]))
def test_every_operation_is_described(path: str) -> None:
    for method, operation in DESCRIBED["paths"][path].items():
        place = f"{method} {path}"
        assert operation["summary"], place
        good = [status for status in operation["responses"] if status[0] in "12"]
        assert good, place
        assert operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/Refusal")
        assert all(name in SECURITY_SCHEMES for way in operation["security"] for name in way), place
        assert bool(operation["security"]) == ("x-caller" in operation), place
        if operation["security"]:
            assert "401" in operation["responses"], place
        wanted = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        named = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert wanted == named, place


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for methods in DESCRIBED["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))


def test_every_reference_leads_somewhere() -> None:
    for name in references(DESCRIBED):
        assert resolve({"$ref": name}), name


# --- beside the published documents


def operations() -> Iterator[Any]:
    for name, published in PUBLISHED.items():
        for operation, said in published.items():
            yield pytest.param(operation, said, id=f"{name}-{operation.replace('/', '_')}")


@pytest.mark.parametrize(("operation", "said"), list(operations()))
def test_published(operation: str, said: dict[str, Any]) -> None:
    method, _, path = operation.partition(" ")
    ours = DESCRIBED["paths"].get(f"/api/v2{path}", {}).get(method.lower())
    assert (ours is None) == (operation in LATER), "LATER names what is missing, and nothing else"
    if ours is None:
        return
    differences = [each for each in differences_of(operation, said, ours) if not is_argued(each)]
    assert differences == []


def test_what_comes_later_is_not_here_yet() -> None:
    here = {
        f"{method.upper()} {path.removeprefix('/api/v2')}"
        for path, methods in DESCRIBED["paths"].items()
        for method in methods
    }
    assert here & set(LATER) == set()


def test_an_argued_difference_is_one() -> None:
    """What we would have argued away for nothing is no argument."""
    found = set()
    for published in PUBLISHED.values():
        for operation, said in published.items():
            method, _, path = operation.partition(" ")
            ours = DESCRIBED["paths"].get(f"/api/v2{path}", {}).get(method.lower())
            if ours is not None:
                found |= set(differences_of(operation, said, ours))
    assert [each for each in OTHERWISE if not any(difference.startswith(each) for difference in found)] == []


def test_a_difference_is_seen() -> None:
    operation = "GET /workspaceagents/{workspaceagent}"
    ours = DESCRIBED["paths"]["/api/v2/workspaceagents/{workspaceagent}"]["get"]
    said = {
        "parameters": ["query nonsense"],
        "statuses": ["299"],
        "answer": ["apps[].nonsense", "latency.*.nonsense", "id"],
        "values": ["status=nonsense", "status=connecting"],
    }
    assert list(differences_of(operation, said, ours)) == [
        f"{operation} parameter query nonsense",
        f"{operation} status 299",
        f"{operation} answer apps[].nonsense",
        f"{operation} answer latency.*.nonsense",
        f"{operation} value status=nonsense",
    ]


def test_a_difference_of_types_is_seen() -> None:
    operation = "GET /workspaceagents/{workspaceagent}"
    ours = DESCRIBED["paths"]["/api/v2/workspaceagents/{workspaceagent}"]["get"]
    said = {"answer types": ["logs_overflowed=string", "id=string", "latency.*.latency_ms=integer", "apps[].id=array"]}
    assert list(differences_of(operation, said, ours)) == [
        f"{operation} answer type logs_overflowed=string: boolean",
        f"{operation} answer type apps[].id=array: string",
    ]
    operation = "PATCH /workspaceagents/me/logs"
    ours = DESCRIBED["paths"]["/api/v2/workspaceagents/me/logs"]["patch"]
    said = {
        "body types": ["logs[].output=integer", "logs[].created_at=string"],
        "body values": ["logs[].level=nonsense", "logs[].level=trace"],
    }
    differences = list(differences_of(operation, said, ours))
    assert differences[0] == f"{operation} body value logs[].level=nonsense"
    assert differences[1].startswith(f"{operation} body type logs[].output=integer: ")
    assert len(differences) == 2


def is_argued(difference: str) -> bool:
    return any(difference.startswith(each) for each in OTHERWISE)


def differences_of(operation: str, said: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    named = {f"{each['in']} {each['name']}" for each in ours.get("parameters", ())}
    yield from (f"{operation} parameter {each}" for each in said.get("parameters", ()) if each not in named)
    yield from (f"{operation} status {each}" for each in said.get("statuses", ()) if each not in ours["responses"])
    bodies = list(json_schemas(ours.get("requestBody", {})))
    for place in said.get("body", ()):
        if not any(find(schema, place) for schema in bodies):
            yield f"{operation} body {place}"
    answers = [
        schema
        for status, answer in ours["responses"].items()
        if status.startswith("2")
        for schema in json_schemas(answer)
    ]
    for place in said.get("answer", ()):
        if not any(find(schema, place) for schema in answers):
            yield f"{operation} answer {place}"
    for schemas, name in ((answers, "value"), (bodies, "body value")):
        for each in said.get("values" if schemas is answers else "body values", ()):
            place, _, value = each.partition("=")
            for schema in schemas:
                enums = [found["enum"] for found in find(schema, place) if "enum" in found]
                if enums and not any(value in enum for enum in enums):
                    yield f"{operation} {name} {each}"
    for schemas, name in ((answers, "answer"), (bodies, "body")):
        for each in said.get(f"{name} types", ()):
            place, _, kind = each.rpartition("=")
            ours_there = {type_there for schema in schemas for type_there in types_at(schema, place)}
            if ours_there and kind not in ours_there:
                yield f"{operation} {name} type {each}: {', '.join(sorted(ours_there))}"


def types_at(schema: dict[str, Any], place: str) -> Iterator[str]:
    """What may stand at a place; all of it where its schema says nothing."""
    for found in find(schema, place):
        if found is ANYTHING or not found.keys() & {"type", "enum", "const", "anyOf", "oneOf", "allOf"}:
            yield from ("string", "integer", "number", "boolean", "array", "object")
        elif "type" in found:
            yield from [found["type"]] if isinstance(found["type"], str) else found["type"]
            if found["type"] == "number":
                yield "integer"


def json_schemas(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for kind, content in answer.get("content", {}).items():
        if kind == "application/json":
            yield content["schema"]


def find(schema: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The schemas that stand at a place, `apps[].health`, `latency.*.preferred`; none: there is no such place.

    Names are compared without regard to case: the documents are of a generator that wrote `regionID` for a field that
    the reference sends as `RegionID`.
    """
    steps = [step for part in place.replace("[]", ".[]").split(".") if (step := part)]
    found = list(variants(schema))
    for step in steps:
        found = [inner for each in found for inner in inside(each, step)]
    return found


def inside(schema: dict[str, Any], step: str) -> Iterator[dict[str, Any]]:
    if schema is ANYTHING:
        yield schema
    elif step == "[]":
        if "items" in schema:
            yield from variants(schema["items"])
    else:
        for name, inner in schema.get("properties", {}).items():
            if name.lower() == step.lower():
                yield from variants(inner)
        more = schema.get("additionalProperties")
        if isinstance(more, dict):
            yield from variants(more)
        elif more is True:
            yield ANYTHING


def variants(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in schema:
        yield from variants(resolve(schema))
        return
    yield schema
    for word in ("anyOf", "oneOf", "allOf"):
        for each in schema.get(word, ()):
            yield from variants(each)


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    found = DESCRIBED["components"]["schemas"][schema["$ref"].removeprefix("#/components/schemas/")]
    assert isinstance(found, dict)
    return found
