"""Accounts at other providers, for their users (layer L3): GET and DELETE /api/v2/external-auth.

They are linked in a browser (link_page.py).  `debug-link` is what an administrator asks when somebody's git asks for a
password again and again.  Next hop: services/external_auth.py.
"""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path

from tailnet import refusals
from tailnet.api.answers import Body, GoTime, OmitNone
from tailnet.api.guards import Services, ServicesOf, User
from tailnet.api.users import is_caller
from tailnet.store.rows import Role, UserIdentity

router = APIRouter(tags=["external auth"])

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
