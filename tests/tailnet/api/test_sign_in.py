"""Signing in with a browser: what the cookie says, that no other site's form does it, and that trying has a bound."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from tailnet.api.guards import SIGN_INS_PER_ADDRESS
from tailnet.tokens import COOKIE
from tests.support.api_world import ACCESS_URL, STRANGER, World
from tests.support.seeds import NOW, agent_token, make_id, peer_id, user_token

ALICE = user_token("alice")
PAGE = f"/agents/{peer_id('main')}"


async def post(
    world: World, path: str = "/login", headers: dict[str, str] | None = None, **form: str
) -> httpx.Response:
    async with world.client(STRANGER) as client:
        return await client.post(path, data=form, headers=headers)


async def test_the_cookie_is_for_the_browser_alone(world: World) -> None:
    answer = await post(world, token=f" {ALICE}\n", after=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, PAGE)
    assert answer.headers["set-cookie"] == f"{COOKIE}={ALICE}; Path=/; HttpOnly; SameSite=Lax"
    assert answer.headers["cache-control"] == "no-store"
    async with world.client(STRANGER) as client:
        shown = await client.get(PAGE, headers={"cookie": answer.headers["set-cookie"].partition(";")[0]})
    assert shown.status_code == 200
    assert ALICE not in shown.text


async def test_over_tls_it_is_for_tls_alone(world: World) -> None:
    world.services = replace(world.services, access_url="https://tailnet.example.com")
    for path in ("/login", "/logout"):
        assert "; Secure" in (await post(world, path, token=ALICE)).headers["set-cookie"]


async def test_signing_out_takes_it_away(world: World) -> None:
    answer = await post(world, "/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert answer.headers["set-cookie"] == f"{COOKIE}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"


@pytest.mark.parametrize(
    "token", ["", "nonsense", agent_token("main"), user_token("nobody"), ALICE[:-1] + "z", "x" * 2000, "\udcff"]
)
async def test_what_is_no_session_token(world: World, token: str) -> None:
    answer = await post(world, token=token.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), after=PAGE)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "That did not work." in answer.text
    assert f'value="{PAGE}"' in answer.text, "where one wanted to go is kept"
    assert not token or token not in answer.text


async def test_a_token_that_a_cookie_cannot_carry(world: World) -> None:
    token = "a token; with=all"
    from tailnet.tokens import parse_user_token

    presented = parse_user_token(token)
    world.store.callers.add_user_token(make_id("alice"), presented.id, presented.secret_digest, NOW)
    answer = await post(world, token=token)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "after", ["https://evil.example/", "//evil.example", "/agents/../debug", f"{PAGE}\r\nX: y", "/api/v2/users/me"]
)
async def test_nobody_is_sent_elsewhere(world: World, after: str) -> None:
    assert (await post(world, token=ALICE, after=after)).headers["location"] == "/"


@pytest.mark.parametrize("path", ["/login", "/logout"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 303),  # a text browser
        ({"origin": ACCESS_URL}, 303),
        ({"sec-fetch-site": "same-origin", "origin": ACCESS_URL}, 303),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": ACCESS_URL}, 403),
    ],
)
async def test_only_our_own_forms(world: World, path: str, headers: dict[str, str], status: int) -> None:
    answer = await post(world, path, headers, token=ALICE)
    assert answer.status_code == status
    assert ("set-cookie" in answer.headers) is (status == 303)


async def test_trying_has_a_bound_for_each_address(world: World) -> None:
    for _ in range(SIGN_INS_PER_ADDRESS):
        assert (await post(world, token="x")).status_code == 401
    answer = await post(world, token=ALICE)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    async with world.client(("203.0.113.10", 1)) as client:
        assert (await client.post("/login", data={"token": ALICE})).status_code == 303, "others are not held back"


async def test_an_ipv6_network_is_one_address(world: World) -> None:
    for number in range(SIGN_INS_PER_ADDRESS):
        async with world.client((f"2001:db8::{number:x}", 1)) as client:
            await client.post("/login", data={"token": "x"})
    async with world.client(("2001:db8::ffff:1", 1)) as client:
        assert (await client.post("/login", data={"token": ALICE})).status_code == 429
    async with world.client(("2001:db8:0:1::1", 1)) as client:
        assert (await client.post("/login", data={"token": ALICE})).status_code == 303


@pytest.mark.parametrize(
    ("content", "status"), [(b"x" * 5000, 413), (b"&".join([b"a=b"] * 20), 400), (b"\xff=%ff", 401)]
)
async def test_forms_that_are_none(world: World, content: bytes, status: int) -> None:
    async with world.client(STRANGER) as client:
        answer = await client.post("/login", content=content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


async def test_a_store_that_is_away_is_a_page(world: World) -> None:
    with world.store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE users RENAME TO away")
        connection.exec_driver_sql("ALTER TABLE user_tokens RENAME TO away_too")
    for answer in (await post(world, token=ALICE), await get(world, PAGE), await get(world, "/")):
        assert answer.status_code == 503
        assert "cannot read its store" in answer.text
        assert answer.headers["content-type"] == "text/html; charset=utf-8"


async def get(world: World, path: str) -> Any:
    async with world.client(STRANGER, ALICE) as client:
        return await client.get(path)


async def test_over_the_limit_of_requests_is_a_page(world: World) -> None:
    world.services = replace(world.services, config=replace(world.services.config, api_rate_limit=1))
    assert (await get(world, "/")).status_code == 200
    for path in ("/", PAGE):
        answer = await get(world, path)
        assert (answer.status_code, "rate limited" in answer.text) == (429, True)


@pytest.mark.parametrize(("accept", "kind"), [("text/html,*/*", "text/html"), ("*/*", "application/json")])
async def test_what_browsers_and_programs_ask_is_refused_to_each_in_its_way(
    world: World, accept: str, kind: str
) -> None:
    async with world.client(STRANGER) as client:
        answer = await client.get("/external-auth/github", headers={"accept": accept})
    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith(kind)
    if kind == "text/html":
        assert 'value="/external-auth/github"' in answer.text, "one comes back after signing in"
        answer = await post(world, token=ALICE, after="/external-auth/github")
        assert answer.headers["location"] == "/external-auth/github"
