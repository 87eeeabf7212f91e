"""A filled store, callers, a map and a coordinator behind the real app: everything but sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import cast

import httpx

from derp.admission.signed import IssuerPrivate
from derp.server.ports import Listening
from tailnet.api.app import create_app
from tailnet.api.guards import Services
from tailnet.auth.store_callers import StoreCallers
from tailnet.config import CoordinatorConfig
from tailnet.coordinator.core import Coordinator
from tailnet.server.embedded import embedded_region
from tailnet.services.agent_http import AgentHttp
from tailnet.services.agent_metadata import AgentMetadata
from tailnet.services.agent_requests import AgentRequests
from tailnet.services.agents import Agents
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.events import Events
from tailnet.services.external_auth import ExternalAuth
from tailnet.services.git_keys import GitKeys
from tailnet.services.health import Health
from tailnet.services.hub import Hub, Receiver
from tailnet.services.inspection import Inspection
from tailnet.services.instance_identity import InstanceIdentity
from tailnet.services.logs import Logs
from tailnet.services.overviews import Overviews
from tailnet.services.own_node import OwnNode
from tailnet.services.region_load import RegionLoads
from tailnet.services.relay_keys import RelayKeys
from tailnet.services.reports import AgentReports
from tailnet.services.why import Why
from tailnet.store.outbox import Outbox
from tailnet.store.sealing import Sealer
from tailnet.store.store import Store
from tests.support.memory_host import MemoryHost
from tests.support.seeds import NOW, fill

# The reactor's clock.
SECONDS = 100.0
SECRETS_KEY = bytes(range(32))
ACCESS_URL = "http://tailnet.example.com"
STRANGER = ("203.0.113.9", 4711)
LOCAL = ("127.0.0.1", 4711)


@dataclass
class World:
    store: Store
    services: Services
    coordinator: Coordinator[object]
    outbox: Outbox
    reports: AgentReports
    reasons: list[str]  # why it is not ready

    @asynccontextmanager
    async def client(self, address: tuple[str, int] = STRANGER, token: str = "") -> AsyncIterator[httpx.AsyncClient]:
        """A caller from that address, with that token in a header."""
        headers = {"Coder-Session-Token": token} if token else {}
        transport = httpx.ASGITransport(create_app(self.services), raise_app_exceptions=False, client=address)
        async with httpx.AsyncClient(transport=transport, base_url=ACCESS_URL, headers=headers) as client:
            yield client


def make_world(store: Store, config: CoordinatorConfig | None = None) -> World:
    fill(store)
    coordinator: Coordinator[object] = Coordinator()
    reasons: list[str] = []
    settings = replace(config or CoordinatorConfig(), access_url=ACCESS_URL)
    maps = DerpMaps([], embedded_region(settings, [Listening("stun", "127.0.0.1", 3478)]))
    inspection = Inspection(coordinator, maps, lambda: SECONDS, lambda: reasons)
    outbox = Outbox(store)
    sealer = Sealer([SECRETS_KEY])
    reports = AgentReports(store, outbox, clock=lambda: NOW)
    own_node = OwnNode(Hub(cast(Coordinator[Receiver], coordinator)), MemoryHost(), maps)
    agents = Agents(store, inspection, lambda: maps.current.map, settings.inactive_seconds, lambda: NOW)
    relay_keys = RelayKeys(store, life_seconds=settings.key_set_life_seconds, clock=lambda: NOW)
    relay_keys.sign_with(IssuerPrivate(b"i" * 32))
    services = Services(
        config=settings,
        callers=StoreCallers(store, lambda: NOW),
        agents=agents,
        requests=AgentRequests(store, reports, clock=lambda: NOW),
        logs=Logs(store),
        metadata=AgentMetadata(store, clock=lambda: NOW),
        events=Events(store, outbox, is_on=settings.keeps_events, clock=lambda: NOW),
        identity=InstanceIdentity(store, clock=lambda: NOW),
        agent_http=AgentHttp(own_node),
        git_keys=GitKeys(store, sealer, lambda: NOW),
        external_auth=ExternalAuth(store, sealer, ACCESS_URL, settings.external_auth, clock=lambda: NOW),
        derp_maps=maps,
        relay_keys=relay_keys,
        inspection=inspection,
        overviews=Overviews(agents, inspection, Why(inspection, None, RegionLoads(maps))),
        own_node=own_node,
        health=Health({}, lambda: NOW),
        access_url=ACCESS_URL,
        metrics=lambda: b"tailnet_up 1\n",
    )
    return World(store, services, coordinator, outbox, reports, reasons)
