"""The relay inside a coordinator is a whole one: its clocks run, its pages are there, and without it the door stays."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from derp.client.client import DerpClient, open_derp_client
from derp.config import Rate, RelayRules
from derp.errors import ConnectionClosed
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from tailnet.config import CoordinatorConfig
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, make_id, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT_DOOR,
    Answer,
    client_door,
    open_connection,
    open_peer,
    read_answer,
    wait_for,
)

Serve = Callable[..., Awaitable[CoordinatorServer]]
MAIN = peer_id("main")
RATE = Rate(400_000, 1000)  # the burst is raised to the largest packet


def url_of(server: CoordinatorServer) -> str:
    return f"http://{server.listening[0].host}:{server.listening[0].port}/derp"


async def get(server: CoordinatorServer, path: str) -> Answer:
    async with open_connection(server) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return await read_answer(stream)


async def receive(client: DerpClient, count: int) -> list[bytes]:
    packets: list[bytes] = []
    with trio.fail_after(60):
        while len(packets) < count:
            message = await client.receive()
            if isinstance(message, RecvPacket):
                packets.append(message.packet)
    return packets


async def test_a_rate_limit_pauses_a_client_and_resumes_it(serve: Serve) -> None:
    """Who is paused is read again by nobody but the relay's own tasks."""
    server = await serve(relay=RelayRules(rate=RATE))
    assert server.relay is not None
    fast, target = NodePrivate.generate(), NodePrivate.generate()
    async with open_derp_client(url_of(server), fast) as sender, open_derp_client(url_of(server), target) as receiver:
        packets = [number.to_bytes(4, "big") * 300 for number in range(200)]  # 240 kB: a stranger has 256 KiB
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for packet in packets:
                    await sender.send(target.public().raw, packet)

            nursery.start_soon(send)
            assert await receive(receiver, len(packets)) == packets
    assert server.relay.router.counters.rate_limited > 0
    assert sum(server.relay.router.counters.packets_dropped) == 0


async def test_a_rate_limit_that_is_read_again_is_one_for_those_who_are_here(serve: Serve) -> None:
    written: list[CoordinatorConfig] = []
    server = await serve(lambda: written[-1], relay=RelayRules(rate=Rate(1, 1)))
    assert server.relay is not None
    slow, target = NodePrivate.generate(), NodePrivate.generate()
    async with open_derp_client(url_of(server), slow) as sender, open_derp_client(url_of(server), target) as receiver:
        for _ in range(20):
            await sender.send(target.public().raw, bytes(10_000))
        relay = server.relay
        await wait_for(lambda: relay.router.counters.rate_limited)  # for days, at this rate
        written.append(replace(server.config, relay=RelayRules(), given={"relay_rate_config": "none"}))
        server.reload()
        assert await receive(receiver, 20) == [bytes(10_000)] * 20


async def test_settings_that_are_read_again_count_for_the_api_and_for_the_relay(serve: Serve) -> None:
    written: list[CoordinatorConfig] = []
    server = await serve(lambda: written[-1])
    denied = NodePrivate.generate()
    rules = RelayRules(deny_keys=frozenset({denied.public().raw}))
    written.append(replace(server.config, debug_allow=(), relay=rules, hostname_suffix="other"))
    async with open_derp_client(url_of(server), denied) as client:
        assert (await get(server, "/metrics")).status == 200
        server.reload()
        with pytest.raises(ConnectionClosed):
            await receive(client, 1)
        assert (await get(server, "/metrics")).status == 403
    assert server.config.hostname_suffix != "other", "which waits for a restart"


async def test_why_answers_for_peers_and_for_clients_of_the_relay(server: CoordinatorServer) -> None:
    node = NodePrivate.generate()
    async with (
        open_derp_client(url_of(server), node),
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent,
        open_peer(server, client_door(MAIN), user_token("alice")) as client,
    ):
        agent.private = node
        await (await agent.coordinate()).update(agent.node(MAIN))
        call = await client.coordinate()
        await call.tunnel(MAIN)
        await call.next_node()
        about_peer = (await get(server, f"/debug/why?key={MAIN}")).body.decode()
        assert f"{MAIN} is connected as agent" in about_peer
        assert "is here since" in about_peer, "and the relay has its key"
        about_key = (await get(server, f"/debug/why?key={node.public()}")).body.decode()
        assert f"{node.public()} is the key of the peer {MAIN}." in about_key
        assert "is here since" in about_key
        other = make_id("nobody")
        assert "So " in (await get(server, f"/debug/why?from={other}&to={MAIN}")).body.decode()


async def test_pages_of_the_relay_are_found_below_the_coordinator_s(server: CoordinatorServer) -> None:
    private = NodePrivate.generate()
    async with open_derp_client(url_of(server), private):
        (row,) = json.loads((await get(server, "/debug/clients")).body)
        assert row["key"] == str(private.public())
        check = await get(server, "/debug/check")
        assert (check.status, check.body) == (200, b"derp.Server ConsistencyCheck okay\n")
        assert str(private.public()).encode() in (await get(server, "/debug/derp")).body
        assert json.loads((await get(server, "/debug/vars")).body)["derp"]["gauge_current_connections"] == 1
        index = (await get(server, "/debug/")).body.decode()
        for path in (
            "/debug/why?format=html",
            "/debug/clients/",
            "/debug/clients",
            "/debug/check",
            "/debug/derp",
            "/debug/varz",
            "/debug/tailnet",
        ):
            assert f'href="{path}"' in index
        assert b"tailnet_peers" in (await get(server, "/metrics")).body, "the coordinator's own, as before"


async def test_a_coordinator_without_a_relay_has_its_door_all_the_same(serve: Serve) -> None:
    server = await serve(derp_enabled=False)
    assert server.relay is None
    disabled = await get(server, "/derp")
    assert (disabled.status, disabled.body) == (404, b"derp server disabled\n")
    assert (await get(server, "/derp/probe")).status == 200
    assert (await get(server, "/debug/clients")).status == 404
    assert b"no relay" in (await get(server, f"/debug/why?key={MAIN}")).body
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as agent:
        await (await agent.coordinate()).update(agent.node(MAIN))
        metrics = (await get(server, "/metrics")).body.decode()
        assert "derp_connections_accepted_total" in metrics, "listeners are counted"
        with trio.fail_after(60):
            await server.drain()
    assert server.drained.is_set()


@pytest.mark.parametrize("proxied", ["X-Forwarded-For: ", "Via: 1.1 x", "Forwarded: ", "X-Real-IP: 127.0.0.1"])
async def test_whoever_comes_through_a_proxy_is_not_local(server: CoordinatorServer, proxied: str) -> None:
    async with open_connection(server) as stream:
        await stream.send_all(f"GET /debug/clients HTTP/1.1\r\nHost: localhost\r\n{proxied}\r\n\r\n".encode())
        assert (await read_answer(stream)).status == 403
