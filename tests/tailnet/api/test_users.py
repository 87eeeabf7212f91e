"""Who is calling, by each of his names; others do not exist."""

import pytest

from tailnet.refusals import NO_SUCH_RESOURCE
from tailnet.store.rows import Role
from tests.support.api_world import World
from tests.support.seeds import NOW, make_id, user_token

pytestmark = pytest.mark.stores


@pytest.mark.parametrize("name", ["me", "alice", "ALICE", str(make_id("alice"))])
async def test_the_caller(world: World, name: str) -> None:
    async with world.client(token=user_token("alice")) as client:
        response = await client.get(f"/api/v2/users/{name}")
    assert response.json() == {
        "id": str(make_id("alice")),
        "username": "alice",
        "avatar_url": "",
        "name": "",
        "email": "",
        "created_at": "2026-01-02T03:04:05.678901Z",
        "updated_at": "2026-01-02T03:04:05.678901Z",
        "status": "active",
        "login_type": "token",
        "organization_ids": [],
        "roles": [],
        "theme_preference": "",
    }


async def test_administrators_have_a_role(world: World) -> None:
    world.store.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN)
    async with world.client(token=user_token("alice")) as client:
        roles = (await client.get("/api/v2/users/me")).json()["roles"]
    assert roles == [{"name": "owner", "display_name": "Owner"}]


@pytest.mark.parametrize("name", ["bob", str(make_id("bob")), "nobody"])
async def test_others_do_not_exist(world: World, name: str) -> None:
    async with world.client(token=user_token("alice")) as client:
        response = await client.get(f"/api/v2/users/{name}")
    assert (response.status_code, response.json()["message"]) == (404, NO_SUCH_RESOURCE)
    async with world.client() as client:
        assert (await client.get("/api/v2/users/me")).status_code == 401
