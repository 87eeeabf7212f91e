"""Metadata streams, as far as they answer without a socket; the rest is in tests/tailnet/server."""

import pytest

from tailnet.api.metadata import _encoded
from tests.support.api_world import World
from tests.support.seeds import defined_document, fill, peer_id, user_token

PATH = f"/api/v2/workspaceagents/{peer_id('main')}/watch-metadata"


@pytest.mark.parametrize("path", [PATH, PATH + "-ws"])
async def test_who_may_look(world: World, path: str) -> None:
    for token, status in (("", 401), (user_token("bob"), 404)):
        async with world.client(token=token) as client:
            assert (await client.get(path)).status_code == status


async def test_a_request_that_lost_its_upgrade(world: World) -> None:
    async with world.client(token=user_token("alice")) as client:
        assert (await client.get(PATH + "-ws")).status_code == 426


async def test_the_bytes_of_what_never_ran(world: World) -> None:
    fill(world.store, defined_document())
    snapshot = await world.services.metadata.read(peer_id("main"))
    assert _encoded(snapshot).decode() == (
        '[{"result":{"collected_at":"0001-01-01T00:00:00Z","age":9223372036,"value":"","error":""},'
        '"description":{"display_name":"CPU","key":"cpu","script":"uptime","interval":10,"timeout":1}},'
        '{"result":{"collected_at":"0001-01-01T00:00:00Z","age":9223372036,"value":"","error":""},'
        '"description":{"display_name":"","key":"disk","script":"df -h","interval":0,"timeout":0}}]\n'
    )
    assert _encoded(await world.services.metadata.read(peer_id("web"))) == b"[]\n"
