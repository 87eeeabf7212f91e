"""Who is who: look-ups in lists, rights that follow deletions, and the counter that tells caches to forget."""

from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from tailnet.errors import StoreError, StoreTrouble
from tailnet.store import callers as module
from tailnet.store.callers import MAX_IN_SCOPE, pieces, raise_generation
from tailnet.store.database import IDS_PER_STATEMENT
from tailnet.store.rows import NO_GRANTS, AgentIdentity, Grants, Right, Role, Scope, WorkspaceStatus
from tailnet.store.schema import counters, revocations
from tailnet.store.store import Store
from tailnet.tokens import agent_token_digest, parse_user_token
from tailnet.types import PeerID
from tests.support.administration import grant
from tests.support.seeds import NOW, agent_token, came, fill, make_id, peer_id, user_token


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    return store


def digest(name: str) -> bytes:
    return agent_token_digest(UUID(agent_token(name)))


MAIN = AgentIdentity(peer_id("main"), "main", None, make_id("dev"), "dev", make_id("alice"), "alice")


def test_agents_by_token(filled: Store) -> None:
    found = filled.callers.agents_by_token_digests([digest("main"), digest("web"), digest("nobody")])
    assert found.keys() == {digest("main"), digest("web")}
    assert found[digest("main")] == MAIN
    assert (found[digest("web")].workspace_name, found[digest("web")].owner_name) == ("shop", "bob")


def test_everybody_at_once(filled: Store) -> None:
    generation, found = filled.callers.read_all_callers(100)
    assert generation == filled.callers.read_callers(-1, [], {})[0]
    assert found[digest("main")] == found[peer_id("main")] == MAIN
    presented = parse_user_token(user_token("alice"))
    assert found[presented.id] == filled.callers.user_tokens([presented.id])[presented.id]
    agents = sum(isinstance(key, PeerID) for key in found)
    tokens = sum(isinstance(key, str) for key in found)
    assert len(found) == 2 * agents + tokens
    assert filled.callers.read_all_callers(agents + tokens) == (generation, found)
    assert filled.callers.read_all_callers(agents + tokens - 1) == (generation, {})


def test_agents_by_id(filled: Store) -> None:
    assert filled.callers.agent_identities([peer_id("main"), peer_id("nobody")]) == {peer_id("main"): MAIN}


def test_lists_longer_than_a_statement(filled: Store) -> None:
    strangers = [make_id(str(number)).bytes * 2 for number in range(2 * IDS_PER_STATEMENT + 1)]
    assert filled.callers.agents_by_token_digests([*strangers, digest("main")]) == {digest("main"): MAIN}
    assert [len(piece) for piece in pieces(strangers)] == [IDS_PER_STATEMENT, IDS_PER_STATEMENT, 1]
    assert filled.callers.agents_by_token_digests([]) == {}


def test_user_tokens(filled: Store) -> None:
    presented = parse_user_token(user_token("alice"))
    stored = filled.callers.user_tokens([presented.id, "unknownxxx"])
    assert stored.keys() == {presented.id}
    assert stored[presented.id].secret_digest == presented.secret_digest
    assert stored[presented.id].user.username == "alice"
    assert presented.secret_digest.hex() not in repr(stored)


def test_get_agent_and_user(filled: Store) -> None:
    agent = filled.callers.get_agent(peer_id("main"))
    assert agent is not None
    assert (agent.name, agent.workspace_id, agent.created_at, agent.environment) == ("main", make_id("dev"), NOW, {})
    assert filled.callers.get_agent(peer_id("nobody")) is None
    user = filled.callers.get_user(make_id("bob"))
    assert user is not None
    assert (user.username, user.active, user.admin) == ("bob", True, False)
    assert filled.callers.get_user(make_id("nobody")) is None


def test_workspaces_of_an_owner(filled: Store) -> None:
    [workspace] = filled.callers.list_workspaces(make_id("alice"))
    assert (workspace.name, workspace.status) == ("dev", WorkspaceStatus.RUNNING)
    assert [agent.name for agent in workspace.agents] == ["gpu", "main"]
    assert filled.callers.list_workspaces(make_id("nobody")) == []


def test_a_workspace_without_agents_is_listed(filled: Store) -> None:
    assert filled.callers.delete_agent(peer_id("web"))
    assert [
        (workspace.name, list(workspace.agents)) for workspace in filled.callers.list_workspaces(make_id("bob"))
    ] == [("shop", [])]


def test_deleting_a_workspace_deletes_its_agents_and_their_tokens(filled: Store) -> None:
    assert filled.callers.delete_workspace(make_id("dev"))
    assert filled.callers.agents_by_token_digests([digest("main"), digest("gpu")]) == {}
    assert not filled.callers.delete_workspace(make_id("dev"))


def test_sub_agents(filled: Store) -> None:
    added = filled.callers.add_sub_agent(
        peer_id("main"), peer_id("child"), digest("child"), "child", NOW, directory="/src"
    )
    assert added
    assert filled.callers.agents_by_token_digests([digest("child")])[digest("child")].parent_id == peer_id("main")
    [child] = filled.callers.list_sub_agents(peer_id("main"))
    assert (child.name, child.workspace_id, child.directory) == ("child", make_id("dev"), "/src")
    assert not filled.callers.add_sub_agent(peer_id("nobody"), peer_id("x"), digest("x"), "x", NOW)
    assert filled.callers.delete_agent(peer_id("main"))
    assert filled.callers.get_agent(peer_id("child")) is None


def test_an_id_that_is_taken(filled: Store) -> None:
    with pytest.raises(StoreError, match=r"UNIQUE|unique") as taken:
        filled.callers.add_sub_agent(peer_id("main"), peer_id("gpu"), digest("new"), "new", NOW)
    with pytest.raises(StoreError, match=r"FOREIGN KEY|foreign key") as unknown:
        filled.callers.add_user_token(make_id("nobody"), "abcdefghij", b"\0" * 32, NOW)
    assert taken.value.trouble is unknown.value.trouble is StoreTrouble.UNFIT


def test_session_tokens_come_and_go(filled: Store) -> None:
    expiry = NOW + timedelta(hours=1)
    filled.callers.add_user_token(make_id("alice"), "abcdefghij", b"\1" * 32, NOW, expiry)
    assert filled.callers.user_tokens(["abcdefghij"])["abcdefghij"].expires_at == expiry
    assert filled.callers.delete_user_token("abcdefghij")
    assert filled.callers.user_tokens(["abcdefghij"]) == {}


def test_every_change_of_callers_is_announced(filled: Store) -> None:
    changes = [
        lambda: filled.callers.update_user(make_id("alice"), NOW, active=False),
        lambda: filled.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN),
        lambda: filled.callers.add_user_token(make_id("alice"), "abcdefghij", b"\1" * 32, NOW),
        lambda: filled.callers.delete_user_token("abcdefghij"),
        lambda: filled.callers.set_workspace_status(make_id("dev"), WorkspaceStatus.STOPPED, NOW),
        lambda: filled.callers.add_sub_agent(peer_id("main"), peer_id("child"), digest("child"), "child", NOW),
        lambda: filled.callers.delete_agent(peer_id("child")),
        lambda: filled.callers.delete_workspace(make_id("dev")),
    ]
    seen = [filled.callers.callers_generation()]
    for change in changes:
        change()
        seen.append(filled.callers.callers_generation())
    assert seen == sorted(set(seen))


def test_two_histories_never_come_to_the_same_number(filled: Store, tmp_path: Path) -> None:
    """A restored copy that changes by itself must not look, to a cache, like the store it was copied from."""
    other = Store.open(f"sqlite:///{tmp_path / 'other.db'}")
    fill(other)
    for store in (filled, other):
        store.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN)
    assert filled.callers.callers_generation() != other.callers.callers_generation()
    other.close()


def test_what_changes_nothing_is_not_announced(filled: Store) -> None:
    before = filled.callers.callers_generation()
    assert not filled.callers.delete_agent(peer_id("nobody"))
    assert not filled.callers.update_user(make_id("nobody"), NOW, active=False)
    came(filled, peer_id("main"), NOW)
    assert filled.callers.callers_generation() == before


def test_update_user_changes_only_what_is_given(filled: Store) -> None:
    filled.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN)
    filled.callers.update_user(make_id("alice"), NOW, active=False)
    user = filled.callers.get_user(make_id("alice"))
    assert user is not None
    assert (user.active, user.admin) == (False, True)


def grants_of_bob(store: Store) -> Grants:
    """The same by each way there is to read a user."""
    ident = parse_user_token(user_token("bob")).id
    found = [
        store.callers.user_tokens([ident])[ident].user.grants,
        store.callers.read_all_callers(100)[1][ident].user.grants,  # type: ignore[union-attr]  # a token's
        store.callers.get_user(make_id("bob")).grants,  # type: ignore[union-attr]  # it is there
    ]
    assert found[0] == found[1] == found[2]
    return found[0]


def test_a_grant_is_a_part_of_who_a_user_is(filled: Store) -> None:
    dev = make_id("dev")
    assert grants_of_bob(filled) == NO_GRANTS
    seen = [filled.callers.callers_generation()]
    for rights in ([Right.SSH], [Right.UPDATE], []):
        grant(filled, "dev", "bob", *rights)
        seen.append(filled.callers.callers_generation())
        assert grants_of_bob(filled) == ({dev: {Right.READ, *rights}} if rights else NO_GRANTS)
    assert seen == sorted(set(seen))


def test_grants_go_with_the_workspace(filled: Store) -> None:
    grant(filled, "dev", "bob", Right.READ)
    filled.callers.delete_workspace(make_id("dev"))
    assert grants_of_bob(filled) == NO_GRANTS


def test_whether_there_is_anybody(store: Store) -> None:
    assert not store.callers.has_users()
    fill(store)
    assert store.callers.has_users()


# --- whom a change was about


def scope_since(store: Store, known: int) -> Scope | None:
    return store.callers.read_callers(known, [], {})[1]


def test_changes_say_whom_they_were_about(filled: Store) -> None:
    known = filled.callers.callers_generation()
    assert scope_since(filled, known) == Scope()
    filled.callers.update_user(make_id("alice"), NOW, active=False)
    between = filled.callers.callers_generation()
    filled.callers.delete_agent(peer_id("main"))
    about = Scope(frozenset({make_id("alice")}), frozenset({make_id("dev")}))
    assert scope_since(filled, known) == about
    assert scope_since(filled, between) == Scope(workspaces=about.workspaces)
    # Of another history, and of a cache that has nobody.
    assert scope_since(filled, between + 1) is None
    assert scope_since(filled, -1) is None
    # What was swept is not known any more.
    with filled.writing() as connection:
        connection.execute(revocations.delete().where(revocations.c.serial == between))
    assert scope_since(filled, known) is None
    assert scope_since(filled, between) == Scope(workspaces=about.workspaces)


def test_a_change_of_an_older_release_or_about_very_many_was_about_anybody(filled: Store) -> None:
    known = filled.callers.callers_generation()
    with filled.writing() as connection:
        connection.execute(counters.update().values(value=counters.c.value + 5))
    assert scope_since(filled, known) is None
    filled.callers.update_user(make_id("bob"), NOW, active=False)
    assert scope_since(filled, known) is None
    assert scope_since(filled, known + 5) == Scope(frozenset({make_id("bob")}))
    with filled.writing() as connection:
        raise_generation(connection, Scope(frozenset(make_id(f"user {number}") for number in range(MAX_IN_SCOPE + 1))))
    assert scope_since(filled, known + 5) is None


def test_more_changes_than_a_cache_asks_for_were_about_anybody(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    known = filled.callers.callers_generation()
    users = frozenset(make_id(f"user {number}") for number in range(4))
    with filled.writing() as connection:
        raise_generation(connection, Scope(users))
    assert scope_since(filled, known) == Scope(users)
    monkeypatch.setattr(module, "_MAX_ROWS", 3)  # one row is left then, of a change that was seen
    assert scope_since(filled, known) is None
