"""Two nodes of ours meet through a real coordinator and talk through its embedded relay, or directly."""

import hashlib
import os

import pytest
import trio

from derp.errors import ConnectError
from derp.keys import NodePrivate
from tailnet.client.coordination import client_door, make_node, open_coordination, own_id
from tailnet.client.rpc import open_rpc_client
from tailnet.coordinator.explain import last_node
from tailnet.node.membership import Client, open_agent, open_client
from tailnet.server.server import CoordinatorServer
from tailnet.services.agents import Latency, measured_latencies
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.tailnet_driver import wait_for
from tests.tailnet.client.test_rpc import url_of
from tests.tailnet.conftest import Serve

MAIN = peer_id("main")
PATIENCE_SECONDS = 60
ECHO_PORT = 7
DIRECT = pytest.mark.parametrize("is_direct", [False, True], ids=["relay", "direct"])


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    async with stream:
        async for part in stream:
            await stream.send_all(part)
        await stream.send_eof()


async def exchange(client: Client, data: bytes) -> bytes:
    """What an echo gives back."""
    received = bytearray()
    async with await client.dial(ECHO_PORT) as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        async for part in stream:
            received += part
    return bytes(received)


@DIRECT
async def test_a_client_reaches_an_agent_s_port(server: CoordinatorServer, is_direct: bool) -> None:
    data, url = os.urandom(300_000), url_of(server)
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_agent(url, agent_token("main"), MAIN, is_direct=is_direct) as agent,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(trio.serve_listeners, echo, [agent.engine.listen(ECHO_PORT)])
            async with open_client(url, user_token("alice"), MAIN, is_direct=is_direct) as client:
                assert 0 < await client.ping() < PATIENCE_SECONDS
                if not is_direct:
                    assert (await client.engine.disco_ping(client.node_key)).region == 999
                received = await exchange(client, data)
                assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
                peer = client.engine.core.paths.find(client.node_key)
                assert peer is not None
                assert (peer.best is not None) == is_direct
                with pytest.raises(ConnectionRefusedError):
                    await client.dial(ECHO_PORT + 1)
            nursery.cancel_scope.cancel()


async def test_direct_connections_that_the_deployment_turned_off(serve: Serve) -> None:
    """The agent would have them; the client neither names an endpoint nor tries the agent's."""
    server = await serve(disable_direct_connections=True)
    url = url_of(server)
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_agent(url, agent_token("main"), MAIN) as agent,
            open_client(url, user_token("alice"), MAIN) as client,
        ):
            assert await client.ping() > 0
            assert (await client.engine.disco_ping(client.node_key)).region == 999
            peer = client.engine.core.paths.find(client.node_key)
            assert peer is not None
            assert (peer.best, list(peer.candidates), client.engine.sockets.all) == (None, [], [])
            (theirs,) = agent.peers.roster._keys.values()
            told = agent.engine.core.paths.find(theirs)
            assert told is not None
            assert not told.candidates


@pytest.mark.parametrize("is_forced", [False, True])
async def test_the_carrier_to_relays_that_the_deployment_asks_for(serve: Serve, is_forced: bool) -> None:
    server = await serve(derp_force_websockets=is_forced)
    url = url_of(server)
    with trio.fail_after(PATIENCE_SECONDS):
        assert server.relay is not None
        # The agent obeys its manifest, which this part of one does not read.
        async with open_agent(url, agent_token("main"), MAIN, is_direct=False):
            upgrades = server.relay.upgrades
            before = upgrades.accepts, upgrades.websocket_accepts
            async with open_client(url, user_token("alice"), MAIN, is_direct=False) as client:
                assert await client.ping() > 0
                now = upgrades.accepts, upgrades.websocket_accepts
    assert (now[0] - before[0], now[1] - before[1]) == (1, int(is_forced))


@pytest.mark.parametrize("is_disco", [False, True], ids=["node key", "disco key"])
async def test_a_client_with_a_key_of_no_use_ends_no_agent(server: CoordinatorServer, is_disco: bool) -> None:
    url = url_of(server)
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_agent(url, agent_token("main"), MAIN, is_direct=False) as agent,
            open_rpc_client(url, client_door(MAIN), user_token("alice")) as rpc,
        ):
            node = make_node(NodePrivate.generate(), await own_id(rpc), 999)
            if is_disco:
                node.disco = "discokey:" + "00" * 32
            else:
                node.key = b"np" + bytes(32)
            coordination = await open_coordination(rpc)
            await coordination.add_tunnel(MAIN)
            await coordination.announce(node)
            async with open_client(url, user_token("alice"), MAIN, is_direct=False) as client:
                assert await client.ping() > 0
            assert agent.peers.roster.refused_count == 1


async def test_an_agent_that_is_not_there(server: CoordinatorServer) -> None:
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(trio.TooSlowError):
        async with open_client(url_of(server), user_token("alice"), MAIN, timeout_seconds=0.5):
            pass


async def test_who_may_not_reach_it_is_told(server: CoordinatorServer) -> None:
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(ConnectError):
        async with open_client(url_of(server), user_token("bob"), MAIN):
            pass


async def test_the_coordinator_s_views_have_how_far_an_agent_s_relays_are(serve: Serve) -> None:
    server = await serve(stun_listen=(("127.0.0.1", 0),))
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_agent(url_of(server), agent_token("main"), MAIN):

            def latencies() -> dict[str, Latency]:
                return measured_latencies(last_node(server.coordinator, MAIN), server.maps.current.map)

            (latency,) = (await wait_for(latencies)).values()
            assert latency.preferred
            assert 0 < latency.seconds < PATIENCE_SECONDS


async def test_who_leaves_is_forgotten_at_once(server: CoordinatorServer) -> None:
    """Its streams too: it may be gone before its last packets are."""
    url = url_of(server)
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_agent(url, agent_token("main"), MAIN, is_direct=False) as agent:
            listener = agent.engine.listen(ECHO_PORT)
            async with open_client(url, user_token("alice"), MAIN, is_direct=False) as client:
                await client.dial(ECHO_PORT)
                stream = await listener.accept()
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            while agent.engine.core.device.owner_of(stream.remote_address[0]) is not None:
                await trio.lowlevel.checkpoint()
