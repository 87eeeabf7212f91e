"""The app of the administration API (layer L3): closed, and as if it were not there, while there is no token.

It stands beside the public API on its port (`WithAdministration`), or on a listener of its own.  Refusals are problem
details (problems.py); middleware and access log are those of the public API.
"""

import logging
from contextlib import suppress
from typing import Any, Final

import trio
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tailnet.api.administration import events, records, resources, transfer
from tailnet.api.administration.description import describe
from tailnet.api.administration.guards import AdministrationServices, NotAdmitted
from tailnet.api.administration.problems import PREFIX, problem, problem_of, problem_response
from tailnet.api.middleware import Middleware, exchange_of
from tailnet.errors import AdministrationError, StoreError

_log = logging.getLogger("tailnet.api")

_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 8 * 1024 * 1024
BULK_PATH: Final = f"{PREFIX}/bulk"


def create_administration(services: AdministrationServices) -> FastAPI:
    """The app over these services."""
    app = _Api(
        title="tailnet administration",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    for router in (*resources.ROUTERS, resources.tokens, records.router, events.router, transfer.router):
        app.include_router(router, prefix=PREFIX)
    app.add_exception_handler(AdministrationError, _answer_refused)
    app.add_exception_handler(NotAdmitted, _answer_not_admitted)
    app.add_exception_handler(StoreError, _answer_store)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_broken)
    return app


class _Api(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        # Results of a stream would wait in a compressor for those behind them.
        services: AdministrationServices = self.state.services
        return Middleware(
            super().build_middleware_stack(), uncompressed=frozenset({BULK_PATH}), tracing=services.tracing
        )

    def openapi(self) -> dict[str, Any]:
        """The API's description, made when somebody asks first."""
        if self.openapi_schema is None:
            self.openapi_schema = describe(self, super().openapi())
        return self.openapi_schema


class WithAdministration:
    """Both APIs on one port; that of administrators is there for as long as it has a token."""

    def __init__(self, public: ASGIApp, administration: ASGIApp, services: AdministrationServices) -> None:
        self._public = public
        self._administration = administration
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        is_ours = scope["type"] == "http" and (path == PREFIX or path.startswith(f"{PREFIX}/"))
        app = self._administration if is_ours and self._services.administrators.tokens else self._public
        await app(scope, receive, send)


async def _let_finish(asked: HTTPConnection) -> None:
    """Who is in the middle of a body would be reset before it reads why: a moment's worth of it is thrown away."""
    assert isinstance(asked, Request)
    size = 0
    with trio.move_on_after(_LINGER_SECONDS), suppress(ClientDisconnect, RuntimeError):  # or it was read already
        async for chunk in asked.stream():
            size += len(chunk)
            if size > _LINGER_BYTES:
                return


async def _answer_refused(asked: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, AdministrationError)
    await _let_finish(asked)
    return problem_response(problem_of(error))


async def _answer_not_admitted(asked: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, NotAdmitted)
    await _let_finish(asked)
    headers = {"Retry-After": str(error.retry_after_seconds)} if error.retry_after_seconds else {}
    if error.code == "unauthenticated":
        headers["WWW-Authenticate"] = 'Bearer realm="tailnet administration"'
    return problem_response(problem(error.code), headers)


async def _answer_store(asked: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, StoreError)
    _log.error("! %s: %s (request %s)", asked.url.path, error, exchange_of(asked.scope).request_id)
    return problem_response(problem_of(error), {"Retry-After": "5"})


async def _answer_http(asked: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid")
    detail = "there is no such place: openapi.json here names all" if code == "not_found" else ""
    return problem_response(problem(code, detail), error.headers)


async def _answer_broken(asked: HTTPConnection, error: Exception) -> Response:
    # The boundary of the service: one request's trouble stays its own, and the operator gets the whole story.
    _log.error("! %s failed (request %s)", asked.url.path, exchange_of(asked.scope).request_id, exc_info=error)
    return problem_response(problem("internal"))
