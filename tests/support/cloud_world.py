"""The API of api_world.py at the clouds' hour, with an agent on an instance of each cloud."""

from dataclasses import replace
from pathlib import Path

from tailnet.services.instance_identity import InstanceIdentity
from tailnet.store.store import Store
from tests.support.administration import set_instance
from tests.support.api_world import World, make_world
from tests.support.clouds import NOW

# What clouds.py proves, and who runs there.
INSTANCES = {"i-0123": "main", "vm-1": "gpu", "777": "web"}


def make_cloud_world(store: Store, folder: Path | None) -> World:
    """`folder`: the anchors."""
    world = make_world(store)
    for instance_id, name in INSTANCES.items():
        set_instance(store, name, instance_id)
    world.services = replace(world.services, identity=InstanceIdentity(store, folder, lambda: NOW))
    return world
