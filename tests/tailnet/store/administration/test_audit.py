"""The account: what stands in it, that no secret does, and that nobody changes it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tailnet.errors import StoreError
from tailnet.services.administration.service import Administration
from tailnet.store.administration.audit import MAX_TEXT_CHARS, Account
from tailnet.store.schema import audit_log
from tailnet.store.store import Store
from tests.support.administration import ACTOR, ALICE, DEV, MAIN, patch, put
from tests.support.seeds import fill, make_id

SECRET = "hunter2hunter2"


@pytest.fixture
def work(store: Store) -> Administration:
    fill(store)
    return Administration(store)


def rows(work: Administration, **filters: Any) -> list[Any]:
    return work.store.audit.page(filters, None, 100)


def test_a_change_says_what_it_was_and_is(work: Administration) -> None:
    put(work, "user", make_id("carol"), username="carol")
    patch(work, "user", make_id("carol"), username="caroline", role="auditor")
    put(work, "user", make_id("carol"), username="caroline", role="auditor")  # changes nothing
    update, create = rows(work)
    assert (create["action"], create["before"], create["after"]) == (
        "create",
        None,
        {"username": "carol", "active": True, "role": "user"},
    )
    assert (update["action"], update["before"], update["after"]) == (
        "update",
        {"username": "carol", "role": "user"},
        {"username": "caroline", "role": "auditor"},
    )
    assert {(each["actor_kind"], each["actor"], each["kind"], each["target"]) for each in (create, update)} == {
        (ACTOR.kind, ACTOR.name, "user", str(make_id("carol")))
    }


def test_no_secret_stands_in_it(work: Administration) -> None:
    patch(work, "agent", MAIN, environment={"PASSWORD": SECRET}, token=str(make_id("new")))
    body = {"agent_id": str(MAIN), "script": f"export PASSWORD={SECRET}", "display_name": "x" * 200}
    put(work, "script", make_id("a script"), **body)
    app = {"agent_id": str(MAIN), "slug": "x", "command": f"login {SECRET}", "url": f"https://u:{SECRET}@host/"}
    put(work, "app", make_id("an app"), **app)
    put(work, "token", "aaaaaaaaaa", user_id=str(ALICE), token="aaaaaaaaaa-" + "b" * 22)
    text = repr(rows(work))
    assert SECRET not in text
    assert str(make_id("new")) not in text
    assert "b" * 22 not in text
    agent = rows(work, kind="agent")[0]
    assert agent["after"] == {"environment": ["PASSWORD"], "token": "replaced"}
    assert rows(work, kind="token")[0]["after"]["token"] == "set"
    assert rows(work, kind="script")[0]["after"]["definition"]["script"] == f"{len(body['script'])} characters"


def test_long_texts_are_told_by_their_length(work: Administration) -> None:
    put(work, "user", make_id("carol"), username="c" * (MAX_TEXT_CHARS))
    patch(work, "agent", MAIN, directory="/" + "d" * MAX_TEXT_CHARS)
    assert rows(work, kind="user")[0]["after"]["username"] == "c" * MAX_TEXT_CHARS
    assert rows(work, kind="agent")[0]["after"]["directory"] == f"{MAX_TEXT_CHARS + 1} characters"


def test_a_workspace_s_status_is_a_word(work: Administration) -> None:
    patch(work, "workspace", DEV, status="stopped")
    assert (rows(work)[0]["before"], rows(work)[0]["after"]) == ({"status": "running"}, {"status": "stopped"})


def test_nobody_changes_it(work: Administration) -> None:
    put(work, "user", make_id("carol"), username="carol")
    for statement in (audit_log.update().values(actor="nobody"), audit_log.delete()):
        with pytest.raises(StoreError, match="append-only"), work.store.writing() as connection:
            connection.execute(statement)
    assert rows(work)[0]["actor"] == ACTOR.name


def test_what_is_old_may_go(work: Administration) -> None:
    now = datetime.now(UTC)
    with work.store.writing() as connection:
        for days in (400, 31, 29):
            account = Account(ACTOR, now - timedelta(days=days))
            account.note("create", "user", days)
            account.write(connection)
    due = work.store.audit.due(now - timedelta(days=30))
    assert work.store.audit.remove(due) == 2
    assert [each["target"] for each in rows(work)] == ["29"]


def test_pages_and_filters(work: Administration) -> None:
    for name in ("carol", "dave", "erin"):
        put(work, "user", make_id(name), username=name)
    patch(work, "workspace", DEV, name="other")
    newest = work.store.audit.page({}, None, 3)
    assert [each["kind"] for each in newest] == ["workspace", "user", "user"]
    assert [each["after"]["username"] for each in work.store.audit.page({}, newest[-1]["id"], 3)] == ["carol"]
    assert len(rows(work, kind="user", action="create")) == 3
    assert rows(work, target=str(make_id("dave")))[0]["after"]["username"] == "dave"
    assert rows(work, actor="nobody") == []
    assert rows(work, until=datetime.now(UTC) - timedelta(hours=1)) == []
    assert len(rows(work, since=datetime.now(UTC) - timedelta(hours=1))) == 4


def test_it_and_its_change_are_one_transaction(work: Administration) -> None:
    def fail_at_the_end() -> None:
        with work.store.writing() as connection:
            account = Account(ACTOR, datetime.now(UTC))
            account.note("create", "user", "x")
            account.write(connection)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_the_end()
    with work.store.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(audit_log)).scalar_one() == 0
