"""Who says who is calling follows from the settings, and so does what is counted of it."""

from tailnet.config import CoordinatorConfig
from tailnet.server.identities import make_callers, read_callers
from tailnet.store.store import Store
from tests.support.control_plane import SECRET


def test_the_store_alone(store: Store) -> None:
    callers = make_callers(store, CoordinatorConfig())
    assert (callers.signed, callers.call_out) == (None, None)
    reading = read_callers(callers)
    assert (reading.call_out, reading.signed_refused, reading.cached) == ({}, None, {"store": 0})


async def test_all_three_share_one_count_of_changes(store: Store) -> None:
    config = CoordinatorConfig(
        auth_url="http://127.0.0.1:9/", auth_secret=SECRET, auth_jwks="/x", auth_issuer="i", auth_audience="a"
    )
    callers = make_callers(store, config)
    assert callers.signed is not None
    assert callers.call_out is not None
    assert callers.changes is callers.call_out.changes is callers.signed.keys.changes is callers.store.changes
    reading = read_callers(callers)
    assert reading.cached == {"store": 0, "call_out": 0, "signed": 0}
    assert (sum(reading.call_out.values()), reading.jwks_age_seconds) == (0, float("inf"))
