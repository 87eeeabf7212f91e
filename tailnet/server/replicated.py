"""Puts together what joins this server with others: the bus that the settings name, and its replica.  Layer L3.

Imported when there is a bus; a server alone loads nothing of it.
"""

import socket
from collections.abc import Callable

import trio

from derp.server.relay import Relay
from derp.text import error_text
from derp.transport.host import Host
from tailnet.bus.contract import Bus
from tailnet.bus.static import StaticBus
from tailnet.bus.store import StoreBus
from tailnet.config import CoordinatorConfig
from tailnet.config.coordinator import BusPlace
from tailnet.errors import ConfigError
from tailnet.replica.proof import ClusterKey
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.held_keys import HeldKeys
from tailnet.services.hub import Hub
from tailnet.services.relay_keys import RelayKeys
from tailnet.services.relay_mesh import RelayMesh
from tailnet.services.replicas import Replicas, ReplicaSettings
from tailnet.services.resume_keys import ResumeKeys
from tailnet.services.shared_keys import SharedKeys
from tailnet.services.shared_map import SharedMap
from tailnet.store.store import Store


def make_replicas(
    config: CoordinatorConfig,
    secret: bytes,
    host: Host,
    store: Store,
    rights_changed: Callable[[], None],
    *,
    is_successor: bool,
) -> Replicas:
    """This server as one replica of several; `is_successor` of another process that may have its port still."""
    assert config.bus is not None  # the caller asked
    name = config.replica_name or socket.gethostname()
    address = config.replica_address or next(iter(config.replica_listen), None)
    settings = ReplicaSettings(name, config.replica_listen, address, config.max_node_bytes, is_successor)
    bus = make_bus(config.bus, config.cluster_name, store)
    return Replicas(host, ClusterKey(config.cluster_name, secret), bus, settings, rights_changed)


async def run(
    replicas: Replicas,
    hub: Hub,
    relay: Relay | None,
    relay_keys: RelayKeys,
    resume_keys: ResumeKeys,
    maps: DerpMaps,
    config: CoordinatorConfig,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve with the other replicas until cancelled, and share with them what this server has."""
    shared_map = SharedMap(replicas, maps)
    replicas.shared[shared_map.topic], replicas.map_difference = shared_map, shared_map.difference
    held_keys = HeldKeys(replicas.tell_with_step, replicas.has_others, relay_keys)
    shared_keys = SharedKeys(replicas.tell, resume_keys)
    replicas.shared |= {held_keys.topic: held_keys, shared_keys.topic: shared_keys}
    if relay is not None:
        assert relay.mesh is not None  # it has kin
        mesh = RelayMesh(replicas, relay, relay.mesh, config.derp_region_id)
        replicas.shared[mesh.topic], replicas.serve_relay = mesh, mesh.serve
        relay.kin_here = mesh.keys_here
    await replicas.run(hub, task_status=task_status)


def make_bus(place: BusPlace, cluster: str, store: Store) -> Bus:
    """The bus of that kind.  Raises ConfigError where what it needs is not installed, or a file is not as it should."""
    if place.kind == "store":
        return StoreBus(store)
    if place.redis is not None:
        try:
            from tailnet.bus.redis import RedisBus
        except ImportError as error:
            raise ConfigError(f"--bus redis: {error_text(error)}: pip install tailnet-derp[redis]") from None
        return RedisBus(place.redis, cluster)
    return StaticBus(place.addresses, by_name=place.kind == "dns")
