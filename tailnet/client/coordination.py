"""Meeting other peers through a coordinator: announce where one is, ask for others, hear where they are.  Layer L3.

    async with open_rpc_client(url, client_door(agent_id), token) as rpc:
        coordination = await open_coordination(rpc)
        await coordination.announce(make_node(private, peer_id, home_region=999))
        await coordination.add_tunnel(agent_id)
        update = await coordination.receive()
What nodes mean: the schema in tailnet/proto/tailnet.proto.  Next hop: tailnet/server, at the other end.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Final, Protocol
from urllib.parse import urlsplit

import trio

from derp.keys import NodePrivate, NodePublic
from derp.map import DEFAULT_DERP_PORT, DERPMap, DERPNode
from tailnet.client.rpc import RpcCall, RpcClient
from tailnet.coordinator.nodes import DISCO_PREFIX
from tailnet.errors import NotAuthorised, RpcError
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.proto.services import COORDINATE, REFRESH_RESUME_TOKEN, STREAM_DERP_MAPS
from tailnet.types import TAILSCALE_SERVICE_PREFIX, PeerID

AGENT_DOOR: Final = "/api/v2/workspaceagents/me/rpc?version=2.4"
# A user's, who may reach any agent that is his to reach.
TAILNET_DOOR: Final = "/api/v2/tailnet?version=2.3"
MAP_SECONDS: Final = 15.0
# What a coordinator's refusal says, in whatever words around it, if this peer may not do what it asks for.
_AUTHORISATION: Final = "authorization"

PeerUpdate = tailnet.CoordinateResponse.PeerUpdate


def client_door(agent_id: PeerID) -> str:
    """Where a client of one agent enters."""
    return f"/api/v2/workspaceagents/{agent_id}/coordinate?version=2.3"


def make_node(private: NodePrivate, peer_id: PeerID, home_region: int) -> tailnet.Node:
    """A node that is reached through a relay alone: its key, its address and its home region.

    It names no disco key of use and no endpoints, so that peers do not try a direct way.
    """
    public = private.public()
    return describe_node(public, public.raw, [peer_id.address(TAILSCALE_SERVICE_PREFIX)], home_region)


def node_id(node_key: bytes) -> int:
    """The number by which a node with this key goes in what it says of itself; peers go by the key."""
    return int.from_bytes(node_key[:7], "big")


def describe_node(
    public: NodePublic,
    disco_key: bytes,
    addresses: Iterable[IPv6Address],
    home_region: int,
    endpoints: Iterable[object] = (),
    latencies: Mapping[str, float] | None = None,
) -> tailnet.Node:
    """What a node says of itself; `endpoints` in the text that sockets' addresses have, `1.2.3.4:5` or `[::1]:5`,
    `latencies` of relays in seconds, by `<region>-v4` and `<region>-v6`."""
    prefixes = [f"{address}/128" for address in addresses]
    return tailnet.Node(
        id=node_id(public.raw),
        key=convert.node_key_bytes(public),
        disco=f"{DISCO_PREFIX}{disco_key.hex()}",
        preferred_derp=home_region,
        addresses=prefixes,
        allowed_ips=prefixes,
        endpoints=map(str, endpoints),
        derp_latency=latencies,
    )


async def read_map(rpc: RpcClient, url: str, *, timeout_seconds: float = MAP_SECONDS) -> DERPMap:
    """The coordinator's map, as it is now.  Raises RpcError, trio.TooSlowError."""
    with trio.fail_after(timeout_seconds):
        return await (await open_maps(rpc, url)).receive()


class Maps:
    """One StreamDERPMaps call: the map as it is, then each that takes its place."""

    def __init__(self, call: RpcCall[tailnet.DERPMap], url: str) -> None:
        self._call = call
        self._url = url

    async def receive(self) -> DERPMap:
        """The next map.  Raises RpcError."""
        try:
            return as_reached(convert.derp_map(await self._call.receive()), self._url)
        except trio.EndOfChannel:
            raise RpcError("the coordinator ended the call that maps are told by") from None


async def open_maps(rpc: RpcClient, url: str) -> Maps:
    """Begin to follow the map of the coordinator at `url`."""
    return Maps(await rpc.open(STREAM_DERP_MAPS, tailnet.StreamDERPMapsRequest(), tailnet.DERPMap), url)


def as_reached(derp_map: DERPMap, url: str) -> DERPMap:
    """The map with the embedded relay where we reach its coordinator, as genuine peers take it: whoever comes by
    another name, or through a forwarded port, finds it there too."""
    parts = urlsplit(url)
    host, is_plain = parts.hostname or "", parts.scheme == "http"
    port = parts.port or (80 if is_plain else 443)
    regions = dict(derp_map.regions)
    for number, region in regions.items():
        if region.embedded_relay:
            nodes = [node if node.stun_only else _at(node, host, port, is_plain) for node in region.nodes]
            regions[number] = replace(region, nodes=tuple(nodes))
    return replace(derp_map, regions=regions)


def _at(node: DERPNode, host: str, port: int, is_plain: bool) -> DERPNode:
    # A proxy and a forwarded port carry TCP: what is behind the same number by UDP, nobody knows.
    is_same = (node.host_name, node.derp_port or DEFAULT_DERP_PORT) == (host, port)
    if host != node.host_name:  # its addresses, and its certificate, are another's
        node = replace(node, host_name=host, cert_name="", ipv4="", ipv6="")
    return replace(node, derp_port=port, force_http=is_plain, quic_port=node.quic_port if is_same else 0)


class Call(Protocol):
    """A Coordinate call in hand: an `RpcCall`, or one inside the server (services/own_node.py)."""

    async def send(self, request: tailnet.CoordinateRequest) -> None:
        """One more request.  Raises DerpError when nobody takes it any more."""

    async def receive(self) -> tailnet.CoordinateResponse:
        """The next answer.  Raises trio.EndOfChannel after an orderly end, RpcError after any other."""
        ...


class Coordination:
    """One Coordinate call.  `receive` gives updates one by one; it raises RpcError when the coordinator refuses."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._updates: deque[PeerUpdate] = deque()

    async def announce(self, node: tailnet.Node) -> None:
        """Say where we are; everybody with a tunnel to us hears it."""
        await self._call.send(tailnet.CoordinateRequest(update_self={"node": node}))

    async def add_tunnel(self, peer_id: PeerID) -> None:
        """Ask for a peer: it hears of us, we hear of it, from now on."""
        await self._call.send(tailnet.CoordinateRequest(add_tunnel={"id": peer_id}))

    async def remove_tunnel(self, peer_id: PeerID) -> None:
        """Have done with a peer: each of us forgets the other."""
        await self._call.send(tailnet.CoordinateRequest(remove_tunnel={"id": peer_id}))

    async def ready(self, peer_id: PeerID) -> None:
        """Tell a peer that we know it now: an initiation that came earlier would have been dropped without a word."""
        await self._call.send(tailnet.CoordinateRequest(ready_for_handshake=[{"id": peer_id}]))

    async def leave(self) -> None:
        """Go for good: peers hear DISCONNECTED and forget us at once."""
        await self._call.send(tailnet.CoordinateRequest(disconnect={}))

    async def receive(self) -> PeerUpdate:
        """The next thing that happened to a peer.  Raises RpcError, NotAuthorised if it is for good."""
        while not self._updates:
            try:
                response = await self._call.receive()
            except trio.EndOfChannel:
                raise RpcError("the coordinator ended the call that peers are told by") from None
            if response.error:
                raise (NotAuthorised if _AUTHORISATION in response.error else RpcError)(response.error)
            self._updates.extend(response.peer_updates)
        return self._updates.popleft()


async def open_coordination(rpc: RpcClient) -> Coordination:
    """Begin to coordinate; one per connection."""
    return Coordination(await rpc.open(COORDINATE, None, tailnet.CoordinateResponse))


async def own_id(rpc: RpcClient) -> PeerID:
    """Which id the coordinator gave this client.  Raises RpcError: agents are told none (code 12)."""
    return PeerID((await _refresh(rpc)).peer_id)


async def read_resume_token(rpc: RpcClient) -> tuple[str, float]:
    """A token to come back with as the same peer, and seconds after which to ask for another one.  Raises RpcError."""
    answer = await _refresh(rpc)
    return answer.token, answer.refresh_in.ToTimedelta().total_seconds()


async def _refresh(rpc: RpcClient) -> tailnet.RefreshResumeTokenResponse:
    return await rpc.call(REFRESH_RESUME_TOKEN, tailnet.RefreshResumeTokenRequest(), tailnet.RefreshResumeTokenResponse)
