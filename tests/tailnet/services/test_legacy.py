"""Version 1: JSON nodes cut anywhere, arrays back, old and new peers together, and how such a connection ends."""

import json
import math
from contextlib import suppress
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from derp.keys import NodePrivate
from tailnet.coordinator.core import OVERWRITTEN
from tailnet.errors import RemoteProtocolError
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer
from tailnet.services import legacy
from tailnet.services.legacy import node_from_json, node_to_json
from tests.support.seeds import agent_token, make_id, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT_DOOR,
    WebSocket,
    client_door,
    open_peer,
    open_websocket,
    wait_for,
)

MAIN = peer_id("main")
ALICE = user_token("alice")
OLD_AGENT = "/api/v2/workspaceagents/me/coordinate"
OLD_CLIENT = f"/api/v2/workspaceagents/{make_id('main')}/coordinate"
KEY = NodePrivate(bytes(range(32))).public()


def node_json(agent_id: bytes = MAIN, **fields: Any) -> dict[str, Any]:
    address = f"{type(MAIN)(agent_id).address(bytes.fromhex('fd7a115ca1e0'))}/128"
    return {
        "id": 7,
        "as_of": "2024-05-06T07:08:09.123456789Z",
        "key": str(KEY),
        "disco": f"discokey:{'ab' * 32}",
        "preferred_derp": 999,
        "derp_latency": {"999-v4": 0.25},
        "derp_forced_websockets": {"999": "no upgrade: naïve ✓ proxy"},
        "addresses": [address],
        "allowed_ips": [address],
        "endpoints": ["192.0.2.1:41641"],
        **fields,
    }


async def next_nodes(websocket: WebSocket, count: int = 1) -> list[dict[str, Any]]:
    """The nodes of the next arrays, until there are that many."""
    text, nodes, decoder = "", list[dict[str, Any]](), json.JSONDecoder()
    while len(nodes) < count:
        data = await websocket.read()
        assert data, f"closed: {websocket.close_code} {websocket.close_text}"
        text += data.decode()
        while text:
            try:
                array, stop = decoder.raw_decode(text)
            except ValueError:
                break
            nodes += array
            text = text[stop:]
    return nodes


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
async def test_nodes_cut_anywhere_also_inside_characters(server: CoordinatorServer, piece: int) -> None:
    async with (
        open_websocket(server, OLD_AGENT, agent_token("main")) as agent,
        open_peer(server, client_door(MAIN), ALICE) as client,
    ):
        call = await client.coordinate()
        await call.tunnel(MAIN)
        raw = b""
        for home in (5, 6, 7):
            raw += json.dumps(node_json(preferred_derp=home), ensure_ascii=False).encode() + b"\n "
        for at in range(0, len(raw), piece):
            await agent.write(raw[at : at + piece])
        seen = [(await call.next_node())[1] for _ in range(3)]
        assert [node.preferred_derp for node in seen] == [5, 6, 7]
        assert dict(seen[0].derp_forced_websocket) == {999: "no upgrade: naïve ✓ proxy"}
        assert seen[0].key == b"np" + KEY.raw
        assert seen[0].as_of.nanos == 123456789


async def test_old_and_old_meet_and_the_client_asks_for_its_agent(server: CoordinatorServer) -> None:
    async with (
        open_websocket(server, OLD_AGENT, agent_token("main")) as agent,
        open_websocket(server, OLD_CLIENT, ALICE) as client,
    ):
        await agent.write(json.dumps(node_json()).encode())
        [node] = await next_nodes(client)
        assert node == node_json()
        assert server.reading().agents_connected == 1
        assert server.reading().channels == 2
        await client.write(json.dumps(node_json(peer_id("anybody"), preferred_derp=3)).encode())
        [node] = await next_nodes(agent)
        assert node["preferred_derp"] == 3
    await wait_for(lambda: server.reading().statistics.connected_peers == 0)
    await wait_for(lambda: server.reading().agents_connected == 0)
    assert server.relay_statistics().closed["closed_by_peer"] == 2


async def test_a_new_peers_goodbye_has_no_word_in_version_1(server: CoordinatorServer) -> None:
    async with open_websocket(server, OLD_CLIENT, ALICE) as client:
        async with open_peer(server, AGENT_DOOR, agent_token("main")) as agent:
            call = await agent.coordinate()
            await call.update(agent.node(MAIN, preferred_derp=1))
            assert [node["preferred_derp"] for node in await next_nodes(client)] == [1]
            await call.request(disconnect={})
            await call.wait_ended()
            call = await agent.coordinate()
            await call.update(agent.node(MAIN, preferred_derp=2))
        assert [node["preferred_derp"] for node in await next_nodes(client)] == [2]


async def test_a_new_connection_of_the_agent_ends_the_old_one(server: CoordinatorServer) -> None:
    async with open_websocket(server, OLD_AGENT, agent_token("main")) as older:
        await older.write(json.dumps(node_json()).encode())
        await wait_for(lambda: server.reading().statistics.node_updates)
        async with open_peer(server, AGENT_DOOR, agent_token("main")) as newer:
            call = await newer.coordinate()
            assert await older.read_to_end() == b""
            assert (older.close_code, older.close_text) == (1000, OVERWRITTEN)
            assert not call.ended.is_set()
            assert server.reading().agents_connected == 1


async def test_a_refused_node_ends_it_with_the_reason(server: CoordinatorServer) -> None:
    async with open_websocket(server, OLD_AGENT, agent_token("main")) as agent:
        await agent.write(json.dumps(node_json(peer_id("gpu"))).encode())
        await agent.read_to_end()
        assert agent.close_code == 1008
        assert agent.close_text.startswith("authorization: node addresses")


async def test_one_that_does_not_read_is_dropped(server: CoordinatorServer) -> None:
    async with (
        open_websocket(server, OLD_CLIENT, ALICE) as deaf,
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent,
    ):
        call = await agent.coordinate()
        homes = 0
        while not server.reading().overflows:
            homes += 1
            await call.update(agent.node(MAIN, derp_latency={f"{homes}-{n}": 0.1 for n in range(900)}))
        assert not call.ended.is_set()
        await wait_for(lambda: server.reading().channels == 1)
        assert deaf.close_code is None


async def test_it_is_asked_for_signs_of_life(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy, "PING_SECONDS", 0.05)
    async with open_websocket(server, OLD_AGENT, agent_token("main")) as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.read_to_end)
        await wait_for(lambda: len(agent.pings) >= 2)
        nursery.cancel_scope.cancel()


# --- JSON and nodes

TEXTS = st.text(max_size=20)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        tailnet.Node,
        id=st.integers(-(2**63), 2**63 - 1),
        as_of=st.builds(
            lambda seconds, nanos: {"seconds": seconds, "nanos": nanos},
            st.integers(-62135596800, 253402300799),
            st.integers(0, 999_999_999),
        ),
        key=st.just(b"np" + KEY.raw),
        disco=TEXTS,
        preferred_derp=st.integers(-(2**31), 2**31 - 1),
        derp_latency=st.dictionaries(TEXTS, FINITE, max_size=3),
        derp_forced_websocket=st.dictionaries(st.integers(-(2**31), 2**31 - 1), TEXTS, max_size=3),
        addresses=st.lists(TEXTS, max_size=3),
        allowed_ips=st.lists(TEXTS, max_size=3),
        endpoints=st.lists(TEXTS, max_size=3),
    )
)
def test_there_and_back(node: tailnet.Node) -> None:
    assert node_from_json(json.loads(json.dumps(node_to_json(node)))) == node


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.dictionaries(TEXTS, st.floats(), max_size=3),
)
def test_whatever_a_new_peer_says_is_json(seconds: int, nanos: int, latency: dict[str, float]) -> None:
    node = tailnet.Node(key=b"np" + KEY.raw, as_of={"seconds": seconds, "nanos": nanos}, derp_latency=latency)
    written = json.dumps(node_to_json(node), allow_nan=False)
    assert json.loads(written)["derp_latency"] == {name: each for name, each in latency.items() if math.isfinite(each)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(node_json())), JSON) | JSON)
def test_whatever_is_wrong_is_the_peers_fault(value: Any) -> None:
    fields = {**node_json(), **value} if isinstance(value, dict) else value
    try:
        node = node_from_json(fields)
    except RemoteProtocolError:
        return
    assert node.key == b"np" + KEY.raw


async def test_a_host_with_many_bridges_is_taken(server: CoordinatorServer) -> None:
    endpoints = [f"10.{number >> 8}.{number & 255}.1:41641" for number in range(4000)]
    async with (
        open_websocket(server, OLD_AGENT, agent_token("main")) as agent,
        open_websocket(server, OLD_CLIENT, ALICE) as client,
    ):
        await agent.write(json.dumps(node_json(endpoints=endpoints)).encode())
        [node] = await next_nodes(client)
        assert node["endpoints"] == endpoints


@pytest.mark.parametrize("way", ["at once", "without end"])
async def test_nodes_without_end_are_a_flood(
    server: CoordinatorServer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "without end":
        monkeypatch.setattr(legacy, "MAX_NODES", 100)
    else:  # so few that one receive of the server holds more, however the kernel cuts what is sent
        monkeypatch.setattr(legacy, "MAX_NODES_AT_ONCE", 4)
        monkeypatch.setattr(legacy, "MAX_NODES", 1 << 40)
    async with open_websocket(server, OLD_AGENT, agent_token("main")) as agent:
        nodes = json.dumps(node_json()).encode() * 50
        with suppress(trio.BrokenResourceError):  # it is turned away in the middle
            while True:
                await agent.write(nodes)
        await agent.read_to_end()
    await wait_for(lambda: server.relay_statistics().closed["flood"] == 1)
