"""Who may call the administration API, and what its functions take (layer L3).

Every route but the description and the meanings of problems takes an `Administrator`.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Final

import trio
from fastapi import Depends
from starlette.requests import HTTPConnection

from derp.log import Rarely, and_more, fields
from tailnet.api.limits import CallerLimits, StrangerLimits
from tailnet.api.middleware import exchange_of
from tailnet.auth.administrators import Administrators
from tailnet.services.administration.service import Actor, Administration
from tailnet.services.events import Events
from tailnet.tokens import bearer
from tailnet.transport.tracing import Tracing

_log = logging.getLogger("tailnet.api")

# Wrong tokens in a minute, from one address and in all; a scanner that tries more waits.  Who has a token is not held
# back by it.
MAX_WRONG_TOKENS: Final = 60
MAX_ALL_WRONG_TOKENS: Final = 600
_TELL_SECONDS: Final = 60.0
# Streams of changes at a time: each holds some megabytes, and all write one after the other anyway.
MAX_STREAMS: Final = 4


class Turned(Enum):
    """Why a request was turned away at the door.  The values are metric labels."""

    WRONG_TOKEN = "wrong_token"  # noqa: S105  # or none
    RATE = "rate"
    STREAMS = "streams"  # too many at a time


@dataclass(slots=True)
class AdministrationServices:
    """One per server.  `rate_limit`: requests a minute of each token, 0: any number."""

    administration: Administration
    administrators: Administrators
    rate_limit: int = 0
    events: Events | None = None
    tracing: Tracing | None = None
    limits: CallerLimits = field(default_factory=CallerLimits)
    strangers: StrangerLimits = field(default_factory=lambda: StrangerLimits(MAX_WRONG_TOKENS, MAX_ALL_WRONG_TOKENS))
    refused: Counter[Turned] = field(default_factory=Counter)
    rarely: Rarely = field(default_factory=lambda: Rarely(_TELL_SECONDS))
    streams: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(MAX_STREAMS))


@dataclass(frozen=True, slots=True)
class AdminCaller:
    """Who is calling."""

    actor: Actor
    token: bytes = field(repr=False)


class NotAdmitted(Exception):
    """No token of an administrator, or too many requests.  Answered by app.py."""

    def __init__(self, code: str, retry_after_seconds: int = 0) -> None:
        super().__init__(code)
        self.code = code
        self.retry_after_seconds = retry_after_seconds


def services_of(asked: HTTPConnection) -> AdministrationServices:
    """The services of the app that was asked."""
    services = asked.app.state.services
    assert isinstance(services, AdministrationServices)
    return services


async def _administrator(asked: HTTPConnection) -> AdminCaller:
    services = services_of(asked)
    token = bearer(asked.headers.get("authorization", ""))
    name = services.administrators.find(token)
    if name is None:
        address = asked.client.host if asked.client is not None else ""
        wait = services.strangers.take(address, trio.current_time())[1]
        _tell_wrong_token(services, address)
        raise NotAdmitted("too_many_requests" if wait else "unauthenticated", wait)
    exchange = exchange_of(asked.scope)
    exchange.caller_kind, exchange.caller_id = "administrator", name
    wait = services.limits.take(name, services.rate_limit, trio.current_time())
    if wait:
        services.refused[Turned.RATE] += 1
        raise NotAdmitted("too_many_requests", wait)
    return AdminCaller(Actor("token", name, exchange.request_id), token.encode())


def _tell_wrong_token(services: AdministrationServices, address: str) -> None:
    services.refused[Turned.WRONG_TOKEN] += 1
    more = services.rarely.held_back("wrong token", trio.current_time())
    if more is not None:
        told = fields(event="wrong_admin_token", address=address, more_count=more)
        text = "! %s asked for administration without a token that --admin-token-file has%s"
        _log.warning(text, address or "somebody", and_more(more), extra=told)


Administrator = Annotated[AdminCaller, Depends(_administrator)]
ServicesOf = Annotated[AdministrationServices, Depends(services_of)]
GUARD: Final = _administrator
