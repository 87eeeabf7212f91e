"""Health is open and terse, numbers are for operators."""

import pytest

from tailnet.store.rows import Role
from tests.support.api_world import LOCAL, STRANGER, World
from tests.support.seeds import NOW, make_id, user_token


async def test_health_is_open(world: World) -> None:
    async with world.client(STRANGER) as client:
        for path in ("/healthz", "/readyz"):
            response = await client.get(path)
            assert (response.status_code, response.text) == (200, "OK\n")
            assert (await client.head(path)).status_code == 200


async def test_not_ready_says_why(world: World) -> None:
    world.reasons += ["the store does not answer", "draining"]
    async with world.client() as client:
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert response.json() == {"message": "Not ready.", "detail": "the store does not answer; draining"}
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/debug/tailnet"])
async def test_closed_to_strangers(world: World, path: str) -> None:
    async with world.client(STRANGER) as client:
        response = await client.get(path)
        assert response.status_code == 403
        assert response.json()["message"] == "Closed to strangers."
        assert (await client.get(path, headers={"X-Forwarded-For": "127.0.0.1"})).status_code == 403
    async with world.client(LOCAL) as client:
        assert (await client.get(path)).status_code == 200
        assert (await client.get(path, headers={"X-Forwarded-For": "127.0.0.1"})).status_code == 403
    async with world.client(STRANGER, user_token("alice")) as client:
        assert (await client.get(path)).status_code == 403
    world.store.callers.update_user(make_id("bob"), NOW, role=Role.ADMIN)
    async with world.client(STRANGER, user_token("bob")) as client:
        # Seen at the latest when the callers in memory are compared again; this one was not in memory.
        assert (await client.get(path)).status_code == 200


async def test_metrics(world: World) -> None:
    async with world.client(LOCAL) as client:
        response = await client.get("/metrics")
    assert response.text == "tailnet_up 1\n"
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
