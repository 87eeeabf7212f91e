"""Administration: one transaction for a change, its line in the account and its kept answer."""

import json

import pytest
import trio

from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration import operations
from tailnet.services.administration.idempotency import IdempotencyKey
from tailnet.services.administration.resources import RESOURCES
from tailnet.services.administration.service import Administration, Operation
from tailnet.store.administration.changes import Changes
from tailnet.store.store import Store
from tests.support.administration import ACTOR, ALICE, everything, put
from tests.support.seeds import fill, make_id

pytestmark = pytest.mark.stores
USER, TOKEN = RESOURCES["user"], RESOURCES["token"]


@pytest.fixture
def work(store: Store) -> Administration:
    fill(store)
    return Administration(store)


def a_token() -> Operation:
    return operations.create(TOKEN, TOKEN.read(json.dumps({"user_id": str(ALICE)})))


async def test_a_key_carries_out_once(work: Administration) -> None:
    first = await work.run(ACTOR, a_token(), IdempotencyKey("k", b"token", b"a"))
    before = everything(work.store)
    assert await work.run(ACTOR, a_token(), IdempotencyKey("k", b"token", b"a")) == first
    assert everything(work.store) == before
    with pytest.raises(AdministrationError) as caught:
        await work.run(ACTOR, a_token(), IdempotencyKey("k", b"token", b"b"))
    assert caught.value.fault is Fault.KEY_REUSED
    assert everything(work.store) == before
    assert await work.run(ACTOR, a_token(), IdempotencyKey("k", b"another token", b"a")) != first


async def test_at_the_same_moment_too(work: Administration) -> None:
    answers = []

    async def ask() -> None:
        answers.append(await work.run(ACTOR, a_token(), IdempotencyKey("k", b"token", b"a")))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert len({json.dumps(each.body) for each in answers}) == 1
    assert len(work.page(TOKEN, {"user_id": ALICE}).items) == 2


async def test_what_was_refused_may_be_asked_again_with_its_key(work: Administration) -> None:
    carol = make_id("carol")
    operation = operations.put(USER, carol, USER.read('{"username": "alice"}'))
    with pytest.raises(AdministrationError):
        await work.run(ACTOR, operation, IdempotencyKey("k", b"token", b"a"))
    put(work, "user", ALICE, username="alicia")
    assert (await work.run(ACTOR, operation, IdempotencyKey("k", b"token", b"a"))).status == 201


async def test_of_a_refused_change_nothing_stays(work: Administration) -> None:
    def half_way(changes: Changes) -> operations.Answer:
        operations.put(USER, make_id("carol"), USER.read('{"username": "carol"}'))(changes)
        return operations.put(USER, make_id("dave"), USER.read('{"username": "alice"}'))(changes)

    before = everything(work.store)
    for run in (lambda: work.run(ACTOR, half_way), lambda: trio.to_thread.run_sync(work.do, ACTOR, half_way)):
        with pytest.raises(AdministrationError):
            await run()
        assert everything(work.store) == before


async def test_one_that_is_refused_takes_no_other_with_it(work: Administration) -> None:
    """The store's writer carries out what waits in one transaction."""
    outcomes: dict[str, object] = {}

    async def make(username: str) -> None:
        operation = operations.create(USER, USER.read(json.dumps({"username": username})))
        try:
            outcomes[username] = (await work.run(ACTOR, operation)).status
        except AdministrationError as error:
            outcomes[username] = error.fault

    async with trio.open_nursery() as nursery:
        for name in ("carol", "alice", "dave"):
            nursery.start_soon(make, name)
    assert outcomes == {"carol": 201, "alice": Fault.CONFLICT, "dave": 201}


def test_one_and_many(work: Administration) -> None:
    shown, etag = work.get(USER, ALICE)
    assert shown["username"] == "alice"
    assert put(work, "user", ALICE, username="alice").etag == etag
    with pytest.raises(AdministrationError) as caught:
        work.get(USER, make_id("nobody"))
    assert caught.value.fault is Fault.NOT_FOUND
    page = work.page(USER, {}, None, 1)
    assert page.last == page.items[0]["id"]
    rest = work.page(USER, {}, USER.parse_id(page.last), 1)
    assert (len(rest.items), rest.last) == (1, "")


def test_the_account_in_pages(work: Administration) -> None:
    for name in ("carol", "dave", "erin"):
        put(work, "user", make_id(name), username=name)
    page = work.audit({"kind": "user"}, None, 2)
    assert [each["after"]["username"] for each in page.items] == ["erin", "dave"]
    rest = work.audit({"kind": "user"}, int(page.last), 2)
    assert ([each["after"]["username"] for each in rest.items], rest.last) == (["carol"], "")
