"""`tailnet admin key` and `tailnet admin audit`."""

import os
from datetime import UTC, datetime

import pytest

from tailnet.store.store import Store
from tests.support.seeds import fill
from tests.tailnet.cli.test_admin_resources import Admin


@pytest.fixture
def admin(store: Store, store_url: str, capsys: pytest.CaptureFixture[str]) -> Admin:
    fill(store)
    return Admin(store_url, capsys)


def test_keys(admin: Admin, store: Store) -> None:
    old = store.keys.signing_keys("resume token", datetime.now(UTC), os.urandom)[0]
    made = admin.json("key", "rotate", "resume token")
    assert [each["state"] for each in admin.lines("key", "list")] == ["next", "signs"]
    assert old.secret.hex()[:16] not in admin.say("key", "list")
    assert admin.json("key", "show", made["id"]) == made
    assert "there is no key 'x'" in admin.fail("key", "show", "x")
    assert admin.json("key", "revoke", old.id, "--yes") == {"revoked": old.id}
    assert "rotate first" in admin.fail("key", "revoke", made["id"], "--yes")
    assert "are not replaced" in admin.fail("key", "rotate", "relay")


def test_the_account(admin: Admin) -> None:
    for name in ("carol", "dave", "erin"):
        admin.say("user", "create", "--username", name)
    admin.say("user", "update", "erin", "--role", "admin")
    rows = admin.lines("audit")
    assert [each["action"] for each in rows] == ["update", "create", "create", "create"]
    assert (rows[0]["before"], rows[0]["after"]) == ({"role": "user"}, {"role": "admin"})
    table = admin.say("audit", "--limit", "1", "--kind", "user").splitlines()
    assert table[0].split() == ["AT", "WHO", "ACTION", "KIND", "TARGET", "CHANGED"]
    assert table[1].endswith("role=admin")
    assert len(table) == 2
    assert admin.lines("audit", "--until", "2026-01-01") == []
    assert len(admin.lines("audit", "--since", "2026-01-01", "--action", "create")) == 3
    assert "since: wants a time" in admin.fail("audit", "--since", "soon")
