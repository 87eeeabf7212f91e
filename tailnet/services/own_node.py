"""The server's own node, by which requests reach into agents.  Layer L3.

    async with own_node.dial(agent_id, 4, user.id) as stream: ...
One per process.  The first dial begins it: a peer of the coordinator without a connection (`HubCall`), at home at the
embedded relay.  Tunnels are shared by all requests and kept for a while.  It uses relays alone: the embedded one is in
this process, so a direct way would spare nothing, and open UDP ports that no operator knows of.  Next hops:
node/engine.py, hub.py; asked by agent_http.py and api/pty.py.
"""

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import trio

from derp.client.client import open_background
from derp.keys import NodePrivate
from derp.map import DERPRegion
from derp.text import error_text
from derp.transport.host import Host
from derp.transport.stream import reason_of
from tailnet.client.coordination import Coordination, describe_node
from tailnet.coordinator.messages import Update
from tailnet.coordinator.policy import ServerPolicy
from tailnet.errors import DerpError, TailnetError
from tailnet.node.engine import Engine, open_engine
from tailnet.node.membership import Peers
from tailnet.node.place import choose_home
from tailnet.node.streams import TunnelStream
from tailnet.proto.coordination import decode_request, encode_error
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.hub import Hub
from tailnet.types import PEER_ID_BYTES, TAILSCALE_SERVICE_PREFIX, PeerID

_log = logging.getLogger("tailnet.server")

# The reference's patience with all that an agent has to answer.
DIAL_SECONDS: Final = 30.0
# A session costs some 4 KiB here and a handshake of two round trips to begin anew.
IDLE_SECONDS: Final = 300.0
MAX_TUNNELS: Final = 1_024
# An agent whose connection broke is back within seconds, and its sessions go on; one that is not back is gone.
LOST_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 5.0
# Terminals of one person, and what pages ask beside them.
MAX_STREAMS_PER_USER: Final = 100
MAX_STREAMS: Final = 4_096
# Updates that the node has not taken yet; it does nothing else.
_MAX_UNREAD: Final = 4_096
# A node that cannot begin is not tried more often, however many ask.
_RETRY_SECONDS: Final = 1.0
_LOST: Final = (DerpError, OSError, trio.TooSlowError)


class Unreachable(TailnetError):
    """There is no way to the agent now; the text says why."""


class TooMany(TailnetError):
    """Somebody, or all together, reach into agents as often as one may."""


class Dial(Enum):
    """What became of a try to reach into an agent: also the label set of the metric."""

    REACHED = "reached"
    FAILED = "failed"
    REFUSED = "refused"  # too many are open


class HubCall:
    """A Coordinate call inside the server: to its node what an RpcCall is, to the hub a receiver."""

    tenant: Final = ""

    def __init__(self, hub: Hub, host: Host, peer_id: PeerID) -> None:
        self._hub = hub
        self._host = host
        self._peer_id = peer_id
        self._put, self._got = trio.open_memory_channel[bytes](_MAX_UNREAD)
        self._is_read = False  # the node has taken all that came, and waits for more
        self._waits = trio.lowlevel.ParkingLot()

    def connect(self) -> None:
        """Become a peer."""
        now = self._host.tick()
        self._hub.carry_out(self._hub.coordinator.handle_connect(self._peer_id, ServerPolicy(), self, now), now)
        self._host.flush()

    def leave(self) -> None:
        """Be one no more: agents forget us at once."""
        now = self._host.tick()
        self._hub.carry_out(self._hub.coordinator.handle_disconnect(self, True, now), now)
        self._host.flush()

    # --- as the node sees it

    async def send(self, request: tailnet.CoordinateRequest) -> None:
        now = self._host.tick()
        decoded = decode_request(request.SerializeToString())
        self._hub.handle_request(self, decoded, now)
        self._host.flush()
        await trio.lowlevel.checkpoint()

    async def receive(self) -> tailnet.CoordinateResponse:
        if not self._got.statistics().current_buffer_used:
            self._is_read = True
            self._waits.unpark_all()
        return tailnet.CoordinateResponse.FromString(await self._got.receive())

    async def wait_read(self) -> None:
        """Until the node has taken all that it was told.  What it knew of an agent before may be over."""
        while not self._is_read:
            await self._waits.park()

    # --- as the hub sees it

    def send_updates(self, payload: bytes, updates: Sequence[Update]) -> bool:
        try:
            self._put.send_nowait(payload)
        except trio.WouldBlock:
            return False
        self._is_read = False
        return True

    def send_error(self, text: str) -> None:
        self.send_updates(encode_error(text), ())

    def end(self, text: str) -> None:
        self._put.close()


@dataclass(slots=True, eq=False)
class _Tunnel:
    """The way to one agent.  `users`: who dials or has a stream."""

    users: int = 0
    streams: set[TunnelStream] = field(default_factory=set)
    idle_since: float = 0.0
    lost_since: float | None = None

    @asynccontextmanager
    async def holding(self, stream: TunnelStream) -> AsyncIterator[TunnelStream]:
        """A stream of this tunnel, which ends with the block: at once when that fails."""
        self.streams.add(stream)
        try:
            yield stream
        except BaseException:
            stream.abort()
            raise
        finally:
            self.streams.discard(stream)
            await trio.aclose_forcefully(stream)


class _Session:
    """The node while it runs."""

    def __init__(self, engine: Engine, call: HubCall, coordination: Coordination) -> None:
        self.engine = engine
        self.peers = Peers(engine)
        self.tunnels: OrderedDict[PeerID, _Tunnel] = OrderedDict()  # the one used last at the end
        self.coordination = coordination
        self._call = call

    async def dial(self, agent_id: PeerID, port: int) -> TunnelStream:
        """A connection to a port of an agent whose tunnel is in use."""
        await self.coordination.add_tunnel(agent_id)  # which does nothing where there is one
        await self._call.wait_read()
        await self.peers.wait(agent_id)
        address = agent_id.address(TAILSCALE_SERVICE_PREFIX).packed
        return await self.engine.dial(address, port)

    @asynccontextmanager
    async def using(self, agent_id: PeerID) -> AsyncIterator[_Tunnel]:
        """The tunnel to an agent, which stays for as long as somebody uses it.  Raises TooMany."""
        tunnel = self.tunnels.get(agent_id)
        if tunnel is None:
            await self._make_room()
            tunnel = self.tunnels.setdefault(agent_id, _Tunnel())
        self.tunnels.move_to_end(agent_id)
        tunnel.users += 1
        try:
            yield tunnel
        finally:
            tunnel.users -= 1
            tunnel.idle_since = trio.current_time()

    async def _make_room(self) -> None:
        if len(self.tunnels) >= MAX_TUNNELS:
            idle = next((agent_id for agent_id, each in self.tunnels.items() if not each.users), None)
            if idle is None:
                raise TooMany(f"this server reaches into {MAX_TUNNELS} agents at once, and each is in use")
            await self._drop(idle)

    async def sweep(self, is_known: Callable[[PeerID], bool]) -> None:
        """Drop tunnels that nobody needs any more, until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            now = trio.current_time()
            for agent_id, tunnel in list(self.tunnels.items()):
                if is_known(agent_id):
                    tunnel.lost_since = None
                elif tunnel.lost_since is None:
                    tunnel.lost_since = now
                is_lost = tunnel.lost_since is not None
                if not tunnel.users and (is_lost or now - tunnel.idle_since >= IDLE_SECONDS):
                    await self._drop(agent_id)
                elif tunnel.lost_since is not None and now - tunnel.lost_since >= LOST_SECONDS:
                    for stream in tuple(tunnel.streams):
                        stream.abort()

    async def _drop(self, agent_id: PeerID) -> None:
        del self.tunnels[agent_id]
        await self.coordination.remove_tunnel(agent_id)


class OwnNode:
    """`run` is one task of the server, `dial` is for all others.

    `own_region`: the embedded relay as it is reached from inside.  `expected(key)`: around the time in which the relay
    has to let that key in.
    """

    def __init__(
        self,
        hub: Hub,
        host: Host,
        maps: DerpMaps,
        own_region: DERPRegion | None = None,
        *,
        expected: Callable[[bytes], AbstractContextManager[None]] = lambda key: nullcontext(),
    ) -> None:
        self.dials: Counter[Dial] = Counter()
        self.trouble = ""
        """Why it could not begin, or ended, the last time; empty while it runs."""
        self.closed = trio.Event()
        """The server leaves: streams are to end."""
        self._hub = hub
        self._host = host
        self._maps = maps
        self._own_region = own_region
        self._expected = expected
        self._session: _Session | None = None
        self._attempts = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._wanted = trio.Event()
        self._users: Counter[str] = Counter()

    # --- what is counted

    @property
    def tunnel_count(self) -> int:
        """Agents that it has a tunnel to."""
        return len(self._session.tunnels) if self._session is not None else 0

    @property
    def stream_count(self) -> int:
        """Requests and terminals that reach into agents now."""
        return self._users.total()

    # --- users

    @asynccontextmanager
    async def dial(self, agent_id: PeerID, port: int, user_id: str) -> AsyncIterator[TunnelStream]:
        """A TCP connection to a port of an agent, which ends with the block.

        Raises Unreachable, within DIAL_SECONDS; TooMany.
        """
        async with AsyncExitStack() as stack:
            try:
                stream = await self._dial(stack, agent_id, port, user_id)
            except (TooMany, Unreachable) as error:
                self.dials[Dial.REFUSED if isinstance(error, TooMany) else Dial.FAILED] += 1
                raise
            self.dials[Dial.REACHED] += 1
            yield stream

    async def _dial(self, stack: AsyncExitStack, agent_id: PeerID, port: int, user_id: str) -> TunnelStream:
        deadline = trio.current_time() + DIAL_SECONDS
        stack.enter_context(self._counting(user_id))
        session = await self._running(deadline)
        tunnel = await stack.enter_async_context(session.using(agent_id))
        with trio.move_on_at(deadline):
            try:
                stream = await session.dial(agent_id, port)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Unreachable(error_text(error)) from None
            return await stack.enter_async_context(tunnel.holding(stream))
        raise Unreachable(f"the agent was not reached within {DIAL_SECONDS:g} s")

    @contextmanager
    def _counting(self, user_id: str) -> Iterator[None]:
        if self._users[user_id] >= MAX_STREAMS_PER_USER:
            raise TooMany(f"{MAX_STREAMS_PER_USER} connections of yours into agents are open")
        if self._users.total() >= MAX_STREAMS:
            raise TooMany(f"{MAX_STREAMS} connections into agents are open")
        self._users[user_id] += 1
        try:
            yield
        finally:
            self._users[user_id] -= 1
            if not self._users[user_id]:
                del self._users[user_id]

    async def _running(self, deadline: float) -> _Session:
        """The session, once it has begun."""
        if self.closed.is_set():
            raise Unreachable("the server leaves")
        attempts = self._attempts
        self._wanted.set()
        with trio.move_on_at(deadline):
            while self._session is None:
                await self._changed.park()
                if self._session is None and self._attempts > attempts:
                    raise Unreachable(self.trouble)
            return self._session
        raise Unreachable("this server's own node does not get to its relay")

    # --- its life

    def close(self) -> None:
        """The server leaves."""
        self.closed.set()

    async def run(self) -> None:
        """Serve until the server leaves; begins when somebody dials, and anew when it was lost."""
        while not self.closed.is_set():
            await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                async with self._open() as session:
                    await self._serve(session)
            except* _LOST as group:
                self.trouble = reason_of(group)
                if not self.closed.is_set():
                    _log.warning("! this server's own node is lost: %s", self.trouble)
            except* Exception as group:
                # A defect of one part, which must not take agents and their peers with it.
                self.trouble = reason_of(group)
                _log.exception("! this server's own node failed")
            self._attempts += 1
            self._changed.unpark_all()
            await trio.sleep(_RETRY_SECONDS)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[_Session]:
        private, peer_id = NodePrivate.generate(), PeerID(os.urandom(PEER_ID_BYTES))
        address = peer_id.address(TAILSCALE_SERVICE_PREFIX)
        regions = self._regions(self._maps.current.map.regions)
        home = choose_home(regions, None)
        call = HubCall(self._hub, self._host, peer_id)
        with self._expected(private.public().raw):
            async with open_engine(private, [address.packed], regions, home, is_direct=False) as engine:
                call.connect()
                try:
                    coordination = Coordination(call)
                    # Before the relay has us: it may ask the coordinator whose key this is.
                    await coordination.announce(
                        describe_node(private.public(), engine.core.paths.disco_key, [address], home)
                    )
                    await engine.relays.wait_connected(home)
                    yield _Session(engine, call, coordination)
                finally:
                    call.leave()

    async def _serve(self, session: _Session) -> None:
        async with open_background() as nursery:
            nursery.start_soon(self._follow_map, session.engine)
            nursery.start_soon(session.peers.run)
            nursery.start_soon(session.sweep, lambda peer_id: self._hub.coordinator.node_of(peer_id) is not None)
            self._session, self.trouble = session, ""
            self._changed.unpark_all()
            try:
                await session.peers.hear(session.coordination)
            finally:
                self._session = None

    async def _follow_map(self, engine: Engine) -> None:
        with self._maps.feed.follow() as follower:
            async for events in follower:
                engine.relays.set_map(self._regions(events[-1].value.map.regions) or engine.relays.regions)

    def _regions(self, regions: Mapping[int, DERPRegion]) -> dict[int, DERPRegion]:
        own = self._own_region
        return {**regions, own.region_id: own} if own is not None and own.region_id in regions else dict(regions)
