"""Other websites' scripts: shut out by default, and let in by exact origin, with credentials, and nowhere else."""

from dataclasses import replace

import httpx
import pytest

from tailnet.api.authorise import check_origin
from tailnet.api.cors import HEADERS, METHODS
from tailnet.refusals import Refused
from tests.support.api_world import World
from tests.support.seeds import user_token

DASH, OTHER = "https://dash.example.com", "https://evil.example.com"
ME = "/api/v2/users/me"
ASKS = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "coder-session-token"}


@pytest.fixture
def shared(world: World) -> World:
    config = replace(world.services.config, cors_origins=(DASH,))
    return replace(world, services=replace(world.services, config=config))


def cors_of(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


async def ask(world: World, method: str, path: str, origin: str, **headers: str) -> httpx.Response:
    async with world.client(token=user_token("alice")) as client:
        return await client.request(method, path, headers={"Origin": origin, **headers})


async def test_off_by_default(world: World) -> None:
    answer = await ask(world, "GET", ME, DASH)
    assert (answer.status_code, cors_of(answer), answer.headers.get("vary")) == (200, {}, None)
    asked = await ask(world, "OPTIONS", ME, DASH, **ASKS)
    assert (asked.status_code, cors_of(asked)) == (405, {})


async def test_an_allowed_website(shared: World) -> None:
    answer = await ask(shared, "GET", ME, DASH)
    assert (answer.status_code, answer.headers["vary"]) == (200, "Origin")
    assert cors_of(answer) == {
        "access-control-allow-origin": DASH,
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "X-Request-Id, Retry-After",
    }
    asked = await ask(shared, "OPTIONS", ME, DASH, **ASKS)
    assert (asked.status_code, asked.content, asked.headers["access-control-allow-origin"]) == (204, b"", DASH)
    assert asked.headers["access-control-allow-methods"] == METHODS.decode()
    assert asked.headers["access-control-allow-headers"] == HEADERS.decode()
    assert "Coder-Session-Token" in HEADERS.decode()
    assert asked.headers["x-request-id"]


async def test_refusals_are_readable_too(shared: World) -> None:
    async with shared.client() as client:
        answer = await client.get(ME, headers={"Origin": DASH})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, DASH)


@pytest.mark.parametrize(
    "origin", [OTHER, "null", "", f"{DASH}.evil.example.com", f"{DASH}:8443", DASH.replace("https", "http"), f"{DASH}/"]
)
async def test_any_other_website(shared: World, origin: str) -> None:
    answer = await ask(shared, "GET", ME, origin)
    assert (answer.status_code, cors_of(answer), answer.headers["vary"]) == (200, {}, "Origin")
    asked = await ask(shared, "OPTIONS", ME, origin, **ASKS)
    assert (asked.status_code, cors_of(asked)) == (405, {})


@pytest.mark.parametrize("path", ["/metrics", "/debug/", "/", "/healthz", "/api/v2/admin/events", "/api/v2/admin"])
async def test_what_is_never_shared(shared: World, path: str) -> None:
    for method, more in (("GET", {}), ("OPTIONS", ASKS)):
        assert cors_of(await ask(shared, method, path, DASH, **more)) == {}


def test_websockets_of_an_allowed_website() -> None:
    headers = {"origin": DASH, "host": "tailnet.example.com"}
    check_origin(headers, "https://tailnet.example.com", (DASH,))
    for others in ((), (OTHER,)):
        with pytest.raises(Refused):
            check_origin(headers, "https://tailnet.example.com", others)
