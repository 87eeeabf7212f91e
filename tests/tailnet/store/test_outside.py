"""Rows of agents whom others vouch for: made once, put right when they are called differently, and no way in."""

from dataclasses import replace
from uuid import UUID

import pytest

from tailnet.store.rows import AgentIdentity, UserIdentity
from tailnet.store.store import Store
from tailnet.tokens import agent_token_digest
from tests.support.seeds import NOW, agent_token, fill, make_id, peer_id

NEW = AgentIdentity(peer_id("new"), "new", None, make_id("lab"), "lab", make_id("carol"), "carol")


def identity(store: Store, name: str = "new") -> AgentIdentity | None:
    return store.callers.agent_identities([peer_id(name)]).get(peer_id(name))


def test_rows_are_made_once(store: Store) -> None:
    before = store.callers.callers_generation()
    assert store.outside.put_agent(NEW, NOW)
    assert identity(store) == NEW
    made = store.callers.callers_generation()
    assert made > before  # whoever asked for it in vain has to ask again
    assert not store.outside.put_agent(NEW, NOW)
    assert store.callers.callers_generation() == made
    child = replace(NEW, id=peer_id("child"), name="child", parent_id=peer_id("new"))
    assert store.outside.put_agent(child, NOW)
    assert identity(store, "child") == child


@pytest.mark.parametrize(
    "other",
    [
        replace(NEW, name="renamed"),
        replace(NEW, workspace_name="renamed"),
        replace(NEW, owner_name="caroline"),
        replace(NEW, owner_id=make_id("dora"), owner_name="dora"),
        replace(NEW, workspace_id=make_id("another"), workspace_name="another"),
    ],
)
def test_what_is_called_differently_is_put_right(store: Store, other: AgentIdentity) -> None:
    store.outside.put_agent(NEW, NOW)
    before = store.callers.callers_generation()
    assert store.outside.put_agent(other, NOW)
    assert identity(store) == other
    assert store.callers.callers_generation() > before
    assert not store.outside.put_agent(other, NOW)


def test_an_agent_of_the_store_keeps_its_token(store: Store) -> None:
    fill(store)
    main = identity(store, "main")
    assert main is not None
    assert not store.outside.put_agent(main, NOW)
    assert store.outside.put_agent(replace(main, name="renamed"), NOW)
    found = store.get_agent_by_token(UUID(agent_token("main")))
    assert found is not None
    assert found.name == "renamed"


def test_a_name_that_somebody_else_has(store: Store) -> None:
    fill(store)
    impostor = replace(NEW, owner_id=make_id("another alice"), owner_name="alice")
    assert store.outside.put_agent(impostor, NOW)
    name = f"alice-{str(make_id('another alice'))[:8]}"
    assert identity(store) == replace(impostor, owner_name=name)
    assert not store.outside.put_agent(impostor, NOW)
    alice = store.callers.find_user("alice")
    assert isinstance(alice, UserIdentity)
    assert alice.id == make_id("alice")


def test_a_parent_that_is_not_here(store: Store) -> None:
    orphan = replace(NEW, parent_id=peer_id("elsewhere"))
    assert store.outside.put_agent(orphan, NOW)
    assert identity(store) == replace(orphan, parent_id=None)


def test_no_token_lets_it_in(store: Store) -> None:
    store.outside.put_agent(NEW, NOW)
    for guess in (NEW.id.uuid if hasattr(NEW.id, "uuid") else UUID(str(NEW.id)), UUID(int=1)):
        assert agent_token_digest(guess) not in store.callers.agents_by_token_digests([agent_token_digest(guess)])


def test_a_user_before_his_first_agent(store: Store) -> None:
    fill(store)
    carol = UserIdentity(make_id("carol"), "carol", active=True)
    assert store.outside.put_user(carol, NOW)
    assert not store.outside.put_user(replace(carol, username="other"), NOW), "what is there stays"
    assert store.callers.get_user(carol.id) == carol
    namesake = UserIdentity(make_id("namesake"), "alice", active=True)
    assert store.outside.put_user(namesake, NOW)
    found = store.callers.get_user(namesake.id)
    assert found is not None
    assert found.username == f"alice-{str(namesake.id)[:8]}"
