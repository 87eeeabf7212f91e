"""Relays of replicas in one region: clients at two of them exchange packets, for as long as both are there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import trio

from derp.client.client import DerpClient, open_derp_client
from derp.errors import ConnectError
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from derp.server import mesh as mesh_module
from derp.server.mesh import Dialled
from derp.server.relay import Relay
from tailnet.bus.links import Links, Use
from tailnet.config.coordinator import BusPlace
from tailnet.replica.messages import ReplicaID
from tailnet.replica.proof import ClusterKey
from tailnet.server.server import CoordinatorServer
from tailnet.services import relay_mesh
from tailnet.services.relay_mesh import MAX_OF_REGION, RelayMesh
from tests.derp.server.test_succession import join
from tests.support.seeds import agent_token, peer_id
from tests.support.tailnet_driver import AGENT_DOOR, open_peer, wait_for
from tests.tailnet.server.test_replicated import SECRET, Places, linked, replicas_of

Serve = Callable[..., Awaitable[CoordinatorServer]]


@pytest.fixture
def places(serve: Serve, filled_file: Path, tmp_path: Path) -> Places:
    return Places(serve, filled_file, tmp_path)


def url_of(server: CoordinatorServer) -> str:
    return f"http://{server.listening[0].host}:{server.listening[0].port}/derp"


def mesh_of(server: CoordinatorServer) -> RelayMesh:
    shared = replicas_of(server).shared["relay"]
    assert isinstance(shared, RelayMesh)
    return shared


def relay_of(server: CoordinatorServer) -> Relay:
    assert server.relay is not None
    return server.relay


def connected(server: CoordinatorServer) -> list[str]:
    """Whom its relay is meshed with."""
    return sorted(state.name.split(" (")[0] for state in relay_of(server).mesh_states() if state.is_up)


async def meshed(*servers: CoordinatorServer) -> None:
    """Each relay has a connection to each other one."""
    for server in servers:
        await wait_for(lambda: len(connected(server)) == len(servers) - 1)  # noqa: B023  # called in place


class Caller(NamedTuple):
    """A client of a relay, with its raw public key."""

    key: bytes
    client: DerpClient


@asynccontextmanager
async def callers(*servers: CoordinatorServer) -> AsyncIterator[list[Caller]]:
    """One at the relay of each, of which all others know."""
    async with AsyncExitStack() as stack:
        found: list[Caller] = []
        for server in servers:
            url, private = url_of(server), NodePrivate.generate()
            client = await stack.enter_async_context(open_derp_client(url, private))
            found.append(Caller(private.public().raw, client))
        for server in servers:
            router = relay_of(server).router
            await wait_for(lambda: all(each.key in router.routes for each in found))  # noqa: B023  # called in place
        yield found


async def passes(source: Caller, target: Caller, text: bytes) -> None:
    await source.client.send(target.key, text)
    with trio.fail_after(60):
        while True:
            message = await target.client.receive()
            if isinstance(message, RecvPacket):
                assert message == RecvPacket(source.key, text)
                return


async def test_clients_at_two_replicas_exchange_packets_until_one_replica_leaves(places: Places) -> None:
    servers = [await places.start(number) for number in range(2)]
    await meshed(*servers)
    assert connected(servers[0]) == ["replica replica1"]
    async with callers(*servers) as (one, other):
        await passes(one, other, b"there")
        await passes(other, one, b"and back")
    first, second = servers
    relay = relay_of(first)
    assert relay.has_neighbours()
    assert len(mesh_of(first).others) == 1
    await second.drain()
    await wait_for(lambda: relay.mesh_states() == ())
    assert relay.mesh is not None
    assert relay.mesh.sessions == {}
    assert not mesh_of(first).others


async def test_three_replicas_and_one_of_another_region(places: Places) -> None:
    servers = [await places.start(0), await places.start(1), await places.start(2, derp_region_id=7)]
    await meshed(*servers[:2])
    await linked(*servers)
    async with callers(*servers[:2]) as (one, other):
        await passes(one, other, b"there")
    assert connected(servers[2]) == []
    assert not mesh_of(servers[2]).others


async def test_a_replica_without_a_relay_meshes_with_nobody(places: Places) -> None:
    with_relay, without = await places.start(0), await places.start(1, derp_enabled=False)
    await linked(with_relay, without)
    assert "relay" not in replicas_of(without).shared
    assert connected(with_relay) == []


async def test_more_relays_than_a_region_is_good_for_are_told_of(places: Places) -> None:
    mesh = mesh_of(await places.start(0))
    others = [ReplicaID(bytes([number]) * 8) for number in range(MAX_OF_REGION)]
    for other in others:
        assert mesh.trouble() == ""
        mesh.hear(other, mesh.greet())
        mesh.hear(other, mesh.greet())
    assert mesh.trouble().startswith("6 replicas serve region 999, and each hears of all clients")
    mesh.hear(others[0], b"7")  # it was started anew with other settings, or speaks a later version
    mesh.forget(others[1])
    assert (mesh.trouble(), len(mesh.others)) == ("", 3)


async def test_another_replica_at_the_address_is_not_taken_for_the_one_that_was_there(places: Places) -> None:
    one, other = await places.start(0), await places.start(1)
    await meshed(one, other)
    gone = ReplicaID(b"departed")
    ours = replicas_of(one)
    ours.found[other.replicas.listening[0].getsockname()] = gone  # type: ignore[union-attr]  # it is a replica
    with pytest.raises(ConnectError, match=r"replica1 .* has its address now"):
        await mesh_of(one)._dial(gone)
    with pytest.raises(ConnectError, match="where it takes links of others is not known"):
        await mesh_of(one)._dial(ReplicaID(b"nowhere!"))


@pytest.mark.stores("postgresql")
async def test_who_announced_a_key_at_one_replica_has_a_place_at_the_relay_of_another(serve: Serve) -> None:
    """Replicas on one store hear of each other's keys there; until then a client has the minute of a stranger."""
    shared: dict[str, object] = {"bus": BusPlace("store"), "replica_listen": (("127.0.0.1", 0),)}
    one, other = await serve(**shared), await serve(**shared)
    private, main, relay = NodePrivate.generate(), peer_id("main"), relay_of(other)
    key = private.public().raw

    def is_no_stranger() -> bool:
        member = relay.router.members.get(key)
        return member is not None and all(relay.sessions.guests.terms_of(each) is None for each in member.connections)

    async with open_derp_client(url_of(other), private):
        await wait_for(lambda: key in relay.router.members)
        assert not is_no_stranger()
        async with open_peer(one, AGENT_DOOR, agent_token("main")) as agent:
            await (await agent.coordinate()).update(agent.node(main, key=b"np" + key))
            await wait_for(is_no_stranger)


async def test_a_link_that_breaks_behind_its_proof_is_dialled_anew(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has a name any more who has left."""
    broken = [True, True]
    real = relay_mesh.take_over
    monkeypatch.setattr(relay_mesh, "take_over", lambda stream: stream if broken and broken.pop() else real(stream))
    servers = [await places.start(number) for number in range(2)]
    await meshed(*servers)
    assert not broken


async def test_a_relay_waits_until_those_of_others_have_met_its_successor(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then packets for clients that go there would have no way but by the process that leaves."""
    old, other = await places.start(0), await places.start(1)
    await meshed(old, other)
    dial = mesh_of(other)._dial
    is_free = trio.Event()

    async def dial_later(replica: ReplicaID) -> Dialled:
        await is_free.wait()
        return await dial(replica)

    monkeypatch.setattr(mesh_of(other), "_dial", dial_later)
    new = await places.start(2)
    leaving = relay_of(old)
    await join(leaving, relay_of(new))
    assert leaving.neighbours_to_move() == 0, "nobody takes its place so far"
    leaving.is_draining = True
    # The new one is a replica of its own here, so it has met the old one; of the other it has heard.
    await wait_for(lambda: leaving.neighbours_to_move() == 1)
    is_free.set()
    await wait_for(lambda: leaving.neighbours_to_move() == 0)


async def test_what_a_replica_says_to_a_relay_that_is_no_derp_ends_that_link_alone(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    server, other = await places.start(0), await places.start(1)
    await meshed(server, other)
    key = ClusterKey(server.config.cluster_name, SECRET)
    stranger = Links(ReplicaID(b"stranger"), key, replicas_of(server)._serve_link)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64, b"\x02\xff\xff\xff\xff"):
        link = await stranger.dial(replicas_of(server).listening[0].getsockname(), Use.RELAY)
        await link.stream.send_all(garbage)
        with trio.fail_after(60):
            while await link.stream.receive_some():
                pass
        await trio.aclose_forcefully(link.stream)
    async with callers(server, other) as (one, another):
        await passes(one, another, b"there")
    assert replicas_of(server).failed_links == 0
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(("module", "name"), [(relay_mesh, "greet_kin"), (mesh_module, "shake_hands")])
async def test_a_defect_ends_one_link_between_relays_and_the_next_one_stands(
    module: ModuleType, name: str, places: Places, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = getattr(module, name)

    def fail(*of: object) -> None:
        monkeypatch.setattr(module, name, real)
        raise AssertionError("planted")

    monkeypatch.setattr(module, name, fail)
    servers = [await places.start(number) for number in range(2)]
    await meshed(*servers)
    assert sum(replicas_of(server).read().failed_links for server in servers) == 1
    assert "planted" in caplog.text
