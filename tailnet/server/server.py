"""The coordinator as a program runs it: one port for API, RPC and relay, STUN beside it.  Layer L3.

    accept -> derp/server/door.py -> /derp: the relay | RPC websockets: transport/channel.py | all else: api/ (ASGI)
One nursery; the reactor is one task in it.  The command line is cli/serve.py.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

import trio

from derp.close_reason import CloseReason
from derp.keys import NodePrivate
from derp.metrics import RelayStatistics
from derp.protocol.websocket import CloseCode
from derp.server.door import FrontDoor
from derp.server.drain import drain_clients
from derp.server.ports import Ports
from derp.server.relay import Relay
from derp.server.statistics import read_statistics
from derp.transport.host import Wire
from derp.transport.http import Request, ServerHttp
from derp.transport.links import Link
from derp.transport.linkstream import LinkStream
from derp.transport.reactor import Reactor
from derp.transport.tls import TlsServer
from tailnet.api.app import create_app
from tailnet.api.doors import RpcDoors
from tailnet.api.guards import Services
from tailnet.auth.backends import StoreCallers
from tailnet.auth.policy import Right, workspace_rights
from tailnet.config import SETTINGS, CoordinatorConfig, compare
from tailnet.coordinator.core import Coordinator
from tailnet.errors import ConfigError, RpcError
from tailnet.metrics import CoordinatorReading, metrics_page
from tailnet.rpc.yamux import SessionLimits
from tailnet.server.embedded import default_access_url, embedded_region, map_sources, relay_key
from tailnet.server.entrance import Entrance
from tailnet.services.agent_rpc import AgentService
from tailnet.services.agents import Agents
from tailnet.services.derp_maps import DerpMaps, StoreMapKeeper
from tailnet.services.hub import Hub
from tailnet.services.inspection import Inspection
from tailnet.services.presence import AgentPresence
from tailnet.services.resume_keys import ResumeKeys
from tailnet.services.rights import Rights
from tailnet.services.tailnet_rpc import Caller, TailnetService
from tailnet.services.upkeep import prune_forever
from tailnet.services.workspaces import WorkspaceFeed
from tailnet.store.rows import AgentIdentity, UserIdentity
from tailnet.store.store import Store
from tailnet.transport.asgi import ApiServer
from tailnet.transport.channel import Channels, Connected
from tailnet.types import PEER_ID_BYTES, PeerID

_log = logging.getLogger("tailnet.server")

_TICK_SECONDS: Final = 0.5
# What belongs to the relay and is answered by it, in place; everything else that is no RPC is the API's.
STREAM_DERP_MAPS: Final = "/coder.tailnet.v2.Tailnet/StreamDERPMaps"
WORKSPACE_UPDATES: Final = "/coder.tailnet.v2.Tailnet/WorkspaceUpdates"
_RELAY_PATHS: Final = ("/derp", "/derp/probe", "/derp/latency-check", "/generate_204", "/bootstrap-dns")

Reread = Callable[[], CoordinatorConfig]


class CoordinatorServer:
    """A running coordinator.  serve_coordinator makes it; it ends when cancelled or when `drain` is done."""

    def __init__(
        self, config: CoordinatorConfig, store: Store, private: NodePrivate, reread: Reread | None = None
    ) -> None:
        self.config = config
        self._reread = reread
        self.store = store
        self.reactor = Reactor()
        self.relay = Relay(config.relay_config(private), self.reactor)
        self.tls = TlsServer(config.tls, private.public(), now=time.time()) if config.tls is not None else None
        self.ports = Ports(
            self.reactor,
            self.tls,
            accept_limit=config.accept_connection_limit,
            accept_burst=config.accept_connection_burst,
            max_connections=config.max_connections,
            count_connections=self._count_connections,
        )
        self.listening = self.ports.listening
        self.door = FrontDoor(
            self.relay.plane,
            self.relay.routes,
            trusted_proxies=config.trusted_proxies,
            derp_enabled=config.derp_enabled,
            take_over=self._take_over,
        )
        self.coordinator: Coordinator[Any] = Coordinator()
        self.hub = Hub(self.coordinator)
        self.callers = StoreCallers(store)
        self.keys = ResumeKeys(store)
        self.feed = WorkspaceFeed(store)
        self.presence = AgentPresence(store, config.agent_ping_seconds, self.feed.changed)
        self.drained = trio.Event()
        self.closing = trio.Event()
        self.maps: DerpMaps
        self.agents: AgentService
        self.service: TailnetService
        self.channels: Channels
        self.entrance: Entrance
        self.rights: Rights
        self._nursery: trio.Nursery
        self._api: ApiServer

    # --- what the API shows

    def not_ready(self) -> Sequence[str]:
        """Why requests should go to another server now."""
        return ["draining: this server is about to stop"] if self.relay.is_draining else []

    def reading(self) -> CoordinatorReading:
        """Everything that is counted, for metrics."""
        return CoordinatorReading(
            statistics=self.coordinator.statistics(),
            channels=len(self.channels.open),
            agents_connected=self.presence.connected_count,
            delivered=self.hub.delivered_count,
            overflows=self.hub.overflow_count,
            telemetry_events=self.service.telemetry_events,
            telemetry_unreadable=self.service.telemetry_unreadable,
            connection_reports=self.agents.connection_reports,
            connection_reports_unreadable=self.agents.connection_reports_unreadable,
            boundary_logs=self.agents.boundary_logs,
            refused_calls=self.service.refused_calls,
            refused_at_door=self.entrance.refused_count,
            revoked_connections=self.rights.revoked_connections,
            revoked_tunnels=self.rights.revoked_tunnels,
            map_version=self.maps.current.version,
            map_failures={status.name: status.failures for status in self.maps.statuses},
        )

    def _count_connections(self) -> int:
        return len(self.reactor.wires) + self._api.connection_count

    # --- starting

    async def run(self, task_status: trio.TaskStatus["CoordinatorServer"]) -> None:
        """Bind, serve, and return when drained.  Raises ConfigError before it has started."""
        with ExitStack() as stack:
            stack.callback(self.close)
            self._open_sockets()
            region = embedded_region(self.config, self.listening) if self.config.derp_enabled else None
            self.maps = DerpMaps(
                map_sources(self.config),
                region,
                scores=dict(self.config.region_scores),
                avoid=self.config.avoid_regions,
                keeper=StoreMapKeeper(self.store),
            )
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.maps.serve)
                await self.keys.refresh()
                self._build(nursery)
                self.ports.start()
                nursery.start_soon(self.reactor.run)
                nursery.start_soon(self._tick_forever)
                nursery.start_soon(self.callers.run)
                nursery.start_soon(self.keys.refresh_forever)
                nursery.start_soon(self.presence.run)
                nursery.start_soon(self.rights.run)
                nursery.start_soon(prune_forever, self.store)
                task_status.started(self)
                await self.drained.wait()
                nursery.cancel_scope.cancel()
            # What agents' last words changed is written before the store is closed.
            await self.presence.finish()

    def _build(self, nursery: trio.Nursery) -> None:
        config = self.config
        self.service = self._make_service(nursery)
        limits = SessionLimits(ping_seconds=config.agent_ping_seconds, pong_seconds=config.inactive_seconds)
        self.channels = Channels(self.reactor, self.service.serve, self._channel_ended, limits)
        self.rights = Rights(self.callers, self.reactor, self.hub, self.channels.open)
        access_url = config.access_url or default_access_url(self.listening)
        doors = RpcDoors(
            self.callers, lambda: self.keys.current, access_url=access_url, browser_only=config.browser_only
        )
        self.entrance = Entrance(doors, self.channels, self.hub, self.presence, nursery, self.relay.plane)
        inspection = Inspection(self.coordinator, self.maps, lambda: self.reactor.now, self.not_ready)
        services = Services(
            config=config,
            callers=self.callers,
            agents=Agents(self.store, inspection, lambda: self.maps.current.map, config.inactive_seconds),
            derp_maps=self.maps,
            inspection=inspection,
            access_url=access_url,
            metrics=metrics_page(self.reading, self.relay_statistics),
            closing=self.closing,
        )
        self._api = ApiServer(create_app(services), self._is_for_reactor, config.agent_ping_seconds)

    def _make_service(self, nursery: trio.Nursery) -> TailnetService:
        self.agents = AgentService(self.store, self.maps, self.config, changed=self.feed.changed)

        async def stream_maps(caller: Caller, request: Any, send: Callable[[bytes], bool]) -> None:
            published = self.maps.current
            while send(published.message):
                published = await self.maps.wait_changed(published.version)
            raise RpcError("this client does not read its DERP maps")

        def may_reach(caller: Caller, agent_id: bytes) -> bool | Awaitable[bool]:
            if len(agent_id) != PEER_ID_BYTES:
                return False
            known = self.callers.peek_agent(PeerID(agent_id))
            if known is not None:
                return has_ssh(caller, known)
            return self._look_up(caller, PeerID(agent_id))

        return TailnetService(
            self.coordinator,
            self.hub,
            lambda: self.keys.current,
            nursery=nursery,
            unary=self.agents.unary(),
            streams={STREAM_DERP_MAPS: stream_maps, WORKSPACE_UPDATES: self.feed.stream},
            authorise=may_reach,
            flush=self.reactor.flush,
            clock=lambda: self.reactor.now,
        )

    async def _look_up(self, caller: Caller, agent_id: PeerID) -> bool:
        found = await self.callers.find_agent(agent_id)
        return found is not None and has_ssh(caller, found)

    def relay_statistics(self) -> RelayStatistics:
        """The embedded relay's reading."""
        return read_statistics(self.relay, self.ports, [self.door])

    def _open_sockets(self) -> None:
        config = self.config
        for host, port in config.listen:
            self.ports.open(
                "tailnet",
                host,
                port,
                self.door,
                user_timeout_seconds=config.tcp_user_timeout_seconds,
                keepalive_seconds=config.tcp_keepalive_seconds,
            )
        for host, port in config.stun_addresses if config.derp_enabled else ():
            self.ports.open_stun(host, port, lambda: self.relay.problem() is None)

    # --- serving

    def _take_over(self, wire: Wire, request: Request, received: bytes, http: ServerHttp) -> bool:
        """Requests that are not the relay's: RPC sockets stay on the reactor, the API's leave it, socket and all."""
        if request.target.partition("?")[0] in _RELAY_PATHS:
            return False
        if self.entrance.wants(request.target):
            self.entrance.enter(wire, request, received, http)
            return True
        if not isinstance(wire, Link):
            return False  # the API's server waits for sockets
        self.relay.plane.greeted.clear(wire)
        wire.session = None
        self.reactor.release(wire)
        self._nursery.start_soon(self._serve_api, wire, received)
        return True

    async def _serve_api(self, link: Link, received: bytes) -> None:
        received = await self._api.serve(LinkStream(link, received))
        if received:
            self.reactor.tick()
            self.door.open(link)
            self.reactor.adopt(link, received)
            self.reactor.flush()

    def _is_for_reactor(self, target: str) -> bool:
        return target.partition("?")[0] in _RELAY_PATHS or self.entrance.wants(target)

    def _channel_ended(self, channel: Connected, reason: CloseReason, text: str) -> None:
        self.service.ended(channel, text or reason.value)
        self.presence.left(channel)
        self.relay.plane.count_closed(reason)

    async def _tick_forever(self) -> None:
        while True:
            await trio.sleep(_TICK_SECONDS)
            self.channels.tick(self.reactor.tick())
            self.reactor.flush()
            self.ports.look()

    def reload(self) -> None:
        """Look at files again now: settings, certificates and DERP maps."""
        if self._reread is not None:
            self._apply(self._reread)
        self.ports.look_at_certificate()
        self.maps.reload_nowait()

    def _apply(self, reread: Reread) -> None:
        """Take from the settings as they are now what can change while we run; name the rest."""
        try:
            config = reread()
        except ConfigError as error:
            _log.error("! the settings stay as they were: %s", error)
            return
        if config.dev and self.config.dev:
            config = replace(config, store=self.config.store)  # made for this run
        changes = compare(SETTINGS, self.config, config)
        self.config = changes.config
        self.agents.banners = self.config.announcement_banners
        self.relay.plane.set_rates(self.config.relay.rate, self.config.relay.rate_by_key)
        if changes.applied:
            _log.info("= changed: %s", ", ".join(changes.applied))
        if changes.waiting:
            _log.warning("! changed, but only from the next start on: %s", ", ".join(changes.waiting))

    # --- leaving

    def close(self) -> None:
        """Close the listening sockets; connections stay."""
        self.ports.close()

    async def drain(self) -> None:
        """Stop accepting, tell peers LOST and never DISCONNECTED, drain the relay within the deadline, and end."""
        if self.relay.is_draining:
            return
        self.close()
        self.closing.set()
        self.entrance.close()
        now = self.reactor.tick()
        # Peers keep their sessions for as long as WireGuard does; only the news stops.
        self.hub.carry_out(self.coordinator.handle_close(now), now)
        self.reactor.flush()
        for channel in tuple(self.channels.open):
            channel.close(CloseCode.GOING_AWAY, "server is restarting", CloseReason.DRAINED)
        self.reactor.flush()
        await self._api.stop()
        with trio.move_on_after(self.config.drain_seconds):
            await drain_clients(self.relay, self.config.drain_seconds)
            # Last words may still be on their way: close frames of channels, answers of the API.
            await self._api.wait_idle()
            while self.channels.open:  # noqa: ASYNC110  # nothing tells, and it is over within moments
                await trio.sleep(_TICK_SECONDS)
        self.drained.set()


def has_ssh(caller: Caller, agent: AgentIdentity) -> bool:
    """Whether the user behind a client may open tunnels to an agent."""
    user = caller.identity
    return isinstance(user, UserIdentity) and Right.SSH in workspace_rights(user.id, agent.owner_id)


async def serve_coordinator(
    config: CoordinatorConfig,
    reread: Reread | None = None,
    *,
    task_status: trio.TaskStatus[CoordinatorServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until `drain` of the started CoordinatorServer is done.

    `reread` gives the settings as their sources say them now, for `reload`; it may raise ConfigError.
    Raises ConfigError and StoreError before it has started.
    """
    store = await trio.to_thread.run_sync(Store.open, config.store)
    try:
        private = await store.run(relay_key, store)
        await CoordinatorServer(config, store, private, reread).run(task_status)
    finally:
        store.close()
