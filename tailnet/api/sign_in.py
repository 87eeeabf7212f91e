"""Signing in with a browser (layer L3): POST /login and /logout, and what pages for people have in common.

A session token comes in a form and goes into the cookie that API and SDKs know, which no script reads and no other site
sends along with a form.  Both are for our own pages only: of a browser's POST the Origin or Sec-Fetch-Site tells.
Whoever is not signed in gets the form in place of a page, with the status that the API would give.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from derp.server.markup import STYLE_SOURCE
from tailnet import refusals
from tailnet.api.answers import refusal_headers
from tailnet.api.authorise import check_origin
from tailnet.api.bodies import read_bounded
from tailnet.api.guards import Services, ServicesOf, headers_of, page_token_of, services_of, take_try
from tailnet.api.people_html import LOGIN, LOGOUT, front_html, problem_html
from tailnet.errors import SecretsError, StoreError
from tailnet.refusals import Refused
from tailnet.tokens import COOKIE, MAX_TOKEN_CHARS

# A token, where to go then, and what a browser adds.
_MAX_FORM_BYTES: Final = 4 * MAX_TOKEN_CHARS
# What a cookie carries as it is, and what its readers take for a part of it.
_FIT_FOR_COOKIES: Final = re.compile(r"[!#-+\--:<-\[\]-~]+")
# Pages that one may be sent to after signing in: ours, and no address of others.
_PAGES: Final = re.compile(r"/agents/[0-9A-Fa-f-]{36}(?:/terminal)?|/external-auth/[0-9A-Za-z_-]{1,64}")
# Our scripts and our style, and nothing that somebody managed to get into a page.
_POLICY: Final = (
    "default-src 'none'; style-src {}; script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY.format(STYLE_SOURCE),
    "cache-control": "no-store",
    # With no-referrer browsers would hide the Origin of our own forms, too.
    "referrer-policy": "same-origin",
}


def page(html: bytes, status: int = 200, *, style_nonce: str = "") -> HTMLResponse:
    """A page for people.  With a `style_nonce` its scripts may make styles, which have to carry it."""
    headers = _HEADERS
    if style_nonce:
        sources = f"'self' {STYLE_SOURCE} 'nonce-{style_nonce}'"
        headers = {**_HEADERS, "content-security-policy": _POLICY.format(sources)}
    return HTMLResponse(html, status, headers)


class PageRoute(APIRoute):
    """A route whose refusals are pages, too."""

    is_for_all: ClassVar[bool] = True  # false: only to whoever asks for pages; programs get the API's body

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_page(request: Request) -> Response:
            if not (self.is_for_all or "text/html" in request.headers.get("accept", "")):
                return await answer(request)
            try:
                return await answer(request)
            except Refused as refused:
                return await refused_page(request, refused)
            except StoreError:
                return await refused_page(request, refusals.store_unreachable())
            except SecretsError as error:
                return await refused_page(request, refusals.no_secrets_kept(str(error)))

        return answer_page


class BrowserRoute(PageRoute):
    """The same of a route that programs ask, too."""

    is_for_all = False


async def refused_page(request: Request, refused: Refused, after: str = "") -> Response:
    """Why not; for whoever is not signed in the form, too."""
    services = services_of(request)
    if refused.status == 401:
        # The first visit is no failure.
        reason = f"{refused.message} {refused.detail}" if page_token_of(request) or after else ""
        html = front_html(services.inspection.not_ready(), refused=reason, after=after or _page_path(request.url.path))
    else:
        html = problem_html(refused.message, refused.detail)
    response = page(html, refused.status)
    for name, value in refusal_headers(refused):
        if name != "content-type":
            response.headers[name] = value
    return response


router = APIRouter(route_class=PageRoute)


@router.post(LOGIN, include_in_schema=False)
async def login(request: Request, services: ServicesOf) -> Response:
    """Take a session token, if it is good."""
    _check_own_page(request, services)
    take_try(request, services.sign_ins)
    form = await _read_form(request)
    token, after = form.get("token", "").strip(), _page_path(form.get("after", ""))
    try:
        await services.callers.user(token)
        if not _FIT_FOR_COOKIES.fullmatch(token):
            raise Refused(401, "This token has characters that a cookie cannot carry.", "Ask for another one.")
    except Refused as refused:
        if refused.status != 401:
            raise
        told = Refused(401, "That did not work.", refused.detail if token else "Write a session token.")
        return await refused_page(request, told, after or "/")
    return _go(after or "/", _cookie(services, token))


@router.post(LOGOUT, include_in_schema=False)
async def logout(request: Request, services: ServicesOf) -> Response:
    """Forget the token in this browser; elsewhere it stays good."""
    _check_own_page(request, services)
    return _go("/", _cookie(services, "", "; Max-Age=0"))


def _go(path: str, cookie: str) -> Response:
    return Response(None, 303, {**_HEADERS, "location": path, "set-cookie": cookie})


def _cookie(services: Services, token: str, more: str = "") -> str:
    # Behind a proxy that ends TLS our own connection is plain; clients reach us by the access URL.
    secure = "; Secure" if services.access_url.startswith("https:") else ""
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Lax{secure}{more}"


def _page_path(path: str) -> str:
    return path if _PAGES.fullmatch(path) else ""


def _check_own_page(request: Request, services: Services) -> None:
    """No other site's form signs anybody in or out.  Browsers say where a POST comes from; text browsers do not."""
    headers = headers_of(request)
    site = headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none"):
        raise refusals.foreign_origin(headers.get("origin", site), headers.get("host", ""))
    check_origin(headers, services.access_url)


async def _read_form(request: Request) -> dict[str, str]:
    content = await read_bounded(request, _MAX_FORM_BYTES)
    if content is None:
        raise Refused(413, "The form is too large.", f"It may have {_MAX_FORM_BYTES} bytes.")
    try:
        fields = parse_qs(content.decode("utf-8", "replace"), max_num_fields=16)
    except ValueError:
        raise Refused(400, "The form has too many fields.") from None
    return {name: values[0] for name, values in fields.items()}
