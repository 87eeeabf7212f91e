"""Coordinators as replicas of one cluster, over real sockets: an agent at one and a client at another are peers."""

import itertools
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailnet.config.coordinator import BusPlace
from tailnet.errors import ConfigError
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer, serve_coordinator
from tailnet.services.replicas import Replicas
from tests.support.relays import free_port
from tests.support.seeds import NOW, agent_token, make_id, peer_id, user_token
from tests.support.tailnet_driver import AGENT_DOOR, Coordination, client_door, open_peer, wait_for
from tests.tailnet.server.test_relay_inside import get
from tests.test_house import ROOT

Kind = tailnet.CoordinateResponse.PeerUpdate.Kind
Serve = Callable[..., Awaitable[CoordinatorServer]]
Start = Callable[..., Awaitable[CoordinatorServer]]
MAIN = peer_id("main")
ALICE = user_token("alice")
SECRET = bytes(range(32))


def replicas_of(server: CoordinatorServer) -> Replicas:
    assert server.replicas is not None
    return server.replicas


async def linked(*servers: CoordinatorServer) -> None:
    """Each has a session with each other one."""
    for server in servers:
        pairs = replicas_of(server).cluster.pairs
        others = [replicas_of(other).id for other in servers if other is not server]
        await wait_for(lambda: all(each in pairs and pairs[each].is_open for each in others))  # noqa: B023  # called in place


class Places:
    """Starts replicas of one cluster, each with a store of its own that knows the same agents, or all with one."""

    def __init__(self, serve: Serve, filled_file: Path, tmp_path: Path, shared: str = "") -> None:
        """`shared`: the URL of one that all may use."""
        self._shared = shared
        self.ports = [free_port(socket.SOCK_STREAM) for _ in range(3)]
        self._serve = serve
        self._file = filled_file
        self._folder = tmp_path

    async def start(self, number: int, **settings: object) -> CoordinatorServer:
        path = self._folder / f"replica{number}.db"
        if not self._shared and not path.exists():
            shutil.copy(self._file, path)
        everywhere = tuple(("127.0.0.1", port) for port in self.ports)
        ours: dict[str, object] = {
            "store": self._shared or f"sqlite:///{path}",
            "bus": BusPlace("static", everywhere),
            "bus_secret": SECRET,
            "replica_listen": (everywhere[number],),
            "replica_name": f"replica{number}",
        }
        return await self._serve(**(ours | settings))


@pytest.fixture
def places(serve: Serve, filled_file: Path, filled_url: str, store_kind: str, tmp_path: Path) -> Places:
    return Places(serve, filled_file, tmp_path, filled_url if store_kind == "postgresql" else "")


async def test_an_agent_of_one_meets_a_client_of_another(places: Places) -> None:
    one, other = await places.start(0), await places.start(1)
    await linked(one, other)
    async with open_peer(one, AGENT_DOOR, agent_token("main")) as agent, AsyncExitStack() as stack:
        mine = await agent.coordinate()
        sent = await mine.update(agent.node(MAIN))
        client = await stack.enter_async_context(open_peer(other, client_door(MAIN), ALICE))
        theirs: Coordination = await client.coordinate()
        await theirs.tunnel(MAIN)
        assert await theirs.next_node() == (MAIN, sent)
        said = await theirs.update(client.node(peer_id("gpu")))
        client_id, node = await mine.next_node()
        assert node == said
        again = await mine.update(agent.node(MAIN, preferred_derp=7))
        assert await theirs.next_node() == (MAIN, again)
        await mine.request(ready_for_handshake=[{"id": client_id}])
        ready = await theirs.next()
        assert (ready.id, ready.kind) == (MAIN, Kind.READY_FOR_HANDSHAKE)
        await theirs.request(disconnect={})
        gone = await mine.next()
        assert (gone.id, gone.kind) == (client_id, Kind.DISCONNECTED)


async def test_who_loses_a_right_at_one_is_sent_away_at_the_other(places: Places) -> None:
    one, other = await places.start(0), await places.start(1)
    await linked(one, other)
    async with open_peer(other, client_door(MAIN), ALICE) as client:
        await client.coordinate()
        await other.store.run(other.store.callers.update_user, make_id("alice"), NOW, active=False)
        seen = other.callers.changes.count
        one.administration.administration.changed()
        await wait_for(lambda: other.callers.changes.count > seen)
        await client.wait_closed()


@pytest.mark.stores("postgresql")
async def test_a_key_of_a_peer_at_one_stays_with_its_tenant_at_the_other(places: Places) -> None:
    one, other = await places.start(0), await places.start(1)
    await linked(one, other)
    web = peer_id("web")
    async with open_peer(other, AGENT_DOOR, agent_token("web")) as bobs:
        theirs = await bobs.coordinate()
        async with open_peer(one, AGENT_DOOR, agent_token("main")) as alices:
            await (await alices.coordinate()).update(alices.node(MAIN))
            public = alices.private.public()
            await wait_for(lambda: other.relay_keys.tenant_of(public.raw) == "alice")
            await theirs.update(bobs.node(web, key=convert.node_key_bytes(public)))
            await wait_for(lambda: other.relay_keys.contested == 1)
            assert one.relay_keys.tenant_of(public.raw) == other.relay_keys.tenant_of(public.raw) == "alice"
        # When nobody has it any more it is the other's.
        with trio.fail_after(60):
            for number in itertools.count(1):
                await theirs.update(bobs.node(web, key=convert.node_key_bytes(public), preferred_derp=number))
                await trio.sleep(0.05)
                if other.relay_keys.tenant_of(public.raw) == "bob":
                    break
        await wait_for(lambda: one.relay_keys.tenant_of(public.raw) == "bob")


async def test_of_two_links_one_is_kept_at_both_ends(places: Places) -> None:
    servers = [await places.start(0), await places.start(1)]
    await linked(*servers)
    one, other = map(replicas_of, servers)

    def is_the_same() -> bool:
        mine, theirs = one.linked.get(other.id), other.linked.get(one.id)
        return mine is not None and theirs is not None and mine.binding == theirs.binding

    await wait_for(is_the_same)
    assert len(one.linked) == len(other.linked) == 1


async def test_three_replicas_hear_of_each_other_and_one_may_stop(places: Places) -> None:
    servers = [await places.start(number) for number in range(3)]
    await linked(*servers)
    async with open_peer(servers[0], AGENT_DOOR, agent_token("main")) as agent:
        mine = await agent.coordinate()
        sent = await mine.update(agent.node(MAIN))
        async with (
            open_peer(servers[1], client_door(MAIN), ALICE) as second,
            open_peer(servers[2], client_door(MAIN), ALICE) as third,
        ):
            calls = [await second.coordinate(), await third.coordinate()]
            for call in calls:
                await call.tunnel(MAIN)
                assert await call.next_node() == (MAIN, sent)
            await servers[1].drain()
            moved = await mine.update(agent.node(MAIN, preferred_derp=8))
            assert await calls[1].next_node() == (MAIN, moved)
    await wait_for(lambda: len(replicas_of(servers[0]).linked) == 1)


async def test_a_replica_with_another_key_or_name_is_told_nothing(places: Places) -> None:
    one = await places.start(0)
    for number, settings in ((1, {"bus_secret": b"x" * 32}), (2, {"cluster_name": "another"})):
        stranger = await places.start(number, **settings)
        ours = replicas_of(stranger)
        await wait_for(lambda: "key" in ours.dial_troubles.get(("127.0.0.1", places.ports[0]), ""))  # noqa: B023
        assert not ours.linked
    assert not replicas_of(one).linked
    assert replicas_of(one)._links.refused_count


async def test_an_agent_that_moves_is_not_lost(places: Places) -> None:
    one, other = await places.start(0), await places.start(1)
    await linked(one, other)
    async with (
        open_peer(other, client_door(MAIN), ALICE) as client,
        open_peer(one, AGENT_DOOR, agent_token("main")) as agent,
    ):
        theirs, mine = await client.coordinate(), await agent.coordinate()
        await theirs.tunnel(MAIN)
        first = await mine.update(agent.node(MAIN))
        assert await theirs.next_node() == (MAIN, first)
        async with open_peer(other, AGENT_DOOR, agent_token("main")) as moved:
            here = await moved.coordinate()
            second = await here.update(moved.node(MAIN))
            assert await theirs.next_node() == (MAIN, second)
            await mine.wait_ended()


def test_a_server_alone_loads_nothing_of_it() -> None:
    """Whoever stands outside imports these rooms inside functions only, where a bus is set."""
    of_replicas = (
        r"tailnet[./](bus|replica"
        r"|services[./](held_keys|overtakings|replicas|sharing|shared_keys|shared_map|relay_mesh)|server[./]replicated)\b"
    )
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tailnet").rglob("*.py")]
    outside = [name for name in files if not re.match(of_replicas, name) and "replicas" not in name]
    found = [name for name in outside if re.search(rf"^(from|import) {of_replicas}", (ROOT / name).read_text(), re.M)]
    assert "tailnet/server/server.py" in outside
    assert found == []


@pytest.mark.stores("sqlite")
async def test_a_second_replica_on_sqlite_is_refused_in_a_sentence(places: Places) -> None:
    one = await places.start(0)
    config = replace(one.config, replica_listen=(("127.0.0.1", places.ports[1]),))
    with pytest.raises(ConfigError, match="replicas cannot share a SQLite"):
        await serve_coordinator(config)


@pytest.mark.stores("postgresql")
async def test_replicas_find_each_other_in_the_postgresql_that_they_share(serve: Serve) -> None:
    shared: dict[str, object] = {"bus": BusPlace("store"), "replica_listen": (("127.0.0.1", 0),)}
    shared["replica_address"] = ("127.0.0.1", 0)
    one, other = await serve(**shared), await serve(**shared)
    await linked(one, other)
    async with open_peer(one, AGENT_DOOR, agent_token("main")) as agent:
        sent = await (await agent.coordinate()).update(agent.node(MAIN))
        async with open_peer(other, client_door(MAIN), ALICE) as client:
            theirs = await client.coordinate()
            await theirs.tunnel(MAIN)
            assert await theirs.next_node() == (MAIN, sent)


async def test_why_is_answered_by_all(places: Places) -> None:
    one, other = await places.start(0), await places.start(1)
    await linked(one, other)
    async with open_peer(other, AGENT_DOOR, agent_token("main")) as agent:
        await (await agent.coordinate()).update(agent.node(MAIN))
        name = replicas_of(one).name_of(replicas_of(other).id)
        said = (await get(one, f"/debug/why?key={MAIN}")).body.decode()
        assert said.startswith(f"{MAIN} is not connected here.\n")
        assert f"\n{MAIN} is connected at {name}.\n" in said
        assert f"\n{name}: {MAIN} is connected as agent since" in said
        page = (await get(one, f"/debug/why?format=html&key={MAIN}")).body.decode()
        assert f"<p>{MAIN} is connected at {name}.</p>" in page


async def test_requests_wait_until_a_replica_that_starts_has_met_another(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailnet.services.replicas.READY_SECONDS", 600.0)
    monkeypatch.setattr("tailnet.bus.links.OPEN_SECONDS", 600.0)
    with socket.create_server(("127.0.0.1", places.ports[1])):  # somebody is there, and says nothing
        one = await places.start(0)
        said = await get(one, "/readyz")
        assert (said.status, b"has not met the others yet" in said.body) == (503, True)
    other = await places.start(1)
    await linked(one, other)
    assert (await get(one, "/readyz")).status == (await get(other, "/readyz")).status == 200


def test_a_server_alone_imports_nothing_of_replicas() -> None:
    code = "import sys, tailnet.server.server; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    of_replicas = ("tailnet.bus", "tailnet.replica", "tailnet.server.replicated", "tailnet.services.replica", "coredis")
    assert [each for each in modules if each.startswith(of_replicas)] == []
    assert "tailnet.server.server" in modules
