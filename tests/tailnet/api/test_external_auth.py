"""What a user linked: listed, forgotten, and explained to administrators; each user's own."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tailnet.store.rows import Role
from tests.support.api_world import World
from tests.support.linked import Linking
from tests.support.providers import open_provider
from tests.support.seeds import NOW, make_id, user_token

VECTORS = Path(__file__).parents[2] / "vectors" / "api"


@pytest.fixture
async def linking(world: World) -> AsyncIterator[Linking]:
    async with open_provider() as provider:
        yield Linking(world, provider)


def is_linked(linking: Linking, username: str = "alice") -> bool:
    row = linking.world.store.credentials.link(make_id(username), "git")
    return row is not None and row.sealed is not None


async def test_unlinking(linking: Linking) -> None:
    await linking.link("alice")
    async with linking.world.client(token=user_token("bob")) as bob:
        assert (await bob.delete("/api/v2/external-auth/git")).status_code == 404, "not his own"
        assert (await bob.get("/api/v2/external-auth")).json()["links"] == []
    assert is_linked(linking)
    linking.external.configure(())
    async with linking.world.client(token=user_token("alice")) as alice:
        gone = await alice.delete("/api/v2/external-auth/git")
        assert (gone.status_code, gone.content) == (204, b"")
        assert (await alice.delete("/api/v2/external-auth/git")).status_code == 404
    assert not is_linked(linking)


async def test_debug_link(linking: Linking) -> None:
    await linking.link("alice")
    path = "/api/v2/debug/{}/debug-link"
    async with linking.world.client(token=user_token("alice")) as alice:
        seen = [await alice.get(path.format(name)) for name in ("me", "alice", str(make_id("alice")))]
        assert (await alice.get(path.format("bob"))).status_code == 404
        assert (await alice.get(path.format(make_id("bob")))).status_code == 404
    vector = (VECTORS / "debug_link.json").read_bytes()
    assert [each.content for each in seen] == [vector] * 3
    async with linking.world.client(token=user_token("bob")) as bob:
        assert (await bob.get(path.format("me"))).json()["links"] == []
        assert (await bob.get(path.format("alice"))).status_code == 404
        linking.world.store.callers.update_user(make_id("bob"), NOW, role=Role.ADMIN)
    linking.world.services = replace(
        linking.world.services, callers=type(linking.world.services.callers)(linking.world.store)
    )
    async with linking.world.client(token=user_token("bob")) as bob:
        for name in ("alice", str(make_id("alice"))):
            assert (await bob.get(path.format(name))).content == vector
        assert (await bob.get(path.format("nobody"))).status_code == 404
    async with linking.world.client() as nobody:
        assert (await nobody.get(path.format("alice"))).status_code == 401
