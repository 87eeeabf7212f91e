"""Refusals of the administration API as problem details, RFC 9457 (layer L3).

`type` is where its meaning can be read (GET it), `code` the last word of that: what programs act on.  `errors` has the
fields that are wrong.  Nothing of it repeats a secret.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from tailnet.errors import AdministrationError, Fault, StoreError

CONTENT_TYPE: Final = "application/problem+json"
PREFIX: Final = "/api/v2/admin"
# Code -> status, and what it means.
MEANINGS: Final[Mapping[str, tuple[int, str]]] = {
    Fault.INVALID.value: (400, "A field, a filter, a cursor or the body makes no sense; `errors` says which and why."),
    "unauthenticated": (401, "The request has no token of an administrator: Authorization: Bearer TOKEN."),
    Fault.NOT_FOUND.value: (404, "There is no such thing."),
    "method_not_allowed": (405, "This place takes other methods."),
    Fault.CONFLICT.value: (409, "What was asked for contradicts something else that is there; `errors` says what."),
    Fault.STALE.value: (412, "If-Match or If-None-Match does not hold: read the thing again, and decide anew."),
    Fault.TOO_LARGE.value: (413, "The request is larger than this place takes."),
    Fault.KEY_REUSED.value: (422, "The Idempotency-Key was used for another request within the last day."),
    "too_many_requests": (429, "The caller asks more often than it may; Retry-After says when it may again."),
    "internal": (500, "A defect of this server, which its log tells of."),
    "store_away": (503, "The store cannot be used now, and nothing was changed: send the request again later."),
}


class FieldError(BaseModel):
    """One field that is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    detail: str


class Problem(BaseModel):
    """Why a request was refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str = Field(description="where the meaning of `code` can be read")
    title: str
    status: int
    detail: str
    code: str
    errors: Sequence[FieldError] = ()


def problem(code: str, detail: str = "", errors: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """The JSON of one."""
    status, meaning = MEANINGS[code]
    body = Problem(
        type=f"{PREFIX}/problems/{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail or meaning,
        code=code,
        errors=[FieldError(field=field, detail=reason) for field, reason in errors],
    )
    return body.model_dump(mode="json")


def problem_of(error: AdministrationError | StoreError) -> dict[str, Any]:
    """Why a change was refused."""
    if isinstance(error, AdministrationError):
        return problem(error.fault.value, error.detail, error.problems)
    return problem("store_away")


def problem_response(body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """One as an answer."""
    return JSONResponse(dict(body), body["status"], {**(headers or {})}, media_type=CONTENT_TYPE)
