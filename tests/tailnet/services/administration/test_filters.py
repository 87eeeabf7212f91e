"""Filters as text: what each takes, and that a wrong one is named."""

from datetime import UTC, datetime

import pytest

from tailnet.errors import AdministrationError
from tailnet.services.administration.filters import parse_audit_filters, parse_filters, parse_time
from tailnet.services.administration.resources import RESOURCES, Resource
from tailnet.store.rows import Role
from tailnet.store.store import Store
from tests.support.administration import ALICE, DEV, MAIN
from tests.support.seeds import fill, make_id, peer_id

GOOD = {
    "q": "a",
    "username": "alice",
    "name": "main",
    "active": "true",
    "role": "admin",
    "status": "running",
    "instance_id": "i-1",
    "expires_before": "2026-01-31",
}


@pytest.mark.parametrize("resource", RESOURCES.values(), ids=RESOURCES.keys())
def test_every_filter_is_understood_by_the_store(resource: Resource, store: Store) -> None:
    fill(store)
    for name in resource.kind.filters:
        found = parse_filters(resource, {name: GOOD.get(name, str(ALICE))})
        store.administration.page(resource.kind, found, None, 10)


def test_values() -> None:
    assert parse_filters(RESOURCES["user"], {"role": "admin", "active": "false"}) == {
        "role": Role.ADMIN,
        "active": False,
    }
    agent = parse_filters(RESOURCES["agent"], {"workspace_id": str(DEV).upper(), "parent_id": str(MAIN)})
    assert agent == {"workspace_id": make_id("dev"), "parent_id": peer_id("main")}
    assert parse_audit_filters({"since": "2026-01-31T08:00:00+01:00"}) == {
        "since": datetime(2026, 1, 31, 7, tzinfo=UTC)
    }
    assert parse_time("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("user", "nonsense", "x"),
        ("user", "active", "yes"),
        ("user", "role", "owner"),
        ("user", "q", "a\0"),
        ("user", "q", "a" * 257),
        ("workspace", "status", "gone"),
        ("workspace", "owner_id", "alice"),
        ("agent", "parent_id", "x"),
        ("token", "expires_before", "soon"),
    ],
)
def test_wrong_ones(kind: str, name: str, text: str) -> None:
    with pytest.raises(AdministrationError) as caught:
        parse_filters(RESOURCES[kind], {name: text, "alsowrong": ""})
    assert [field for field, _ in caught.value.problems] == [name, "alsowrong"]


def test_audit_filters_that_are_wrong() -> None:
    for name, text in {"since": "x", "until": "0001-01-01T00:00:00+14:00", "q": "x"}.items():
        with pytest.raises(AdministrationError):
            parse_audit_filters({name: text})
