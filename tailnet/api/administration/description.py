"""The description of the administration API (layer L3): OpenAPI 3.1, kept as docs/openapi-admin.json.

FastAPI describes paths and answers; bodies are read by ourselves, so their schemas are added here, with who may call
and how a refusal looks.
"""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tailnet.api.administration.guards import GUARD
from tailnet.api.administration.problems import CONTENT_TYPE, Problem
from tailnet.api.openapi import routes_of
from tailnet.services.administration.lines import LINE_MODELS
from tailnet.services.administration.models import KeyRotation, Rotation
from tailnet.services.administration.resources import RESOURCES

Json = dict[str, Any]

_SCHEME: Final = "AdminToken"
_TEMPLATE: Final = "#/components/schemas/{model}"
_BULK_RESULT: Final[Json] = {
    "type": "object",
    "description": "What became of one line.",
    "required": ["line", "status"],
    "properties": {
        "line": {"type": "integer", "minimum": 1, "description": "counted from 1, blank lines too"},
        "kind": {"type": "string"},
        "id": {"type": "string"},
        "status": {"type": "integer", "description": "what a PUT of that line would be answered"},
        "result": {"enum": ["created", "changed", "unchanged"]},
        "etag": {"type": "string"},
        "token": {"type": "string", "description": "a new token, shown once"},
        "problem": {"$ref": "#/components/schemas/Problem"},
    },
}


def describe(app: FastAPI, document: Json) -> Json:
    """Complete FastAPI's document of this app."""
    components: Json = document.setdefault("components", {})
    components["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer"}}
    components["schemas"] = components.get("schemas", {}) | _schemas()
    refused = {
        "description": "Refused, and why",
        "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    guarded = {route.operation_id for route in routes_of(app) if isinstance(route, APIRoute) and is_guarded(route)}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            operation["responses"] |= {"4XX": refused, "5XX": refused}
            is_open = operation["operationId"] not in guarded
            operation["security"] = [] if is_open else [{_SCHEME: []}]
            if not is_open:
                operation["responses"]["401"] = refused
            _name_ids(path, operation)
    document["paths"] = dict(sorted(document["paths"].items()))
    components["schemas"] = dict(sorted(components["schemas"].items()))
    return document


def is_guarded(route: APIRoute) -> bool:
    """Whether a route takes an administrator."""
    return any(each.call is GUARD for each in route.dependant.dependencies)


def _schemas() -> Json:
    given = [model for each in RESOURCES.values() for model in (each.given, each.change)]
    models: list[type[BaseModel]] = [*given, *LINE_MODELS, Rotation, KeyRotation]
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_TEMPLATE)
    _, refused = models_json_schema([(Problem, "serialization")], ref_template=_TEMPLATE)
    lines = [{"$ref": _TEMPLATE.format(model=model.__name__)} for model in LINE_MODELS]
    line: Json = {"oneOf": lines, "discriminator": {"propertyName": "kind"}}
    return {**schemas["$defs"], **refused["$defs"], "BulkLine": line, "BulkResult": _BULK_RESULT}


def _name_ids(path: str, operation: Json) -> None:
    named = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
    for part in path.split("/"):
        name = part[1:-1]
        if part.startswith("{") and name not in named:
            schema = (
                {"type": "string"}
                if name in ("token", "key", "code", "grant")
                else {"type": "string", "format": "uuid"}
            )
            parameter = {"name": name, "in": "path", "required": True, "schema": schema}
            operation["parameters"] = [parameter, *operation.get("parameters", ())]
