"""The server's own node against agents of ours, through a real coordinator and its relay."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from derp.config import RelayRules, TlsConfig
from tailnet.health.readings import OwnNodeReading
from tailnet.node.streams import TunnelStream
from tailnet.server.server import CoordinatorServer
from tailnet.services import own_node as own_node_module
from tailnet.services.own_node import Dial, OwnNode, TooMany, Unreachable
from tests.support.fake_agent import PTY_PORT, FakeAgent, open_fake_agent
from tests.support.seeds import peer_id
from tests.tailnet.client.test_rpc import url_of
from tests.tailnet.conftest import Serve

MAIN, GPU, WEB = peer_id("main"), peer_id("gpu"), peer_id("web")
PATIENCE_SECONDS = 60


async def echo(stream: TunnelStream) -> None:
    async for part in stream:
        await stream.send_all(part)


async def say(node: OwnNode, name: str, text: bytes = b"hello") -> bytes:
    """What an agent that echoes gives back."""
    async with node.dial(peer_id(name), PTY_PORT, "alice") as stream:
        await stream.send_all(text)
        return bytes(await stream.receive_some())


@pytest.fixture
async def patient() -> AsyncIterator[None]:
    with trio.fail_after(PATIENCE_SECONDS):
        yield


async def test_it_begins_with_the_first_dial_and_keeps_its_tunnel(server: CoordinatorServer, patient: None) -> None:
    node = server.own_node
    assert server.coordinator.statistics().connected_peers == 0
    async with open_fake_agent(url_of(server)) as agent:
        agent.serve_pty = echo
        assert await say(node, "main") == b"hello"
        peers = server.coordinator.statistics()
        assert (peers.connected_peers, peers.tunnels, node.tunnel_count, node.stream_count) == (2, 1, 1, 0)
        assert await say(node, "main", b"again") == b"again"
        assert server.coordinator.statistics().connects == peers.connects, "it is the same peer"
        assert (agent.connections[PTY_PORT], node.dials) == (2, {Dial.REACHED: 2})


async def test_an_idle_tunnel_goes_and_comes_back(
    server: CoordinatorServer, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_node_module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(own_node_module, "IDLE_SECONDS", 0.0)
    async with open_fake_agent(url_of(server)) as agent:
        agent.serve_pty = echo
        async with server.own_node.dial(MAIN, PTY_PORT, "alice") as stream:
            for _ in range(20):
                await stream.send_all(b"in use")
                assert await stream.receive_some() == b"in use"
        while server.own_node.tunnel_count:
            await trio.lowlevel.checkpoint()
        assert server.coordinator.statistics().tunnels == 0
        assert await say(server.own_node, "main") == b"hello"


async def test_the_one_used_last_makes_room(
    server: CoordinatorServer, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_node_module, "MAX_TUNNELS", 2)
    async with AsyncExitStack() as stack:
        for name in ("main", "gpu", "web"):
            agent = await stack.enter_async_context(open_fake_agent(url_of(server), name))
            agent.serve_pty = echo
        for name in ("main", "gpu", "main", "web"):
            assert await say(server.own_node, name) == b"hello"
        session = server.own_node._session
        assert session is not None
        assert list(session.tunnels) == [MAIN, WEB]
        async with server.own_node.dial(MAIN, PTY_PORT, "a"), server.own_node.dial(WEB, PTY_PORT, "b"):
            with pytest.raises(TooMany, match="each is in use"):
                await say(server.own_node, "gpu")
        assert await say(server.own_node, "gpu") == b"hello"


async def test_one_user_has_so_many_and_another_has_his(
    server: CoordinatorServer, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_node_module, "MAX_STREAMS_PER_USER", 2)
    async with open_fake_agent(url_of(server)) as agent, AsyncExitStack() as stack:
        agent.serve_pty = echo
        for _ in range(2):
            await stack.enter_async_context(server.own_node.dial(MAIN, PTY_PORT, "bob"))
        with pytest.raises(TooMany):
            await stack.enter_async_context(server.own_node.dial(MAIN, PTY_PORT, "bob"))
        assert await say(server.own_node, "main") == b"hello"
        assert server.own_node.dials == {Dial.REACHED: 3, Dial.REFUSED: 1}


async def test_an_agent_that_goes_takes_its_tunnel_with_it(
    server: CoordinatorServer, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_node_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(own_node_module, "LOST_SECONDS", 0.1)
    async with trio.open_nursery() as nursery:
        agent, scope = await nursery.start(play_agent, url_of(server))
        async with server.own_node.dial(MAIN, PTY_PORT, "alice") as stream:
            # Its machine is off: no reset, and no goodbye by way of the coordinator.
            agent.member.engine._send = lambda batch: None
            agent.member._coordination = None
            scope.cancel()
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
        while server.own_node.tunnel_count:
            await trio.lowlevel.checkpoint()
    assert server.coordinator.statistics().tunnels == 0


async def play_agent(
    url: str, *, task_status: trio.TaskStatus[tuple[FakeAgent, trio.CancelScope]] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as scope:
        async with open_fake_agent(url) as agent:
            agent.serve_pty = echo
            task_status.started((agent, scope))
            await trio.sleep_forever()


async def test_who_is_not_there(server: CoordinatorServer, patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_node_module, "DIAL_SECONDS", 0.5)
    with pytest.raises(Unreachable, match="was not reached"):
        await say(server.own_node, "main")
    async with open_fake_agent(url_of(server)):
        with pytest.raises(Unreachable, match="refused"):
            async with server.own_node.dial(MAIN, 7, "alice"):
                pass


async def test_a_map_without_a_relay_is_said_at_once(serve: Serve, patient: None) -> None:
    server = await serve(derp_enabled=False)
    for _ in range(2):
        with pytest.raises(Unreachable, match="has no relay"):
            await say(server.own_node, "main")
    assert (server.own_node.stream_count, server.own_node.dials) == (0, {Dial.FAILED: 2})
    assert (await server.probes.look_at_node()) == OwnNodeReading(server.own_node.trouble)


@pytest.mark.parametrize(
    "settings",
    [
        {"tls": TlsConfig(self_signed=True, hostname="tailnet.example.com"), "listen": (("0.0.0.0", 0),)},
        {"access_url": "https://nobody.invalid", "relay": RelayRules(verify_client_url="http://127.0.0.1:1/")},
    ],
    ids=["TLS on every address", "a proxy in front, and a relay that lets nobody in"],
)
async def test_it_is_at_home_whatever_stands_in_front(
    serve: Serve, patient: None, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(own_node_module, "DIAL_SECONDS", 5.0)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    server = await serve(**settings)
    with pytest.raises(Unreachable, match="the agent was not reached"):
        await say(server.own_node, "main")
    assert server.relay is not None
    assert len(server.relay.router.clients) == 1
    assert server.own_node.trouble == ""


async def test_a_server_that_drains_takes_it_along(server: CoordinatorServer, patient: None) -> None:
    async with open_fake_agent(url_of(server)) as agent:
        agent.serve_pty = echo
        assert await say(server.own_node, "main") == b"hello"
        await server.drain()
        with pytest.raises(Unreachable, match="the server leaves"):
            await say(server.own_node, "main")
