"""Routes of each kind of thing: list, make, show, put, change, delete, and what tokens need beside (layer L3).

All kinds have the same six, made here from services/administration/resources.py.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from fastapi import APIRouter
from pydantic import create_model
from starlette.requests import Request
from starlette.responses import Response

from tailnet.api.administration.guards import Administrator, ServicesOf
from tailnet.api.administration.requests import (
    Paging,
    change,
    is_known,
    match_of,
    parameters,
    read_body,
    respond,
    takes,
)
from tailnet.services.administration import operations
from tailnet.services.administration.filters import parse_filters
from tailnet.services.administration.idempotency import Answer
from tailnet.services.administration.models import Rotation, Shown
from tailnet.services.administration.resources import RESOURCES, Resource, read_model

PAGES: Final = {
    "cursor": "`next` of the page before, with the same filters",
    "limit": "how many things a page has, 100 by default, 1,000 at the most",
}
_KEY: Final = {"Idempotency-Key": "the same request with the same key within a day is carried out once"}
_MATCH: Final = {"If-Match": "the change is made only if this is its ETag; * if it exists"}
_NEW: Final = {"If-None-Match": "*: the change is made only if the thing is new"}


def make_router(resource: Resource) -> APIRouter:
    """The routes of one kind."""
    router = APIRouter(prefix=f"/{resource.plural}", tags=[resource.plural])
    one = f"/{{{resource.name}}}"
    shown = {"response_model": resource.shown}
    _add_reading(router, resource, one)
    name = resource.name

    async def create(request: Request, services: ServicesOf, caller: Administrator) -> Response:
        body = await read_body(request)
        return await change(request, services, caller, operations.create(resource, resource.read(body)), body)

    async def put(request: Request, services: ServicesOf, caller: Administrator) -> Response:
        body = await read_body(request)
        ident = resource.parse_id(request.path_params[name])
        operation = operations.put(resource, ident, resource.read(body), match_of(request))
        return await change(request, services, caller, operation, body)

    async def patch(request: Request, services: ServicesOf, caller: Administrator) -> Response:
        body = await read_body(request)
        ident = resource.parse_id(request.path_params[name])
        operation = operations.patch(resource, ident, resource.read(body, partial=True), match_of(request))
        return await change(request, services, caller, operation, body)

    async def delete(request: Request, services: ServicesOf, caller: Administrator) -> Response:
        ident = resource.parse_id(request.path_params[name])
        return await change(request, services, caller, operations.delete(resource, ident, match_of(request)))

    add = _Adder(router)
    add("POST", "", create, f"Make a {name}, with an id that the server chooses", f"create_{name}", 201, **shown,
        openapi_extra=parameters({}, _KEY) | takes(resource.given))  # fmt: skip
    add("PUT", one, put, f"Have a {name} be so, with an id of one's own", f"put_{name}", 200, **shown,
        responses={201: {"model": resource.shown, "description": "It was not there, and is now"}},
        openapi_extra=parameters({}, _MATCH | _NEW | _KEY) | takes(resource.given))  # fmt: skip
    add("PATCH", one, patch, f"Change a part of a {name}", f"patch_{name}", 200, **shown,
        openapi_extra=parameters({}, _MATCH | _KEY) | takes(resource.change))  # fmt: skip
    add("DELETE", one, delete, f"Delete a {name} with all that belongs to it", f"delete_{name}", 204,
        openapi_extra=parameters({}, _MATCH | _KEY))  # fmt: skip
    return router


def _add_reading(router: APIRouter, resource: Resource, one: str) -> None:
    items: Any = list[resource.shown]  # type: ignore[name-defined]  # a model of many
    name = f"{resource.name.capitalize()}Page"
    page_model = create_model(name, __base__=Shown, items=(items, ...), next=(str | None, ...))

    async def several(request: Request, services: ServicesOf, caller: Administrator) -> Response:
        paging = Paging(request, caller)
        filters = parse_filters(resource, paging.filters)
        after = resource.parse_id(paging.after) if paging.after else None
        administration = services.administration
        page = await administration.store.run(administration.page, resource, filters, after, paging.limit)
        return paging.respond(page)

    async def show(request: Request, services: ServicesOf, caller: Administrator) -> Response:
        ident = resource.parse_id(request.path_params[resource.name])
        administration = services.administration
        body, etag = await administration.store.run(administration.get, resource, ident)
        if is_known(request, etag):
            return Response(status_code=304, headers={"ETag": f'"{etag}"'})
        return respond(Answer(200, body, etag))

    filters = {name: f"those whose {name} is this" for name in resource.kind.filters}
    if "q" in filters:
        filters["q"] = f"those whose {resource.label} has this in it, whatever its case"
    add = _Adder(router)
    add("GET", "", several, f"The {resource.plural}, by id", f"list_{resource.plural}", 200, response_model=page_model,
        openapi_extra=parameters(filters | PAGES))  # fmt: skip
    add("GET", one, show, f"One {resource.name}", f"get_{resource.name}", 200, response_model=resource.shown,
        responses={304: {"description": "It is what If-None-Match names"}},
        openapi_extra=parameters({}, {"If-None-Match": "what the caller has"}))  # fmt: skip


class _Adder:
    """Adds routes to a router; their paths have ids that the functions read themselves."""

    def __init__(self, router: APIRouter) -> None:
        self._router = router

    def __call__(
        self, method: str, path: str, function: Callable[..., Any], summary: str, name: str, status: int, **more: Any
    ) -> None:
        more.setdefault("response_model", None)
        self._router.add_api_route(
            path, function, methods=[method], summary=summary, operation_id=name, status_code=status, **more
        )


ROUTERS: Final = [make_router(resource) for resource in RESOURCES.values()]

# --- what tokens need beside

tokens = APIRouter(tags=["tokens"])


class Revoked(Shown):
    """How many tokens are good no more."""

    revoked: int


async def _read_grace(request: Request) -> tuple[bytes, timedelta]:
    body = await read_body(request)
    rotation = read_model(Rotation, body or b"{}")
    return body, timedelta(seconds=rotation.grace_seconds)


@tokens.post(
    "/tokens/{token}/rotate",
    operation_id="rotate_token",
    status_code=201,
    response_model=RESOURCES["token"].shown,
    openapi_extra=parameters({}, _MATCH | _KEY) | takes(Rotation, required=False),
)
async def rotate_token(request: Request, services: ServicesOf, caller: Administrator, token: str) -> Response:
    """Replace a user's token by a new one like it, which is shown once."""
    body, grace = await _read_grace(request)
    ident = RESOURCES["token"].parse_id(token)
    return await change(request, services, caller, operations.rotate_token(ident, grace, match_of(request)), body)


@tokens.post(
    "/agents/{agent}/rotate",
    operation_id="rotate_agent",
    response_model=RESOURCES["agent"].shown,
    openapi_extra=parameters({}, _MATCH | _KEY) | takes(Rotation, required=False),
)
async def rotate_agent(request: Request, services: ServicesOf, caller: Administrator, agent: str) -> Response:
    """Give an agent a new token, which is shown once."""
    body, grace = await _read_grace(request)
    ident = RESOURCES["agent"].parse_id(agent)
    return await change(request, services, caller, operations.rotate_agent(ident, grace, match_of(request)), body)


@tokens.post("/users/{user}/revoke-tokens", operation_id="revoke_tokens", response_model=Revoked)
async def revoke_tokens(request: Request, services: ServicesOf, caller: Administrator, user: str) -> Response:
    """Delete every token of a user: he is signed out everywhere."""
    return await change(request, services, caller, operations.revoke_tokens(RESOURCES["user"].parse_id(user)))


@tokens.post("/agents/{agent}/revoke-tokens", operation_id="revoke_issued_tokens", response_model=Revoked)
async def revoke_issued(request: Request, services: ServicesOf, caller: Administrator, agent: str) -> Response:
    """End the tokens that were issued beside an agent's own."""
    return await change(request, services, caller, operations.revoke_issued_tokens(RESOURCES["agent"].parse_id(agent)))
