"""What requests of the administration API have in common: bodies, preconditions, keys, pages, answers (layer L3)."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tailnet.api.administration.guards import AdminCaller, AdministrationServices
from tailnet.api.bodies import read_bounded
from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration.cursors import make_cursor, read_cursor
from tailnet.services.administration.idempotency import Answer, IdempotencyKey
from tailnet.services.administration.service import ANY, DEFAULT_PAGE, MAX_PAGE, Match, Operation, Page

# An agent with all its definitions, 2 MiB, and its environment.
MAX_BODY_BYTES: Final = 3 * 1024 * 1024
_ENTITY_TAG: Final = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')
_MAX_HEADER_CHARS: Final = 4_096
_OF_PAGES: Final = ("cursor", "limit")


async def read_body(request: Request) -> bytes:
    """The body as it came.  Raises AdministrationError when it is too large."""
    content = await read_bounded(request, MAX_BODY_BYTES)
    if content is None:
        raise AdministrationError(Fault.TOO_LARGE, f"a body has at most {MAX_BODY_BYTES:,} bytes")
    return content


def match_of(request: Request) -> Match:
    """If-Match and If-None-Match of a change; without them it is made whatever is there.

    Raises AdministrationError.
    """
    if_match, if_none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
    if if_none_match is not None and if_none_match.strip() != "*":
        raise _wrong_header("If-None-Match", "wants * on a change: it is made only if the thing is new")
    if if_match is None:
        return Match(must_be_new=True) if if_none_match is not None else ANY
    if if_match.strip() == "*":
        return Match(must_exist=True, must_be_new=if_none_match is not None)
    # A weak tag never matches here (RFC 9110, 13.1.1).
    return Match(frozenset(tag for weak, tag in _entity_tags("If-Match", if_match) if not weak), must_exist=True)


def is_known(request: Request, etag: str) -> bool:
    """Whether the caller of a GET has what it would be answered."""
    header = request.headers.get("if-none-match")
    if header is None:
        return False
    return header.strip() == "*" or any(tag == etag for _, tag in _entity_tags("If-None-Match", header))


def _entity_tags(name: str, header: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    place = 0
    while place < len(header):
        tag = _ENTITY_TAG.match(header, place) if len(header) <= _MAX_HEADER_CHARS else None
        if tag is None:
            raise _wrong_header(name, 'wants * or entity tags in quotes, as ETag gives them: "5c21..."')
        found.append((tag[1] or "", tag[2]))
        place = tag.end()
    if not found:
        raise _wrong_header(name, "is empty: leave it out, or name an entity tag")
    return found


def _wrong_header(name: str, reason: str) -> AdministrationError:
    return AdministrationError(Fault.INVALID, f"{name} makes no sense", [(name, reason)])


def key_of(request: Request, caller: AdminCaller, body: bytes) -> IdempotencyKey | None:
    """The Idempotency-Key, if there is one; all that makes this request belongs to it.  Raises AdministrationError."""
    text = request.headers.get("idempotency-key")
    if text is None:
        return None
    conditions = [request.headers.get(name, "") for name in ("if-match", "if-none-match")]
    head = json.dumps([request.method, request.url.path, request.url.query, *conditions]).encode()
    return IdempotencyKey(text, caller.token, head + b"\n" + body)


async def change(
    request: Request, services: AdministrationServices, caller: AdminCaller, operation: Operation, body: bytes = b""
) -> Response:
    """Carry an operation out, and answer."""
    key = key_of(request, caller, body)
    return respond(await services.administration.run(caller.actor, operation, key))


def respond(answer: Answer) -> Response:
    """An answer over HTTP."""
    headers = {"ETag": f'"{answer.etag}"'} if answer.etag else {}
    if answer.body is None:
        return Response(status_code=answer.status, headers=headers)
    return JSONResponse(answer.body, answer.status, headers)


class Paging:
    """Where in a list a request is: `filters` as text, `after` the id that the page stands behind, `limit`."""

    def __init__(self, request: Request, caller: AdminCaller) -> None:
        """Raises AdministrationError."""
        self._place = request.url.path
        self._secret = caller.token
        query: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            if name in query:
                raise AdministrationError(Fault.INVALID, "a parameter stands there twice", [(name[:80], "twice")])
            query[name] = value
        self.filters = {name: value for name, value in query.items() if name not in _OF_PAGES}
        cursor = query.get("cursor", "")
        self.after = read_cursor(self._secret, self._place, self.filters, cursor) if cursor else ""
        text = query.get("limit", str(DEFAULT_PAGE))
        if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= MAX_PAGE):
            raise AdministrationError(
                Fault.INVALID, "a page has a sensible size", [("limit", f"wants a number from 1 to {MAX_PAGE}")]
            )
        self.limit = int(text)

    def respond(self, page: Page) -> Response:
        """A page, with the cursor of the next one."""
        following = make_cursor(self._secret, self._place, self.filters, page.last) if page.last else None
        return JSONResponse({"items": list(page.items), "next": following})


def takes(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """What to give to a route as `openapi_extra`: the body that it reads; description.py has its schema."""
    return {
        "requestBody": {
            "required": required,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}},
        }
    }


def parameters(queries: Mapping[str, str], headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What to give to a route as `openapi_extra`: parameters with their meanings, none of them required."""
    given = [("query", queries), ("header", headers or {})]
    return {
        "parameters": [
            {"name": name, "in": place, "required": False, "description": meaning, "schema": {"type": "string"}}
            for place, named in given
            for name, meaning in named.items()
        ]
    }
