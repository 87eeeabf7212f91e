"""Tokens of other providers for agents (layer L3): GET /api/v2/workspaceagents/me/{external-auth,gitauth}.

An agent's git asks for the owner's token by a provider's id or by the address of a repository; where the owner has not
linked his account, the answer is where to do so.  `gitauth` is the older name; asked with `url`, as the oldest agents
do, it answers in their form.  Next hop: services/external_auth.py.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import trio
from fastapi import APIRouter, Depends
from starlette.requests import Request

from derp.text import fit_to_show
from tailnet.api.answers import Body, GoTime
from tailnet.api.guards import AgentOfActiveOwner, Services, ServicesOf, query_of, token_of
from tailnet.config.external_auth import Provider
from tailnet.refusals import Refused, owner_not_active, provider_trouble, too_many_requests
from tailnet.services.external_auth import MAX_ADDRESS_CHARS, Linked, ProviderTrouble, described
from tailnet.store.rows import AgentIdentity

router = APIRouter(prefix="/api/v2/workspaceagents/me", tags=["agents"])

# Each asks the provider, and git asks once for each command.  A loop of fetches is slowed down, not the provider.
REQUESTS_PER_MINUTE: Final = 240
_MAX_SHOWN_CHARS: Final = 256
# What Go's time is before it is set: the token has no end.
_NO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
# Who git says to be, with the token as the password; everywhere else the token is the name and there is no password.
_USERNAMES: Final = {"gitlab": "oauth2", "bitbucket-cloud": "x-token-auth", "bitbucket-server": "x-token-auth"}


def _parameter(name: str, meaning: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": meaning, "schema": {"type": kind}}


_MATCH: Final = _parameter("match", "the address of a repository: the last provider whose expression is found in it")
_ID: Final = _parameter("id", "the id of a provider, in the place of an address")
_LISTEN: Final = _parameter("listen", "wait until the owner has linked the account; whatever its value", "boolean")
_URL: Final = _parameter("url", "what older agents call match")


class ExternalAuthResponse(Body):
    """A token and how git presents it; or, where `url` is not empty, where the owner links the account."""

    access_token: str
    token_extra: Mapping[str, Any] | None
    url: str
    type: str
    username: str
    password: str
    expires_at: GoTime = _NO_TIME


class GitAuthResponse(Body):
    """The same for the oldest agents."""

    url: str
    username: str
    password: str


async def _within_limits(services: ServicesOf, caller: AgentOfActiveOwner) -> AgentIdentity:
    wait_seconds = services.external_auth_limits.take(str(caller.id), REQUESTS_PER_MINUTE, trio.current_time())
    if wait_seconds:
        raise too_many_requests(REQUESTS_PER_MINUTE, wait_seconds)
    return caller


_Caller = Annotated[AgentIdentity, Depends(_within_limits)]


@router.get("/external-auth", openapi_extra={"parameters": [_MATCH, _ID, _LISTEN, _URL]})
async def external_auth(asked: Request, services: ServicesOf, caller: _Caller) -> ExternalAuthResponse:
    """Get workspace agent external auth."""
    return await _answer(asked, services, caller, _choose(asked, services))


@router.get("/gitauth", openapi_extra={"parameters": [_MATCH, _ID, _LISTEN, _URL]})
async def git_auth(asked: Request, services: ServicesOf, caller: _Caller) -> ExternalAuthResponse | GitAuthResponse:
    """Removed: Get workspace agent git auth."""
    query = query_of(asked)
    if query.get("match") or query.get("id"):
        return await _answer(asked, services, caller, _choose(asked, services))
    address = query.get("url", "")
    if not address:
        raise Refused(400, "Missing 'url' query parameter!")
    provider = services.external_auth.match(_short(address))
    if provider is None:
        raise Refused(404, f'No git provider found for URL "{_shown(address)}"')
    answer = await _answer(asked, services, caller, provider)
    return GitAuthResponse(url=answer.url, username=answer.username, password=answer.password)


def _choose(asked: Request, services: Services) -> Provider:
    """The provider that is asked for.  SDKs send both parameters, one of them empty."""
    query = query_of(asked)
    address, provider_id = query.get("match") or query.get("url", ""), query.get("id", "")
    if not address and not provider_id:
        raise Refused(400, "'url' or 'id' must be provided!")
    if address and provider_id:
        raise Refused(400, "'url' and 'id' cannot be provided together!")
    external = services.external_auth
    provider = external.find(provider_id) if provider_id else external.match(_short(address))
    if provider is None:
        known = described(external.providers)
        detail = "External auth provider not found."
        if known:
            detail = f"The provider URL must match one of these regexes: {', '.join(known)}"
        text = f'No matching external auth provider found in Coder for the url "{_shown(address or provider_id)}".'
        raise Refused(404, text, detail)
    return provider


async def _answer(
    asked: Request, services: Services, caller: AgentIdentity, provider: Provider
) -> ExternalAuthResponse:
    external = services.external_auth
    try:
        if "listen" not in query_of(asked):
            linked = await external.token(caller.owner_id, provider)
        else:
            linked = await external.wait_token(caller.owner_id, provider)
            # Ten minutes are long: whoever was let in then may be somebody else's now.
            await services.callers.agent(token_of(asked))
            if not await services.agents.is_active(caller.owner_id):
                raise owner_not_active()
            if linked is None:
                raise Refused(
                    503, f"Nobody linked {provider.name} within that time.", "Ask again.", retry_after_seconds=1
                )
    except trio.WouldBlock:
        raise Refused(429, "Too many wait for this link.", retry_after_seconds=10) from None
    except ProviderTrouble as trouble:
        raise provider_trouble(provider.id, trouble.reason) from None
    if linked is None:
        url = external.link_url(provider)
        return ExternalAuthResponse(access_token="", token_extra=None, url=url, type="", username="", password="")
    return _linked(linked)


def _linked(linked: Linked) -> ExternalAuthResponse:
    provider, tokens = linked.provider, linked.tokens
    username = _USERNAMES.get(provider.type)
    return ExternalAuthResponse(
        access_token=tokens.access_token,
        token_extra=dict(tokens.extra) or None,
        url="",
        type=provider.type,
        username=username if username is not None else tokens.access_token,
        password=tokens.access_token if username is not None else "",
        expires_at=tokens.expires_at or _NO_TIME,
    )


def _short(address: str) -> str:
    if len(address) > MAX_ADDRESS_CHARS:
        raise Refused(400, f"An address has {MAX_ADDRESS_CHARS} characters at the most.")
    return address


def _shown(text: str) -> str:
    """A repository's address may hold somebody's password."""
    return fit_to_show(text)[:_MAX_SHOWN_CHARS]
