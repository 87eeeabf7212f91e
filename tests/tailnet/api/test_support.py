"""What a support bundle takes from a server: for operators only, and without secrets."""

import logging
from dataclasses import replace

from tests.support.api_world import LOCAL, STRANGER, World
from tests.support.logs import own_log

PATHS = ("/debug/log", "/debug/settings", "/debug/derp-map")


async def test_strangers_get_none_of_it(world: World) -> None:
    async with world.client(STRANGER) as client:
        assert {(await client.get(path)).status_code for path in PATHS} == {403}


async def test_the_log(world: World) -> None:
    with own_log():
        logging.getLogger("derp").info("who asked: %s", "Bearer abcdefghijkl1234")
        async with world.client(LOCAL) as client:
            response = await client.get("/debug/log")
    assert response.headers["content-type"].startswith("text/plain")
    assert "who asked: Bearer <secret>\n" in response.text


async def test_the_settings(world: World) -> None:
    config = replace(world.services.config, store="postgresql+psycopg://u:hunter2@db/x")
    world = replace(world, services=replace(world.services, config=config))
    async with world.client(LOCAL) as client:
        settings = (await client.get("/debug/settings")).json()["settings"]
    assert settings["store"] == "postgresql+psycopg://<secret>@db/x"
    assert settings["agent_ping"] == 15.0


async def test_the_map(world: World) -> None:
    async with world.client(LOCAL) as client:
        derp_map = (await client.get("/debug/derp-map")).json()
    assert list(derp_map["Regions"]) == ["999"]
