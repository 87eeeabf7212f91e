"""Which agents run on an instance, and tokens beside an agent's own: as good, bounded, and gone with it."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tailnet.store.importing import import_seed
from tailnet.store.issued import MAX_INSTANCE_AGENTS, MAX_ISSUED_TOKENS
from tailnet.store.seed import parse_seed
from tailnet.store.store import Store
from tailnet.tokens import agent_token_digest
from tests.support.administration import revoke_issued, set_instance
from tests.support.seeds import NOW, AgentSpec, fill, make_id, peer_id, seed_document

MAIN = peer_id("main")


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    set_instance(store, "main", "i-1")
    return store


def issue(store: Store, name: str = "main", after_seconds: float = 0) -> UUID:
    token = uuid4()
    at = NOW + timedelta(seconds=after_seconds)
    assert store.issued.issue_agent_token(peer_id(name), agent_token_digest(token), at)
    return token


def is_good(store: Store, token: UUID) -> bool:
    return store.get_agent_by_token(token) is not None


def document(**changes: Any) -> Any:
    made: Any = seed_document()
    made["agents"][0] |= changes
    return made


def test_agents_of_an_instance(filled: Store) -> None:
    assert [each.id for each in filled.issued.agents_of_instance("i-1")] == [MAIN]
    assert filled.issued.agents_of_instance("i-2") == filled.issued.agents_of_instance("") == []
    row = filled.callers.get_agent(MAIN)
    assert row is not None
    assert row.instance_id == "i-1"


def test_the_newest_stands_first_and_sub_agents_have_their_own(filled: Store) -> None:
    newer = seed_document((AgentSpec("zz", "dev", "alice"),))
    newer["agents"][0]["instance_id"] = "i-1"
    later = NOW + timedelta(days=1)
    import_seed(filled, parse_seed(json.dumps({"users": [], "agents": newer["agents"]})), later)
    child = peer_id("child")
    assert filled.callers.add_sub_agent(MAIN, child, agent_token_digest(uuid4()), "child", later)
    set_instance(filled, "child", "i-1")
    assert [each.name for each in filled.issued.agents_of_instance("i-1")] == ["zz", "main"]


def test_an_issued_token_is_as_good_as_the_own_one(filled: Store) -> None:
    token = issue(filled)
    digest = agent_token_digest(token)
    own = filled.callers.agent_identities([MAIN])[MAIN]
    assert filled.get_agent_by_token(token) == own
    assert filled.callers.read_callers(-1, [digest], {})[2][digest] == own
    assert filled.callers.read_all_callers(100)[1][digest] == own
    assert not filled.issued.issue_agent_token(peer_id("nobody"), agent_token_digest(uuid4()), NOW)


def test_issued_tokens_count_among_what_is_preloaded(filled: Store) -> None:
    everybody = len(filled.callers.read_all_callers(100)[1]) - 3  # three agents are there by their ids too
    assert filled.callers.read_all_callers(everybody)[1]
    issue(filled)
    assert not filled.callers.read_all_callers(everybody)[1]
    assert filled.callers.read_all_callers(everybody + 1)[1]


def test_the_oldest_are_pushed_out(filled: Store) -> None:
    before = filled.callers.callers_generation()
    tokens = [issue(filled, after_seconds=number) for number in range(MAX_ISSUED_TOKENS)]
    assert filled.callers.callers_generation() == before, "nobody has to forget what nobody knew"
    other = issue(filled, "gpu")
    tokens += [issue(filled, after_seconds=number) for number in (100, 101)]
    assert [is_good(filled, token) for token in tokens] == [False, False] + [True] * MAX_ISSUED_TOKENS
    assert is_good(filled, other)
    assert filled.issued.count_issued(MAIN) == MAX_ISSUED_TOKENS
    assert filled.callers.callers_generation() > before


@pytest.mark.parametrize("end", ["deleted", "workspace", "revoked", "new token", "another instance", "no instance"])
def test_ends(filled: Store, end: str) -> None:
    token, other = issue(filled), issue(filled, "web")
    before = filled.callers.callers_generation()
    match end:
        case "deleted":
            filled.callers.delete_agent(MAIN)
        case "workspace":
            filled.callers.delete_workspace(make_id("dev"))
        case "revoked":
            assert revoke_issued(filled, "main") == 1
            assert revoke_issued(filled, "main") == 0
        case "new token":
            fill(filled, document(token=str(uuid4())))
        case "another instance":
            fill(filled, document(instance_id="i-2"))
        case "no instance":
            set_instance(filled, "main", "")
    assert not is_good(filled, token)
    assert is_good(filled, other)
    assert filled.callers.callers_generation() > before, "caches hear of it"


@pytest.mark.parametrize("said", [{}, {"instance_id": "i-1"}, {"name": "renamed"}])
def test_what_does_not_touch_it_ends_nothing(filled: Store, said: dict[str, str]) -> None:
    token = issue(filled)
    fill(filled, document(**said))
    set_instance(filled, "main", "i-1")
    assert is_good(filled, token)
    row = filled.callers.get_agent(MAIN)
    assert row is not None
    assert row.instance_id == "i-1", "a seed that does not say it leaves it"


def test_a_crowded_instance_is_cut(filled: Store) -> None:
    crowd = seed_document(tuple(AgentSpec(f"a{number}", "dev", "alice") for number in range(MAX_INSTANCE_AGENTS + 1)))
    for agent in crowd["agents"]:
        agent["instance_id"] = "i-9"
    fill(filled, crowd)
    assert len(filled.issued.agents_of_instance("i-9")) == MAX_INSTANCE_AGENTS
