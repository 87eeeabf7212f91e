"""A coordinator with its embedded relay, as one of the relays of a region in faults (soak.py)."""

from pathlib import Path
from typing import Any, cast

import trio

from derp.config import RelayRules
from derp.server.server import RelayServer
from tailnet.config import CoordinatorConfig
from tailnet.server.embedded import relay_key
from tailnet.server.server import CoordinatorServer
from tailnet.store.store import Store
from tests.derp.server.mesh_world import MESH_KEY, NAMES, Node, authority, tls_config
from tests.derp.server.world import HOST
from tests.fuzz.soak import Region
from tests.support.certificates import client_context


class CoordinatorNode(Node):
    """Its relay lets everybody in, and is used as any other of the region."""

    def __init__(self, name: str, *, listen: tuple[tuple[str, int], ...], admission_log: Path, store: str) -> None:
        self.store = Store.open(store)
        config = CoordinatorConfig(
            listen=listen,
            stun_listen=(),
            tls=tls_config(),
            store=store,
            self_check=False,  # its client would be counted
            max_connections=500,
            relay=RelayRules(mesh_key=MESH_KEY, open=True, admission_log=admission_log),
        )
        server = CoordinatorServer(config, self.store, relay_key(self.store))
        assert server.relay is not None
        assert server.relay.mesh is not None
        server.relay.mesh._context = client_context(authority())
        self._take(name, cast(RelayServer, server))  # which of the two it is nobody asks

    async def run(self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await super().run(task_status=task_status)
        finally:
            self.store.close()


class WithCoordinator(Region):
    """A third relay beside the two of every region."""

    names = NAMES[:3]
    # A coordinator has 10,000, and one that was stopped is let go some cycles later; to keep all is too much soon.
    growth_objects = 15_000

    def _make(self, name: str, port: int = 0) -> Node:
        if name != NAMES[2]:
            return super()._make(name, port)
        log, store = self._folder / f"{name}.log", f"sqlite:///{self._folder}/store"
        return CoordinatorNode(name, listen=((HOST, port),), admission_log=log, store=store)
