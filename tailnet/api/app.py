"""The HTTP API as one ASGI app (layer L3): routes, and every error in the one form that SDKs read.

`create_app(services)` is served by Hypercorn behind the front door (server/server.py).  One file per
resource, from agents.py to operators.py.  The RPC websockets never come here: see rpc_admission.py.
"""

import logging
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp

from tailnet import refusals
from tailnet.api import (
    agent_manifest,
    agent_page,
    agent_reports,
    agents,
    auth_changed,
    buildinfo,
    connection,
    containers,
    containers_watch,
    debug,
    derp_map,
    docs,
    events,
    external_auth,
    external_auth_agents,
    git_keys,
    health,
    home,
    instance_identity,
    link_page,
    listening_ports,
    logs,
    metadata,
    operators,
    page_files,
    pty,
    relay_keys,
    sign_in,
    stats_socket,
    support,
    terminal_page,
    users,
    workspaces,
)
from tailnet.api.answers import GoJsonResponse, Refusal, refusal_response
from tailnet.api.guards import Services
from tailnet.api.middleware import Middleware, exchange_of
from tailnet.api.openapi import describe, operation_name
from tailnet.config import CoordinatorConfig
from tailnet.errors import SecretsError, StoreError
from tailnet.refusals import Refused, Validation
from tailnet.tokens import without_user_tokens

_log = logging.getLogger("tailnet.api")


def create_app(services: Services) -> FastAPI:
    """The app over these services."""
    # The interactive pages load scripts from strangers' servers; the schema itself is free to read.
    app = _Api(
        title="tailnet",
        openapi_url="/api/v2/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=GoJsonResponse,
        generate_unique_id_function=operation_name,
    )
    app.state.services = services
    # An agent's own resource after those whose fixed name could be taken for its id.
    of_me = agent_reports, stats_socket, agent_manifest, git_keys, external_auth_agents
    of_agents = (
        instance_identity,
        connection,
        *of_me,
        agents,
        logs,
        metadata,
        listening_ports,
        containers,
        containers_watch,
        pty,
    )
    of_users = buildinfo, users, workspaces, external_auth, auth_changed
    for_people = home, sign_in, agent_page, terminal_page, link_page, page_files
    of_operators = events, health, debug, support, operators, docs
    for resource in (*for_people, *of_agents, *of_users, derp_map, relay_keys, *of_operators):
        app.include_router(resource.router, responses={"4XX": {"model": Refusal}, "5XX": {"model": Refusal}})
    app.add_exception_handler(Refused, _answer_refused)
    app.add_exception_handler(StoreError, _answer_store)
    app.add_exception_handler(SecretsError, _answer_secrets)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(Exception, _answer_broken)

    # Last: whatever no resource knows.  Without it an unknown websocket would be turned away by a bare 403.
    @app.websocket("/{path:path}")
    async def unknown_websocket(websocket: WebSocket) -> None:
        raise refusals.route_not_found()

    return app


class _Api(FastAPI):
    """FastAPI with our middleware around it, and with a whole description.

    Starlette puts its handler of defects around every middleware that it is told of: ours has to go around that.
    """

    def build_middleware_stack(self) -> ASGIApp:
        services: Services = self.state.services
        return Middleware(
            super().build_middleware_stack(),
            origins=lambda: self.state.services.config.cors_origins,
            tracing=services.tracing,
        )

    def openapi(self) -> dict[str, Any]:
        """The API's description, made when somebody asks first."""
        if self.openapi_schema is None:
            self.openapi_schema = describe(self, super().openapi())
        return self.openapi_schema


def reconfigure(app: FastAPI, config: CoordinatorConfig) -> None:
    """Have the app go by these settings from the next request on."""
    app.state.services = replace(app.state.services, config=config)


async def _answer_refused(asked: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal_response(error)


async def _answer_store(asked: HTTPConnection, error: Exception) -> Response:
    _log.error("! %s: %s (request %s)", without_user_tokens(asked.url.path), error, exchange_of(asked.scope).request_id)
    return refusal_response(refusals.store_unreachable())


async def _answer_secrets(asked: HTTPConnection, error: Exception) -> Response:
    _log.error("! %s: %s (request %s)", asked.url.path, error, exchange_of(asked.scope).request_id)
    return refusal_response(refusals.no_secrets_kept(str(error)))


async def _answer_http(asked: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            return refusal_response(refusals.route_not_found())
        case 405:
            return refusal_response(refusals.method_not_allowed())
        case status:
            return refusal_response(Refused(status, str(error.detail)))


async def _answer_invalid(asked: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    validations = tuple(
        Validation(".".join(str(part) for part in each["loc"][1:]) or "body", str(each["msg"]))
        for each in error.errors()
    )
    return refusal_response(Refused(400, "Validation failed.", validations=validations))


async def _answer_broken(asked: HTTPConnection, error: Exception) -> Response:
    # The boundary of the service: one request's trouble stays its own, and the operator gets the whole story.
    path = without_user_tokens(asked.url.path)
    _log.error("! %s failed (request %s)", path, exchange_of(asked.scope).request_id, exc_info=error)
    return refusal_response(Refused(500, "An internal server error occurred.", "The server's log says more."))
