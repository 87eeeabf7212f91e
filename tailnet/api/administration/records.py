"""Keys, the account of changes, and the meanings of problems (layer L3)."""

from fastapi import APIRouter
from pydantic import create_model
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tailnet.api.administration.guards import Administrator, ServicesOf
from tailnet.api.administration.problems import MEANINGS, problem, problem_response
from tailnet.api.administration.requests import Paging, change, parameters, read_body, takes
from tailnet.api.administration.resources import PAGES
from tailnet.services.administration import operations
from tailnet.services.administration.filters import parse_audit_filters
from tailnet.services.administration.models import AuditShown, KeyRotation, KeyShown, Shown
from tailnet.services.administration.resources import read_model

router = APIRouter()

_MAX_KEY_ID_CHARS = 64
_AuditPage = create_model("AuditPage", __base__=Shown, items=(list[AuditShown], ...), next=(str | None, ...))
_FILTERS = {
    "kind": "changes of this kind of thing",
    "target": "of the thing with this id",
    "actor": "by whom",
    "action": "create, update, delete, rotate, revoke, import",
    "since": "from this moment on",
    "until": "before this moment",
}


class Keys(Shown):
    """All keys, the newest of each purpose first."""

    items: list[KeyShown]


@router.get("/keys", tags=["keys"], operation_id="list_keys", response_model=Keys)
async def keys(services: ServicesOf, caller: Administrator) -> Response:
    """The keys of this installation, without their secrets."""
    administration = services.administration
    found = await administration.store.run(administration.list_keys)
    return JSONResponse({"items": found})


@router.post(
    "/keys",
    tags=["keys"],
    operation_id="rotate_key",
    status_code=201,
    response_model=KeyShown,
    openapi_extra=parameters({}, {"Idempotency-Key": "the same request is carried out once"}) | takes(KeyRotation),
)
async def rotate_key(request: Request, services: ServicesOf, caller: Administrator) -> Response:
    """Make a new key, which signs in 20 minutes, when all servers know it; those of before verify until what they
    signed has ended.  Where the one that signs is revoked, the new one takes its place at once."""
    body = await read_body(request)
    purpose = read_model(KeyRotation, body).purpose
    return await change(request, services, caller, operations.rotate_key(purpose), body)


@router.delete("/keys/{key}", tags=["keys"], operation_id="revoke_key", status_code=204, response_model=None)
async def revoke_key(request: Request, services: ServicesOf, caller: Administrator, key: str) -> Response:
    """Delete a key that is not the only one: what it signed is worth nothing from now on."""
    return await change(request, services, caller, operations.revoke_key(key[:_MAX_KEY_ID_CHARS]))


@router.get(
    "/audit",
    tags=["audit"],
    operation_id="audit",
    response_model=_AuditPage,
    openapi_extra=parameters(_FILTERS | PAGES),
)
async def audit(request: Request, services: ServicesOf, caller: Administrator) -> Response:
    """Who changed what, the newest first."""
    paging = Paging(request, caller)
    filters = parse_audit_filters(paging.filters)
    before = int(paging.after) if paging.after else None
    administration = services.administration
    return paging.respond(await administration.store.run(administration.audit, filters, before, paging.limit))


@router.get("/problems/{code}", tags=["problems"], operation_id="problem", response_class=PlainTextResponse)
async def meaning(code: str) -> Response:
    """What the code of a problem means."""
    if code not in MEANINGS:
        return problem_response(problem("not_found", f"there are the codes {', '.join(MEANINGS)}"))
    status, text = MEANINGS[code]
    return PlainTextResponse(f"{code} ({status}): {text}\n")
