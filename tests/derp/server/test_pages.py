"""Every path, exactly as the genuine relay answers it where clients and probes look."""

import json

import pytest

from derp.config.relay import LOOPBACK
from derp.server.address import find_caller
from derp.server.pages import Answer, Page, Pages, PlainPages
from derp.transport.http import Request
from tests.support.networks import networks

HERE, STRANGER = "127.0.0.1", "198.51.100.7"
PROXIES = networks("10.9.0.0/16")
TEXT = ("Content-Type", "text/plain; charset=utf-8")
NO_CACHE = ("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0")
BROWSER = {"Strict-Transport-Security", "Content-Security-Policy", "X-Frame-Options", "X-Content-Type-Options"}


class World:
    """Pages of a relay that may be unwell and whose bootstrap DNS is a dictionary."""

    def __init__(self, *, home: str = "", derp_enabled: bool = True, debug_allow: tuple[str, ...] = ()) -> None:
        self.problem: str | None = None
        self.names: dict[str, list[str]] | None = None
        self.queries: list[tuple[str, str]] = []
        self.pages = Pages(
            home=home,
            derp_enabled=derp_enabled,
            debug_allow=LOOPBACK + networks(*debug_allow),
            problem=lambda: self.problem,
            pages={
                "/debug/": Page("index", "text/html", lambda: b"inside"),
                "/metrics": Page("m", "x/y", lambda: b"1"),
            },
            bootstrap_dns=self._bootstrap,
            own_names=("relay.example", ""),
        )

    def _bootstrap(self, query: str, address: str) -> dict[str, list[str]] | None:
        self.queries.append((query, address))
        return self.names

    def ask(self, target: str, method: str = "GET", address: str = HERE, **headers: str) -> Answer:
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.pages.answer(Request(method, target, lines, b"", "1.1"), find_caller((address, 7), lines, PROXIES))

    def ask_plain(self, target: str, method: str = "GET", address: str = HERE, **headers: str) -> Answer:
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(method, target, lines, b"", "1.1")
        return PlainPages(self.pages).answer(request, find_caller((address, 7), lines, PROXIES))


@pytest.mark.parametrize("path", ["/derp/probe", "/derp/latency-check"])
def test_probes(path: str) -> None:
    world = World()
    for method in ("GET", "HEAD"):
        assert world.ask(path, method) == Answer(200, (("Access-Control-Allow-Origin", "*"),))
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert world.ask(path, method) == Answer(405, (TEXT,), b"bogus probe method\n")
    assert world.ask(f"{path}?x=y").status == 200
    world.problem = "draining"
    assert world.ask(path).status == 503


@pytest.mark.parametrize(
    ("challenge", "is_echoed"),
    [
        ("abc", True),
        ("ts_relay.example:443-1", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        ("a b", False),
        ("a,b", False),
        ("<script>", False),
        ("a\n", False),
        ("\u00e9", False),
    ],
)
def test_generate_204(challenge: str, is_echoed: bool) -> None:
    world = World()
    echo = (("X-Tailscale-Response", f"response {challenge}"),) if is_echoed else ()
    for ask in (world.ask, world.ask_plain):
        assert ask("/generate_204", x_tailscale_challenge=challenge) == Answer(204, (NO_CACHE, *echo))
    assert world.ask("/generate_204") == Answer(204, (NO_CACHE,))


def test_bootstrap_dns() -> None:
    world = World()
    empty = world.ask("/bootstrap-dns")
    assert (empty.status, empty.body) == (200, b"")
    assert ("Content-Type", "application/json") in empty.headers
    assert ("Connection", "close") in empty.headers
    world.names = {"a.example": ["192.0.2.1", "2001:db8::1"]}
    found = world.ask("/bootstrap-dns?q=a.example")
    assert json.loads(found.body) == world.names
    assert found.body.startswith(b'{\n\t"a.example": [\n\t\t"192.0.2.1"')  # indented by tabs
    assert world.queries == [("", HERE), ("a.example", HERE)]


def test_robots_and_home() -> None:
    robots = World().ask("/robots.txt")
    assert (robots.status, robots.body) == (200, b"User-agent: *\nDisallow: /\n")
    for path in ("/", "/anything", "/derp/anything"):
        home = World().ask(path)
        assert home.status == 200
        assert b"<h1>DERP</h1>" in home.body
        assert {name for name, _ in home.headers} >= BROWSER
    assert b"switched off" in World(derp_enabled=False).ask("/").body
    assert World(home="blank").ask("/").body == b""
    elsewhere = World(home="https://example.org/").ask("/")
    assert (elsewhere.status, elsewhere.headers[0]) == (302, ("Location", "https://example.org/"))


def test_derp_that_is_disabled() -> None:
    assert World(derp_enabled=False).ask("/derp") == Answer(404, (TEXT,), b"derp server disabled\n")


def test_connect_is_refused_and_never_granted() -> None:
    for target in ("example.org:443", "/", "/debug/"):
        assert World().ask(target, "CONNECT") == Answer(403, (TEXT,), b"CONNECT not enabled\n")


def test_health() -> None:
    world = World()
    assert world.ask("/healthz", address=STRANGER) == Answer(200, (TEXT,), b"ok\n")
    world.problem = "draining: soon gone"
    assert world.ask("/healthz", address=STRANGER) == Answer(503, (TEXT,), b"draining: soon gone\n")


@pytest.mark.parametrize("path", ["/debug/", "/metrics", "/debug/nothing", "/debug"])
def test_operators_pages_are_closed_to_strangers_and_behind_proxies(path: str) -> None:
    world = World(debug_allow=("10.0.0.0/8",))
    for address in (HERE, "::1", "::ffff:127.0.0.1", "10.1.2.3"):
        assert world.ask(path, address=address).status != 403
    for address in (STRANGER, "2001:db8::1", "::ffff:198.51.100.7", ""):
        refused = world.ask(path, address=address)
        assert refused.status == 403
        assert b"debug_allow" in refused.body  # says what to change
    assert world.ask(path, address=HERE, x_forwarded_for="127.0.0.1").status == 403


def test_operators_pages_are_closed_to_names_that_are_not_ours() -> None:
    world = World()
    for path in ("/debug/", "/metrics", "/debug/nothing"):
        for ask in (world.ask, world.ask_plain) if path.startswith("/debug") else (world.ask,):
            assert ask(path, host="evil.example:3340").status == 403
            assert ask(path, host="relay.example").status != 403
            assert ask(path, host="localhost:3340").status != 403
    assert b"'evil.example:3340'" in world.ask("/debug/", host="evil.example:3340").body
    assert world.ask("/healthz", host="evil.example").status == 200  # which anybody may see


def test_operators_pages() -> None:
    world = World()
    page = world.ask("/debug/")
    assert (page.status, page.body, page.headers[0]) == (200, b"inside", ("Content-Type", "text/html"))
    assert {name for name, _ in page.headers} >= BROWSER
    assert world.ask("/debug") == Answer(302, (("Location", "/debug/"),))
    missing = world.ask("/debug/pprof")
    assert (missing.status, missing.body) == (404, b"no such page; there are: /debug/, /metrics\n")


@pytest.mark.parametrize(
    ("host", "target", "location"),
    [
        ("relay.example", "/", "https://relay.example/"),
        ("relay.example:80", "/a/b?c=d", "https://relay.example/a/b?c=d"),
        ("[2001:db8::1]", "/", "https://[2001:db8::1]/"),
        ("[2001:db8::1]:80", "/", "https://[2001:db8::1]/"),
        ("relay.example", "http://elsewhere.example/", "https://relay.example/"),
    ],
)
def test_the_plain_port_redirects(host: str, target: str, location: str) -> None:
    for method in ("GET", "HEAD"):
        assert World().ask_plain(target, method, STRANGER, host=host) == Answer(302, (("Location", location),))


def test_the_plain_port_refuses_the_rest() -> None:
    for method in ("POST", "CONNECT"):
        assert World().ask_plain("/x", method) == Answer(400, (TEXT,), b"Use HTTPS\n")
    assert World().ask_plain("/debug/").body == b"inside"
    assert World().ask_plain("/debug/", address=STRANGER).status == 403
    assert World().ask_plain("/derp", host="h").status == 302
