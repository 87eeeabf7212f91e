"""Linking an account in a browser (layer L3): /external-auth/{id}, and `callback`, where the provider sends it back to.

What the browser carries meanwhile is an encrypted cookie for these addresses alone.  Whoever is not signed in gets the
form, and comes back here (sign_in.py).  Next hop: services/external_auth.py.
"""

from typing import Final
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from derp.server import markup
from derp.server.markup import Html
from tailnet import refusals
from tailnet.api.guards import Services, ServicesOf, UserOfPage, query_of
from tailnet.api.sign_in import BrowserRoute, page
from tailnet.config.external_auth import Provider
from tailnet.refusals import Refused
from tailnet.services.external_auth import BEGUN_FOR, LinkRefused, ProviderTrouble

# Pages, which no program asks for.
router = APIRouter(prefix="/external-auth", include_in_schema=False, route_class=BrowserRoute)

COOKIE: Final = "tailnet_external_auth"
# A code of a provider has below a hundred characters.
_MAX_CODE_CHARS: Final = 4096
# What stands in an address and needs no escaping there.
_SAFE: Final = ":/?&=%+-._~,;@!$*"


@router.get("/{provider}")
async def begin(asked: Request, services: ServicesOf, user: UserOfPage, provider: str) -> Response:
    """Sends the browser to the provider."""
    found = _provider(services, provider)
    begun = services.external_auth.begin(user.id, found)
    if asked.headers.get("sec-fetch-site") == "same-origin":
        # From the form of sign_in.py: browsers hold its `form-action 'self'` against every redirect that follows.
        body = Html(f"<h1>Link {markup.text(found.name)}</h1><p>{markup.link(begun.url, f'To {found.name}')}</p>")
        response: Response = page(markup.document(f"Link {found.name}", (body,), brand="tailnet"))
        response.headers["refresh"] = f"0; url={quote(begun.url, safe=_SAFE)}"
    else:
        response = RedirectResponse(begun.url, 302)
    _set_cookie(services, response, found, begun.cookie, round(BEGUN_FOR.total_seconds()))
    return response


@router.get("/{provider}/callback")
async def callback(asked: Request, services: ServicesOf, user: UserOfPage, provider: str) -> Response:
    """Takes the code that the browser brings."""
    found, query = _provider(services, provider), query_of(asked)
    if query.get("error"):
        text = refusals.shown_reason(f"{query['error']}: {query.get('error_description', '')}".removesuffix(": "))
        raise Refused(400, f"{found.name} did not link the account.", text)
    code, state = query.get("code", ""), query.get("state", "")
    if not code or not state or len(code) > _MAX_CODE_CHARS:
        raise Refused(400, f"{found.name} sent no code and state: begin again.")
    try:
        await services.external_auth.finish(user, found, asked.cookies.get(COOKIE, ""), state, code)
    except LinkRefused as refused:
        raise Refused(400, f"{found.name} is not linked.", str(refused)) from None
    except ProviderTrouble as trouble:
        raise refusals.provider_trouble(found.id, trouble.reason) from None
    body = (
        Html(f"<h1>{markup.text(found.name)} is linked</h1>"),
        Html("<p>Your workspaces come in there now. You may close this page.</p>"),
    )
    response = page(markup.document(f"{found.name} is linked", body, brand="tailnet"))
    _set_cookie(services, response, found, "", 0)
    return response


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
