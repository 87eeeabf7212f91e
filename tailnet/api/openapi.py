"""The API's own description (layer L3): what FastAPI reads from the code, and what it cannot read there.

That is who may call (from the guards of each route), websockets, and the RPC sockets that never reach the app
(rpc_admission.py).  Served at /api/v2/openapi.json, shown at /docs (docs.py), kept as docs/openapi.json.
The form is OpenAPI 3.1.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.responses import StreamingResponse
from starlette.routing import BaseRoute

from tailnet.api.guards import GUARDS
from tailnet.tokens import COOKIE

Json = dict[str, Any]

# Every way in which find_token (tokens.py) takes a token.
SECURITY_SCHEMES: Final[Json] = {
    "CoderSessionToken": {"type": "apiKey", "in": "header", "name": "Coder-Session-Token"},
    "Cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
    "Query": {"type": "apiKey", "in": "query", "name": COOKIE},
    "Bearer": {"type": "http", "scheme": "bearer"},
}
_TOKEN: Final[list[dict[str, list[str]]]] = [{name: []} for name in SECURITY_SCHEMES]
# Operators may come by their address alone.
_SECURITY: Final[dict[str, list[dict[str, list[str]]]]] = {
    "agent": _TOKEN,
    "user": _TOKEN,
    "operator": [{}, *_TOKEN],
    "relay": [{"Bearer": []}],
}
_SWITCHED: Final[Json] = {"description": "Switching Protocols: a websocket begins"}
_REFUSED: Final[Json] = {
    "description": "Refused, and why",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}},
}
_VERSION: Final = ("version", "the version of the API that the caller speaks, such as 2.4")
_RESUME: Final = ("resume_token", "what an earlier connection was given, to come back as the same peer")
# Path, what it is, who calls, parameters.
_RPC_SOCKETS: Final = (
    (
        "/api/v2/workspaceagents/me/rpc",
        "Workspace agent RPC API",
        "agent",
        (_VERSION, ("role", "agent, or what a tool calls itself that leaves the agent's status alone")),
    ),
    ("/api/v2/workspaceagents/me/coordinate", "Coordinate workspace agent via Tailnet, version 1", "agent", ()),
    ("/api/v2/workspaceagents/{workspaceagent}/coordinate", "Coordinate workspace agent", "user", (_VERSION, _RESUME)),
    ("/api/v2/tailnet", "User-scoped tailnet RPC connection", "user", (_VERSION, _RESUME)),
)


def describe(app: FastAPI, document: Json) -> Json:
    """Complete FastAPI's document of this app."""
    paths: Json = document["paths"]
    components = document.setdefault("components", {})
    components["securitySchemes"] = SECURITY_SCHEMES
    for route in routes_of(app):
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                operation = paths.get(route.path_format, {}).get(method.lower())
                if operation is not None:
                    _complete(operation, route)
        elif isinstance(route, APIWebSocketRoute) and ":path" not in route.path:
            operation = paths.setdefault(route.path_format, {}).setdefault("get", {})
            if not operation:
                summary = (route.endpoint.__doc__ or route.name.replace("_", " ").capitalize()).strip().split("\n")[0]
                caller = caller_of(route.dependant)
                queries = [(each.alias, each.field_info.description or "") for each in route.dependant.query_params]
                operation.update(_socket(route.path, summary, caller, queries, route.name))
            operation["responses"]["101"] = _SWITCHED
    for path, summary, caller, parameters in _RPC_SOCKETS:
        name = path.replace("/api/v2/", "").replace("workspaceagents/", "")
        socket = _socket(path, summary, caller, parameters, re.sub(r"\W+", "_", name))
        socket["responses"].pop("429", None)  # how many of these one may open has a bound of its own
        paths[path] = {"get": socket}
    document["paths"] = dict(sorted(paths.items()))
    return document


def operation_name(route: APIRoute) -> str:
    """What generated clients call an operation: its file and its function, without saying the same twice."""
    room = route.endpoint.__module__.rpartition(".")[2]
    return room if route.name == room else f"{room}_{route.name}"


def routes_of(app: FastAPI | APIRouter) -> Iterator[BaseRoute]:
    """Every route, those of included routers too."""
    for route in app.routes:
        included = getattr(route, "original_router", None)  # newer versions of FastAPI keep them apart
        if included is None:
            yield route
        else:
            yield from routes_of(included)


def caller_of(dependant: Dependant) -> str | None:
    """Who may call a route, by the guards that it or its router takes: agent, user, operator or relay."""
    for each in dependant.dependencies:
        if each.call in GUARDS:
            return GUARDS[each.call]
        found = caller_of(each)
        if found is not None:
            return found
    return None


def _complete(operation: Json, route: APIRoute) -> None:
    _secure(operation, caller_of(route.dependant))
    for status, answer in operation["responses"].items():
        content = {name.partition(";")[0]: each for name, each in answer.get("content", {}).items()}
        is_good = status.startswith("2") and status != "204"
        for each in content.values():
            # A function that returns nothing answers the four bytes `null`.
            each["schema"] = each.get("schema") or {"type": "null"}
        if is_good and not content and route.response_class is StreamingResponse:
            content = {"text/event-stream": {"schema": {"type": "string"}}}
        if content:
            answer["content"] = content


def _secure(operation: Json, caller: str | None) -> None:
    if caller is None:
        operation["security"] = []
        return
    operation["security"] = _SECURITY[caller]
    operation["x-caller"] = caller
    operation["responses"].setdefault("401", _REFUSED)
    if caller == "user":
        wait = {"description": "seconds until the caller may ask again", "schema": {"type": "integer", "minimum": 1}}
        operation["responses"].setdefault("429", _REFUSED | {"headers": {"Retry-After": wait}})


def _socket(path: str, summary: str, caller: str | None, queries: Iterable[tuple[str, str]], name: str) -> Json:
    parameters: list[Json] = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
        for each in re.findall(r"{(\w+)}", path)
    ]
    parameters += [
        {"name": each, "in": "query", "required": False, "description": meaning, "schema": {"type": "string"}}
        for each, meaning in queries
    ]
    operation: Json = {
        "tags": ["tailnet"],
        "summary": summary,
        "operationId": f"websocket_{name}",
        "responses": {"101": _SWITCHED, "426": _REFUSED, "4XX": _REFUSED, "5XX": _REFUSED},
    }
    if parameters:
        operation["parameters"] = parameters
    _secure(operation, caller)
    return operation
