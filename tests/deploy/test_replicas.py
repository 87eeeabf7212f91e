"""deploy/replicas: three coordinators, their PostgreSQL and Valkey and a balancer, started as the compose file says."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import yaml

from derp.client.client import DerpClient, open_derp_client
from derp.client.dial import DialOptions
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from tailnet.client.coordination import AGENT_DOOR, Coordination, PeerUpdate, client_door, make_node, open_coordination
from tailnet.client.link import Link
from tailnet.client.rpc import RpcClient
from tailnet.config import SETTINGS, CoordinatorConfig, load_config
from tailnet.types import PeerID
from tests.support.composed import FILE, REPLICAS, Composed, ProgramMissing, interpolated, running_compose
from tests.support.missing import or_missing
from tests.support.postgresql import PostgresqlMissing
from tests.support.redis import RedisMissing
from tests.support.tailnet_driver import wait_for
from tests.support.tailnet_servers import Agent, Seed, import_seed

GIVEN = {"PUBLIC_NAME": "tailnet.example.org", "TLS_PEM": "/etc/tailnet/balancer.pem"}
GIVEN |= {"STORE_PASSWORD": "a" * 48, "BUS_PASSWORD": "b" * 48}
# A hang guard of each wait.
PATIENCE_SECONDS = 120.0


def document() -> dict[str, Any]:
    found: dict[str, Any] = interpolated(yaml.safe_load(FILE.read_text()), GIVEN)
    return found


# What it says.


def test_its_settings_exist_and_load() -> None:
    names = set()
    for service in REPLICAS:
        environ = document()["services"][service]["environment"]
        assert {name.removeprefix("TAILNET_").lower() for name in environ} <= set(SETTINGS.by_name)
        config = load_config({}, environ, open_files=1 << 20)
        assert config.bus is not None
        assert (config.bus.kind, config.access_url) == ("redis", "https://tailnet.example.org")
        assert config.replica_address == (service, 3001)
        names.add(config.replica_name)
    assert names == set(REPLICAS)


def test_nothing_starts_without_what_an_operator_has_to_say() -> None:
    text = FILE.read_text()
    for name in GIVEN:
        assert re.search(rf"\$\{{{name}:\?[^}}]+}}", text), name
        assert f"{name}=" in text, "the head of the file says how"


def test_replicas_are_locked_down_and_have_time_to_drain() -> None:
    for service in REPLICAS:
        replica = document()["services"][service]
        assert (replica["read_only"], replica["cap_drop"]) == (True, ["ALL"])
        assert replica["entrypoint"] == ["tailnet", "serve"]
        config = CoordinatorConfig()
        needed = config.replica_notice_seconds + config.replica_drain_seconds + config.drain_seconds
        assert int(replica["stop_grace_period"].removesuffix("s")) > needed
        assert (FILE.parent / replica["build"]["context"] / replica["build"]["dockerfile"]).exists()


def test_stun_is_published_where_the_settings_say() -> None:
    services = document()["services"]
    published = sorted(port.split(":")[0] for name in REPLICAS for port in services[name]["ports"])
    config = load_config({}, services["replica-1"]["environment"], open_files=1 << 20)
    stated = [config.stun_listen[0][1], *(port for _, port in config.stun_servers)]
    assert published == sorted(map(str, stated))


def test_the_balancer_knows_each_replica_in_both_of_its_lists() -> None:
    text = (FILE.parent / "haproxy.cfg").read_text()
    servers = re.findall(r"server (\S+) (\S+):3000 check", text)
    assert servers == [(name, name) for name in REPLICAS] * 2


# What it does.


class Peer:
    """An agent or a client by the balancer, which dials anew whenever it is cut off, and is another node then."""

    def __init__(self, place: Composed, door: str, token: str, peer_id: PeerID) -> None:
        options = DialOptions(context=place.context, environment=None)
        self.link = Link(place.url, door, token, options=options, insists=True)
        self.told: list[PeerUpdate] = []
        self.private = NodePrivate.generate()
        self.node_key = b""
        self._id = peer_id

    async def run(self) -> None:
        await self.link.run(self._serve)

    async def _serve(self, rpc: RpcClient) -> None:
        self.link.proven()
        self.private = NodePrivate.generate()
        node = make_node(self.private, self._id, home_region=999)
        self.node_key = node.key
        coordination = await open_coordination(rpc)
        await coordination.announce(node)
        await self._greet(coordination)
        while True:
            self.told.append(await coordination.receive())

    async def _greet(self, coordination: Coordination) -> None:
        pass

    def knows(self, other: "Peer") -> bool:
        """Whether it was told of the node that the other one is now."""
        return any(each.node.key == other.node_key for each in self.told if other.node_key)


class Client(Peer):
    """One that wants an agent."""

    def __init__(self, place: Composed, agent: Agent) -> None:
        self._agent = PeerID(agent.id.bytes)
        super().__init__(place, client_door(self._agent), agent.owner.token, PeerID(os.urandom(16)))

    async def _greet(self, coordination: Coordination) -> None:
        await coordination.add_tunnel(self._agent)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    with (
        or_missing(ProgramMissing, PostgresqlMissing, RedisMissing),
        running_compose(tmp_path_factory.mktemp("replicas")) as composed,
    ):
        yield composed


async def seen_by(place: Composed, service: str) -> dict[str, Any]:
    """How a replica sees the others, as it tells an operator on its own machine."""
    url = "http://{}:{}/debug/replicas".format(*place.address(service, 3000))
    async with httpx.AsyncClient(trust_env=False) as client:
        # We dial from where the balancer does, and have to say who is calling as it does.
        answer = await client.get(url, headers={"X-Forwarded-For": "127.0.0.2", "Host": "localhost"})
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


async def have_met(place: Composed) -> None:
    """Each replica has a session with each other one, and nothing to say against the bus."""
    wanted = ["session"] * (len(REPLICAS) - 1), ""
    with trio.fail_after(PATIENCE_SECONDS):
        for service in REPLICAS:
            while True:
                seen = await seen_by(place, service)
                if ([each["state"] for each in seen["replicas"]], seen["bus"]["trouble"]) == wanted:
                    break
                await trio.sleep(0.1)


async def exchange_packets(place: Composed, *peers: Peer) -> None:
    """Two peers reach each other by the relay behind the balancer, which is one replica's for each of them."""
    url, options = f"{place.url}/derp", DialOptions(context=place.context, environment=None)
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_derp_client(url, peers[0].private, options=options) as one,
            open_derp_client(url, peers[1].private, options=options) as other,
        ):
            received: list[bytes] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_take_packet, other, received)
                while not received:  # a relay that does not know the receiver yet drops what comes for it
                    await one.send(peers[1].private.public().raw, b"by the balancer")
                    await trio.sleep(0.1)
    assert received == [b"by the balancer"]


async def _take_packet(client: DerpClient, received: list[bytes]) -> None:
    while not received:
        message = await client.receive()
        if isinstance(message, RecvPacket):
            received.append(bytes(message.packet))


async def test_peers_meet_by_the_balancer_and_again_after_a_replica_is_killed(place: Composed, tmp_path: Path) -> None:
    seed = Seed()
    alice = seed.add_user("alice")
    targets = [seed.add_agent(alice) for _ in range(3)]
    await trio.to_thread.run_sync(lambda: import_seed(tmp_path, seed, place.store))
    await have_met(place)
    pairs = [(Peer(place, AGENT_DOOR, each.token, PeerID(each.id.bytes)), Client(place, each)) for each in targets]
    peers = [peer for pair in pairs for peer in pair]

    def all_met() -> bool:
        return all(agent.knows(client) and client.knows(agent) for agent, client in pairs)

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(peer.run)
        await wait_for(all_met)
        for agent, client in pairs:
            await exchange_packets(place, agent, client)
        counts = {service: (await seen_by(place, service))["peers"] for service in REPLICAS}
        assert sum(counts.values()) == len(peers)
        victim = max(counts, key=lambda service: counts[service])
        dialled = sum(each.link.connection_count for each in peers)
        place.stop(victim, signal.SIGKILL)
        await wait_for(lambda: sum(each.link.connection_count for each in peers) >= dialled + counts[victim])
        await wait_for(all_met)
        nursery.cancel_scope.cancel()
    kinds = {PeerUpdate.Kind.Name(each.kind) for peer in peers for each in peer.told}
    assert "DISCONNECTED" not in kinds
