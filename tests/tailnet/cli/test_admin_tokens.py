"""`tailnet admin token|agent rotate|revoke` and grants of workspaces."""

import pytest

from tailnet.store.store import Store
from tests.support.seeds import agent_token, fill, make_id, user_token
from tests.tailnet.cli.test_admin_resources import Admin


@pytest.fixture
def admin(store: Store, store_url: str, capsys: pytest.CaptureFixture[str]) -> Admin:
    fill(store)
    return Admin(store_url, capsys)


def test_a_token_is_shown_once(admin: Admin, store: Store) -> None:
    made = admin.json("token", "create", "--user", "alice", "--purpose", "ci", "--expires-at", "30d")
    assert made["token"].startswith(made["id"])
    said = admin.say("token", "create", "--user", "alice")
    assert any(line.startswith("token ") and len(line.split()[1]) == 33 for line in said.splitlines())
    assert "token" not in admin.json("token", "show", made["id"])
    assert made["token"] not in admin.say("token", "list")
    assert admin.json("token", "update", made["id"], "--expires-at", "never")["expires_at"] is None
    rotated = admin.json("token", "rotate", made["id"], "--grace", "1h")
    assert rotated["purpose"] == "ci"
    assert set(store.callers.user_tokens([made["id"], rotated["id"]])) == {made["id"], rotated["id"]}
    assert admin.json("token", "revoke", rotated["id"], "--yes") == {"revoked": rotated["id"]}
    assert admin.json("token", "revoke", "--user", "alice", "--yes")["revoked"] == 3
    assert store.callers.user_tokens([user_token("alice")[:10]]) == {}
    assert "there is no token" in admin.fail("token", "revoke", rotated["id"], "--yes")
    for words in ((), ("aaaaaaaaaa", "--user", "alice")):
        assert "give the ID of a token, or --user" in admin.fail("token", "revoke", *words, status=2)


def test_an_agent_s_token(admin: Admin, store: Store) -> None:
    rotated = admin.json("agent", "rotate", "main", "--grace", "90s")
    assert len(rotated["token"]) == 36 != agent_token("main")
    assert admin.json("agent", "revoke", "main", "--yes") == {"revoked": 1}
    assert "wants a duration" in admin.fail("agent", "rotate", "main", "--grace", "soon", status=2)


def test_grants(admin: Admin, store: Store) -> None:
    made = admin.json("workspace", "grant", "alice/dev", "bob", "ssh", "update")
    assert made["rights"] == ["read", "ssh", "update"]
    assert admin.json("workspace", "grant", "dev", "bob", "read")["rights"] == ["read"]
    table = admin.say("workspace", "grants", "dev").splitlines()
    assert table[1].split()[:3] == ["bob", str(make_id("bob")), "read"]
    assert len(admin.lines("workspace", "grants", "dev")) == 1
    assert admin.json("workspace", "revoke-grant", "dev", "bob", "--yes")["rights"] == ["read"]
    assert "there is no grant" in admin.fail("workspace", "revoke-grant", "dev", "bob", "--yes")
    assert "Invalid value" in admin.fail("workspace", "grant", "dev", "bob", "enter", status=2)
