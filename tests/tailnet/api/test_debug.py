"""The page for the person on call: what it shows, how it explains, and that names on it cannot bite."""

import pytest

from tailnet.api import debug, pages
from tailnet.coordinator.messages import Request
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy
from tailnet.services.derp_maps import DerpMaps
from tailnet.store.rows import (
    AppState,
    AppStatus,
    AppStatusReport,
    ConnectionAction,
    ConnectionReport,
    ConnectionType,
    RunStage,
    RunStatus,
    ScriptRun,
    Startup,
)
from tailnet.types import PeerID
from tests.support.api_world import LOCAL, World
from tests.support.seeds import NOW, came, defined_document, fill, make_id, peer_id

MAIN, CLIENT = peer_id("main"), peer_id("a client")


def connect(world: World, peer: PeerID, agent: bool, now: float) -> object:
    connection = object()
    policy = AgentPolicy(peer) if agent else ClientPolicy(MAIN)
    world.coordinator.handle_connect(peer, policy, connection, now)
    return connection


async def test_who_is_here(world: World) -> None:
    connect(world, MAIN, True, 10.0)
    client_connection = connect(world, CLIENT, False, 40.0)
    world.coordinator.handle_request(client_connection, Request(add_tunnel=bytes(MAIN)), 41.0)
    async with world.client(LOCAL) as client:
        picture = (await client.get("/debug/tailnet?format=json")).json()
        page = (await client.get("/debug/tailnet")).text
    assert (picture["peers_count"], picture["connected_count"]) == (2, 2)
    by_id = {each["peer_id"]: each for each in picture["peers"]}
    assert by_id[str(MAIN)]["connected_seconds"] == 90.0
    assert by_id[str(CLIENT)]["tunnels_to"] == [str(MAIN)]
    assert by_id[str(CLIENT)]["policy"] == "client"
    assert [each["id"] for each in picture["derp_map"]["regions"]] == [999]
    for text in (str(MAIN), str(CLIENT), "2 connected of 2 known", "Embedded relay"):
        assert text in page


async def test_what_an_agent_reported(world: World) -> None:
    store = world.store
    fill(store, defined_document())
    came(store, MAIN, NOW)
    store.reports.update_startups([Startup(MAIN, "v2.20.0", "/home/me", ["ENVBOX"], "2.4")])
    session = ConnectionReport(
        MAIN, make_id("session"), ConnectionAction.CONNECT, ConnectionType.SSH, NOW, "192.0.2.7", 0, "<b>", "ssh"
    )
    store.reports.insert_connections([session], NOW)
    store.apps.add_app_statuses(
        [AppStatusReport(MAIN, "editor", AppStatus(make_id("status"), NOW, AppState.IDLE, "<i>resting", ""))]
    )
    run = ScriptRun(make_id("start of main"), NOW, NOW, 3, RunStage.START, RunStatus.EXIT_FAILURE)
    store.apps.add_script_runs([(MAIN, run)])
    async with world.client(LOCAL) as client:
        picture = (await client.get(f"/debug/agent?id={MAIN}&format=json")).json()
        page = (await client.get(f"/debug/agent?id={MAIN}")).text
    shown = picture["agent"]
    assert (shown["status"], shown["version"], shown["api_version"]) == ("connected", "v2.20.0", "2.4")
    assert picture["connections"] == [
        {
            "connection_id": str(make_id("session")),
            "action": "CONNECT",
            "type": "SSH",
            "at": str(NOW),
            "ip": "192.0.2.7",
            "status_code": 0,
            "reason": "<b>",
            "app_name": "ssh",
        }
    ]
    assert [(each["script"], each["exit_code"], each["status"]) for each in picture["script_runs"]] == [
        ("Start", 3, "EXIT_FAILURE")
    ]
    assert picture["apps"][0]["said"] == [f"{NOW} IDLE: <i>resting"]
    for text in ("192.0.2.7", "&lt;b&gt;", "&lt;i&gt;resting", "EXIT_FAILURE", "v2.20.0"):
        assert text in page
    assert "<b>" not in page


async def test_an_agent_that_reported_nothing_and_one_that_is_none(world: World) -> None:
    async with world.client(LOCAL) as client:
        page = (await client.get(f"/debug/agent?id={MAIN}")).text
        missing = await client.get(f"/debug/agent?id={CLIENT}")
        wrong = await client.get("/debug/agent?id=x")
        # Agents choose the names of their sub-agents.
        assert world.store.callers.add_sub_agent(MAIN, CLIENT, bytes(32), "<script>", NOW)
        assert "<script>" not in (await client.get(f"/debug/agent?id={CLIENT}")).text
    assert "It reported no session." in page
    assert (missing.status_code, missing.json()["message"]) == (404, "There is no such agent.")
    assert (wrong.status_code, wrong.json()["message"]) == (400, "id has to be an agent's.")
    async with world.client() as client:
        assert (await client.get(f"/debug/agent?id={MAIN}")).status_code == 403


async def test_who_left(world: World) -> None:
    connection = connect(world, MAIN, True, 10.0)
    world.coordinator.handle_disconnect(connection, False, 70.0)
    async with world.client(LOCAL) as client:
        [departure] = (await client.get("/debug/tailnet?format=json")).json()["departures"]
    assert (departure["peer_id"], departure["left_seconds"], departure["kind"]) == (str(MAIN), 30.0, "LOST")


async def test_an_empty_server(world: World) -> None:
    async with world.client(LOCAL) as client:
        page = (await client.get("/debug/tailnet")).text
    assert "Nobody is here." in page
    assert "Nobody has left." in page


async def test_peers_are_found_and_sorted(world: World) -> None:
    connect(world, MAIN, True, 10.0)
    for number, now in ((1, 30.0), (2, 20.0)):
        connection = connect(world, peer_id(f"client {number}"), False, now)
        world.coordinator.handle_request(connection, Request(add_tunnel=bytes(MAIN)), 40.0)

    async with world.client(LOCAL) as client:

        async def ids(query: str) -> list[str]:
            return [
                each["peer_id"] for each in (await client.get(f"/debug/tailnet?format=json&{query}")).json()["peers"]
            ]

        one, two = str(peer_id("client 1")), str(peer_id("client 2"))
        assert await ids("sort=connected_seconds") == [one, two, str(MAIN)]
        assert await ids("sort=-connected_seconds") == [str(MAIN), two, one]
        assert (await ids("sort=-tunnels_from"))[0] == str(MAIN)
        assert await ids("sort=peer_id") == sorted([one, two, str(MAIN)])
        assert set(await ids("find=CLIENT")) == {one, two}
        assert await ids(f"find={one[:13]}") == [one]
        assert len(await ids("sort=preferred_derp")) == 3  # which nobody has told
        page = (await client.get("/debug/tailnet?find=client&sort=-connected_seconds")).text
        assert "With client: 2." in page
        assert "find=client&amp;sort=connected_seconds" in page
        assert (await client.get("/debug/tailnet?sort=size")).status_code == 400


async def test_why_not(world: World) -> None:
    connect(world, MAIN, True, 10.0)
    async with world.client(LOCAL) as client:
        asked = f"/debug/tailnet?a={CLIENT}&b={str(MAIN).upper()}"
        sentences = (await client.get(asked + "&format=json")).json()["explanation"]
        page = (await client.get(asked)).text
    assert sentences == world.services.inspection.explain(CLIENT, MAIN)
    assert sentences[-1].split(":")[0] in page


@pytest.mark.parametrize("query", ["a=x&b=y", f"a={MAIN}", f"b={MAIN}&a="])
async def test_ids_that_are_none(world: World, query: str) -> None:
    async with world.client(LOCAL) as client:
        response = await client.get(f"/debug/tailnet?{query}")
    assert response.status_code == 400
    assert response.json()["message"] == "Both a and b have to be peer ids."


async def test_what_is_wrong_is_on_the_page(world: World) -> None:
    world.reasons.append("the store <does> not answer")
    async with world.client(LOCAL) as client:
        page = (await client.get("/debug/tailnet")).text
        picture = (await client.get("/debug/tailnet?format=json")).json()
    assert "the store &lt;does&gt; not answer" in page
    assert picture["not_ready"] == world.reasons
    assert "default-src 'none'" in (await _headers(world))["content-security-policy"]


async def _headers(world: World) -> dict[str, str]:
    async with world.client(LOCAL) as client:
        return dict((await client.get("/debug/tailnet")).headers)


async def test_a_large_server_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "MAX_ROWS", 3)
    monkeypatch.setattr(pages, "MAX_IDS", 2)
    connect(world, MAIN, True, 0.0)
    for number in range(5):
        connection = connect(world, peer_id(f"client {number}"), False, 1.0)
        world.coordinator.handle_request(connection, Request(add_tunnel=bytes(MAIN)), 2.0)
    async with world.client(LOCAL) as client:
        picture = (await client.get("/debug/tailnet?format=json")).json()
        page = (await client.get("/debug/tailnet")).text
    assert (picture["peers_count"], len(picture["peers"])) == (6, 3)
    assert "and 3 more" in page


async def test_warnings_of_the_map(world: World) -> None:
    assert isinstance(world.services.derp_maps, DerpMaps)
    world.services.derp_maps.steer(avoid=[999])
    async with world.client(LOCAL) as client:
        picture = (await client.get("/debug/tailnet?format=json")).json()
        page = (await client.get("/debug/tailnet")).text
    assert picture["derp_map"]["regions"][0]["avoid"] is True
    assert any("none may become a home" in each for each in picture["derp_map"]["warnings"])
    assert "none may become a home" in page
