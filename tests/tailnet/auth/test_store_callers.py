"""Callers from a real store: every refusal, storms in few queries, changes seen within a second, a store that fails."""

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import pytest
import sqlalchemy as sa
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet import refusals
from tailnet.auth import store_callers
from tailnet.auth.callers import CHECK_SECONDS, STALE_SECONDS, Credential, at_once, user_of_agent_route
from tailnet.auth.recent import RecentAnswers
from tailnet.auth.store_callers import StoreCallers
from tailnet.errors import AdministrationError, StoreError, StoreTrouble
from tailnet.refusals import Refused
from tailnet.services.administration import operations
from tailnet.services.administration.resources import RESOURCES
from tailnet.services.administration.service import Administration
from tailnet.store.rows import AgentIdentity, Right, UserIdentity, WorkspaceStatus
from tailnet.store.schema import counters, users
from tailnet.store.sqlite import MAX_READERS
from tailnet.store.store import Store
from tailnet.tokens import agent_token_digest, parse_user_token
from tailnet.types import PeerID
from tests.support.administration import ACTOR, grant, patch, put
from tests.support.seeds import NOW, AgentSpec, agent_token, fill, make_id, peer_id, seed_document, user_token

pytestmark = pytest.mark.stores


class Wall:
    """A wall clock that tests set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def callers(store: Store, wall: Wall) -> StoreCallers:
    fill(store)
    return StoreCallers(store, wall)


@pytest.fixture
def queries(store: Store) -> list[str]:
    """Every SELECT that the store runs from here on."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT"):
            seen.append(statement)

    sa.event.listen(store.database._readers, "before_cursor_execute", note)
    return seen


async def refusal(ask: Callable[[str], object], token: str) -> Refused:
    with pytest.raises(Refused) as caught:
        await ask(token)  # type: ignore[misc]  # any awaitable
    return caught.value


def same(one: Refused, other: Refused) -> bool:
    return (one.status, one.message, one.detail) == (other.status, other.message, other.detail)


async def test_agents_and_users(callers: StoreCallers) -> None:
    assert (await callers.agent(agent_token("main"))).id == peer_id("main")
    assert (await callers.user(user_token("bob"))).username == "bob"
    found = await callers.find_agent(peer_id("web"))
    assert found is not None
    assert found.owner_name == "bob"
    assert await callers.find_agent(peer_id("nobody")) is None


async def test_agents_that_are_refused(callers: StoreCallers) -> None:
    assert same(await refusal(callers.agent, ""), refusals.agent_token_missing())
    assert same(await refusal(callers.agent, "abc"), refusals.agent_token_malformed(3))
    assert same(await refusal(callers.agent, str(make_id("x"))), refusals.agent_unknown())


async def test_users_that_are_refused(
    store: Store, callers: StoreCallers, wall: Wall, autojump_clock: MockClock
) -> None:
    alice = user_token("alice")
    assert same(await refusal(callers.user, ""), refusals.user_token_missing())
    assert same(await refusal(callers.user, "hunter2"), refusals.user_token_malformed())
    assert same(await refusal(callers.user, "0123456789-0123456789012345678901"), refusals.user_token_unknown())
    assert same(await refusal(callers.user, alice[:-1] + "z"), refusals.user_secret_wrong())
    presented = parse_user_token("expiring00-0123456789012345678901")
    expiry = NOW + timedelta(hours=1)
    store.callers.add_user_token(make_id("alice"), presented.id, presented.secret_digest, NOW, expiry)
    token = "expiring00-0123456789012345678901"
    wall.now = expiry - timedelta(microseconds=1)
    await trio.sleep(CHECK_SECONDS)
    assert (await callers.user(token)).username == "alice"
    wall.now = expiry
    assert same(await refusal(callers.user, token), refusals.user_token_expired("2026-01-02T04:04:05.678901+00:00"))


async def test_agent_routes_give_one_answer_for_every_unusable_key(callers: StoreCallers) -> None:
    for token in ("", "hunter2", user_token("alice")[:-1] + "z"):
        assert same(await refusal(partial(user_of_agent_route, callers), token), refusals.key_or_proxy_missing())
    assert (await user_of_agent_route(callers, user_token("alice"))).username == "alice"


async def test_tokens_of_one_kind_are_none_of_the_other(callers: StoreCallers) -> None:
    assert (await refusal(callers.agent, user_token("alice"))).status == 401
    assert (await refusal(callers.user, agent_token("main"))).status == 401


async def test_seeded_tokens_of_any_form(store: Store, callers: StoreCallers) -> None:
    document = seed_document()
    document["users"][0]["token"] = "a-token-of-another-make"
    fill(store, document)
    assert (await callers.user("a-token-of-another-make")).username == "alice"


async def test_a_storm_of_reconnects_is_a_few_queries(store: Store, callers: StoreCallers, queries: list[str]) -> None:
    names = [f"agent{number}" for number in range(1_000)]
    fill(store, seed_document(tuple(AgentSpec(name, name, "alice") for name in names)))
    queries.clear()
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(callers.agent, agent_token(name))
    # The first one goes alone, all the others together; a query of the generation goes with each.
    assert len(queries) <= 4
    queries.clear()
    for name in names:
        await callers.agent(agent_token(name))
    assert len(queries) <= 2


async def test_strangers_do_not_reach_the_store_twice(callers: StoreCallers, queries: list[str]) -> None:
    await refusal(callers.agent, str(make_id("x")))
    queries.clear()
    await refusal(callers.agent, str(make_id("x")))
    assert queries == []


async def test_strangers_do_not_push_out_callers(callers: StoreCallers, queries: list[str]) -> None:
    callers._recent = RecentAnswers(max_found=2, max_unknown=2)
    await callers.agent(agent_token("main"))
    for number in range(10):
        await refusal(callers.agent, str(make_id(f"stranger {number}")))
    queries.clear()
    await callers.agent(agent_token("main"))
    assert queries == []


async def test_a_full_cache_still_answers_the_whole_batch(callers: StoreCallers) -> None:
    callers._recent = RecentAnswers(max_found=1)
    found: list[str] = []

    async def ask(name: str) -> None:
        found.append((await callers.agent(agent_token(name))).name)

    async with trio.open_nursery() as nursery:
        for name in ("main", "gpu", "web"):
            nursery.start_soon(ask, name)
    assert sorted(found) == ["gpu", "main", "web"]


async def test_changes_are_seen_within_a_second(store: Store, callers: StoreCallers, autojump_clock: MockClock) -> None:
    await callers.user(user_token("alice"))
    await refusal(callers.agent, agent_token("late"))
    # As another process would do it: nobody tells this one.
    store.callers.update_user(make_id("alice"), NOW, active=False)
    fill(store, seed_document((AgentSpec("late", "dev2", "bob"),)))
    await trio.sleep(CHECK_SECONDS)
    assert same(await refusal(callers.user, user_token("alice")), refusals.user_not_active())
    assert (await callers.agent(agent_token("late"))).id == peer_id("late")


async def test_a_change_of_others_turns_nobody_away_for_a_moment(store: Store, callers: StoreCallers) -> None:
    """Whoever is answered from memory while a change is seen, which empties the memory, is answered all the same."""
    await callers.user(user_token("alice"))
    users: list[UserIdentity] = []

    async def ask() -> None:
        users.append(await callers.user(user_token("alice")))

    async def see_a_change() -> None:
        callers._recent.clear()

    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for task in (ask, see_a_change, ask, see_a_change):
                nursery.start_soon(task)
        await callers.user(user_token("alice"))
    assert len(users) == 40


async def test_a_moved_agent_is_seen_by_id_too(store: Store, callers: StoreCallers, autojump_clock: MockClock) -> None:
    before = await callers.find_agent(peer_id("main"))
    document = seed_document((AgentSpec("main", "dev", "bob"), AgentSpec("gpu", "dev", "bob")))
    fill(store, document)
    await trio.sleep(CHECK_SECONDS)
    after = await callers.find_agent(peer_id("main"))
    assert before is not None
    assert after is not None
    assert (before.owner_name, after.owner_name) == ("alice", "bob")


async def test_peeking_never_waits_and_never_believes_the_old(callers: StoreCallers, autojump_clock: MockClock) -> None:
    with pytest.raises(trio.WouldBlock):
        at_once(callers, callers.find_agent(peer_id("main")))
    await callers.find_agent(peer_id("main"))
    peeked = at_once(callers, callers.find_agent(peer_id("main")))
    assert peeked is not None
    assert peeked.name == "main"
    await trio.sleep(CHECK_SECONDS)
    with pytest.raises(trio.WouldBlock):
        at_once(callers, callers.find_agent(peer_id("main")))


async def until(condition: Callable[[], bool]) -> None:
    """Threads of the store come back in real time."""
    with trio.fail_after(10_000):  # in virtual time, which tests move
        while not condition():
            await wait_all_tasks_blocked(0.001)


async def test_who_comes_after_a_restart_finds_the_answer_at_hand(
    callers: StoreCallers, queries: list[str], nursery: trio.Nursery
) -> None:
    nursery.start_soon(callers.run)
    await until(lambda: callers.cached_count > 0)
    queries.clear()
    callers.no_wait = True
    assert (await callers.agent(agent_token("main"))).name == "main"
    assert (await callers.user(user_token("bob"))).username == "bob"
    assert queries == []
    with pytest.raises(trio.WouldBlock):
        await callers.agent(str(make_id("x")))


async def test_answers_stay_at_hand_for_as_long_as_somebody_asks(
    store: Store, callers: StoreCallers, queries: list[str], nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    nursery.start_soon(callers.run)
    await until(lambda: callers.cached_count > 0)
    callers.no_wait = True
    for _ in range(6):
        await callers.agent(agent_token("main"))
        mock_clock.jump(CHECK_SECONDS / 2)
        await until(lambda: callers._checked_at == trio.current_time())
    # Nobody asks any more, so nobody looks.
    queries.clear()
    for _ in range(6):
        mock_clock.jump(CHECK_SECONDS / 2)
        await wait_all_tasks_blocked(0.001)
    assert len(queries) <= 1
    with pytest.raises(trio.WouldBlock):
        await callers.agent(agent_token("main"))
    # What changes is seen no later than without it.
    callers.no_wait = False
    assert (await callers.user(user_token("alice"))).username == "alice"
    store.callers.update_user(make_id("alice"), NOW, active=False)
    mock_clock.jump(CHECK_SECONDS / 2)
    await until(lambda: callers._checked_at == trio.current_time())
    assert same(await refusal(callers.user, user_token("alice")), refusals.user_not_active())


async def test_a_store_with_too_many_is_read_as_they_come(
    callers: StoreCallers, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_callers, "MAX_PRELOADED", 1)
    nursery.start_soon(callers.run)
    await until(lambda: callers._generation != -1)
    assert callers.cached_count == 0
    assert (await callers.agent(agent_token("main"))).name == "main"


async def test_a_caller_that_gives_up_does_not_take_the_others_along(store: Store, callers: StoreCallers) -> None:
    answered = {name: trio.Event() for name in ("main", "gpu", "web")}
    first, second = threading.Event(), threading.Event()
    scope_of_gpu = trio.CancelScope()

    async def ask(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await callers.agent(agent_token(name))
            answered[name].set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            # Every thread of the store is busy, so the first caller waits for one; the others gather behind it.
            for _ in range(MAX_READERS):
                nursery.start_soon(store.run, first.wait)
            await wait_all_tasks_blocked()
            for name in answered:
                nursery.start_soon(ask, name, scope_of_gpu if name == "gpu" else trio.CancelScope())
                await wait_all_tasks_blocked()
            # The threads are busy again as soon as the first one is served: now gpu waits, for itself and for web.
            for _ in range(MAX_READERS):
                nursery.start_soon(store.run, second.wait)
            await wait_all_tasks_blocked()
            try:
                first.set()
                await answered["main"].wait()
                await wait_all_tasks_blocked()
                scope_of_gpu.cancel()
                await wait_all_tasks_blocked()
            finally:
                second.set()  # threads cannot be cancelled
            await answered["web"].wait()


async def test_a_store_that_fails(
    store: Store,
    callers: StoreCallers,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await callers.agent(agent_token("main"))
    with store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE counters RENAME TO lost")
    await trio.sleep(CHECK_SECONDS)
    # Who was known stays welcome for a while; who was not may come back, so the answer is not a permanent one.
    assert (await callers.agent(agent_token("main"))).name == "main"
    assert same(await refusal(callers.agent, agent_token("gpu")), refusals.store_unreachable())
    await trio.sleep(STALE_SECONDS)
    assert same(await refusal(callers.agent, agent_token("main")), refusals.store_unreachable())
    assert caplog.text.count("! callers") == 1
    with store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE lost RENAME TO counters")
    assert (await callers.agent(agent_token("gpu"))).name == "gpu"
    assert "the store answers again" in caplog.text


async def test_who_is_known_does_not_wait_for_a_store_that_is_away(
    store: Store, callers: StoreCallers, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may need ten seconds to say that it does not answer, each time."""
    await callers.agent(agent_token("main"))
    asked = 0

    def away() -> None:
        nonlocal asked
        asked += 1
        raise StoreError("gone", StoreTrouble.UNREACHABLE)

    monkeypatch.setattr(store.database.dialect, "look", away)
    for seconds in range(5):
        await trio.sleep(2 * CHECK_SECONDS)
        assert (await callers.agent(agent_token("main"))).name == "main"
        assert asked == 1, seconds  # `run` asks again, and nobody waits for that
        callers.no_wait = True
        assert (await callers.agent(agent_token("main"))).name == "main"
        callers.no_wait = False


def test_get_agent_by_token_and_the_cache_agree(store: Store) -> None:
    fill(store)
    identity = store.get_agent_by_token(UUID(agent_token("main")))

    async def ask() -> None:
        assert await StoreCallers(store).agent(agent_token("main")) == identity

    trio.run(ask)


# --- whom a change was about


EVERYBODY = ("alice", "bob")
AGENTS = ("main", "gpu", "web", "new", "sub")


def some_change(store: Store, luck: random.Random) -> None:
    """One of all that administration, agents and the control plane change, and what an older release does."""
    work = Administration(store)
    user, agent, workspace = luck.choice(EVERYBODY), luck.choice(AGENTS), luck.choice(("dev", "shop"))
    token = parse_user_token(user_token(user))
    identity = AgentIdentity(
        peer_id(agent), f"{agent}{luck.random()}", None, make_id(workspace), workspace, make_id(user), user
    )
    put_agent = partial(put, work, "agent", make_id(agent), name=agent, workspace_id=str(make_id(workspace)))

    def as_an_older_release() -> None:
        with store.writing() as connection:
            connection.execute(users.update().where(users.c.username == user).values(active=luck.random() < 0.5))
            connection.execute(counters.update().values(value=counters.c.value + 1 + luck.randrange(1000)))

    luck.choice(
        (
            lambda: store.callers.update_user(make_id(user), NOW, active=luck.random() < 0.8),
            lambda: patch(work, "user", make_id(user), role=luck.choice(("user", "admin"))),
            lambda: store.callers.delete_user_token(token.id),
            lambda: store.callers.add_user_token(make_id(user), token.id, token.secret_digest, NOW),
            lambda: work.do(ACTOR, operations.revoke_tokens(make_id(user))),
            lambda: work.do(ACTOR, operations.delete(RESOURCES["user"], make_id(user))),
            lambda: put(work, "user", make_id(user), username=user),
            lambda: put(work, "workspace", make_id(workspace), name=workspace, owner_id=str(make_id(user))),
            lambda: store.callers.set_workspace_status(make_id(workspace), luck.choice(tuple(WorkspaceStatus)), NOW),
            lambda: store.callers.delete_workspace(make_id(workspace)),
            lambda: put_agent(token=agent_token(agent)),
            lambda: put_agent(token=str(make_id(f"{luck.random()}"))),
            lambda: patch(work, "agent", make_id(agent), workspace_id=str(make_id(workspace))),
            lambda: store.callers.delete_agent(peer_id(agent)),
            lambda: store.callers.add_sub_agent(
                peer_id(agent), peer_id("sub"), agent_token_digest(agent_token("sub")), "sub", NOW
            ),
            lambda: store.callers.delete_sub_agent(peer_id(agent), peer_id("sub")),
            lambda: work.do(ACTOR, operations.delete(RESOURCES["agent"], peer_id(agent))),
            lambda: grant(store, workspace, user, *luck.choice(((), (Right.SSH,), (Right.READ,)))),
            lambda: store.issued.issue_agent_token(peer_id(agent), luck.randbytes(32), NOW),
            lambda: work.do(ACTOR, operations.revoke_issued_tokens(peer_id(agent))),
            lambda: store.outside.put_agent(identity, NOW),
            lambda: fill(store),
            as_an_older_release,
        )
    )()


@pytest.mark.parametrize("seed", range(3))
async def test_who_forgets_some_alone_knows_what_one_who_knew_nobody_would(store: Store, wall: Wall, seed: int) -> None:
    """And whoever lost a right is among those whom the change was about."""
    fill(store)
    luck, cache = random.Random(seed), StoreCallers(store, wall)
    asked: dict[Credential, list[PeerID]] = {agent_token_digest(agent_token(each)): [] for each in AGENTS}
    asked |= {parse_user_token(user_token(each)): [peer_id(one) for one in AGENTS] for each in EVERYBODY}
    before = await cache.standing(asked)
    kept = 0
    for _ in range(60):
        seen = cache.changes.count
        with suppress(AdministrationError, StoreError):
            some_change(store, luck)
        now = await cache.standing(asked)
        anew = await StoreCallers(store, wall).standing(asked)
        assert (now.callers, now.reached) == (anew.callers, anew.reached)
        scope = cache.changes.since(seen)
        kept += scope is not None and cache.changes.count > seen
        for credential, identity in before.callers.items():
            reached = [cache.remembered(each) for each in before.reached.get(credential, {})]
            lost_nothing = now.callers.get(credential) == identity and all(
                before.rights(credential, each) <= now.rights(credential, each) for each in asked[credential]
            )
            assert lost_nothing or scope is None or any(map(scope.concerns, (identity, *reached)))
        before = now
    assert kept > 10, "most changes are about somebody"


async def test_a_change_about_others_costs_no_question(callers: StoreCallers, store: Store, queries: list[str]) -> None:
    known = agent_token_digest(agent_token("main")), parse_user_token(user_token("alice"))
    await callers.standing(dict.fromkeys(known, ()))
    store.callers.update_user(make_id("bob"), NOW, active=False)
    queries.clear()
    standing = await callers.standing(dict.fromkeys(known, ()))
    assert standing.callers.keys() == set(known)
    assert [each for each in queries if "counters" not in each and "revocations" not in each] == []
    store.callers.update_user(make_id("alice"), NOW, active=False)
    assert (await callers.standing(dict.fromkeys(known, ()))).callers.keys() == {known[0]}
