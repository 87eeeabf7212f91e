"""A node that belongs to a tailnet: what the coordinator says becomes peers of the engine, and the other way round.
Layer L3.

    async with open_client(url, token, agent_id) as client:
        stream = await client.dial(22)
    async with open_agent(url, token) as agent:
        listener = agent.engine.listen(22)
A client reaches one agent.  It waits as genuine clients do: for the agent's node, then for its word that it knows us,
and without that word after five seconds.  Next hop: engine.py, tailnet/client.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address
from typing import Final, TypeAlias

import trio

from derp.client.client import open_background
from derp.client.dial import DialOptions
from derp.errors import ConfigError
from derp.keys import KEY_BYTES, NodePrivate
from derp.map import DERPRegion
from tailnet.client.coordination import (
    AGENT_DOOR,
    DISCO_PREFIX,
    Coordination,
    client_door,
    describe_node,
    open_coordination,
    read_regions,
)
from tailnet.client.rpc import open_rpc_client
from tailnet.errors import LocalProtocolError, RpcError, TailnetError
from tailnet.node.core import PeerNode
from tailnet.node.engine import DIAL_SECONDS, Engine, open_engine
from tailnet.node.streams import TunnelStream
from tailnet.node.udp import ConnectedUdp
from tailnet.paths.endpoint import parse_endpoint
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.types import CODER_SERVICE_PREFIX, PEER_ID_BYTES, TAILSCALE_SERVICE_PREFIX, PeerID

# How long a client waits for the agent's word that it knows us; an older agent never gives it.
READY_SECONDS: Final = 5.0

PeerUpdate: TypeAlias = tailnet.CoordinateResponse.PeerUpdate


def addresses_of(peer_id: PeerID) -> list[bytes]:
    """An agent's addresses: under the prefix that every client knows, and under the one that newer clients prefer."""
    return [peer_id.address(prefix).packed for prefix in (TAILSCALE_SERVICE_PREFIX, CODER_SERVICE_PREFIX)]


class Member:
    """A node, its coordination, and whom the coordinator told it of.  Made by `open_client` and `open_agent`."""

    def __init__(self, engine: Engine, coordination: Coordination, *, answers_ready: bool) -> None:
        self.engine = engine
        self._coordination = coordination
        self._answers_ready = answers_ready
        self._keys: dict[PeerID, bytes] = {}
        self._ready: set[PeerID] = set()
        self._changed = trio.lowlevel.ParkingLot()
        self.refused_updates = 0
        """Nodes that make no sense; genuine nodes ignore them too."""

    async def run(self) -> None:
        """Take what the coordinator says, until it refuses or is lost: raises RpcError."""
        while True:
            try:
                update = await self._coordination.receive()
            except trio.EndOfChannel:
                raise RpcError("the coordinator ended the call that peers are told by") from None
            await self._take(update)
            self._changed.unpark_all()

    async def _take(self, update: PeerUpdate) -> None:
        peer_id = PeerID(update.id)
        if update.kind == PeerUpdate.NODE:
            node = peer_node(update.node)
            if node is None:
                self.refused_updates += 1
                return
            try:
                self.engine.core.configure(node, trio.current_time())
            except LocalProtocolError:  # a key that nobody can use, or our own
                self.refused_updates += 1
                return
            before = self._keys.get(peer_id)
            if before is not None and before != node.node_key:
                self.engine.core.remove(before)
            self._keys[peer_id] = node.node_key
            self.engine.pump()
            if self._answers_ready:
                await self._coordination.ready(peer_id)
        elif update.kind == PeerUpdate.READY_FOR_HANDSHAKE:
            self._ready.add(peer_id)
        elif update.kind == PeerUpdate.DISCONNECTED:
            # LOST is no end: the peer may be reached still, and comes back with the same key.
            key = self._keys.pop(peer_id, None)
            self._ready.discard(peer_id)
            if key is not None:
                self.engine.core.remove(key)
                self.engine.pump()

    async def add_tunnel(self, peer_id: PeerID) -> None:
        """Ask for a peer."""
        await self._coordination.add_tunnel(peer_id)

    def key_of(self, peer_id: PeerID) -> bytes | None:
        """The node key of a peer, while it is known."""
        return self._keys.get(peer_id)

    async def wait_peer(self, peer_id: PeerID) -> bytes:
        """The node key of a peer, once it is known and knows us."""
        while peer_id not in self._keys:
            await self._changed.park()
        with trio.move_on_after(READY_SECONDS):
            while peer_id not in self._ready:
                await self._changed.park()
        return self._keys[peer_id]


class Client:
    """A node that reaches one agent.  Made by `open_client`."""

    def __init__(self, member: Member, agent_id: PeerID, node_key: bytes) -> None:
        self.member = member
        self.engine = member.engine
        self.agent_id = agent_id
        self.node_key = node_key
        self._address = agent_id.address(TAILSCALE_SERVICE_PREFIX).packed

    async def dial(self, port: int, *, timeout_seconds: float = DIAL_SECONDS) -> TunnelStream:
        """A TCP connection to a port of the agent.  Raises OSError, trio.TooSlowError."""
        return await self.engine.dial(self._address, port, timeout_seconds=timeout_seconds)

    def dial_udp(self, port: int) -> ConnectedUdp:
        """A UDP port of ours that talks to one of the agent's."""
        return self.engine.dial_udp(self._address, port)

    async def ping(self, *, timeout_seconds: float = 5.0) -> float:
        """A round trip through the tunnel, in seconds.  Raises trio.TooSlowError."""
        return await self.engine.ping(self._address, timeout_seconds=timeout_seconds)


def peer_node(node: tailnet.Node) -> PeerNode | None:
    """A node as a coordinator hands it on; None if it has no home or no sound key, as genuine nodes judge."""
    try:
        key = convert.node_key(node.key).raw
    except TailnetError:
        return None
    if not node.preferred_derp:
        return None
    disco = node.disco.removeprefix(DISCO_PREFIX)
    disco_key = bytes.fromhex(disco) if len(disco) == 2 * KEY_BYTES and _is_hex(disco) else None
    endpoints = tuple(each for text in node.endpoints if (each := parse_endpoint(text)) is not None)
    return PeerNode(key, tuple(_addresses(node)), disco_key, endpoints, node.preferred_derp)


def _addresses(node: tailnet.Node) -> list[bytes]:
    found = []
    for text in node.addresses:
        host, _, bits = text.partition("/")
        try:
            address = IPv6Address(host).packed
        except ValueError:
            continue
        if bits in ("", "128"):  # others are subnets, which nobody here may claim
            found.append(address)
    return found


def _is_hex(text: str) -> bool:
    return all(letter in "0123456789abcdefABCDEF" for letter in text)


def choose_home(regions: dict[int, DERPRegion], home: int | None) -> int:
    """A region to be at home in: the one asked for, else the coordinator's own, else the first.  Raises ConfigError."""
    usable = [number for number, region in regions.items() if any(not node.stun_only for node in region.nodes)]
    if home is not None:
        if home not in usable:
            raise ConfigError(f"the map has no relay in region {home}; it has {sorted(usable)}")
        return home
    embedded = [number for number in usable if regions[number].embedded_relay]
    if not usable:
        raise ConfigError("the coordinator's map has no relay: nobody could reach this node")
    return min(embedded or usable)


@asynccontextmanager
async def _open_member(
    url: str,
    door: str,
    token: str,
    addresses: list[bytes],
    *,
    home: int | None,
    is_direct: bool,
    options: DialOptions | None,
    answers_ready: bool,
) -> AsyncIterator[Member]:
    private = NodePrivate.generate()
    async with open_rpc_client(url, door, token, options=options) as rpc:
        regions = await read_regions(rpc)
        chosen = choose_home(regions, home)
        async with open_engine(
            private,
            addresses,
            regions,
            chosen,
            is_direct=is_direct,
            options=options,
        ) as engine:
            coordination = await open_coordination(rpc)
            member = Member(engine, coordination, answers_ready=answers_ready)
            async with open_background() as nursery:
                nursery.start_soon(member.run)
                await engine.wait_home(chosen)
                await coordination.announce(
                    describe_node(
                        private.public(),
                        engine.core.paths.disco_key,
                        map(IPv6Address, addresses),
                        chosen,
                        engine.local_endpoints,
                    )
                )
                yield member


@asynccontextmanager
async def open_client(
    url: str,
    token: str,
    agent_id: PeerID,
    *,
    home: int | None = None,
    is_direct: bool = True,
    options: DialOptions | None = None,
    timeout_seconds: float = DIAL_SECONDS,
) -> AsyncIterator[Client]:
    """Join the tailnet of the coordinator at `url` with a user's token and reach one agent.

    Raises ConnectError, RpcError or ConfigError; trio.TooSlowError when the agent is not there in time.
    """
    # As genuine clients do: an address of its own for each connection.
    address = PeerID(os.urandom(PEER_ID_BYTES)).address(TAILSCALE_SERVICE_PREFIX).packed
    async with _open_member(
        url,
        client_door(agent_id),
        token,
        [address],
        home=home,
        is_direct=is_direct,
        options=options,
        answers_ready=False,
    ) as member:
        await member.add_tunnel(agent_id)
        with trio.fail_after(timeout_seconds):
            node_key = await member.wait_peer(agent_id)
        yield Client(member, agent_id, node_key)


@asynccontextmanager
async def open_agent(
    url: str,
    token: str,
    agent_id: PeerID,
    *,
    home: int | None = None,
    is_direct: bool = True,
    options: DialOptions | None = None,
) -> AsyncIterator[Member]:
    """Join as an agent, with its token; its clients reach it under the addresses of its id."""
    async with _open_member(
        url,
        AGENT_DOOR,
        token,
        addresses_of(agent_id),
        home=home,
        is_direct=is_direct,
        options=options,
        answers_ready=True,
    ) as member:
        yield member
