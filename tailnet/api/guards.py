"""What a resource's functions take as arguments (layer L3): the services, and who is calling and may.

`Services` is made by server/server.py and given to `create_app`.  The Annotated names at the end are the guards: a
function that takes a `ReadableAgent` is only called for a user who may read that agent.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import trio
from fastapi import Depends, Path
from starlette.requests import HTTPConnection

from derp.server.address import find_caller
from derp.server.pages import Page, Question
from tailnet import refusals
from tailnet.api.authorise import authorise_agent, check_operator
from tailnet.api.limits import CallerLimits, StrangerLimits
from tailnet.api.middleware import exchange_of
from tailnet.auth.callers import Callers, user_of_agent_route
from tailnet.auth.policy import TO_TERMINALS
from tailnet.config import CoordinatorConfig
from tailnet.refusals import Refused
from tailnet.services.agent_http import AgentHttp
from tailnet.services.agent_metadata import AgentMetadata
from tailnet.services.agent_requests import AgentRequests
from tailnet.services.agents import Agents
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.events import Events
from tailnet.services.external_auth import ExternalAuth
from tailnet.services.git_keys import GitKeys
from tailnet.services.health import Health
from tailnet.services.inspection import Inspection
from tailnet.services.instance_identity import InstanceIdentity
from tailnet.services.logs import Logs
from tailnet.services.overviews import Overviews
from tailnet.services.own_node import OwnNode
from tailnet.services.relay_keys import RelayKeys
from tailnet.services.why import SlowQuestion
from tailnet.store.rows import AgentIdentity, Right, UserIdentity
from tailnet.tokens import bearer, find_token, query_values
from tailnet.transport.tracing import Tracing

# Proofs of instances in a minute.  An agent shows one at its start, and again some seconds after a failure.  Sixty are
# that many machines behind one address that start at once; the others are told when to come again.  A genuine proof
# takes half a millisecond (30 certificates of AWS), the worst that was made up 12: so a flood takes a quarter of one
# core, however many addresses it has.
IDENTITIES_PER_ADDRESS: Final = 60
IDENTITIES_OF_ALL: Final = 1_200
# Tries to sign in with a browser, in a minute.  No token can be guessed; each try costs a look at the store.
SIGN_INS_PER_ADDRESS: Final = 30
SIGN_INS_OF_ALL: Final = 2_400


@dataclass(frozen=True, slots=True)
class Services:
    """One per server."""

    config: CoordinatorConfig
    callers: Callers
    agents: Agents
    requests: AgentRequests
    logs: Logs
    metadata: AgentMetadata
    events: Events
    identity: InstanceIdentity
    agent_http: AgentHttp
    git_keys: GitKeys
    external_auth: ExternalAuth
    derp_maps: DerpMaps
    relay_keys: RelayKeys
    inspection: Inspection
    overviews: Overviews
    own_node: OwnNode
    health: Health
    access_url: str  # how clients reach us, also when the settings leave it open
    metrics: Callable[[], bytes]  # a page in Prometheus' text format
    pages: Mapping[str, Page | Question | SlowQuestion] = field(default_factory=dict)  # below /debug/, by path
    tracing: Tracing | None = None
    forget_answers: Callable[[], None] | None = None  # of the control plane, where it is asked
    limits: CallerLimits = field(default_factory=CallerLimits)
    identity_limits: StrangerLimits = field(
        default_factory=lambda: StrangerLimits(IDENTITIES_PER_ADDRESS, IDENTITIES_OF_ALL)
    )
    sign_ins: StrangerLimits = field(default_factory=lambda: StrangerLimits(SIGN_INS_PER_ADDRESS, SIGN_INS_OF_ALL))
    external_auth_limits: CallerLimits = field(default_factory=CallerLimits)


AgentIdInPath = Annotated[str, Path(description="Workspace agent ID", json_schema_extra={"format": "uuid"})]


def services_of(asked: HTTPConnection) -> Services:
    """The services of the app that was asked."""
    services = asked.app.state.services
    assert isinstance(services, Services)
    return services


def headers_of(asked: HTTPConnection) -> dict[str, str]:
    """Headers by lower-case name, repeated ones joined by a comma."""
    headers: dict[str, str] = {}
    for name, value in asked.headers.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def query_of(asked: HTTPConnection) -> dict[str, str]:
    """The first value of each query parameter."""
    return query_values(asked.scope.get("query_string", b"").decode("latin-1"))


def token_of(asked: HTTPConnection) -> str:
    """The token of whoever asks, "" without one."""
    return find_token(headers_of(asked), query_of(asked))


async def _agent(asked: HTTPConnection) -> AgentIdentity:
    agent = await services_of(asked).callers.agent(token_of(asked))
    exchange = exchange_of(asked.scope)
    exchange.caller_kind, exchange.caller_id = "agent", str(agent.id)
    return agent


async def _counted_agent(asked: HTTPConnection, agent: Annotated[AgentIdentity, Depends(_agent)]) -> AgentIdentity:
    _count(asked)
    return agent


async def _agent_of_active_owner(
    services: Annotated[Services, Depends(services_of)], agent: Annotated[AgentIdentity, Depends(_agent)]
) -> AgentIdentity:
    """An inactive user is signed out everywhere: what is his alone is not for his agents either."""
    if not await services.agents.is_active(agent.owner_id):
        raise refusals.owner_not_active()
    return agent


async def _user(asked: HTTPConnection) -> UserIdentity:
    user = await services_of(asked).callers.user(token_of(asked))
    return _admit(asked, user)


async def _user_of_agent_route(asked: HTTPConnection) -> UserIdentity:
    user = await user_of_agent_route(services_of(asked).callers, token_of(asked))
    return _admit(asked, user)


async def user_of_page(asked: HTTPConnection) -> UserIdentity:
    """The user at a browser.  A token in the address would stay in its history, so it is not looked at there."""
    user = await services_of(asked).callers.user(page_token_of(asked))
    return _admit(asked, user)


def page_token_of(asked: HTTPConnection) -> str:
    """The token of a request for a page, "" without one."""
    return find_token(headers_of(asked), {})


def _admit(asked: HTTPConnection, user: UserIdentity) -> UserIdentity:
    """Note for the log that it is this user, who gets an answer unless he is over his limit."""
    exchange = exchange_of(asked.scope)
    exchange.caller_kind, exchange.caller_id = "user", str(user.id)
    _count(asked)
    return user


def _count(asked: HTTPConnection) -> None:
    """One more request of whoever the exchange names.  Raises Refused for one that is over the limit."""
    services, caller = services_of(asked), exchange_of(asked.scope).caller_id
    limit = services.config.api_rate_limit
    wait_seconds = services.limits.take(caller, limit, trio.current_time())
    if wait_seconds:
        raise refusals.too_many_requests(limit, wait_seconds)


def take_try(asked: HTTPConnection, limits: StrangerLimits) -> None:
    """One more try of the address that asks, and of all together.  Raises Refused for one that is over a limit."""
    peer = (asked.client.host if asked.client is not None else "", 0)
    caller = find_caller(peer, headers_of(asked), services_of(asked).config.trusted_proxies)
    limit, wait_seconds = limits.take(caller.address, trio.current_time())
    if wait_seconds:
        raise refusals.too_many_requests(limit, wait_seconds)


async def _readable_agent(
    asked: HTTPConnection, workspaceagent: AgentIdInPath, user: Annotated[UserIdentity, Depends(_user_of_agent_route)]
) -> AgentIdentity:
    return await authorise_agent(services_of(asked).callers, user, workspaceagent, Right.READ)


async def _changeable_agent(
    asked: HTTPConnection, workspaceagent: AgentIdInPath, user: Annotated[UserIdentity, Depends(_user_of_agent_route)]
) -> AgentIdentity:
    callers = services_of(asked).callers
    return await authorise_agent(callers, user, workspaceagent, Right.UPDATE, missing=refusals.forbidden)


async def _terminal_agent(
    asked: HTTPConnection, workspaceagent: AgentIdInPath, user: Annotated[UserIdentity, Depends(_user)]
) -> AgentIdentity:
    return await authorise_agent(services_of(asked).callers, user, workspaceagent, *TO_TERMINALS)


async def _agent_of_page(
    asked: HTTPConnection, workspaceagent: AgentIdInPath, user: Annotated[UserIdentity, Depends(user_of_page)]
) -> AgentIdentity:
    return await authorise_agent(services_of(asked).callers, user, workspaceagent, Right.READ)


async def _terminal_of_page(
    asked: HTTPConnection, workspaceagent: AgentIdInPath, user: Annotated[UserIdentity, Depends(user_of_page)]
) -> AgentIdentity:
    return await authorise_agent(services_of(asked).callers, user, workspaceagent, *TO_TERMINALS)


async def _administrator(user: Annotated[UserIdentity, Depends(_user)]) -> UserIdentity:
    if not user.admin:
        raise refusals.administrators_only()
    return user


def own_names(config: CoordinatorConfig, access_url: str) -> tuple[str, ...]:
    """The names that are ours: that of certificates, and that under which clients reach us."""
    return (config.hostname, config.tls.hostname if config.tls is not None else "", urlsplit(access_url).hostname or "")


async def _operator(asked: HTTPConnection) -> None:
    services = services_of(asked)
    await check_operator(
        services.callers,
        asked.client.host if asked.client is not None else "",
        headers_of(asked),
        query_of(asked),
        services.config.debug_allow,
        services.config.trusted_proxies,
        own_names(services.config, services.access_url),
    )


async def is_operator(asked: HTTPConnection) -> bool:
    """Whether an operator asks, where strangers get less.  A token that is none of an operator's is refused all the
    same: who sends one wants to know.  Raises Refused."""
    try:
        await _operator(asked)
    except Refused:
        if token_of(asked):
            raise
        return False
    return True


async def _relay(asked: HTTPConnection) -> None:
    """A relay elsewhere, by the token of them all: keys of nodes are addresses, which are not for everybody."""
    wanted, shown = services_of(asked).config.relays_token, bearer(asked.headers.get("authorization", ""))
    if not wanted:
        raise refusals.no_relays_expected()
    if not hmac.compare_digest(sha256(shown.encode()).digest(), sha256(wanted.encode()).digest()):
        raise refusals.relay_token_wrong()
    exchange_of(asked.scope).caller_kind = "relay"


# Who may call what takes one of these, or a guard that takes one.
GUARDS: Final[Mapping[Callable[..., Any] | None, str]] = {
    _agent: "agent",
    _user: "user",
    _user_of_agent_route: "user",
    user_of_page: "user",
    _operator: "operator",
    _relay: "relay",
}
ServicesOf = Annotated[Services, Depends(services_of)]
CallingAgent = Annotated[AgentIdentity, Depends(_counted_agent)]
# Whose reports count for its account instead: agent_reports.py.
ReportingAgent = Annotated[AgentIdentity, Depends(_agent)]
AgentOfActiveOwner = Annotated[AgentIdentity, Depends(_agent_of_active_owner)]
User = Annotated[UserIdentity, Depends(_user)]
Administrator = Annotated[UserIdentity, Depends(_administrator)]
UserOfAgentRoute = Annotated[UserIdentity, Depends(_user_of_agent_route)]
ReadableAgent = Annotated[AgentIdentity, Depends(_readable_agent)]
TerminalAgent = Annotated[AgentIdentity, Depends(_terminal_agent)]
ChangeableAgent = Annotated[AgentIdentity, Depends(_changeable_agent)]
UserOfPage = Annotated[UserIdentity, Depends(user_of_page)]
AgentOfPage = Annotated[AgentIdentity, Depends(_agent_of_page)]
TerminalOfPage = Annotated[AgentIdentity, Depends(_terminal_of_page)]
OperatorOnly = Depends(_operator)
RelayOnly = Depends(_relay)
