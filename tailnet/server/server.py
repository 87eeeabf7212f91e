"""The coordinator as a program runs it: one port for API, RPC and relay, STUN beside it.  Layer L3.

    accept -> derp/server/door.py -> /derp: the relay | RPC websockets: transport/channel.py | all else: api/ (ASGI)
One nursery; the reactor is one task in it.  The command line is cli/serve.py.
"""

import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import trio
from fastapi import FastAPI

from derp.close_reason import CloseReason
from derp.keys import NodePrivate
from derp.map import DERPRegion
from derp.metrics import RelayStatistics
from derp.protocol.target import origin_form
from derp.protocol.websocket import CloseCode
from derp.server.bootstrap import BootstrapDns
from derp.server.door import FrontDoor, HttpSession, Route, every_path
from derp.server.drain import drain_clients
from derp.server.handover import Inherited
from derp.server.life import DOOR_SECONDS, Server
from derp.server.memory import Load, sum_loads
from derp.server.pages import Pages, PlainPages
from derp.server.relay import Relay
from derp.server.statistics import read_load, read_statistics
from derp.transport.http import Request
from derp.transport.links import Link
from derp.transport.linkstream import LinkStream
from tailnet.api.administration.app import BULK_PATH, WithAdministration, create_administration
from tailnet.api.administration.guards import AdministrationServices, Turned
from tailnet.api.app import create_app, reconfigure
from tailnet.api.guards import IDENTITIES_OF_ALL, IDENTITIES_PER_ADDRESS, Services
from tailnet.api.limits import CallerLimits, StrangerLimits
from tailnet.api.rpc_admission import RpcAdmission
from tailnet.auth.administrators import Administrators
from tailnet.config import SETTINGS, CoordinatorConfig
from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.nodes import Limits
from tailnet.errors import StoreTrouble
from tailnet.metrics import CoordinatorReading, metrics_page
from tailnet.proto.services import STREAM_DERP_MAPS, WORKSPACE_UPDATES
from tailnet.rpc.yamux import SessionLimits
from tailnet.server.embedded import (
    claim_of,
    cluster_secret,
    default_access_url,
    embedded_region,
    open_maps,
    open_store,
    operators_pages,
    region_from_inside,
    relay_key,
)
from tailnet.server.entrance import Entrance
from tailnet.server.identities import make_accounts, make_callers, read_callers
from tailnet.services.administration.service import Administration
from tailnet.services.agent_http import AgentHttp
from tailnet.services.agent_metadata import AgentMetadata
from tailnet.services.agent_requests import AgentRequests
from tailnet.services.agent_rpc import AgentService
from tailnet.services.agents import Agents
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.events import Events
from tailnet.services.external_auth import OUTCOMES, ExternalAuth
from tailnet.services.feed import DropReason
from tailnet.services.fetched_providers import FetchedProviders
from tailnet.services.git_keys import GitKeys
from tailnet.services.health import Health
from tailnet.services.health_probes import Probes
from tailnet.services.hub import Hub, Receiver
from tailnet.services.inspection import Inspection
from tailnet.services.instance_identity import InstanceIdentity
from tailnet.services.logs import Logs
from tailnet.services.overviews import Overviews
from tailnet.services.own_node import Dial, OwnNode
from tailnet.services.presence import AgentPresence
from tailnet.services.relay_keys import RelayKeys
from tailnet.services.reports import AgentReports
from tailnet.services.resume_keys import ResumeKeys
from tailnet.services.rights import Rights
from tailnet.services.store_watch import StoreWatch
from tailnet.services.tailnet_rpc import Caller, TailnetService
from tailnet.services.upkeep import Upkeep, retention
from tailnet.services.webhook import GivenUp, Outcome, Webhook
from tailnet.services.why import Why
from tailnet.services.workspaces import WorkspaceUpdates
from tailnet.store.outbox import Outbox
from tailnet.store.retention import REMOVED
from tailnet.store.rows import Right, UserIdentity
from tailnet.store.sealing import Sealer
from tailnet.store.store import Store
from tailnet.transport.asgi import ApiEnd, ApiServer, prove_hypercorn
from tailnet.transport.channel import Channels, Connected
from tailnet.transport.tracing import Tracing, open_tracing
from tailnet.types import PEER_ID_BYTES, PeerID

if TYPE_CHECKING:
    from tailnet.services.replicas import Replicas

_log = logging.getLogger("tailnet.server")

# When every connection of the API is busy.
_BUSY: Final = b'{"message":"This server has too many connections of its API now. Please try again."}\n'
_BUSY_HEADERS: Final = (("Content-Type", "application/json; charset=utf-8"), ("Retry-After", "1"))
# What is answered in place, with a relay or without one; everything else that is no RPC is the API's.
_IN_PLACE: Final = ("/derp", "/derp/probe", "/derp/latency-check", "/generate_204", "/bootstrap-dns")

_TO_ENTER: Final = frozenset({Right.SSH})

Reread = Callable[[], CoordinatorConfig]


class CoordinatorServer(Server[CoordinatorConfig]):
    """A coordinator with its ports and, if the settings want one, its relay.  serve_coordinator makes and runs one."""

    name = "server"
    kind = "tailnet"
    table = SETTINGS

    def __init__(
        self,
        config: CoordinatorConfig,
        store: Store,
        private: NodePrivate,
        *,
        reread: Reread | None = None,
        inherited: Inherited | None = None,
        tracing: Tracing | None = None,
        cluster_secret: bytes = b"",
    ) -> None:
        super().__init__(config, private.public(), reread=reread, inherited=inherited)
        self.reactor.write_seconds = config.relay.tcp_write_timeout_seconds
        self.callers = make_callers(store, config)
        self.replicas = self._make_replicas(config, store, cluster_secret)
        self.coordinator: Coordinator[Receiver] = (
            Coordinator(Limits(node_bytes=config.max_node_bytes))
            if self.replicas is None
            else self.replicas.coordinator
        )
        self.relay_keys = RelayKeys(store, life_seconds=config.key_set_life_seconds, connected=self.coordinator.nodes)
        self.relay = self._make_relay(private) if config.derp_enabled else None
        pages = self._make_pages()
        self.door = FrontDoor(self.lobby, self._routes(pages))
        self.plain_door = FrontDoor(self.lobby, [PlainPages(pages).route()])
        self.admin_door = FrontDoor(self.lobby, [Route(every_path, self._take_to_administration, takes_bytes=True)])
        self.store = store
        self.tracing = tracing
        self.accounts = make_accounts(config)
        self.hub = Hub(self.coordinator, self.relay_keys.note, self.replicas.send if self.replicas else None)
        self.limits = CallerLimits()
        self.identity_limits = StrangerLimits(IDENTITIES_PER_ADDRESS, IDENTITIES_OF_ALL)
        self.administration = AdministrationServices(
            Administration(store, changed=self.replicas.change_rights if self.replicas else self.callers.note_change),
            Administrators(config.admin_tokens),
            config.admin_rate_limit,
        )
        self._admin_app = create_administration(self.administration)
        self.keys = ResumeKeys(store, self.callers)
        self.workspaces = WorkspaceUpdates(store)
        self.store_watch = StoreWatch(store, secrets.token_hex(8), inactive_seconds=config.inactive_seconds)
        self.outbox = Outbox(store, max_bytes=config.max_waiting_report_bytes)
        self.upkeep = Upkeep(store, retention(config))
        self.logs = Logs(store)
        self.metadata = AgentMetadata(store)
        self.identity = InstanceIdentity(store, config.identity_anchors)
        self.sealer = Sealer(config.secrets_keys)
        self.events = Events(store, self.outbox, is_on=config.keeps_events)
        self.administration.events, self.administration.tracing = self.events, tracing
        self.webhook = Webhook(store, self.events, config.webhook, self.store_watch.id, tracing=tracing)
        self.reports = self._make_reports(config, store)
        self.requests = AgentRequests(store, self.reports, changed=self.workspaces.changed, accounts=self.accounts)
        self.presence = AgentPresence(
            self.reports,
            config.agent_ping_seconds,
            self.workspaces.changed,
            self.events.note,
            has_older=lambda: self.store_watch.has_older,
        )
        self.region: DERPRegion | None = None
        self.maps: DerpMaps
        self.own_node: OwnNode
        self.agents: AgentService
        self.service: TailnetService
        self.external_auth: ExternalAuth
        self.channels: Channels
        self.entrance: Entrance
        self.rights: Rights
        self.overviews: Overviews
        self.probes: Probes
        self.health: Health
        self._nursery: trio.Nursery
        self._app: FastAPI
        self._api: ApiServer

    def _make_replicas(self, config: CoordinatorConfig, store: Store, secret: bytes) -> "Replicas | None":
        """What joins this server with others; without a bus not a line of it is loaded."""
        if config.bus is None:
            return None
        from tailnet.server.replicated import make_replicas

        successor = self.inherited.replaces_another
        return make_replicas(config, secret, self.reactor, store, self.callers.note_change, is_successor=successor)

    def _make_reports(self, config: CoordinatorConfig, store: Store) -> AgentReports:
        """What agents tell, which is written behind."""
        return AgentReports(
            store,
            self.outbox,
            server_id=self.store_watch.id,
            inactive_seconds=config.inactive_seconds,
            logs_written=self.logs.written,
            metadata_written=self.metadata.written,
            happened=self.events.note,
        )

    def _make_relay(self, private: NodePrivate) -> Relay:
        """The embedded relay, which goes by the keys that peers announce."""
        has_kin, rules = self.replicas is not None, self.config.relay_config(private)
        relay = Relay(rules, self.reactor, self.lobby, registry=self.relay_keys, has_kin=has_kin)
        self.relay_keys.on_known.append(relay.welcome)
        self.relay_keys.on_revoked.append(relay.recheck)
        return relay

    def own_relay(self) -> Relay | None:
        return self.relay

    def _make_pages(self) -> Pages:
        """What is answered in place, with a relay or without one."""
        return Pages(
            home="",
            derp_enabled=self.relay is not None,
            debug_allow=(),
            problem=self.problem,
            pages={},
            bootstrap_dns=(self.relay.bootstrap if self.relay is not None else BootstrapDns((), ())).answer,
            challenges=self.keeper.challenges if self.keeper is not None else None,
        )

    def _routes(self, pages: Pages) -> list[Route]:
        """The relay, RPC sockets, and for all else the API."""
        return [
            *([self.relay.upgrades.route()] if self.relay is not None else []),
            pages.route(lambda path: path in _IN_PLACE or pages.is_challenge(path)),
            Route(lambda path: self.entrance.wants(path), lambda visit, request: self.entrance.enter(visit, request)),
            Route(every_path, self._take_to_api, takes_bytes=True),
        ]

    # --- what the API shows

    def not_ready(self) -> Sequence[str]:
        """Why requests should go to another server now."""
        replicas = self.replicas.problem() if self.replicas is not None else None
        return [each for each in (self.problem(), self.store_watch.problem(), replicas) if each is not None]

    def reading(self) -> CoordinatorReading:
        """Everything that is counted, for metrics."""
        feeds = {
            "derp_map": self.maps.feed.counts,
            "workspaces": self.workspaces.counts,
            "logs": self.logs.counts,
            "metadata": self.metadata.counts,
            "pages": self.overviews.counts,
            "claims": self.requests.claims.counts,
        }
        last = self.health.last
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
            entrance=self.entrance.read(),
            api_connections=self._api.connection_count,
            api_rate_limited=self.limits.refused_count,
            admin_refused={each.value: self.administration.refused[each] for each in Turned},
            identity_proofs={
                **{outcome: self.identity.outcomes[outcome] for outcome in ("issued", "refused", "unknown")},
                "rate_limited": self.identity_limits.refused_count,
            },
            external_auth={outcome: self.external_auth.outcomes[outcome] for outcome in OUTCOMES},
            external_auth_waiting=len(self.external_auth.watch),
            api_ended={end.value: self._api.ended_count[end] for end in ApiEnd},
            revoked_connections=self.rights.revoked_connections,
            revoked_tunnels=self.rights.revoked_tunnels,
            relay_keys_contested=self.relay_keys.contested,
            callers=len(self.accounts),
            held_bytes=self.accounts.held_bytes,
            held_bytes_limit=self.accounts.limits.total_held_bytes,
            shed_sockets=self.channels.shed_count,
            refused_sockets=self.accounts.refused_sockets,
            reports_delayed=self.agents.reports_delayed + self.requests.delayed,
            reports_refused=self.agents.reports_refused + self.requests.refused,
            into_agents={each.value: self.own_node.dials[each] for each in Dial},
            into_agents_streams=self.own_node.stream_count,
            into_agents_tunnels=self.own_node.tunnel_count,
            map_version=self.maps.current.version,
            map_failures={status.name: status.failures for status in self.maps.statuses},
            region_factors=self.region_loads.factors(),
            health={code.value: severity for code, severity in (last.by_code() if last else {}).items()},
            health_measured_at=last.measured_at.timestamp() if last else 0.0,
            outbox=self.outbox.readings(),
            outbox_max_bytes=self.outbox.max_bytes,
            store_failures={trouble.value: self.store.database.failures[trouble] for trouble in StoreTrouble},
            store_troubles=self.store_watch.troubles(),
            store_servers=self.store_watch.servers,
            webhook_tries={outcome.value: self.webhook.outcomes[outcome] for outcome in Outcome},
            webhook_given_up={reason.value: self.webhook.given_up[reason] for reason in GivenUp},
            webhook_waiting=self.webhook.waiting_count,
            webhook_oldest_seconds=self.webhook.oldest_seconds,
            webhook_gone=self.webhook.is_gone,
            store_removed={name: self.upkeep.removed[name] for name in REMOVED},
            store_changes=self.store.database.writer.changes,
            store_transactions=self.store.database.writer.transactions,
            identities=read_callers(self.callers),
            replicas=self.replicas.read() if self.replicas is not None else None,
            feed_followers={name: counts.followers for name, counts in feeds.items()},
            feed_drops={
                (name, reason.value): counts.dropped[reason] for name, counts in feeds.items() for reason in DropReason
            },
        )

    def relay_statistics(self) -> RelayStatistics:
        """What is counted of listeners and of the embedded relay."""
        doors = [*self.doors(), self.admin_door]
        return read_statistics(self.relay, self.lobby, self.ports, doors, self.keeper, self.self_check)

    def read_load(self) -> Load:
        loads = (self.relay.router.pool.read_load(),) if self.relay is not None else ()
        return sum_loads(super().read_load(), *loads)

    def describe(self) -> str:
        return (
            f"{len(self.reactor.wires)} connections, {len(self.lobby.waiting)} of them new, and "
            f"{self._api.connection_count} of the API; {len(self.channels.open)} peers; "
            f"{len(self.relay.router.clients) if self.relay is not None else 0} clients of the relay"
        )

    # --- starting

    def stun_places(self) -> Sequence[tuple[str, int]]:
        return self.config.stun_addresses if self.config.derp_enabled else ()

    def count_elsewhere(self) -> int:
        return self._api.connection_count

    def open(self) -> None:
        super().open()
        try:
            for host, port in self.config.admin_listen:
                self._listen("admin", host, port, self.admin_door)
            if self.replicas is not None:
                self.replicas.open()
        except BaseException:
            self.close()
            raise

    async def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        pin = self.tls.pin if self.tls is not None and self.tls.is_self_signed else ""
        self.region = embedded_region(self.config, self.listening, pin) if self.config.derp_enabled else None
        self.maps, self.region_loads = await open_maps(
            self.config, self.region, self.store, lambda: read_load(self.relay, self.lobby, self.self_check)
        )
        await nursery.start(self.maps.serve)
        nursery.start_soon(self.region_loads.run)
        self.own_node = self._make_own_node()
        await self.keys.start()
        await self.relay_keys.start()
        await self.store_watch.start(replaces_another=self.inherited.replaces_another)
        self._build(nursery)
        if self.relay is not None:
            await nursery.start(self.relay.run)
        if self.replicas is not None:
            from tailnet.server.replicated import run

            parts = (self.replicas, self.hub, self.relay, self.relay_keys, self.keys, self.maps, self.config)
            await nursery.start(run, *parts)
        tasks = (
            *(self.callers.run, self.keys.refresh_forever, self.relay_keys.run, self.presence.run, self.outbox.run),
            *(self.store_watch.run, self.workspaces.run, self.logs.run, self.metadata.run, self.overviews.run),
            *(self.rights.run, self.own_node.run, self.health.run, self.events.run, self.webhook.run),
            *(self.upkeep.run, self.upkeep.end_grace_forever, self.external_auth.watch.run),
        )
        for task in tasks:
            nursery.start_soon(task)
        if self.config.external_auth_call_out and self.callers.call_out is not None:
            nursery.start_soon(FetchedProviders(self.external_auth, self.callers.call_out).run)

    async def run(self, *, task_status: trio.TaskStatus["CoordinatorServer"] = trio.TASK_STATUS_IGNORED) -> None:
        await prove_hypercorn()
        await super().run(task_status=task_status)
        # What agents' last words changed is written before the store is closed.
        self.presence.finish()
        await self.outbox.finish()
        await self.webhook.finish()
        await self.store_watch.finish()
        if self.tracing is not None:
            await self.tracing.close()

    def _build(self, nursery: trio.Nursery) -> None:
        config = self.config
        self.service = self._make_service(nursery)
        limits = SessionLimits(ping_seconds=config.agent_ping_seconds, pong_seconds=config.inactive_seconds)
        self.channels = Channels(self.reactor, self.service.serve, self._channel_ended, limits, self.accounts)
        self.rights = Rights(self.callers, self.reactor, self.hub, self.channels.open, self.relay_keys.revoke)
        access_url = config.access_url or default_access_url(self.listening)
        admission = RpcAdmission(
            self.callers,
            lambda: self.keys.current,
            access_url=access_url,
            browser_only=config.browser_only,
            origins=lambda: self.config.cors_origins,
        )
        self.entrance = Entrance(
            admission, self.channels, self.hub, self.presence, nursery, self.lobby, config.upgrade_limit, self.replicas
        )
        self.probes = self._make_probes(access_url)
        self.health = Health(self.probes.table())
        self.external_auth = ExternalAuth(self.store, self.sealer, access_url, config.external_auth)
        inspection = Inspection(self.coordinator, self.maps, lambda: self.reactor.now, self.not_ready)
        why = Why(inspection, self.relay, self.region_loads)
        agents = Agents(
            self.store,
            inspection,
            lambda: self.maps.current.map,
            config.inactive_seconds,
            is_here=self.presence.is_here,
        )
        self.overviews = Overviews(agents, inspection, why)
        services = Services(
            config=config,
            callers=self.callers,
            agents=agents,
            requests=self.requests,
            logs=self.logs,
            metadata=self.metadata,
            events=self.events,
            tracing=self.tracing,
            identity=self.identity,
            agent_http=AgentHttp(self.own_node),
            git_keys=GitKeys(self.store, self.sealer),
            external_auth=self.external_auth,
            derp_maps=self.maps,
            relay_keys=self.relay_keys,
            inspection=inspection,
            overviews=self.overviews,
            own_node=self.own_node,
            health=self.health,
            access_url=access_url,
            metrics=metrics_page(self.reading, self.relay_statistics),
            pages=operators_pages(why, self.relay, self.relay_statistics, self.replicas),
            forget_answers=self.callers.call_out.forget if self.callers.call_out is not None else None,
            limits=self.limits,
            identity_limits=self.identity_limits,
        )
        self._app = create_app(services)
        # With a listener of its own administration is nowhere else.
        is_beside = not config.admin_listen
        self._api = ApiServer(
            WithAdministration(self._app, self._admin_app, self.administration) if is_beside else self._app,
            self._is_for_reactor,
            config.agent_ping_seconds,
            max_connections=config.max_api_connections,
            is_stream=lambda target: target.partition("?")[0] == BULK_PATH,
        )

    def _make_own_node(self) -> OwnNode:
        region, relay = self.region, self.relay
        if region is None or relay is None:
            return OwnNode(self.hub, self.reactor, self.maps)
        inside = region_from_inside(region, self.listening)
        return OwnNode(self.hub, self.reactor, self.maps, inside, expected=relay.sessions.admission.expecting)

    def _make_probes(self, access_url: str) -> Probes:
        """What of this server its health report looks at."""
        return Probes(
            store=self.store,
            watch=self.store_watch,
            outbox=self.outbox,
            maps=self.maps,
            keys=self.keys,
            relay_keys=self.relay_keys,
            presence=self.presence,
            own_node=self.own_node,
            access_url=access_url,
            is_address_meant=bool(self.config.access_url) or self.config.dev,
            region=self.region,
            relay=self.relay,
            tls=self.tls,
            keeper=self.keeper,
            fights=lambda: self.entrance.fights.current(self.reactor.now),
            replicas=self.replicas.look if self.replicas is not None else None,
        )

    def _make_service(self, nursery: trio.Nursery) -> TailnetService:
        self.agents = AgentService(
            self.store,
            self.reports,
            self.maps,
            self.config,
            changed=self.workspaces.changed,
            limits=self.accounts.limits,
        )

        def may_reach(caller: Caller, agent_id: bytes) -> bool | Awaitable[bool]:
            if len(agent_id) != PEER_ID_BYTES:
                return False
            try:
                return self.callers.reach_now(_user(caller), PeerID(agent_id)) >= _TO_ENTER
            except trio.WouldBlock:
                return self._look_up(caller, PeerID(agent_id))

        return TailnetService(
            self.coordinator,
            self.hub,
            lambda: self.keys.current,
            nursery=nursery,
            unary=self.agents.unary(),
            streams={STREAM_DERP_MAPS: self.maps.stream, WORKSPACE_UPDATES: self.workspaces.stream},
            authorise=may_reach,
            flush=self.reactor.flush,
            clock=lambda: self.reactor.now,
        )

    async def _look_up(self, caller: Caller, agent_id: PeerID) -> bool:
        reach = await self.callers.reach(_user(caller), agent_id)
        return reach is not None and reach.rights >= _TO_ENTER

    # --- serving

    def _take_to_api(self, visit: HttpSession, request: Request) -> None:
        self._take_out(visit, None)

    def _take_to_administration(self, visit: HttpSession, request: Request) -> None:
        self._take_out(visit, self._admin_app)

    def _take_out(self, visit: HttpSession, app: FastAPI | None) -> None:
        """The API's server waits for sockets of its own: the connection leaves the reactor, socket and all."""
        wire = visit.wire
        if not isinstance(wire, Link):
            visit.refuse(501, (), "the API is served on sockets only")
            return
        if not self._api.admits():
            visit.answer(503, _BUSY_HEADERS, _BUSY)
            return
        self.lobby.leave(wire)
        wire.session = None
        self.reactor.release(wire)
        self._nursery.start_soon(self._serve_api, wire, visit.received_bytes, app)

    async def _serve_api(self, link: Link, received: bytes, app: FastAPI | None) -> None:
        received = await self._api.serve(LinkStream(link, received), app)
        if received:
            self.reactor.tick()
            self.door.open(link)
            self.reactor.adopt(link, received)
            self.reactor.flush()

    def _is_for_reactor(self, target: str) -> bool:
        path = origin_form(target).partition("?")[0]
        return any(route.wants(path) for route in self.door.routes[:-1])

    def _channel_ended(self, channel: Connected, reason: CloseReason, text: str) -> None:
        self.service.ended(channel, text or reason.value)
        self.presence.left(channel)
        self.lobby.count_closed(reason)

    def cannot_hand_over(self) -> str | None:
        return "the store of --dev is for this process alone" if self.config.dev else None

    def files_to_hand_over(self) -> Mapping[str, int]:
        return claim_of(self.store)

    def apply(self, changed: Sequence[str]) -> None:
        config = self.config
        self.events.is_on = config.keeps_events
        self.webhook.retarget(config.webhook)
        self.agents.reconfigure(config)
        self.upkeep.limits = retention(config)
        self.relay_keys.life_seconds = config.key_set_life_seconds
        self.sealer.take(config.secrets_keys)
        self.external_auth.configure(config.external_auth)
        self.maps.steer(scores=config.scores, avoid=config.avoid_regions)
        self.region_loads.follow(config.steer_by_load)
        self.reactor.write_seconds = config.relay.tcp_write_timeout_seconds
        reconfigure(self._app, config)
        self.administration.administrators.tokens = config.admin_tokens
        self.administration.rate_limit = config.admin_rate_limit
        if self.relay is not None:
            self.relay.configure(config.relay)

    def look_at_files(self) -> None:
        self.maps.reload_nowait()
        self.identity.reload()

    # --- leaving

    def close(self) -> None:
        super().close()
        if self.replicas is not None and self.is_replaced:
            self.replicas.stop_listening()

    async def give_notice(self) -> None:
        if self.replicas is not None and not self.is_replaced:
            await trio.sleep(self.config.replica_notice_seconds)

    async def send_away(self) -> None:
        """Tell peers LOST and never DISCONNECTED, end the API's idle connections, and drain the relay."""
        if not self.is_replaced:
            self.entrance.close()
        if self.replicas is not None:
            movable = () if self.is_replaced else self.channels.open
            await self.replicas.leave(movable, self.config.replica_drain_seconds, self.config.drain_seconds)
        self.maps.feed.close("canceled")
        for followed in (self.logs, self.metadata, self.requests.claims, self.overviews):
            followed.close("the server leaves")
        self.own_node.close()
        now = self.reactor.tick()
        # Peers keep their sessions for as long as WireGuard does; only the news stops.
        self.hub.carry_out(self.coordinator.handle_close(now), now)
        self.reactor.flush()
        self._close_channels()
        await self._api.stop()
        with trio.move_on_after(self.config.drain_seconds):
            if self.relay is not None:
                # A process that replaces us is there already, so nobody need wait for it.
                reconnect = {"reconnect_in_seconds": 0.0} if self.is_replaced else {}
                await drain_clients(self.relay, self.config.drain_seconds, **reconnect)
            # Last words may still be on their way: close frames of channels, answers of the API.
            await self._api.wait_idle()
            while self.channels.open:  # noqa: ASYNC110  # nothing tells, and it is over within moments
                await trio.sleep(0.01)
        if self.is_replaced:
            with trio.move_on_after(DOOR_SECONDS):
                await self._see_off_the_last()

    async def _see_off_the_last(self) -> None:
        """Who was accepted a moment before another process took over is let in, and sent on as the others were."""
        while True:
            self._close_channels()
            clients = self.relay.close_clients(self.config.max_connections) if self.relay is not None else 0
            if not (clients or self.lobby.waiting or self.channels.open or self._api.connection_count):
                return
            await trio.sleep(0.01)

    def _close_channels(self) -> None:
        for channel in tuple(self.channels.open):
            channel.close(CloseCode.GOING_AWAY, "server is restarting", CloseReason.DRAINED)
        self.reactor.flush()


def _user(caller: Caller) -> UserIdentity:
    assert isinstance(caller.identity, UserIdentity), "only clients of many agents are asked about"
    return caller.identity


async def serve_coordinator(
    config: CoordinatorConfig,
    reread: Reread | None = None,
    inherited: Inherited | None = None,
    *,
    task_status: trio.TaskStatus[CoordinatorServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until `drain` of the started CoordinatorServer is done.

    `reread` gives the settings as their sources say them now, for `reload`; it may raise ConfigError.
    Raises ConfigError and StoreError before it has started.
    """
    tracing = open_tracing(os.environ)
    store = await trio.to_thread.run_sync(open_store, config, inherited)
    try:
        private = await store.run(relay_key, store)
        secret = await store.run(cluster_secret, config, store, inherited) if config.bus is not None else b""
        server = CoordinatorServer(
            config, store, private, reread=reread, inherited=inherited, tracing=tracing, cluster_secret=secret
        )
        server.open()
        try:
            await server.run(task_status=task_status)
        finally:
            server.close()
    finally:
        store.close()
