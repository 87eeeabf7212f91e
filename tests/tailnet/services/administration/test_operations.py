"""Rotations and revocations: what is good afterwards, for how long, and what is refused."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration import operations
from tailnet.services.administration.resources import RESOURCES
from tailnet.services.administration.service import Administration, Match
from tailnet.services.resume_keys import PURPOSE
from tailnet.store.keys import LEAD_TIME
from tailnet.store.store import Store
from tailnet.tokens import parse_user_token
from tests.support.administration import ACTOR, ALICE, MAIN, put
from tests.support.seeds import agent_token, fill, peer_id, user_token

pytestmark = pytest.mark.stores
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MAIN_ID = peer_id("main")
HOUR = timedelta(hours=1)


@pytest.fixture
def work(store: Store) -> Administration:
    fill(store)
    return Administration(store, clock=lambda: NOW)


def fault(work: Administration, operation: operations.Operation) -> Fault:
    with pytest.raises(AdministrationError) as caught:
        work.do(ACTOR, operation)
    return caught.value.fault


def test_a_user_s_token_is_rotated(work: Administration) -> None:
    put(work, "token", "aaaaaaaaaa", user_id=str(ALICE), purpose="ci", expires_at="2026-03-31T12:00:00Z")
    work.clock = lambda: NOW + timedelta(days=10)
    answer = work.do(ACTOR, operations.rotate_token("aaaaaaaaaa", HOUR))
    assert answer.body is not None
    assert (answer.status, answer.body["purpose"], answer.body["user_id"]) == (201, "ci", str(ALICE))
    assert answer.body["expires_at"] == "2026-04-10T12:00:00Z", "it lives as long as the old one was to"
    presented = parse_user_token(answer.body["token"])
    found = work.store.callers.user_tokens([presented.id, "aaaaaaaaaa"])
    assert found[presented.id].secret_digest == presented.secret_digest
    assert found["aaaaaaaaaa"].expires_at == NOW + timedelta(days=10) + HOUR
    work.do(ACTOR, operations.rotate_token(presented.id))
    assert presented.id not in work.store.callers.user_tokens([presented.id])
    assert fault(work, operations.rotate_token("bbbbbbbbbb")) is Fault.NOT_FOUND
    assert fault(work, operations.rotate_token("aaaaaaaaaa", match=Match(frozenset({"x"})))) is Fault.STALE


def test_grace_never_makes_a_token_live_longer(work: Administration) -> None:
    put(work, "token", "aaaaaaaaaa", user_id=str(ALICE), expires_at="2026-03-01T12:30:00Z")
    work.do(ACTOR, operations.rotate_token("aaaaaaaaaa", HOUR))
    assert work.store.callers.user_tokens(["aaaaaaaaaa"])["aaaaaaaaaa"].expires_at == NOW + HOUR / 2


def test_an_agent_s_token_is_rotated(work: Administration) -> None:
    def good(token: str) -> bool:
        return work.store.get_agent_by_token(UUID(token)) is not None

    old = agent_token("main")
    first = work.do(ACTOR, operations.rotate_agent(MAIN_ID, HOUR)).body
    assert first is not None
    assert good(first["token"])
    assert good(old)
    assert not work.store.issued.find_expired(NOW + HOUR / 2)
    assert work.store.issued.find_expired(NOW + HOUR)
    before = work.store.callers.callers_generation()
    assert work.store.issued.remove_expired(NOW + HOUR) == 1
    assert not good(old)
    assert work.store.callers.callers_generation() > before
    second = work.do(ACTOR, operations.rotate_agent(MAIN_ID)).body
    assert second is not None
    assert (good(first["token"]), good(second["token"])) == (False, True)
    assert fault(work, operations.rotate_agent(peer_id("nobody"))) is Fault.NOT_FOUND


def test_all_tokens_of_a_user_are_revoked(work: Administration) -> None:
    put(work, "token", "aaaaaaaaaa", user_id=str(ALICE))
    answer = work.do(ACTOR, operations.revoke_tokens(ALICE))
    assert answer.body == {"revoked": 2}
    assert work.store.callers.user_tokens(["aaaaaaaaaa", user_token("alice")[:10]]) == {}
    assert len(work.store.callers.user_tokens([user_token("bob")[:10]])) == 1
    assert [each["action"] for each in work.store.audit.page({"kind": "token"}, None, 2)] == ["revoke", "revoke"]


def test_issued_tokens_are_revoked(work: Administration) -> None:
    work.store.issued.issue_agent_token(MAIN_ID, bytes(32), NOW)
    assert work.do(ACTOR, operations.revoke_issued_tokens(MAIN_ID)).body == {"revoked": 1}
    assert work.store.issued.count_issued(MAIN_ID) == 0
    assert fault(work, operations.revoke_issued_tokens(peer_id("nobody"))) is Fault.NOT_FOUND
    assert MAIN.bytes == bytes(MAIN_ID)


def test_keys(work: Administration) -> None:
    work.store.keys.signing_keys(PURPOSE, NOW, lambda length: bytes(length))
    work.store.keys.make_lasting_key("relay", NOW, lambda length: bytes(range(length)), 32)
    work.clock = lambda: NOW + HOUR
    made = work.do(ACTOR, operations.rotate_key(PURPOSE)).body
    assert made is not None
    assert [(each["purpose"], each["state"]) for each in work.list_keys()] == [
        ("relay", "lasting"),
        (PURPOSE, "next"),
        (PURPOSE, "signs"),
    ]
    work.clock = lambda: NOW + HOUR + LEAD_TIME
    assert [each["state"] for each in work.list_keys()] == ["lasting", "signs", "verifies"]
    relay, signs, verifies = (each["id"] for each in work.list_keys())
    assert signs == made["id"]
    assert fault(work, operations.revoke_key(relay)) is Fault.INVALID
    assert fault(work, operations.revoke_key("nothing")) is Fault.NOT_FOUND
    assert fault(work, operations.rotate_key("relay")) is Fault.INVALID
    work.do(ACTOR, operations.revoke_key(verifies))
    assert fault(work, operations.revoke_key(signs)) is Fault.CONFLICT
    assert [each.id for each in work.store.keys.stored_keys(PURPOSE)] == [signs]
    assert {PURPOSE} == set(operations.ROTATED)


def test_a_new_thing_has_an_id_that_nothing_has(work: Administration) -> None:
    user = RESOURCES["user"]
    first = work.do(ACTOR, operations.create(user, user.read('{"username": "carol"}')))
    assert first.status == 201
    grant = RESOURCES["grant"]
    body = grant.read(f'{{"workspace_id": "{make_dev()}", "user_id": "{ALICE}", "rights": ["ssh"]}}')
    assert work.do(ACTOR, operations.create(grant, body)).body["rights"] == ["read", "ssh"]  # type: ignore[index]  # it was made
    assert fault(work, operations.create(grant, body)) is Fault.STALE


def make_dev() -> UUID:
    from tests.support.administration import DEV

    return DEV
