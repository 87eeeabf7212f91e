"""Batches of changes: what each wants to be true, what those before it mean for it, and what stays of a refusal."""

import json
from datetime import timedelta
from typing import Any

import pytest

from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration import operations
from tailnet.services.administration.resources import RESOURCES
from tailnet.services.administration.service import Administration, Match
from tailnet.store.administration.changes import Changes, count_dependents
from tailnet.store.administration.kinds import AGENT, USER
from tailnet.store.administration.values import Outcome, Result
from tailnet.store.rows import AppHealth, AppHealths
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.administration import ACTOR, ALICE, BOB, DEV, GPU, MAIN, SHOP, WEB, everything, patch, put
from tests.support.seeds import agent_token, defined_document, definitions, fill, make_id, peer_id


@pytest.fixture
def work(store: Store) -> Administration:
    fill(store, defined_document())
    return Administration(store)


def several(work: Administration, kind: str, *bodies: dict[str, Any]) -> list[Outcome]:
    """Bodies with ids, in one batch."""
    resource = RESOURCES[kind]
    wanted = []
    for body in bodies:
        fields = dict(body)
        ident = resource.parse_id(str(fields.pop("id")))
        wanted.append(resource.wanted(ident, resource.read(json.dumps(fields)))[0])
    with work.store.writing() as connection:
        changes = Changes(work.store.database, connection, ACTOR, work.clock())
        outcomes = changes.put(resource.kind, wanted)
        changes.finish()
    return outcomes


def told(outcomes: list[Outcome]) -> list[object]:
    return [each.result.value if each.error is None else each.error.fault for each in outcomes]


def refused(work: Administration, kind: str, ident: object, **fields: Any) -> AdministrationError:
    """A PUT that is refused, and of which nothing stays."""
    before = everything(work.store)
    with pytest.raises(AdministrationError) as caught:
        put(work, kind, ident, **fields)
    assert everything(work.store) == before
    return caught.value


def test_one_that_is_wrong_takes_no_other_with_it(work: Administration) -> None:
    outcomes = several(
        work,
        "user",
        {"id": make_id("carol"), "username": "carol"},
        {"id": make_id("dave"), "username": "alice"},
        {"id": ALICE, "username": "alice"},
        {"id": make_id("erin"), "username": "erin"},
    )
    assert told(outcomes) == ["created", Fault.CONFLICT, "unchanged", "created"]
    assert work.store.callers.find_user("erin") is not None
    assert work.store.callers.get_user(make_id("dave")) is None


def test_a_name_that_one_gives_up_another_takes(work: Administration) -> None:
    outcomes = several(
        work,
        "user",
        {"id": ALICE, "username": "alicia"},
        {"id": make_id("carol"), "username": "alice"},
        {"id": BOB, "username": "alicia"},
    )
    assert told(outcomes) == ["changed", "created", Fault.CONFLICT]
    found = work.store.callers.find_user("alice")
    assert found is not None
    assert found.id == make_id("carol")


def test_the_same_id_twice_sees_the_first(work: Administration) -> None:
    carol = make_id("carol")
    outcomes = several(
        work,
        "user",
        {"id": carol, "username": "carol"},
        {"id": carol, "username": "carol"},
        {"id": carol, "username": "caroline"},
    )
    assert told(outcomes) == ["created", "unchanged", "changed"]
    assert outcomes[0].etag == outcomes[1].etag != outcomes[2].etag


def test_a_sub_agent_after_its_parent(work: Administration) -> None:
    parent, child = make_id("parent"), make_id("child")
    common = {"workspace_id": str(DEV)}
    outcomes = several(
        work,
        "agent",
        {"id": child, "name": "early", "parent_id": str(parent), **common},
        {"id": parent, "name": "parent", **common},
        {"id": child, "name": "child", "parent_id": str(parent), **common},
        {"id": make_id("astray"), "name": "astray", "parent_id": str(parent), "workspace_id": str(SHOP)},
    )
    assert told(outcomes) == [Fault.INVALID, "created", "created", Fault.INVALID]
    assert [each.name for each in work.store.callers.list_sub_agents(PeerID(parent.bytes))] == ["child"]


def test_what_is_referred_to_has_to_be_there(work: Administration) -> None:
    error = refused(work, "workspace", make_id("lab"), owner_id=str(make_id("nobody")), name="lab")
    assert error.fault is Fault.INVALID
    assert error.problems == (("owner_id", f"there is no user {make_id('nobody')}"),)
    assert refused(work, "token", "aaaaaaaaaa", user_id=str(make_id("x"))).problems[0][0] == "user_id"
    assert (
        refused(work, "agent", make_id("x"), name="x", workspace_id=str(make_id("x"))).problems[0][0] == "workspace_id"
    )
    assert refused(work, "app", make_id("x"), slug="x", agent_id=str(make_id("x"))).problems[0][0] == "agent_id"


def test_a_token_is_of_one_agent(work: Administration) -> None:
    error = refused(work, "agent", make_id("x"), name="x", workspace_id=str(DEV), token=agent_token("web"))
    assert (error.fault, error.problems) == (Fault.CONFLICT, (("token", f"is that of agent {WEB}"),))
    # Also one that is good for a while yet.
    work.do(ACTOR, operations.rotate_agent(peer_id("web"), timedelta(hours=1)))
    assert (
        refused(work, "agent", GPU, name="gpu", workspace_id=str(DEV), token=agent_token("web")).fault is Fault.CONFLICT
    )


def test_what_is_made_with_stays(work: Administration) -> None:
    put(work, "agent", make_id("child"), name="child", workspace_id=str(DEV), parent_id=str(MAIN))
    for parent in (None, str(GPU)):
        error = refused(work, "agent", make_id("child"), name="child", workspace_id=str(DEV), parent_id=parent)
        assert error.problems[0][0] == "parent_id"
    put(work, "token", "aaaaaaaaaa", user_id=str(ALICE))
    assert refused(work, "token", "aaaaaaaaaa", user_id=str(BOB)).problems[0][0] == "user_id"


def test_an_agent_with_sub_agents_does_not_move(work: Administration) -> None:
    put(work, "agent", make_id("child"), name="child", workspace_id=str(DEV), parent_id=str(MAIN))
    assert refused(work, "agent", MAIN, name="main", workspace_id=str(SHOP)).fault is Fault.CONFLICT
    assert put(work, "agent", GPU, name="gpu", workspace_id=str(SHOP)).status == 200
    assert work.store.callers.agent_identities([peer_id("gpu")])[peer_id("gpu")].workspace_id == SHOP


def test_preconditions(work: Administration) -> None:
    user = RESOURCES["user"]
    body = user.read('{"username": "carol"}')
    carol = make_id("carol")

    def attempt(match: Match) -> Result | Fault:
        try:
            return {201: Result.CREATED, 200: Result.UNCHANGED}[
                work.do(ACTOR, operations.put(user, carol, body, match)).status
            ]
        except AdministrationError as error:
            return error.fault

    assert attempt(Match(must_exist=True)) is Fault.STALE
    assert attempt(Match(frozenset({"x"}))) is Fault.STALE
    assert attempt(Match(must_be_new=True)) is Result.CREATED
    assert attempt(Match(must_be_new=True)) is Fault.STALE
    etag = work.get(user, carol)[1]
    assert attempt(Match(frozenset({"x", etag}))) is Result.UNCHANGED
    with pytest.raises(AdministrationError) as caught:
        work.do(ACTOR, operations.delete(user, carol, Match(frozenset({"x"}))))
    assert caught.value.fault is Fault.STALE
    assert work.do(ACTOR, operations.delete(user, carol, Match(frozenset({etag})))).status == 204


def test_lists_of_an_agent_are_whole_lists(work: Administration) -> None:
    of_main = definitions()
    body = {"name": "main", "workspace_id": str(DEV)}
    assert put(work, "agent", MAIN, **body).status == 200
    assert len(work.store.apps.definitions(peer_id("main")).apps) == 2, "what is not named stays"
    put(work, "agent", MAIN, **body, apps=of_main["apps"][:1], metadata=[])
    found = work.store.apps.definitions(peer_id("main"))
    assert (len(found.apps), len(found.scripts), len(found.metadata)) == (1, 2, 0)
    row = work.store.audit.page({"kind": "agent"}, None, 1)[0]
    assert row["after"] == {"apps": "replaced", "metadata": "replaced"}
    assert told(several(work, "agent", {"id": MAIN, **body, "apps": of_main["apps"][:1]})) == ["unchanged"]
    outcomes = several(
        work,
        "agent",
        {"id": GPU, "name": "gpu", "workspace_id": str(DEV), "apps": of_main["apps"][:1]},
        {"id": GPU, "name": "gpu", "workspace_id": str(DEV), "scripts": [definitions("gpu")["scripts"][0]] * 2},
        {"id": GPU, "name": "gpu", "workspace_id": str(DEV), "apps": definitions("gpu")["apps"]},
    )
    assert told(outcomes) == [Fault.CONFLICT, Fault.CONFLICT, "changed"]


def test_an_app_by_itself(work: Administration) -> None:
    check = {"url": "http://localhost/healthz", "interval": 5, "threshold": 3}
    ident = make_id("an app")
    answer = put(work, "app", ident, agent_id=str(MAIN), slug="new", healthcheck=check)
    assert answer.body is not None
    assert (answer.body["position"], answer.body["health"]) == (2, "initializing")
    work.store.apps.update_app_healths([AppHealths(peer_id("main"), {ident: AppHealth.HEALTHY})])
    changed = patch(work, "app", ident, display_name="New", healthcheck={"threshold": 3})
    assert changed.body is not None
    assert (changed.body["health"], changed.body["healthcheck"]) == ("healthy", check)
    asked_otherwise = patch(work, "app", ident, healthcheck={"interval": 9})
    assert asked_otherwise.body is not None
    assert (asked_otherwise.body["health"], asked_otherwise.body["display_name"]) == ("initializing", "New")
    assert refused(work, "app", ident, agent_id=str(MAIN), slug="editor").fault is Fault.CONFLICT
    assert refused(work, "app", ident, agent_id=str(GPU), slug="new").problems[0][0] == "agent_id"
    no_rhythm = {"url": "http://localhost/"}
    error = refused(work, "app", ident, agent_id=str(MAIN), slug="new", healthcheck=no_rhythm)
    assert error.problems == (("healthcheck.interval", "wants the seconds between two checks"),)


def test_an_agent_has_a_bound_of_definitions(work: Administration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailnet.store.administration.changes.MAX_ITEMS", 3)
    put(work, "script", make_id("third"), agent_id=str(MAIN))
    assert "at most 3 scripts" in refused(work, "script", make_id("fourth"), agent_id=str(MAIN)).detail
    monkeypatch.setattr("tailnet.store.administration.changes.MAX_DEFINITION_BYTES", 2_000)
    assert refused(work, "script", make_id("third"), agent_id=str(MAIN), script="x" * 2_000).fault is Fault.TOO_LARGE


def test_a_change_of_callers_is_told_and_no_other(work: Administration) -> None:
    def generation() -> int:
        return work.store.callers.callers_generation()

    before = generation()
    put(work, "user", ALICE, username="alice")
    put(work, "app", make_id("an app"), agent_id=str(MAIN), slug="new")
    assert generation() == before
    put(work, "user", ALICE, username="alice", active=False)
    assert generation() > before
    before = generation()
    work.do(ACTOR, operations.delete(RESOURCES["agent"], peer_id("gpu")))
    assert generation() > before


def test_deleting_takes_all_that_belongs_to_it(work: Administration) -> None:
    with work.store.reading() as connection:
        assert count_dependents(connection, USER, ALICE) == {"tokens": 1, "workspaces": 1}
        assert count_dependents(connection, AGENT, peer_id("main")) == {"apps": 2, "scripts": 2}
    work.do(ACTOR, operations.delete(RESOURCES["user"], ALICE))
    assert work.store.callers.get_agent(peer_id("main")) is None
    row = work.store.audit.page({}, None, 1)[0]
    assert (row["action"], row["before"]) == (
        "delete",
        {"username": "alice", "active": True, "role": "user", "tokens": 1, "workspaces": 1},
    )
    with pytest.raises(AdministrationError) as caught:
        work.do(ACTOR, operations.delete(RESOURCES["user"], ALICE))
    assert caught.value.fault is Fault.NOT_FOUND


def test_another_token_or_machine_ends_what_was_issued(work: Administration) -> None:
    main = peer_id("main")
    for change in ({"token": str(make_id("new"))}, {"instance_id": "i-0123"}):
        work.store.issued.issue_agent_token(main, make_id(repr(change)).bytes * 2, work.clock())
        patch(work, "agent", MAIN, directory=f"/{len(repr(change))}")
        assert work.store.issued.count_issued(main) == 1
        patch(work, "agent", MAIN, **change)
        assert work.store.issued.count_issued(main) == 0


def test_a_user_has_a_bound_of_grants(work: Administration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailnet.store.administration.changes.MAX_GRANTS_PER_USER", 2)
    workspaces = [make_id(f"workspace {number}") for number in range(3)]
    several(work, "workspace", *[{"id": each, "owner_id": str(ALICE), "name": "x"} for each in workspaces])
    bodies = [{"workspace_id": str(each), "user_id": str(BOB), "rights": ["ssh"]} for each in workspaces]
    grants = [{"id": f"{each}:{BOB}", **body} for each, body in zip(workspaces, bodies, strict=True)]
    assert told(several(work, "grant", *grants)) == ["created", "created", Fault.CONFLICT]
    assert told(several(work, "grant", {**grants[0], "rights": ["read"]}, grants[2])) == ["changed", Fault.CONFLICT]
    wrong = {**grants[2], "id": grants[0]["id"]}
    with pytest.raises(AdministrationError, match="another id"):
        several(work, "grant", wrong)
