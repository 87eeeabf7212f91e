"""Replicas without a server around them: the service, a hub and a reactor, and peers that note what they are told."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from derp.transport.reactor import Reactor
from tailnet.bus.contract import Address, Bus, place_of_socket
from tailnet.coordinator.messages import Kind, Request, Update
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy
from tailnet.replica.proof import ClusterKey
from tailnet.services.hub import Hub, Receiver
from tailnet.services.replicas import Replicas, ReplicaSettings
from tailnet.types import PeerID
from tests.support.seeds import peer_id
from tests.support.tailnet_driver import wait_for
from tests.tailnet.coordinator.playbook import make_node

KEY = ClusterKey("tests", bytes(range(32)))
MAIN, ME = peer_id("main"), peer_id("me")


class Told:
    """A peer's connection: keeps the last word about each other peer, and all words."""

    tenant = ""

    def __init__(self) -> None:
        self.words: list[tuple[bytes, Kind, str]] = []
        self.errors: list[str] = []
        self.ended = ""

    def send_updates(self, payload: bytes, updates: Sequence[Update]) -> bool:
        for update in updates:
            node = "" if update.node is None else update.node.raw.decode()
            self.words.append((bytes(update.peer_id), update.kind, node))
        return True

    def send_error(self, text: str) -> None:
        self.errors.append(text)

    def end(self, text: str) -> None:
        self.ended = text

    async def hears(self, peer_id: PeerID, kind: Kind, node: str = "") -> None:
        """Wait until that is the last word about the peer."""
        wanted = (bytes(peer_id), kind, node)
        await wait_for(lambda: [each for each in self.words if each[0] == wanted[0]][-1:] == [wanted])

    def kinds(self, peer_id: PeerID) -> list[Kind]:
        return [kind for peer, kind, _ in self.words if peer == peer_id]


class Place:
    """One replica."""

    def __init__(self, bus: Bus, name: str, listen: Address | None, key: ClusterKey = KEY) -> None:
        self.host = Reactor()
        listens = () if listen is None else (listen,)
        self.rights_changes = 0
        self.replicas = Replicas(self.host, key, bus, ReplicaSettings(name, listens, listen), self._change_rights)
        self.hub = Hub(self.replicas.coordinator, outward=self.replicas.send)
        self.scope = trio.CancelScope()

    def _change_rights(self) -> None:
        self.rights_changes += 1

    async def run(self, *, task_status: trio.TaskStatus["Place"] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                self.replicas.open()
                nursery.start_soon(self.host.run)
                await nursery.start(self.replicas.run, self.hub)
                task_status.started(self)

    @property
    def address(self) -> Address:
        return place_of_socket(self.replicas.listening[0])

    def agent(self, peer_id: PeerID) -> Told:
        return self._connect(peer_id, AgentPolicy(peer_id))

    def client(self, peer_id: PeerID, agent_id: PeerID) -> Told:
        """A client with a tunnel to the agent."""
        told = self._connect(peer_id, ClientPolicy(agent_id))
        self.request(told, Request(add_tunnel=agent_id))
        return told

    def _connect(self, peer_id: PeerID, policy: AgentPolicy | ClientPolicy) -> Told:
        told, now = Told(), self.host.tick()
        self.hub.carry_out(self.replicas.coordinator.handle_connect(peer_id, policy, told, now), now)
        self.host.flush()
        return told

    def request(self, told: Receiver, request: Request) -> None:
        self.hub.handle_request(told, request, self.host.tick())
        self.host.flush()

    def node(self, told: Receiver, name: str) -> None:
        self.request(told, Request(node=make_node(name)))

    def leaves(self, told: Receiver, *, graceful: bool = True) -> None:
        now = self.host.tick()
        self.hub.carry_out(self.replicas.coordinator.handle_disconnect(told, graceful, now), now)
        self.host.flush()


async def together(*places: Place) -> None:
    """Each has a session with each other one."""
    for place in places:
        pairs = place.replicas.cluster.pairs
        others = [other.replicas.id for other in places if other is not place]
        await wait_for(lambda: all(each in pairs and pairs[each].is_open for each in others))  # noqa: B023  # called in place


async def meet(first: Place, second: Place) -> tuple[Told, Told]:
    """The agent MAIN at the first, and its client ME at the second, who has its node a1."""
    agent, client = first.agent(MAIN), second.client(ME, MAIN)
    first.node(agent, "a1")
    await client.hears(MAIN, Kind.NODE, "a1")
    return agent, client


async def well(*places: Place) -> None:
    """The bus of each works, and shows all of them."""
    await wait_for(
        lambda: all(not each.replicas.bus.trouble and len(each.replicas.records) == len(places) for each in places)
    )


def stayed(agent: Told, client: Told) -> bool:
    """Neither was sent away, and the client of MAIN was never told that he is lost."""
    return not agent.ended and not client.ended and Kind.LOST not in client.kinds(MAIN)


@asynccontextmanager
async def running(*places: Place) -> AsyncIterator[None]:
    """All of them, together."""
    async with trio.open_nursery() as nursery:
        for place in places:
            await nursery.start(place.run)
        await together(*places)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def met(first: Place, second: Place) -> AsyncIterator[tuple[Told, Told]]:
    """Both, an agent and its client who know each other, and whose sessions have stayed at the end."""
    async with running(first, second):
        agent, client = await meet(first, second)
        yield agent, client
        assert stayed(agent, client)
