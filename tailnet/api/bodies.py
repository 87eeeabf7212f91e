"""Bodies of requests, read as the reference reads them (layer L3).

JSON whatever its Content-Type says: people send it with curl and forget the header.  Of a key that stands twice the
last counts.  What is no JSON, in no UTF-8, or has text behind its value is 400; what is too long 413; a field that is
missing or of another kind is a validation that names it.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from tailnet.refusals import Refused, Validation

# The reference's bound of what it reads; an agent's batch of log lines stays below it.
MAX_BODY_BYTES: Final = 1024 * 1024

M = TypeVar("M", bound=BaseModel)


class Sent(BaseModel):
    """A JSON object of a request.  Keys that we do not know are newer peers' and are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


def body_of(model: type[M], max_bytes: int = MAX_BODY_BYTES) -> Callable[[Request], Awaitable[M]]:
    """What to give to Depends: reads the body as `model`."""

    async def read(request: Request) -> M:
        return parse_body(model, await read_body(request, max_bytes))

    return read


def parse_body(model: type[M], content: bytes) -> M:
    """One JSON value as `model`.  Raises Refused."""
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        # RecursionError: nested deeper than anything that is meant.
        raise Refused(400, "Request body must be valid JSON.") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise Refused(400, "Validation failed.", validations=_validations(error)) from None


async def read_body(request: Request, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The body, whatever it is.  Raises Refused for one that is too long."""
    content = await read_bounded(request, max_bytes)
    if content is None:
        raise Refused(413, "Request body is too large.", f"It may have {max_bytes} bytes.")
    return content


async def read_bounded(request: Request, max_bytes: int) -> bytes | None:
    """The body; None: it is too long."""
    content, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        # What is too long is read to its end (transport/asgi.py bounds that), so that its sender reads why.
        if size <= max_bytes:
            content += chunk
    return bytes(content) if size <= max_bytes else None


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """What to give to a route as `openapi_extra`: the body that it reads."""
    schema = model.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON")  # NaN and Infinity, which Python would take


def _validations(error: ValidationError) -> tuple[Validation, ...]:
    found = []
    for each in error.errors():
        place = ".".join(str(part) for part in each["loc"]) or "body"
        # What Go calls required is neither absent nor empty.
        if each["type"] == "missing" or (each["type"] == "string_too_short" and not each["input"]):
            found.append(Validation(place, 'Validation failed for tag "required" with value: ""'))
        else:
            found.append(Validation(place, str(each["msg"])))
    return tuple(found)


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema without references: OpenAPI would look for them at its own root."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
