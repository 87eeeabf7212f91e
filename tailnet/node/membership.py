"""A node that belongs to a tailnet: what the coordinator says becomes peers of the engine, and the other way round.
Layer L3.

    async with open_client(url, token, agent_id) as client:
        stream = await client.dial(22)
    async with open_agent(url, token, agent_id) as agent:
        listener = agent.engine.listen(22)
A client reaches one agent.  It waits as genuine clients do: for the agent's node, then for its word that it knows us,
and without that word after five seconds.  The node, its sessions and its streams outlive the connection to the
coordinator, which client/link.py makes anew.  Rules: docs/node.md.  Next hop: roster.py, engine.py, tailnet/client.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import IPv6Address
from math import inf
from typing import Final

import trio

from derp.client.client import open_background
from derp.client.dial import DialOptions
from derp.client.reconnect import BackOff
from derp.errors import DerpError
from derp.keys import NodePrivate
from derp.transport.stream import mapped_errors
from tailnet.client.coordination import (
    AGENT_DOOR,
    MAP_SECONDS,
    Coordination,
    client_door,
    describe_node,
    open_coordination,
    open_maps,
)
from tailnet.client.deployment import ConnectionInfo, ask_connection_info
from tailnet.client.link import BACK_OFF, Link, Serve, bare_refusals
from tailnet.client.rpc import RpcClient
from tailnet.client.telemetry import Telemetry
from tailnet.node.engine import DIAL_SECONDS, Engine, open_engine
from tailnet.node.place import Place
from tailnet.node.roster import Roster
from tailnet.node.streams import TunnelStream
from tailnet.node.udp import ConnectedUdp
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.types import CODER_SERVICE_PREFIX, PEER_ID_BYTES, TAILSCALE_SERVICE_PREFIX, PeerID

_log = logging.getLogger("tailnet.client")

# How long a client waits for the agent's word that it knows us; an older agent never gives it.
READY_SECONDS: Final = 5.0
# What is left of it when a client ends is handed on for so long.
TELEMETRY_SECONDS: Final = 1.0
# For the last word to a coordinator, which may be stuck.
LEAVE_SECONDS: Final = 1.0


def addresses_of(peer_id: PeerID) -> list[bytes]:
    """An agent's addresses: under the prefix that every client knows, and under the one that newer clients prefer."""
    return [peer_id.address(prefix).packed for prefix in (TAILSCALE_SERVICE_PREFIX, CODER_SERVICE_PREFIX)]


class Peers:
    """Whom a coordinator told a node of.  `hear` each coordination, one after the other; `run` is a task beside it."""

    def __init__(self, engine: Engine, *, answers_ready: bool = False) -> None:
        self.roster = Roster(engine.core)
        self._engine = engine
        self._answers_ready = answers_ready
        self._changed = trio.lowlevel.ParkingLot()

    async def hear(self, coordination: Coordination) -> None:
        """Take what the coordinator says, until it refuses or is lost: raises RpcError.  Then all are lost."""
        try:
            while True:
                update = await coordination.receive()
                is_known = self.roster.update(update, trio.current_time())
                self._changed.unpark_all()
                self._engine.pump()
                if is_known and self._answers_ready:
                    await coordination.ready(PeerID(update.id))
        finally:
            self.roster.lose_all(trio.current_time())
            self._changed.unpark_all()

    async def run(self) -> None:
        """Have peers that were lost, and are silent, go."""
        while True:
            with trio.move_on_at(self.roster.next_timeout() or inf) as wait:
                await self._changed.park()
            if wait.cancelled_caught and self.roster.handle_timeout(trio.current_time()):
                self._changed.unpark_all()
                self._engine.pump()

    async def wait(self, peer_id: PeerID) -> bytes:
        """The node key of a peer, once it is known and knows us."""
        while self.roster.key_of(peer_id) is None:
            await self._changed.park()
        with trio.move_on_after(READY_SECONDS):
            while not self.roster.is_ready(peer_id):
                await self._changed.park()
        while (key := self.roster.key_of(peer_id)) is None:
            await self._changed.park()
        return key


class Member:
    """A node, and what a coordinator told it of.  Made by `open_client` and `open_agent`; streams are `engine`'s."""

    def __init__(
        self,
        engine: Engine,
        private: NodePrivate,
        addresses: list[bytes],
        link: Link,
        *,
        home: int | None,
        options: DialOptions | None,
        answers_ready: bool,
        serve: Serve | None,
        telemetry: str,
    ) -> None:
        self.engine = engine
        self.telemetry = Telemetry(telemetry, private.public().raw)
        self.link = link
        self.peers = Peers(engine, answers_ready=answers_ready)
        self._self_changed = trio.lowlevel.ParkingLot()
        self.place = Place(engine, home, options, changed=self._self_changed.unpark_all, moved=link.redial)
        self._private = private
        self._addresses = addresses
        self._serve_more = serve
        self._tunnels: set[PeerID] = set()
        self._coordination: Coordination | None = None
        self.announced = trio.Event()
        """Peers can hear of us."""

    async def run(self) -> None:
        """Belong to the tailnet until the coordinator refuses: raises what it said, and what goes wrong at first."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.peers.run)
            nursery.start_soon(self.place.run)
            await self.link.run(self._serve)

    async def add_tunnel(self, peer_id: PeerID) -> None:
        """Ask for a peer, now and whenever the coordinator has to be asked again."""
        self._tunnels.add(peer_id)
        if self._coordination is not None:
            await self._coordination.add_tunnel(peer_id)

    async def leave(self) -> None:
        """Tell peers that this is the end, if the coordinator is there: they drop our streams at once, and not when
        they find out."""
        if self._coordination is not None:
            with trio.move_on_after(LEAVE_SECONDS, shield=True), suppress(DerpError):
                await self._coordination.leave()

    # --- one connection to the coordinator ---

    async def _serve(self, rpc: RpcClient) -> None:
        coordination = await open_coordination(rpc)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_maps, rpc)
                nursery.start_soon(self.link.keep_resume_token, rpc)
                nursery.start_soon(self._announce, coordination)
                nursery.start_soon(self.telemetry.post, rpc)
                if self._serve_more is not None:
                    nursery.start_soon(self._serve_more, rpc)
                await self.peers.hear(coordination)
        finally:
            self._coordination = None

    async def _announce(self, coordination: Coordination) -> None:
        """Say where we are and whom we want, and the former again whenever it changes."""
        await self.place.wait_home()
        if not self.announced.is_set():
            # The first time others come as soon as they hear of us, and a relay hands on nothing to whom it has not.
            await self.engine.relays.wait_home()
        said: tailnet.Node | None = None
        while True:
            node = self._describe()
            if node == said:
                await self._self_changed.park()
                continue
            await coordination.announce(node)
            if said is None:
                self._coordination = coordination
                for peer_id in self._tunnels:
                    await coordination.add_tunnel(peer_id)
                self.link.proven()
                self.announced.set()
            said = node

    def _describe(self) -> tailnet.Node:
        place = self.place.describe()
        return describe_node(
            self._private.public(),
            self.engine.core.paths.disco_key,
            map(IPv6Address, self._addresses),
            place.home,
            place.endpoints,
            place.latencies,
        )

    async def _follow_maps(self, rpc: RpcClient) -> None:
        maps = await open_maps(rpc, self.link.url)
        with mapped_errors(f"the coordinator's map within {MAP_SECONDS:g} s"), trio.fail_after(MAP_SECONDS):
            self.place.take_map(await maps.receive())
        while True:
            self.place.take_map(await maps.receive())


class Client:
    """A node that reaches one agent.  Made by `open_client`."""

    def __init__(self, member: Member, agent_id: PeerID, node_key: bytes, info: ConnectionInfo) -> None:
        self.member = member
        self.info = info
        """What the deployment said of connections, which we obey."""
        self.engine = member.engine
        self.agent_id = agent_id
        self._node_key = node_key
        self._address = agent_id.address(TAILSCALE_SERVICE_PREFIX).packed

    @property
    def node_key(self) -> bytes:
        """The agent's, as it was last heard of."""
        self._node_key = self.member.peers.roster.key_of(self.agent_id) or self._node_key
        return self._node_key

    async def dial(self, port: int, *, timeout_seconds: float = DIAL_SECONDS) -> TunnelStream:
        """A TCP connection to a port of the agent, once it is there.  Raises OSError, trio.TooSlowError."""
        with trio.fail_after(timeout_seconds):
            while True:
                node_key = await self.member.peers.wait(self.agent_id)
                try:
                    return await self.engine.dial(self._address, port, timeout_seconds=timeout_seconds)
                except ConnectionRefusedError:
                    raise
                except ConnectionError:
                    if self.member.peers.roster.key_of(self.agent_id) == node_key:
                        raise
                    # Another agent has come, or the one that was dialled has gone: the next one.

    async def dial_udp(self, port: int, *, timeout_seconds: float = DIAL_SECONDS) -> ConnectedUdp:
        """A UDP port of ours that talks to one of the agent's, once it is there.  Raises trio.TooSlowError."""
        with trio.fail_after(timeout_seconds):
            await self.member.peers.wait(self.agent_id)
        return self.engine.dial_udp(self._address, port)

    async def tell_how_it_went(self) -> None:
        """Note for the coordinator when the agent answered, and when directly."""
        telemetry, is_connected = self.member.telemetry, False
        while True:
            with trio.move_on_after(READY_SECONDS):
                answer = await self.engine.disco_ping(self.node_key)
                if not is_connected:
                    is_connected = True
                    home = self.engine.relays.home or 0
                    telemetry.connected(self.node_key, home, answer.seconds if answer.endpoint is None else None)
                if answer.endpoint is not None:
                    telemetry.direct(*answer.endpoint, answer.seconds)
                    return
            await trio.sleep(READY_SECONDS)

    async def ping(self, *, timeout_seconds: float = 5.0) -> float:
        """A round trip through the tunnel, in seconds.  Raises trio.TooSlowError."""
        return await self.engine.ping(self._address, timeout_seconds=timeout_seconds)


@asynccontextmanager
async def _open_member(
    link: Link,
    addresses: list[bytes],
    *,
    home: int | None,
    is_direct: bool,
    options: DialOptions | None,
    answers_ready: bool,
    serve: Serve | None = None,
    telemetry: str = "",
) -> AsyncIterator[Member]:
    private = NodePrivate.generate()
    with bare_refusals():
        async with open_engine(private, addresses, {}, None, is_direct=is_direct, options=options) as engine:
            member = Member(
                engine,
                private,
                addresses,
                link,
                home=home,
                options=options,
                answers_ready=answers_ready,
                serve=serve,
                telemetry=telemetry,
            )
            # Whoever is told to go has all tasks cancelled at once; this one stays until we have said that we leave.
            linked = trio.CancelScope(shield=True)

            async def run() -> None:
                with linked:
                    await member.run()

            async with open_background() as nursery:
                nursery.start_soon(run)
                try:
                    await member.announced.wait()
                    yield member
                finally:
                    await member.leave()
                    linked.cancel()


@asynccontextmanager
async def open_client(
    url: str,
    token: str,
    agent_id: PeerID,
    *,
    home: int | None = None,
    is_direct: bool = True,
    options: DialOptions | None = None,
    back_off: BackOff = BACK_OFF,
    timeout_seconds: float = DIAL_SECONDS,
    telemetry: str = "",
) -> AsyncIterator[Client]:
    """Join the tailnet of the coordinator at `url` with a user's token and reach one agent.

    What the deployment says of connections goes first: it may turn direct ones off whatever `is_direct` is, and have
    relays be reached by websocket at once.
    `telemetry`: the name under which the coordinator is told how connecting went (client/telemetry.py); "": it is not.

    Raises ConnectError, RpcError or ConfigError, in the block too when the coordinator refuses later;
    trio.TooSlowError when the agent is not there in time.
    """
    # As genuine clients do: an address of its own for each connection.
    address = PeerID(os.urandom(PEER_ID_BYTES)).address(TAILSCALE_SERVICE_PREFIX).packed
    info = await ask_connection_info(url, token, agent_id, options)
    if info.force_websocket:
        options = replace(options or DialOptions(), force_websocket=True)
    link = Link(url, client_door(agent_id), token, options=options, back_off=back_off)
    async with _open_member(
        link,
        [address],
        home=home,
        is_direct=is_direct and info.is_direct,
        options=options,
        answers_ready=False,
        telemetry=telemetry,
    ) as member:
        await member.add_tunnel(agent_id)
        with trio.fail_after(timeout_seconds):
            node_key = await member.peers.wait(agent_id)
        client = Client(member, agent_id, node_key, info)
        async with open_background() as nursery:
            if member.telemetry.is_on:
                nursery.start_soon(client.tell_how_it_went)
            yield client
        member.telemetry.disconnected()
        with trio.move_on_after(TELEMETRY_SECONDS):
            await member.telemetry.wait_posted()


@asynccontextmanager
async def open_agent(
    url: str,
    token: str,
    agent_id: PeerID,
    *,
    home: int | None = None,
    is_direct: bool = True,
    options: DialOptions | None = None,
    back_off: BackOff = BACK_OFF,
    serve: Serve | None = None,
    door: str = AGENT_DOOR,
    insists: bool = False,
) -> AsyncIterator[Member]:
    """Join as an agent, with its token; its clients reach it under the addresses of its id.

    `serve(rpc)` runs with each connection to the coordinator, beside the node's own calls; a DerpError ends that
    connection, and the next one is made.  Raises as `open_client` does; `insists` is Link's.
    """
    link = Link(url, door, token, options=options, back_off=back_off, insists=insists)
    async with _open_member(
        link,
        addresses_of(agent_id),
        home=home,
        is_direct=is_direct,
        options=options,
        answers_ready=True,
        serve=serve,
    ) as member:
        yield member
