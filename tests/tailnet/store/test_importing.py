"""Imports write only what differs, all of it or nothing."""

import json
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from tailnet.errors import SeedError
from tailnet.store import importing
from tailnet.store.importing import SeedOutcome, Tally, import_seed
from tailnet.store.rows import Right, Role
from tailnet.store.schema import metadata
from tailnet.store.seed import parse_seed
from tailnet.store.store import Store
from tailnet.tokens import parse_user_token
from tests.support.seeds import NOW, AgentSpec, agent_token, came, fill, make_id, peer_id, seed_document, user_token

NEVER_CHANGING = {"agent_stats", "agent_metadata", "agent_log_sources", "agent_logs", "signing_keys", "kept_maps"}


def dump(store: Store) -> dict[str, list[Any]]:
    with store.reading() as connection:
        return {
            name: sorted(map(tuple, connection.execute(sa.select(table))), key=repr)
            for name, table in metadata.tables.items()
        }


def refused(store: Store, document: object) -> list[str]:
    with pytest.raises(SeedError) as caught:
        fill(store, document)
    return list(caught.value.problems)


def test_importing_twice_changes_nothing(store: Store) -> None:
    assert fill(store) == SeedOutcome(Tally(2, 0, 0), Tally(2, 0, 0), Tally(3, 0, 0))
    before = dump(store)
    assert fill(store) == SeedOutcome(Tally(0, 0, 2), Tally(0, 0, 2), Tally(0, 0, 3))
    assert dump(store) == before


def test_tokens_are_stored_as_digests_only(store: Store) -> None:
    fill(store)
    text = repr(dump(store))
    assert user_token("alice") not in text
    assert user_token("alice")[11:] not in text
    assert agent_token("main") not in text


def test_what_a_second_file_changes(store: Store) -> None:
    fill(store)
    generation = store.callers.callers_generation()
    document = seed_document()
    document["agents"][0]["token"] = str(make_id("new token"))
    document["users"][1]["token"] = user_token("robert")
    for agent in document["agents"][:2]:
        agent["workspace_name"] = "renamed"
    assert fill(store, document) == SeedOutcome(Tally(0, 1, 1), Tally(0, 1, 1), Tally(0, 1, 2))
    assert store.callers.callers_generation() > generation
    assert store.get_agent_by_token(UUID(agent_token("main"))) is None
    found = store.get_agent_by_token(make_id("new token"))
    assert found is not None
    assert (found.id, found.workspace_name) == (peer_id("main"), "renamed")
    old, new = parse_user_token(user_token("bob")).id, parse_user_token(user_token("robert")).id
    assert store.callers.user_tokens([old, new]).keys() == {new}


def test_roles_and_grants_come_with_a_seed(store: Store) -> None:
    document: Any = seed_document()
    document["users"][0]["role"] = "auditor"
    grant = {"workspace_id": str(make_id("dev")), "user_id": str(make_id("bob")), "rights": ["ssh"]}
    document["grants"] = [grant]
    outcome = fill(store, document)
    assert (outcome.users, outcome.grants) == (Tally(2, 0, 0), Tally(1, 0, 0))
    assert store.callers.get_user(make_id("alice")).role is Role.AUDITOR  # type: ignore[union-attr]
    assert store.callers.get_user(make_id("bob")).grants == {  # type: ignore[union-attr]
        make_id("dev"): {Right.READ, Right.SSH}
    }
    generation = store.callers.callers_generation()
    assert not fill(store, document).changed_anything
    assert not fill(store, seed_document()).changed_anything  # what a file does not name stays
    assert store.callers.callers_generation() == generation
    document["users"][0]["role"], grant["rights"] = "user", ["read"]
    outcome = fill(store, document)
    assert (outcome.users, outcome.grants) == (Tally(0, 1, 1), Tally(0, 1, 0))
    assert store.callers.get_user(make_id("alice")).role is Role.USER  # type: ignore[union-attr]
    assert store.callers.get_user(make_id("bob")).grants == {make_id("dev"): {Right.READ}}  # type: ignore[union-attr]
    grant["rights"] = []
    assert fill(store, document).grants == Tally(0, 1, 0)
    assert store.callers.get_user(make_id("bob")).grants == {}  # type: ignore[union-attr]
    assert fill(store, document).grants == Tally(0, 0, 1)
    assert store.callers.callers_generation() > generation


@pytest.mark.parametrize(("key", "what"), [("user_id", "user"), ("workspace_id", "workspace")])
def test_grants_to_nobody_and_on_nothing(store: Store, key: str, what: str) -> None:
    fill(store)
    before = dump(store)
    grant = {"workspace_id": str(make_id("dev")), "user_id": str(make_id("bob")), "rights": ["ssh"]}
    [line] = refused(store, {"grants": [grant | {key: str(make_id("x"))}]})
    assert line.startswith(f"seed: grants[0].{key}: {make_id('x')} is no {what}, neither")
    assert dump(store) == before


def test_grants_have_a_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)
    monkeypatch.setattr(importing, "MAX_GRANTS_PER_USER", 0)
    grant = {"workspace_id": str(make_id("dev")), "user_id": str(make_id("bob")), "rights": ["ssh"]}
    [line] = refused(store, {"grants": [grant]})
    assert "would have 1 grants, at most 0" in line
    assert store.callers.get_user(make_id("bob")).grants == {}  # type: ignore[union-attr]


def test_a_token_whose_secret_changed_under_the_same_id(store: Store) -> None:
    fill(store)
    document = seed_document()
    document["users"][0]["token"] = user_token("alice")[:11] + "z" * 22
    assert fill(store, document).users == Tally(0, 1, 1)
    presented = parse_user_token(document["users"][0]["token"])
    assert store.callers.user_tokens([presented.id])[presented.id].secret_digest == presented.secret_digest


def test_what_a_file_does_not_name_stays(store: Store) -> None:
    fill(store)
    store.callers.add_user_token(make_id("alice"), "abcdefghij", b"\0" * 32, NOW)
    came(store, peer_id("main"), NOW)
    more = seed_document((AgentSpec("new", "lab", "alice"),))
    assert fill(store, more) == SeedOutcome(Tally(0, 0, 1), Tally(1, 0, 0), Tally(1, 0, 0))
    assert store.callers.user_tokens(["abcdefghij"])
    assert store.get_agent_by_token(UUID(agent_token("web"))) is not None
    main = store.callers.get_agent(peer_id("main"))
    assert main is not None
    assert main.first_connected_at == NOW


def test_agents_of_owners_that_are_in_the_store_already(store: Store) -> None:
    fill(store)
    document = seed_document((AgentSpec("new", "lab", "alice"),))
    document["users"] = []
    assert fill(store, document).agents == Tally(1, 0, 0)


def test_users_exchange_their_names_and_tokens(store: Store) -> None:
    fill(store)
    document = seed_document()
    alice, bob = document["users"]
    alice["username"], bob["username"] = bob["username"], alice["username"]
    alice["token"], bob["token"] = bob["token"], alice["token"]
    assert fill(store, document).users == Tally(0, 2, 0)
    assert store.callers.user_tokens([user_token("alice")[:10]])[user_token("alice")[:10]].user.id == make_id("bob")
    user = store.callers.get_user(make_id("alice"))
    assert user is not None
    assert user.username == "bob"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"owner_id": str(make_id("stranger"))}, "is no user, neither in this file nor in the store"),
        ({"token": agent_token("main")}, f"belongs to agent {peer_id('main')} in the store"),
    ],
)
def test_agents_that_clash_with_the_store(store: Store, change: dict[str, str], reason: str) -> None:
    fill(store)
    before = dump(store)
    document = seed_document((AgentSpec("new", "lab", "alice"),))
    document["agents"][0].update(change)
    [line] = refused(store, document)
    assert line == f"seed: agents[0].{next(iter(change))}: " + (
        f"{make_id('stranger')} {reason}" if "owner_id" in change else reason
    )
    assert agent_token("main") not in line
    assert dump(store) == before


@pytest.mark.parametrize(("key", "value"), [("username", "alice"), ("token", user_token("alice"))])
def test_users_that_clash_with_the_store(store: Store, key: str, value: str) -> None:
    fill(store)
    before = dump(store)
    document = seed_document((AgentSpec("new", "lab", "carol"),))
    document["users"][0][key] = value
    assert refused(store, document) == [f"seed: users[0].{key}: belongs to user {make_id('alice')} in the store"]
    assert dump(store) == before


def test_a_large_seed_is_one_transaction(store: Store) -> None:
    agents = tuple(AgentSpec(f"a{number}", f"w{number}", f"u{number % 10}") for number in range(2_500))
    document = seed_document(agents)
    begun = []
    sa.event.listen(store.database._writers, "commit", lambda _: begun.append(1))
    outcome = import_seed(store, parse_seed(json.dumps(document)), NOW)
    assert outcome == SeedOutcome(Tally(10, 0, 0), Tally(2_500, 0, 0), Tally(2_500, 0, 0))
    assert begun == [1]
    assert fill(store, document).agents == Tally(0, 0, 2_500)
