"""A filled store, callers, a map and a coordinator behind the real app: everything but sockets."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx

from derp.server.ports import Listening
from tailnet.api.app import create_app
from tailnet.api.services import Services
from tailnet.auth.backends import StoreCallers
from tailnet.config import CoordinatorConfig
from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.explain import Snapshot, explain, last_node, snapshot
from tailnet.server.embedded import embedded_region
from tailnet.services.derp_maps import DerpMaps
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.seeds import NOW, fill

ACCESS_URL = "http://tailnet.example.com"
STRANGER = ("203.0.113.9", 4711)
LOCAL = ("127.0.0.1", 4711)


@dataclass
class View:
    """A real coordinator at a time that tests set."""

    coordinator: Coordinator[object] = field(default_factory=Coordinator)
    seconds: float = 100.0

    def now(self) -> float:
        return self.seconds

    def snapshot(self) -> Snapshot:
        return snapshot(self.coordinator, self.seconds)

    def explain(self, a: PeerID, b: PeerID) -> list[str]:
        return explain(self.coordinator, a, b, self.seconds)

    def node(self, peer_id: PeerID) -> bytes | None:
        return last_node(self.coordinator, peer_id)


@dataclass
class World:
    store: Store
    services: Services
    view: View
    reasons: list[str]

    @asynccontextmanager
    async def client(self, address: tuple[str, int] = STRANGER, token: str = "") -> AsyncIterator[httpx.AsyncClient]:
        """A caller from that address, with that token in a header."""
        headers = {"Coder-Session-Token": token} if token else {}
        transport = httpx.ASGITransport(create_app(self.services), raise_app_exceptions=False, client=address)
        async with httpx.AsyncClient(transport=transport, base_url=ACCESS_URL, headers=headers) as client:
            yield client


def make_world(store: Store, config: CoordinatorConfig | None = None) -> World:
    fill(store)
    view, reasons = View(), list[str]()
    settings = replace(config or CoordinatorConfig(), access_url=ACCESS_URL)
    read: Callable[[], Sequence[str]] = lambda: reasons  # noqa: E731
    services = Services(
        config=settings,
        callers=StoreCallers(store, lambda: NOW),
        store=store,
        derp_maps=DerpMaps([], embedded_region(settings, [Listening("stun", "127.0.0.1", 3478)])),
        tailnet=view,
        access_url=ACCESS_URL,
        not_ready=read,
        metrics=lambda: b"tailnet_up 1\n",
        clock=lambda: NOW,
    )
    return World(store, services, view, reasons)
