"""Grants: a right more or less is a part of who a user is, and every cache hears of it."""

from datetime import timedelta

import pytest

from tailnet.errors import StoreError, StoreTrouble
from tailnet.store import grants
from tailnet.store.rows import NO_GRANTS, Grants, Right
from tailnet.store.store import Store
from tailnet.tokens import parse_user_token
from tests.support.seeds import NOW, AgentSpec, fill, make_id, seed_document, user_token

pytestmark = pytest.mark.stores

DEV, SHOP, ALICE, BOB = (make_id(name) for name in ("dev", "shop", "alice", "bob"))


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    return store


def grants_of_bob(store: Store) -> Grants:
    """The same by each way there is to read a user."""
    ident = parse_user_token(user_token("bob")).id
    found = [
        store.callers.user_tokens([ident])[ident].user.grants,
        store.callers.read_all_callers(100)[1][ident].user.grants,  # type: ignore[union-attr]  # a token's
        store.callers.get_user(BOB).grants,  # type: ignore[union-attr]  # it is there
    ]
    assert found[0] == found[1] == found[2]
    return found[0]


def test_a_grant_comes_changes_and_goes(filled: Store) -> None:
    assert grants_of_bob(filled) == NO_GRANTS
    seen = [filled.callers.callers_generation()]
    assert filled.grants.put(DEV, BOB, [Right.SSH], NOW)
    seen.append(filled.callers.callers_generation())
    assert grants_of_bob(filled) == {DEV: {Right.READ, Right.SSH}}
    later = NOW + timedelta(hours=1)
    assert filled.grants.put(DEV, BOB, [Right.UPDATE], later)
    seen.append(filled.callers.callers_generation())
    [grant] = filled.grants.list_all()
    assert (grant.workspace_name, grant.username, grant.rights) == ("dev", "bob", {Right.READ, Right.UPDATE})
    assert (grant.created_at, grant.updated_at) == (NOW, later)
    assert filled.grants.revoke(DEV, BOB)
    seen.append(filled.callers.callers_generation())
    assert grants_of_bob(filled) == NO_GRANTS
    assert seen == sorted(set(seen))
    assert not filled.grants.revoke(DEV, BOB)
    assert filled.callers.callers_generation() == seen[-1]


def test_no_rights_are_none(filled: Store) -> None:
    filled.grants.put(DEV, BOB, [Right.READ], NOW)
    assert filled.grants.put(DEV, BOB, [], NOW)
    assert filled.grants.list_all() == []


def test_to_nobody_and_on_nothing(filled: Store) -> None:
    before = filled.callers.callers_generation()
    assert not filled.grants.put(DEV, make_id("nobody"), [Right.READ], NOW)
    assert not filled.grants.put(make_id("nothing"), BOB, [Right.READ], NOW)
    assert filled.callers.callers_generation() == before


def test_lists(filled: Store) -> None:
    filled.grants.put(DEV, BOB, [Right.READ], NOW)
    filled.grants.put(SHOP, ALICE, [Right.SSH], NOW)
    assert [grant.workspace_name for grant in filled.grants.list_all()] == ["dev", "shop"]
    assert [grant.username for grant in filled.grants.list_all(workspace_id=SHOP)] == ["alice"]
    assert [grant.workspace_id for grant in filled.grants.list_all(user_id=BOB)] == [DEV]
    assert filled.grants.list_all(workspace_id=DEV, user_id=ALICE) == []


def test_they_go_with_the_workspace(filled: Store) -> None:
    filled.grants.put(DEV, BOB, [Right.READ], NOW)
    filled.callers.delete_workspace(DEV)
    assert filled.grants.list_all() == []
    assert grants_of_bob(filled) == NO_GRANTS


def test_a_user_has_so_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(
        store,
        seed_document((AgentSpec("a", "dev", "alice"), AgentSpec("b", "lab", "alice"), AgentSpec("c", "x", "bob"))),
    )
    monkeypatch.setattr(grants, "MAX_GRANTS_PER_USER", 1)
    store.grants.put(DEV, BOB, [Right.READ], NOW)
    store.grants.put(DEV, BOB, [Right.SSH], NOW)  # the same one
    with pytest.raises(StoreError, match="has 1 grants, the most") as caught:
        store.grants.put(make_id("lab"), BOB, [Right.READ], NOW)
    assert caught.value.trouble is StoreTrouble.UNFIT
