"""The API over a filled store."""

import pytest

from tailnet.store.store import Store
from tests.support.api_world import World, make_world


@pytest.fixture
def world(store: Store) -> World:
    return make_world(store)
