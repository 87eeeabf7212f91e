"""The relay's small pages: probes, home, health, metrics, debug.  Layer L3: a request in, an answer out, nothing waits.

Every path of the genuine relay behaves as it does there, to the byte where clients look; ours come beside them.
The last route of door.py.  What the operator's pages show is in debug.py and varz.py.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

from derp.config.relay import Network
from derp.server.address import Caller, why_closed
from derp.server.door import HttpSession, Route, every_path
from derp.text import fit_to_show
from derp.transport.http import Request

Headers = tuple[tuple[str, str], ...]

_TEXT: Final = ("Content-Type", "text/plain; charset=utf-8")
_HTML: Final = ("Content-Type", "text/html; charset=utf-8")
_BROWSER: Final[Headers] = (
    ("Strict-Transport-Security", "max-age=63072000; includeSubDomains"),
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'self'",
    ),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
)
_NO_CACHE: Final = ("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0")
_ACME_CHALLENGE: Final = "/.well-known/acme-challenge/"
# Before the token of an invitation: what it opens is the map of this relay for whoever has it.
INVITED_PATH: Final = "/invited/"
_MAX_QUERY_FIELDS: Final = 100
# What the genuine relay echoes; anything else could be used to make us say things.
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9.\-_:]{1,64}\Z")
# at the end of a Host header; an IPv6 address without a port ends in a bracket
_PORT: Final = re.compile(r":[0-9]*\Z")
_HOME: Final = b"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>DERP relay</title>
<body style="font-family:sans-serif;max-width:40em;margin:4em auto">
<h1>DERP</h1>
<p>This is a relay. It passes encrypted packets between machines that cannot reach each other directly, and cannot
read them.</p></body></html>
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: Headers = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Page:
    """Something only the operator may see, made when it is asked for."""

    title: str
    content_type: str
    render: Callable[[], bytes]
    is_fault: Callable[[bytes], bool] = lambda body: False  # then the status is 500, for those who read no text


Query = Mapping[str, Sequence[str]]
"""A query by name; a name may stand in it several times, or without a value."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a Question is answered."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Question:
    """A page that answers what the query asks.  Only the operator may ask."""

    title: str
    reply: Callable[[Query], Reply]


def read_query(query: str) -> Query | None:
    """The query of a URL; None: it has more parts than anybody asks for."""
    try:
        return parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        return None


class Pages:
    """Pages of one server.

    `pages` maps paths to what only addresses in `debug_allow` may see; `problem` says why the server is not well, or
    None; `bootstrap_dns` maps a query and the address that asks to what /bootstrap-dns answers; `challenges` are what
    an authority of certificates asks for by token, None where nobody may ask.  `own_names`: by which this machine may
    be asked for pages, besides addresses and localhost.  `invited`: the DERP map of an invitation, by its token.
    """

    def __init__(
        self,
        *,
        home: str,
        derp_enabled: bool,
        debug_allow: tuple[Network, ...],
        problem: Callable[[], str | None],
        pages: Mapping[str, Page | Question],
        bootstrap_dns: Callable[[str, str], Mapping[str, list[str]] | None],
        challenges: Mapping[str, bytes] | None = None,
        own_names: Collection[str] = (),
        invited: Callable[[str], bytes | None] | None = None,
    ) -> None:
        self._invited = invited
        self._own_names = own_names
        self._home = home
        self._derp_enabled = derp_enabled
        self._debug_allow = debug_allow
        self._problem = problem
        self.pages = pages
        self._bootstrap_dns = bootstrap_dns
        self.challenges = challenges

    def route(self, wants: Callable[[str], bool] = every_path) -> Route:
        """For a front door."""
        return Route(wants, _taking(self.answer))

    def configure(self, *, home: str, debug_allow: tuple[Network, ...]) -> None:
        """Take these settings from now on."""
        self._home = home
        self._debug_allow = debug_allow

    def answer(self, request: Request, caller: Caller) -> Answer:
        """The answer to any request that is no DERP upgrade."""
        if request.method == "CONNECT":  # to which a 200 would mean that a tunnel stands
            return Answer(403, (_TEXT,), b"CONNECT not enabled\n")
        path, _, query = request.target.partition("?")
        if self.is_challenge(path):
            return self.answer_challenge(path)
        match path:
            case "/derp":
                return Answer(404, (_TEXT,), b"derp server disabled\n")
            case "/derp/probe" | "/derp/latency-check":
                if request.method not in ("GET", "HEAD"):
                    return Answer(405, (_TEXT,), b"bogus probe method\n")
                if self._problem() is not None:  # a relay that is about to stop is no region's best
                    return Answer(503)
                return Answer(200, (("Access-Control-Allow-Origin", "*"),))
            case "/generate_204":
                return generate_204(request)
            case "/bootstrap-dns":
                return self._answer_bootstrap(query, caller.address)
            case "/robots.txt":
                return Answer(200, (_TEXT, *_BROWSER), b"User-agent: *\nDisallow: /\n")
            case "/healthz":
                problem = self._problem()
                if problem is None:
                    return Answer(200, (_TEXT,), b"ok\n")
                return Answer(503, (_TEXT,), f"{fit_to_show(problem)}\n".encode())
        if self._invited is not None and path.startswith(INVITED_PATH):
            return _answer_invited(self._invited(path.removeprefix(INVITED_PATH)))
        page = self.pages.get(path)
        if page is not None or path.startswith("/debug"):
            return self._answer_page(path, query, page, caller, request.headers.get("host", ""))
        return self._answer_home()

    def is_challenge(self, path: str) -> bool:
        """Whether an authority may ask for this path."""
        return self.challenges is not None and path.startswith(_ACME_CHALLENGE)

    def answer_challenge(self, path: str) -> Answer:
        """What the authority wants to find at a path below /.well-known/acme-challenge/."""
        body = (self.challenges or {}).get(path.removeprefix(_ACME_CHALLENGE))
        if body is None:  # the authority shows this to whoever asked it
            text = b"no such challenge here: does the name lead to another machine as well?\n"
            return Answer(404, (_TEXT, _NO_CACHE), text)
        return Answer(200, (("Content-Type", "application/octet-stream"), _NO_CACHE), body)

    def why_closed(self, request: Request, caller: Caller) -> str:
        """Why this caller may not see what only operators may; empty if he may."""
        return why_closed(caller, request.headers.get("host", ""), self._own_names, self._debug_allow)

    def _answer_page(self, path: str, query: str, page: Page | Question | None, caller: Caller, host: str) -> Answer:
        closed = why_closed(caller, host, self._own_names, self._debug_allow)
        if closed:
            return Answer(403, (_TEXT,), f"{fit_to_show(f'{path} is closed to {closed}')}\n".encode())
        if isinstance(page, Question):
            asked = read_query(query)
            reply = page.reply(asked) if asked is not None else Reply(400, _TEXT[1], b"the query has too many parts\n")
            return Answer(reply.status, (("Content-Type", reply.content_type), *_BROWSER), reply.body)
        if page is not None:
            body = page.render()
            status = 500 if page.is_fault(body) else 200
            return Answer(status, (("Content-Type", page.content_type), *_BROWSER), body)
        if path in ("/debug", "/debug/index"):
            return Answer(302, (("Location", "/debug/"),))
        text = "no such page; there are: " + ", ".join(sorted(self.pages)) + "\n"
        return Answer(404, (_TEXT,), text.encode())

    def _answer_bootstrap(self, query: str, address: str) -> Answer:
        name = parse_qs(query).get("q", [""])[0]
        found = self._bootstrap_dns(name, address)
        body = b"" if found is None else json.dumps(found, indent="\t").encode()
        return Answer(200, (("Content-Type", "application/json"), ("Connection", "close"), *_BROWSER), body)

    def _answer_home(self) -> Answer:
        if self._home == "blank":
            return Answer(200, (_HTML, *_BROWSER))
        if self._home:
            return Answer(302, (("Location", self._home), *_BROWSER))
        body = _HOME
        if not self._derp_enabled:
            body = body.replace(b"</body>", b"<p>Relaying is switched off here.</p></body>")
        return Answer(200, (_HTML, *_BROWSER), body)


class PlainPages:
    """Pages of the plain listener beside TLS: the captive-portal probe, and redirects for everything else."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def route(self) -> Route:
        """The only one of its front door."""
        return Route(every_path, _taking(self.answer))

    def answer(self, request: Request, caller: Caller) -> Answer:
        path = request.target.partition("?")[0]
        if path == "/generate_204":
            return generate_204(request)
        if self._pages.is_challenge(path):
            return self._pages.answer_challenge(path)
        if path.startswith("/debug") and self._pages.pages:
            return self._pages.answer(request, caller)
        if request.method not in ("GET", "HEAD"):
            return Answer(400, (_TEXT,), b"Use HTTPS\n")
        host = _PORT.sub("", request.headers.get("host", ""))
        target = request.target if request.target.startswith("/") else "/"
        return Answer(302, (("Location", f"https://{host}{target}"),))


def generate_204(request: Request) -> Answer:
    """The captive-portal probe: an empty answer that proves, by the challenge, that nobody stands between."""
    headers: Headers = (_NO_CACHE,)
    challenge = request.headers.get("x-tailscale-challenge", "")
    if _CHALLENGE.match(challenge):
        headers += (("X-Tailscale-Response", f"response {challenge}"),)
    return Answer(204, headers)


def _answer_invited(derp_map: bytes | None) -> Answer:
    if derp_map is None:
        return Answer(404, (_TEXT, _NO_CACHE), b"no such invitation: it ended, was revoked, or never was\n")
    return Answer(200, (("Content-Type", "application/json"), _NO_CACHE), derp_map)


def _taking(answer: Callable[[Request, Caller], Answer]) -> Callable[[HttpSession, Request], None]:
    def take(session: HttpSession, request: Request) -> None:
        made = answer(request, session.caller)
        session.answer(made.status, made.headers, made.body)

    return take
