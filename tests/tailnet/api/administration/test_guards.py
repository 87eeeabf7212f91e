"""Who may call: whoever has a token of administrators, in its header alone, and not too often."""

import httpx
import pytest
import trio
from fastapi.routing import APIRoute

from tailnet.api.administration.description import is_guarded
from tailnet.api.administration.guards import MAX_ALL_WRONG_TOKENS, MAX_STREAMS, MAX_WRONG_TOKENS, Turned
from tailnet.api.openapi import routes_of
from tailnet.store.store import Store
from tests.support.administration import OTHER_TOKEN, TOKEN, AdminWorld, make_admin_world
from tests.support.openapi_document import make_administration_app
from tests.support.seeds import agent_token, fill, user_token

# Routes that anybody may call: why.
OPEN = {"problem": "what the code of a refusal means, also of one for want of a token"}


def test_no_route_lacks_its_guard() -> None:
    routes = [each for each in routes_of(make_administration_app()) if isinstance(each, APIRoute)]
    assert {each.operation_id for each in routes if not is_guarded(each)} == set(OPEN)
    assert len(routes) > 40, "the walk saw the routes"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {user_token('alice')}"},
        {"Authorization": f"Bearer {agent_token('main')}"},
        {"Coder-Session-Token": TOKEN},
        {"Cookie": f"coder_session_token={TOKEN}"},
    ],
)
async def test_who_has_no_token(world: AdminWorld, headers: dict[str, str]) -> None:
    async with world.client(token="") as client:
        for method, path in (("GET", "users"), ("DELETE", "users/x"), ("POST", "bulk"), ("GET", "export")):
            response = await client.request(method, path, headers=headers, params={"access_token": TOKEN})
            assert response.status_code == 401
            assert response.headers["content-type"] == "application/problem+json"
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert response.json()["code"] == "unauthenticated"
            assert TOKEN not in response.text


async def test_guessing_has_a_bound_and_holds_nobody_else_back(
    world: AdminWorld, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.client(token="x" * 40, address="198.51.100.7") as client:
        statuses = [(await client.get("users")).status_code for _ in range(MAX_WRONG_TOKENS + 1)]
        assert statuses == [401] * MAX_WRONG_TOKENS + [429]
        response = await client.get("users", headers={"Authorization": f"bearer  {TOKEN} "})
        assert response.status_code == 200, "who has a token is not held back by a neighbour"
    async with world.client(token="x" * 40, address="198.51.100.8") as client:
        assert (await client.get("users")).status_code == 401
    assert world.services.refused[Turned.WRONG_TOKEN] == MAX_WRONG_TOKENS + 2
    told = [each.getMessage() for each in caplog.records if "admin-token-file" in each.getMessage()]
    assert told == ["! 198.51.100.7 asked for administration without a token that --admin-token-file has"]


async def test_many_addresses_guess_no_more_together(world: AdminWorld) -> None:
    for number in range(MAX_ALL_WRONG_TOKENS):
        assert world.services.strangers.take(f"198.51.{number // 250}.{number % 250}", trio.current_time()) == (0, 0)
    async with world.client(token="x" * 40, address="203.0.113.77") as client:
        assert (await client.get("users")).status_code == 429
        response = await client.get("users", headers={"Authorization": f"Bearer {TOKEN}"})
        assert response.status_code == 200


async def test_a_token_has_a_rate(store: Store) -> None:
    fill(store)
    world = make_admin_world(store, rate_limit=3)
    async with world.client() as client, world.client(OTHER_TOKEN) as other:
        responses = [await client.get("users") for _ in range(4)]
        assert [each.status_code for each in responses] == [200, 200, 200, 429]
        assert int(responses[-1].headers["retry-after"]) in range(1, 61)
        assert (await other.get("users")).status_code == 200
        assert world.services.refused[Turned.RATE] == 1
        world.services.rate_limit = 0
        assert (await client.get("users")).status_code == 200


async def test_streams_have_a_bound(world: AdminWorld) -> None:
    async with world.client() as client:
        for each in range(MAX_STREAMS):
            world.services.streams.acquire_on_behalf_of_nowait(each)
        assert (await client.post("bulk", content=b"")).status_code == 429
        assert world.services.refused[Turned.STREAMS] == 1
        world.services.streams.release_on_behalf_of(0)
        for _ in range(3):
            assert (await client.post("bulk", content=b"")).status_code == 200


async def test_the_account_has_the_token_s_name_and_the_request(world: AdminWorld) -> None:
    async with world.client(OTHER_TOKEN) as client:
        response = await client.post("users", json={"username": "carol"}, headers={"X-Request-Id": "our-own-id"})
        assert response.headers["x-request-id"] == "our-own-id"
    row = world.store.audit.page({}, None, 1)[0]
    assert (row["actor_kind"], row["actor"], row["request_id"]) == ("token", "other", "our-own-id")
    assert isinstance(response, httpx.Response)
