"""Runs a NodeCore: relays, UDP sockets and one timer around it, streams and UDP ports for its users.  Layer L3.

    relay or socket -> core.receive -> events to streams -> pump -> core.datagrams_to_send -> relay or socket
Input comes in batches, and each ends with one `pump`, which is synchronous; whatever a stream does pumps too.
Next hop: core.py, streams.py, udp.py, relays.py.
"""

import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, Final

import trio

from derp.client.client import open_background
from derp.client.dial import DialOptions
from derp.client.reconnect import Connected, Disconnected, Heard
from derp.client.stun import StunClient
from derp.keys import NodePrivate
from derp.map import DERPRegion
from derp.protocol.messages import PeerGone, RecvPackets
from derp.protocol.stun import is_stun
from tailnet.errors import LocalProtocolError
from tailnet.netstack.connection import Connection
from tailnet.netstack.events import What
from tailnet.netstack.stack import Happened, Listener, PongReceived
from tailnet.netstack.udp import UdpPort
from tailnet.node.core import Batch, Event, NodeCore
from tailnet.node.relays import Relays
from tailnet.node.streams import TunnelListener, TunnelStream
from tailnet.node.udp import ConnectedUdp, TunnelUdp
from tailnet.paths.core import Ponged, RelaySource, Source
from tailnet.paths.endpoint import Endpoint
from tailnet.transport.udp import UdpSockets

DIAL_SECONDS: Final = 30.0
_TOKEN_BYTES: Final = 8


class Engine:
    """Made by `open_engine`.  Addresses are 16 bytes."""

    def __init__(
        self,
        core: NodeCore,
        private: NodePrivate,
        regions: Mapping[int, DERPRegion],
        nursery: trio.Nursery,
        options: DialOptions | None = None,
        sockets: UdpSockets | None = None,
    ) -> None:
        self.core = core
        self.relays = Relays(private, regions, nursery, options, self._hear)
        self.lost_datagrams = 0
        """What a full queue or a socket did not take."""
        self.local_endpoints: tuple[Endpoint, ...] = ()
        """Of its UDP sockets; none without direct connections."""
        self._nursery = nursery
        self.sockets = sockets or UdpSockets()
        self.stun = StunClient(self._send_stun)
        """Asks how others see our UDP sockets."""
        self._streams: dict[Connection, TunnelStream] = {}
        self._listeners: dict[Listener, TunnelListener] = {}
        self._udp_ports: dict[UdpPort, TunnelUdp] = {}
        self._pings: dict[bytes, trio.Event] = {}
        self._disco_pings: dict[bytes, tuple[trio.Event, list[Ponged]]] = {}
        self._wake = trio.Event()
        self._wakes_at: float | None = None

    # --- users ---

    async def dial(self, address: bytes, port: int, *, timeout_seconds: float = DIAL_SECONDS) -> TunnelStream:
        """A TCP connection to a peer's port.  Raises OSError: refused, unreachable; trio.TooSlowError."""
        stream = self._adopt(self.core.stack.connect(address, port))
        self.pump()
        try:
            with trio.fail_after(timeout_seconds):
                await stream.wait_connected()
        except BaseException:
            stream.abort()
            self.pump()
            raise
        return stream

    def listen(self, port: int | None, backlog: int = 128, *, hold: bool = False) -> TunnelListener:
        """Take connections to a port, or with None to every port that nobody listens on.

        With `hold` their first packets wait: whoever takes such a connection calls its `answer`, or `abort` to refuse.
        """
        listener = self.core.stack.listen(port, backlog, hold=hold)
        tunnel = self._listeners[listener] = TunnelListener(listener, self._adopt)
        return tunnel

    def open_udp(self, port: int | None = 0, local_address: bytes | None = None) -> TunnelUdp:
        """A UDP port of ours, 0 for a free one; None takes every port that nobody has bound.  Raises LocalProtocolError
        where it is bound already."""
        bound = self.core.stack.open_udp(port, local_address)
        tunnel = self._udp_ports[bound] = TunnelUdp(bound, self.pump, self._release_udp)
        return tunnel

    def dial_udp(self, address: bytes, port: int) -> ConnectedUdp:
        """A UDP port of ours that talks to one of a peer's."""
        return ConnectedUdp(self.open_udp(), address, port)

    async def ping(self, address: bytes, *, timeout_seconds: float = 5.0) -> float:
        """A TSMP round trip through the tunnel, in seconds.  Raises trio.TooSlowError."""
        token = os.urandom(_TOKEN_BYTES)
        answered = self._pings[token] = trio.Event()
        began = trio.current_time()
        try:
            self.core.stack.send_ping(address, token)
            self.pump()
            with trio.fail_after(timeout_seconds):
                await answered.wait()
        finally:
            del self._pings[token]
        return trio.current_time() - began

    async def disco_ping(self, node_key: bytes, *, timeout_seconds: float = 5.0) -> Ponged:
        """Ask a peer by every way for a sign of life; the first answer says which way it came.  trio.TooSlowError."""
        peer = self.core.paths.find(node_key)
        if peer is None:
            raise LocalProtocolError("that peer is not known")
        answered, answers = self._disco_pings[node_key] = trio.Event(), []
        try:
            self.core.paths.ping(peer, trio.current_time())
            self.pump()
            with trio.fail_after(timeout_seconds):
                await answered.wait()
        finally:
            del self._disco_pings[node_key]
        return answers[0]

    def close(self) -> None:
        """End what users wait for: streams are reset, and who uses one is told."""
        for stream in list(self._streams.values()):
            stream.abort()
        for port in list(self._udp_ports.values()):
            port.close()

    def _release_udp(self, port: UdpPort) -> None:
        del self._udp_ports[port]
        self.core.stack.close_udp(port)

    def _adopt(self, connection: Connection) -> TunnelStream:
        stream = self._streams[connection] = TunnelStream(connection, self.pump)
        return stream

    # --- out ---

    def pump(self) -> None:
        """Tell streams what happened, and send what is to be sent."""
        now = trio.current_time()
        for batch in self.core.datagrams_to_send(now):
            self._send(batch)
        self._dispatch(self.core.stack.events())
        at = self.core.next_timeout()
        if at is not None and (self._wakes_at is None or at < self._wakes_at):
            self._wake.set()

    def _send(self, batch: Batch) -> None:
        endpoint, region, node_key, datagrams = batch
        if endpoint is not None:
            self._send_udp(endpoint, node_key, datagrams)
            return
        assert region is not None
        self.lost_datagrams += self.relays.send(region, node_key, datagrams)

    def _send_udp(self, endpoint: Endpoint, node_key: bytes, datagrams: list[bytes]) -> None:
        try:
            self.lost_datagrams += len(datagrams) - self.sockets.send(endpoint, datagrams)
        except OSError:
            self.lost_datagrams += len(datagrams)
            peer = self.core.paths.find(node_key)
            if peer is not None:
                self.core.paths.send_failed(peer, endpoint, trio.current_time())

    def _send_stun(self, family: int, datagram: bytes, address: tuple[Any, ...]) -> None:
        self.sockets.send(Endpoint(*address[:2]), [datagram])

    # --- in ---

    def _receive_udp(self, datagrams: list[bytes], source: Endpoint) -> None:
        # Who answers STUN is no peer, so the first datagram tells what all of a source are.
        if is_stun(datagrams[0]):
            for datagram in datagrams:
                self.stun.receive(datagram)
        else:
            self.receive(datagrams, source)

    def receive(self, datagrams: Sequence[bytes | memoryview], source: Source) -> None:
        """Datagrams of one source; call `pump` after the batch."""
        self._dispatch(self.core.receive(datagrams, source, trio.current_time()))

    def _dispatch(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Happened):
                if isinstance(event.subject, Connection):
                    if event.what & What.INCOMING:
                        self._offer(event.subject)
                    self._tell(event.subject)
                elif isinstance(event.subject, Listener) and event.subject in self._listeners:
                    self._listeners[event.subject].happened()
                elif isinstance(event.subject, UdpPort) and event.subject in self._udp_ports:
                    self._udp_ports[event.subject].happened()
            elif isinstance(event, PongReceived):
                if event.token in self._pings:
                    self._pings[event.token].set()
            elif not isinstance(event, Ponged):
                continue  # answers to what nobody here asks
            elif event.peer.node_key in self._disco_pings:
                answered, answers = self._disco_pings[event.peer.node_key]
                answers.append(event)
                answered.set()

    def _offer(self, connection: Connection) -> None:
        """A connection that its listener holds: the one of its port, or of all ports."""
        held = {listener.port: tunnel for listener, tunnel in self._listeners.items() if listener.hold}
        tunnel = held.get(connection.local_port) or held.get(None)
        if tunnel is not None:
            tunnel.offer(self._adopt(connection))

    def _tell(self, connection: Connection) -> None:
        stream = self._streams.get(connection)
        if stream is not None:
            stream.happened()
            if stream.is_over:
                del self._streams[connection]

    def _hear(self, region: int, batch: Sequence[Heard]) -> None:
        for heard in batch:
            if isinstance(heard, RecvPackets):
                self.receive(heard.packets, RelaySource(region, heard.src))
            elif isinstance(heard, Connected):
                self.core.relay_up(region, heard.server_info.queue_depth)
            elif isinstance(heard, Disconnected):
                self.core.paths.region_down(region)
            elif isinstance(heard, PeerGone) and (peer := self.core.paths.find(heard.key)) is not None:
                self.core.paths.peer_gone(peer, region)
        self.pump()

    # --- its tasks ---

    async def run(self) -> None:
        """Serve until cancelled."""
        for sock in self.sockets.all:
            self._nursery.start_soon(self.sockets.serve, sock, self._receive_udp, self.pump)
        while True:
            at = self._wakes_at = self.core.next_timeout()
            with trio.move_on_at(at if at is not None else float("inf")):
                await self._wake.wait()
            self._wake = trio.Event()
            now = trio.current_time()
            if at is not None and now >= at:
                self._dispatch(self.core.handle_timeout(now))
            self.pump()


@asynccontextmanager
async def open_engine(
    private: NodePrivate,
    addresses: Iterable[bytes],
    regions: Mapping[int, DERPRegion],
    home: int | None,
    *,
    disco_private: bytes | None = None,
    is_direct: bool = True,
    options: DialOptions | None = None,
) -> AsyncIterator[Engine]:
    """A running node, at home in a region; with None at first in none."""
    core = NodeCore(
        private,
        disco_private or os.urandom(32),
        addresses,
        random=os.urandom,
        now=trio.current_time(),
        unix_seconds=time.time(),
        is_direct=is_direct,
    )
    # Closed when the tasks that wait for them have ended: a wait for a closed socket is an error of theirs.
    with closing(UdpSockets()) as sockets:
        async with open_background() as nursery:
            engine = Engine(core, private, regions, nursery, options, sockets)
            if is_direct:
                engine.local_endpoints = tuple(sockets.open())
                core.paths.set_local_endpoints(engine.local_endpoints, trio.current_time())
            engine.relays.set_home(home)
            nursery.start_soon(engine.run)
            try:
                yield engine
            finally:
                engine.close()
