"""A node lives on: its streams, its peers and its place outlast the coordinator, the relay, and both."""

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from derp.client.reconnect import BackOff
from derp.config import RelayConfig
from derp.errors import UpgradeRefused
from derp.keys import NodePrivate
from derp.map import DERPHomeParams, DERPMap
from derp.server.server import serve_relay
from tailnet.config import CoordinatorConfig
from tailnet.node import place
from tailnet.node.membership import Client, Member, open_agent, open_client
from tailnet.node.streams import TunnelStream
from tailnet.server.server import serve_coordinator
from tailnet.transport import udp as udp_module
from tests.support.echoing import ECHO_PORT, MAIN, open_echoing_agent
from tests.support.inprocess import map_of, node_of, open_regions, port_of
from tests.support.restartable import Restartable
from tests.support.seeds import agent_token, user_token
from tests.support.tailnet_driver import wait_for
from tests.tailnet.node.test_place import Watch

PATIENCE_SECONDS = 120
REGION = 901
AT_ONCE = BackOff(first_seconds=0.05, limit_seconds=0.05)
DIRECT = pytest.mark.parametrize("is_direct", [False, True], ids=["relay", "direct"])


class World:
    """A coordinator without a relay, a relay of its own, and their map."""

    def __init__(self, nursery: trio.Nursery, store: str, map_path: Path) -> None:
        key = NodePrivate.generate()
        self.store = store
        self.map_path = map_path
        self.relay = Restartable(
            nursery,
            serve_relay,
            lambda port: RelayConfig(
                private_key=key, listen=(("127.0.0.1", port),), stun_enabled=False, drain_seconds=0.0, self_check=False
            ),
        )
        self.coordinator = Restartable(
            nursery,
            serve_coordinator,
            lambda port: CoordinatorConfig(
                listen=(("127.0.0.1", port),),
                stun_listen=(),
                store=self.store,
                derp_enabled=False,
                derp_map=(map_path,),
                derp_map_poll_seconds=0.1,
                drain_seconds=0.0,
                self_check=False,
            ),
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.coordinator.port}"

    def write_map(self, derp_map: DERPMap) -> None:
        self.map_path.write_text(json.dumps(derp_map.to_json()))

    def is_whole(self) -> bool:
        """Whether the coordinator knows both, and the tunnel between them."""
        now = self.coordinator.server.service.coordinator.statistics()
        return (now.connected_peers, now.tunnels) == (2, 1)

    async def restart(self, names: str) -> None:
        servers: list[Restartable] = [getattr(self, name) for name in names.split()]
        for server in servers:
            await server.stop()
        for server in servers:
            await server.start()


@asynccontextmanager
async def open_world(store: str, folder: Path) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(nursery, store, folder / "map.json")
        await world.relay.start()
        world.write_map(map_of(node_of(world.relay.server, REGION)))
        await world.coordinator.start()
        yield world
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def both(world: World, is_direct: bool) -> AsyncIterator[tuple[Member, Client]]:
    """An agent that echoes, and a client of it."""
    how: dict[str, Any] = {"is_direct": is_direct, "back_off": AT_ONCE}
    async with (
        open_echoing_agent(world.url, **how) as agent,
        open_client(world.url, user_token("alice"), MAIN, **how) as client,
    ):
        yield agent, client


class Talk:
    """Blocks that go round on one stream, each as it was sent."""

    def __init__(self, stream: TunnelStream) -> None:
        self._stream = stream
        self._number = 0
        self._more = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        while True:
            block = self._number.to_bytes(4, "big") * 2048
            await self._stream.send_all(block)
            back = b""
            while len(back) < len(block):
                part = await self._stream.receive_some(len(block) - len(back))
                assert part, "the stream ended"
                back += part
            assert back == block
            self._number += 1
            self._more.unpark_all()

    async def wait_more(self, count: int = 3) -> None:
        until = self._number + count
        while self._number < until:
            await self._more.park()


@asynccontextmanager
async def talk_to(client: Client) -> AsyncIterator[Talk]:
    """On a stream that works."""
    async with await client.dial(ECHO_PORT) as stream, trio.open_nursery() as nursery:
        talk = Talk(stream)
        nursery.start_soon(talk.run)
        await talk.wait_more()
        yield talk
        nursery.cancel_scope.cancel()


@DIRECT
@pytest.mark.parametrize("lost", ["coordinator", "relay", "coordinator relay"])
async def test_a_stream_goes_on(filled_url: str, tmp_path: Path, is_direct: bool, lost: str) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_world(filled_url, tmp_path) as world, both(world, is_direct) as (agent, client):
            key = client.node_key
            async with talk_to(client) as talk:
                await world.restart(lost)
                await talk.wait_more()
                if "coordinator" in lost:
                    await wait_for(lambda: agent.link.connection_count > 1 < client.member.link.connection_count)
                    await wait_for(world.is_whole)
                await talk.wait_more()
                assert client.node_key == key
                # What comes later finds its way too.
                async with await client.dial(ECHO_PORT) as other:
                    await other.send_all(b"!")
                    assert await other.receive_some() == b"!"


async def test_a_stream_goes_on_while_there_is_no_coordinator(filled_url: str, tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_world(filled_url, tmp_path) as world,
            both(world, False) as (_, client),
            talk_to(client) as talk,
        ):
            await world.coordinator.stop()
            await talk.wait_more(20)


async def test_an_address_that_is_gone_has_the_coordinator_dialled_again(
    filled_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what only adds one does not: the connection has its address still."""
    hosts = ["192.0.2.7"]
    Watch.event = trio.Event()
    for module in (udp_module, place):
        monkeypatch.setattr(module, "own_hosts", lambda: list(hosts))
    monkeypatch.setattr(place, "AddressWatch", Watch)
    monkeypatch.setattr(place, "SETTLE_SECONDS", 0.0)
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_world(filled_url, tmp_path) as world,
            open_agent(world.url, agent_token("main"), MAIN, is_direct=True) as agent,
        ):
            hosts.append("198.51.100.8")
            Watch.event.set()
            await wait_for(lambda: "198.51.100.8" in {each.host for each in agent.place.describe().endpoints})
            assert agent.link.connection_count == 1
            del hosts[0]
            Watch.event.set()
            await wait_for(lambda: agent.link.connection_count == 2)
            assert "192.0.2.7" not in {each.host for each in agent.place.describe().endpoints}


async def test_the_client_is_the_same_peer_again(filled_url: str, tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_world(filled_url, tmp_path) as world, both(world, False) as (agent, client):
            await wait_for(lambda: bool(client.member.link._resume_token))
            before = set(agent.peers.roster._keys)
            await world.restart("coordinator")
            await wait_for(world.is_whole)
            await wait_for(lambda: agent.peers.roster.next_timeout() is None)
            assert set(agent.peers.roster._keys) == before
            assert await client.ping() > 0


async def test_who_is_refused_later_is_told_and_tries_no_more(
    filled_url: str, migrated_file: Path, tmp_path: Path
) -> None:
    """The coordinator comes back with a store in which nobody is."""
    empty = shutil.copy(migrated_file, tmp_path / "nobody.db")

    async def belong(world: World) -> None:
        async with open_agent(world.url, agent_token("main"), MAIN, back_off=AT_ONCE):
            world.store = f"sqlite:///{empty}"
            await world.restart("coordinator")
            await trio.sleep_forever()

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_world(filled_url, tmp_path) as world:
            with pytest.raises(UpgradeRefused, match="does not take the token") as caught:
                await belong(world)
            assert caught.value.status == 401


async def test_another_map_is_taken_and_a_home_that_is_gone_is_left(filled_url: str, tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_world(filled_url, tmp_path) as world,
            both(world, False) as (agent, client),
            talk_to(client) as talk,
        ):
            # The same relay under another number, so that only the map tells where to be.
            world.write_map(map_of(node_of(world.relay.server, REGION + 1)))
            await wait_for(lambda: agent.engine.relays.home == client.engine.relays.home == REGION + 1)
            await talk.wait_more()
            assert set(client.engine.relays.regions) == {REGION + 1}


async def test_another_home_is_told_and_streams_go_on_there(
    filled_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay of both nodes' home dies and does not come back."""
    monkeypatch.setattr(place, "DEAD_SECONDS", 0.3)
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_regions(REGION + 1, tls=False) as ((other,), _), open_world(filled_url, tmp_path) as world:
            # The dead one is the nearest, as far as STUN tells.
            nodes = [node_of(world.relay.server, REGION, stun_port=port_of(other, "stun")), node_of(other, REGION + 1)]
            world.write_map(replace(map_of(*nodes), home_params=DERPHomeParams({REGION + 1: 1e6})))
            await world.restart("coordinator")
            async with both(world, False) as (agent, client), talk_to(client) as talk:
                await wait_for(lambda: agent.engine.relays.home == client.engine.relays.home == REGION)
                await world.relay.stop()
                await wait_for(lambda: agent.engine.relays.home == client.engine.relays.home == REGION + 1)
                await talk.wait_more()
                peer = client.engine.core.paths.find(client.node_key)
                assert peer is not None
                assert peer.home_region == REGION + 1
