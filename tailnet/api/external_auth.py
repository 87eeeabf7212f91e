"""Accounts at other providers, for their users (layer L3): /external-auth/{id} in a browser, /api/v2/external-auth.

A browser goes to the provider and comes back to `callback`; what it carries meanwhile is an encrypted cookie for this
address alone.  `debug-link` is what an administrator asks when somebody's git asks for a password again and again.
Next hop: services/external_auth.py.
"""

from collections.abc import Sequence
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from derp.server import markup
from derp.server.markup import Html
from tailnet import refusals
from tailnet.api.answers import Body, GoTime, OmitNone
from tailnet.api.guards import Services, ServicesOf, User, UserOfPage, query_of
from tailnet.api.sign_in import BrowserRoute, page
from tailnet.api.users import is_caller
from tailnet.config.external_auth import Provider
from tailnet.refusals import Refused
from tailnet.services.external_auth import BEGUN_FOR, LinkRefused, ProviderTrouble
from tailnet.store.rows import Role, UserIdentity

router = APIRouter(tags=["external auth"])
# For browsers, whose refusals are pages, too: whoever is not signed in may do so.
pages = APIRouter(route_class=BrowserRoute)

COOKIE: Final = "tailnet_external_auth"
# A code of a provider has below a hundred characters.
_MAX_CODE_CHARS: Final = 4096

ProviderId = Annotated[str, Path(description="Provider ID")]
UserInPath = Annotated[str, Path(description="User ID, name, or me")]


class ProviderBody(Body):
    """A provider that accounts can be linked at.  `url` is where."""

    id: str
    type: str
    display_name: str
    display_icon: str
    url: str


class LinkBody(Body):
    """An account that is linked.  Nothing of its tokens is shown, to nobody."""

    provider_id: str
    created_at: GoTime
    updated_at: GoTime
    expires: OmitNone[GoTime] = None  # of the present token
    authenticated: bool  # false: the provider takes its tokens no more, and `failure` says why
    failure: str


class Links(Body):
    """What there is, and what of it the caller linked."""

    providers: Sequence[ProviderBody]
    links: Sequence[LinkBody]


class DebugLink(Body):
    """What a user comes in with, here and elsewhere."""

    user_id: UUID
    username: str
    login_type: str
    links: Sequence[LinkBody]


@pages.get("/external-auth/{provider}", include_in_schema=False)
async def begin(services: ServicesOf, user: UserOfPage, provider: ProviderId) -> Response:
    """Link an account: sends the browser to the provider."""
    found = _provider(services, provider)
    begun = services.external_auth.begin(user.id, found)
    response = RedirectResponse(begun.url, 302)
    _set_cookie(services, response, found, begun.cookie, round(BEGUN_FOR.total_seconds()))
    return response


@pages.get("/external-auth/{provider}/callback", include_in_schema=False)
async def callback(asked: Request, services: ServicesOf, user: UserOfPage, provider: ProviderId) -> Response:
    """Where the provider sends the browser back to."""
    found, query = _provider(services, provider), query_of(asked)
    if query.get("error"):
        text = refusals.shown_reason(f"{query['error']}: {query.get('error_description', '')}".removesuffix(": "))
        raise Refused(400, f"{found.name} did not link the account.", text)
    code, state = query.get("code", ""), query.get("state", "")
    if not code or not state or len(code) > _MAX_CODE_CHARS:
        raise Refused(400, f"{found.name} sent no code and state: begin again.")
    try:
        await services.external_auth.finish(user.id, found, asked.cookies.get(COOKIE, ""), state, code)
    except LinkRefused as refused:
        raise Refused(400, f"{found.name} is not linked.", str(refused)) from None
    except ProviderTrouble as trouble:
        raise Refused(502, f'External auth provider "{found.id}" cannot be asked.', trouble.reason) from None
    body = (
        Html(f"<h1>{markup.text(found.name)} is linked</h1>"),
        Html("<p>Your workspaces come in there now. You may close this page.</p>"),
    )
    response = page(markup.document(f"{found.name} is linked", body, brand="tailnet"))
    _set_cookie(services, response, found, "", 0)
    return response


@router.get("/api/v2/external-auth")
async def links(services: ServicesOf, user: User) -> Links:
    """Providers, and what the caller linked."""
    external = services.external_auth
    return Links(
        providers=[
            ProviderBody(
                id=each.id,
                type=each.type,
                display_name=each.name,
                display_icon=each.display_icon,
                url=external.link_url(each),
            )
            for each in external.providers
        ],
        links=await _links(services, user.id),
    )


@router.delete("/api/v2/external-auth/{provider}", status_code=204)
async def unlink(services: ServicesOf, user: User, provider: ProviderId) -> None:
    """Forget an account that the caller linked; also of a provider that is configured no more."""
    if not await services.external_auth.unlink(user.id, provider):
        raise refusals.resource_not_found()


@router.get("/api/v2/debug/{user}/debug-link")
async def debug_link(services: ServicesOf, caller: User, user: UserInPath) -> DebugLink:
    """Debug OIDC context for a user: which accounts he linked, since when, and why one is of no use any more.

    Administrators may ask for everybody, others for themselves alone.
    """
    found: UserIdentity | None = caller if is_caller(caller, user) else None
    if found is None and caller.role is Role.ADMIN:
        found = await services.agents.find_user(user)
    if found is None:
        raise refusals.resource_not_found()
    return DebugLink(
        user_id=found.id, username=found.username, login_type="token", links=await _links(services, found.id)
    )


async def _links(services: Services, user_id: UUID) -> list[LinkBody]:
    return [
        LinkBody(
            provider_id=row.provider_id,
            created_at=row.created_at,
            updated_at=row.updated_at,
            expires=row.expires_at,
            authenticated=row.sealed is not None,
            failure=row.failure,
        )
        for row in await services.external_auth.links(user_id)
    ]


def _provider(services: Services, provider_id: str) -> Provider:
    found = services.external_auth.find(provider_id)
    if found is None:
        raise refusals.resource_not_found()
    return found


def _set_cookie(services: Services, response: Response, provider: Provider, value: str, seconds: int) -> None:
    # Lax: it comes along when the provider sends the browser back, and with nothing that another site asks for.
    response.set_cookie(
        COOKIE,
        value,
        max_age=seconds,
        path=f"/external-auth/{provider.id}",
        secure=services.access_url.startswith("https://"),
        httponly=True,
        samesite="lax",
    )


router.include_router(pages)
