"""Answers of the API: what response models are made of, and refusals in the form that SDKs read (layer L3).

A body is one JSON value and a newline, as Go writes it (tailnet/go_json.py): fields in the order of their model, those
that are `OmitEmpty` absent when they are empty, times by `GoTime`.  A refusal is
`{"message": str, "detail": str?, "validations": [{"field": str, "detail": str}]?}`.
"""

import operator
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Final, TypeVar

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, PlainSerializer, RootModel, WithJsonSchema
from pydantic_core import CoreSchema, core_schema
from starlette.responses import Response

from tailnet.go_json import go_json, go_time
from tailnet.refusals import Refused

CONTENT_TYPE: Final = "application/json; charset=utf-8"

T = TypeVar("T")


class Body(BaseModel):
    """A JSON object of an answer.  Its fields are written in the order in which they stand.

    `Model.model_validate(view)` takes each field from the attribute of its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


def _is_none(value: object) -> bool:
    return value is None


# Absent when it is empty, as what Go's structs call omitempty.
OmitEmpty = Annotated[T, Field(exclude_if=operator.not_)]
# Absent when it is None; nought and "" are written.
OmitNone = Annotated[T | None, Field(exclude_if=_is_none)]
GoTime = Annotated[
    datetime,
    PlainSerializer(go_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class _ByName:
    """Writes an enum's member by its name, and lists all names in the schema."""

    def __init__(self, spell: Callable[[str], str]) -> None:
        self._spell = spell

    def __get_pydantic_core_schema__(self, source: type[Enum], _handler: GetCoreSchemaHandler) -> CoreSchema:
        spell = self._spell
        names = [spell(each.name) for each in source]
        return core_schema.is_instance_schema(
            source,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda member: spell(member.name)),
            metadata={"pydantic_js_functions": [lambda _schema, _handler: {"type": "string", "enum": names}]},
        )


# `Annotated[LifecycleState, LOWER]` is written as "start_error", with NAME as "START_ERROR".
LOWER: Final = _ByName(str.lower)
NAME: Final = _ByName(str)


class Null(RootModel[None]):
    """The four bytes `null`: what was reported is taken."""


class GoJsonResponse(JSONResponse):
    """One JSON value and a newline, as Go writes it."""

    media_type = CONTENT_TYPE

    def render(self, content: Any) -> bytes:
        return go_json(content)


class InvalidField(Body):
    """One field of the request that is wrong."""

    field: str
    detail: str


class Refusal(Body):
    """Why a request was refused.  Programs act on the status and the fields, people on the sentences."""

    message: str
    detail: OmitEmpty[str] = ""
    validations: OmitEmpty[Sequence[InvalidField]] = ()


def refusal_body(refused: Refused) -> bytes:
    """The body of a refusal."""
    fields = [InvalidField(field=each.field, detail=each.detail) for each in refused.validations]
    body = Refusal(message=refused.message, detail=refused.detail, validations=fields)
    return go_json(body.model_dump(mode="json"))


def refusal_headers(refused: Refused) -> list[tuple[str, str]]:
    """What goes with it: 401 names how to authenticate, 426 what to upgrade to, 429 and 503 when to come back."""
    headers = [("content-type", CONTENT_TYPE)]
    match refused.status:
        case 401:
            headers.append(("www-authenticate", "Bearer"))
        case 426:
            headers += [("upgrade", "websocket"), ("connection", "Upgrade")]
        case 429 | 503:
            headers.append(("retry-after", str(refused.retry_after_seconds or 1)))
    return headers


def refusal_response(refused: Refused) -> Response:
    """A refusal as an answer of the app."""
    return Response(refusal_body(refused), refused.status, dict(refusal_headers(refused)))
