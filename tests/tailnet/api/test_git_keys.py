"""An agent asks for its owner's SSH keys; nobody else gets them."""

from dataclasses import replace
from pathlib import Path

import pytest

from tailnet.services.git_keys import GitKeys
from tailnet.store.sealing import Sealer
from tests.support.api_world import World
from tests.support.seeds import NOW, agent_token, make_id, user_token

PATH = "/api/v2/workspaceagents/me/gitsshkey"
VECTORS = Path(__file__).parents[2] / "vectors" / "api"


async def test_the_owner_s_keys(world: World) -> None:
    found = []
    for name in ("main", "gpu", "web"):
        async with world.client(token=agent_token(name)) as client:
            answer = await client.get(PATH)
        assert answer.status_code == 200
        found.append(answer.json())
        public, private = (found[-1][each].replace("\n", "\\n") for each in ("public_key", "private_key"))
        vector = (VECTORS / "gitsshkey.json").read_text()
        assert answer.text == vector.replace("PUBLIC", public).replace("PRIVATE", private)
    assert found[0] == found[1] != found[2], "agents of one owner have one pair"


@pytest.mark.parametrize(("token", "status"), [("", 401), (user_token("alice"), 401), (str(make_id("x")), 401)])
async def test_nobody_else(world: World, token: str, status: int) -> None:
    async with world.client(token=token) as client:
        assert (await client.get(PATH)).status_code == status
    assert world.store.credentials.git_key(make_id("alice")) is None


async def test_a_server_without_keys_says_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.services = replace(world.services, git_keys=GitKeys(world.store, Sealer()))
    async with world.client(token=agent_token("main")) as client:
        answer = await client.get(PATH)
    assert answer.status_code == 501
    assert answer.json() == {
        "message": "This server cannot keep or read that secret.",
        "detail": "this server keeps no secrets of others: it has no --secrets-key-file",
    }
    assert "--secrets-key-file" in caplog.text


async def test_not_for_agents_of_an_inactive_owner(world: World) -> None:
    world.store.callers.update_user(make_id("alice"), NOW, active=False)
    async with world.client(token=agent_token("main")) as client:
        for path in (
            PATH,
            PATH.replace("gitsshkey", "external-auth?id=git"),
            PATH.replace("gitsshkey", "gitauth?url=x"),
        ):
            refused = await client.get(path)
            assert (refused.status_code, refused.json()["message"]) == (
                403,
                "The owner of this workspace is not active.",
            )
    async with world.client(token=agent_token("web")) as client:
        assert (await client.get(PATH)).status_code == 200
