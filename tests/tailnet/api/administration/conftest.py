"""The administration API over a filled store."""

import pytest

from tailnet.store.store import Store
from tests.support.administration import AdminWorld, make_admin_world
from tests.support.seeds import defined_document, fill


@pytest.fixture
def world(store: Store) -> AdminWorld:
    fill(store, defined_document())
    return make_admin_world(store)
