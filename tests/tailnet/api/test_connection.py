"""Connection info: the body that genuine clients decode, key by key, and who may have it."""

import json

import pytest

from derp.map import DERPMap
from tailnet.config import CoordinatorConfig
from tailnet.refusals import NO_SUCH_AGENT
from tailnet.store.store import Store
from tests.support.api_world import World, make_world
from tests.support.seeds import peer_id, user_token

GENERAL = "/api/v2/workspaceagents/connection"
OF_MAIN = f"/api/v2/workspaceagents/{peer_id('main')}/connection"


@pytest.mark.parametrize("path", [GENERAL, OF_MAIN])
async def test_the_body(world: World, path: str) -> None:
    async with world.client(token=user_token("alice")) as client:
        response = await client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.text == (
        '{"derp_map":{"Regions":{"999":{"EmbeddedRelay":true,"RegionID":999,"RegionCode":"embedded",'
        '"RegionName":"Embedded relay","Nodes":[{"Name":"999b","RegionID":999,"HostName":"tailnet.example.com",'
        '"STUNPort":3478,"DERPPort":80,"ForceHTTP":true}]}}},"derp_force_websockets":false,'
        '"disable_direct_connections":false,"hostname_suffix":"coder"}\n'
    )


async def test_a_changed_map_is_in_the_next_answer(world: World) -> None:
    async with world.client(token=user_token("alice")) as client:
        world.services.derp_maps.steer(scores={999: 1.5})
        body = json.loads((await client.get(GENERAL)).text)
    assert body["derp_map"]["HomeParams"] == {"RegionScore": {"999": 1.5}}
    assert DERPMap.parse(body["derp_map"]) == world.services.derp_maps.current.map


async def test_what_clients_are_told_to_do(store: Store) -> None:
    config = CoordinatorConfig(derp_force_websockets=True, disable_direct_connections=True, hostname_suffix="")
    async with make_world(store, config).client(token=user_token("alice")) as client:
        body = json.loads((await client.get(GENERAL)).text)
    assert (body["derp_force_websockets"], body["disable_direct_connections"]) == (True, True)
    assert "hostname_suffix" not in body


@pytest.mark.parametrize("path", [GENERAL, OF_MAIN])
@pytest.mark.parametrize("token", ["", "nonsense", user_token("carol")])
async def test_without_a_usable_key(world: World, path: str, token: str) -> None:
    async with world.client(token=token) as client:
        response = await client.get(path)
    assert response.status_code == 401
    assert response.text == '{"message":"API key or external proxy authentication required, but none provided"}\n'
    assert response.headers["www-authenticate"] == "Bearer"


async def test_agents_of_others_and_of_nobody(world: World) -> None:
    async with world.client(token=user_token("alice")) as client:
        for name in ("web", "nobody"):
            response = await client.get(f"/api/v2/workspaceagents/{peer_id(name)}/connection")
            assert (response.status_code, response.json()) == (404, {"message": NO_SUCH_AGENT})
        response = await client.get("/api/v2/workspaceagents/x/connection")
    assert response.status_code == 400
    assert response.json() == {"message": 'Invalid UUID "x".', "detail": "invalid UUID length: 1"}


async def test_tokens_where_clients_put_them(world: World) -> None:
    token = user_token("alice")
    async with world.client() as client:
        for headers, query in (
            ({"Cookie": f"coder_session_token={token}"}, ""),
            ({"Authorization": f"Bearer {token}"}, ""),
            ({}, f"?coder_session_token={token}"),
            ({}, f"?access_token={token}"),
        ):
            assert (await client.get(GENERAL + query, headers=headers)).status_code == 200
