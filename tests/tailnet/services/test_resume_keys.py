"""Keys of resume tokens: the same for every process of a store, and those of before when it fails."""

import logging
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from tailnet.auth.store_callers import StoreCallers
from tailnet.coordinator.resume import ResumeKey, ResumeTokenRefused, ResumeTokens
from tailnet.errors import StoreError
from tailnet.services.resume_keys import PURPOSE, ResumeKeys
from tailnet.store.callers import raise_generation
from tailnet.store.keys import LEAD_TIME, REFRESH_SECONDS, ROTATE_AFTER, add_key
from tailnet.store.schema import signing_keys
from tailnet.store.store import Store
from tests.support.seeds import peer_id
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.stores

MAIN = peer_id("main")
ALICE = "whom the token is for"


async def test_a_token_is_good_at_every_process_of_the_store(store: Store, store_url: str) -> None:
    mine = ResumeKeys(store)
    await mine.refresh()
    token = mine.current.issue(MAIN, ALICE, 1000.0).token
    other_store = Store.open(store_url)
    other = ResumeKeys(other_store)
    await other.refresh()
    assert other.current.verify(token, ALICE, 1001.0) == MAIN
    other_store.close()


async def test_a_token_of_another_store_is_refused(store: Store, tmp_path: Path) -> None:
    mine = ResumeKeys(store)
    await mine.refresh()
    other_store = Store.open(f"sqlite:///{tmp_path / 'other.db'}")
    other = ResumeKeys(other_store)
    await other.refresh()
    other_store.close()
    with pytest.raises(ResumeTokenRefused):
        mine.current.verify(other.current.issue(MAIN, ALICE, 1000.0).token, ALICE, 1001.0)


async def test_keys_stay_when_the_store_fails_and_are_read_again_later(
    store: Store,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run_here(function: Callable[..., object], *arguments: object) -> object:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(store, "run", run_here)  # the clock does not wait for threads
    keys = ResumeKeys(store)
    await keys.refresh()
    before = keys.current
    real = store.keys.signing_keys
    asked = 0

    def failing(*arguments: object) -> object:
        nonlocal asked
        asked += 1
        if asked <= 2:
            raise StoreError("the disk is on fire")
        return real(*arguments)  # type: ignore[arg-type]

    store.keys.signing_keys = failing  # type: ignore[method-assign, assignment]  # a disk that fails twice
    with caplog.at_level(logging.ERROR), trio.move_on_after(1.01 * REFRESH_SECONDS):
        await keys.refresh_forever()
    assert keys.current is before
    assert "on fire" in caplog.text
    asked = 0
    caplog.clear()
    # What was revoked meanwhile is not good until the next read is due.
    with trio.move_on_after(1.5 * REFRESH_SECONDS):
        await keys.refresh_forever()
    assert keys.current is not before
    assert (asked, caplog.text.count("on fire")) == (3, 1), "told of once"
    assert keys.current.verify(before.issue(MAIN, ALICE, 5.0).token, ALICE, 6.0) == MAIN


async def test_a_start_rotates_nothing(store: Store) -> None:
    """A store that takes no writes would hold it up for as long as it needs to say so."""
    long_ago = datetime.now(UTC) - ROTATE_AFTER - timedelta(days=1)
    [old] = await store.run(store.keys.signing_keys, PURPOSE, long_ago, secrets.token_bytes)
    keys = ResumeKeys(store)
    await keys.start()
    assert store.keys.stored_keys(PURPOSE) == [old]
    assert keys.current.verify(ResumeTokens(ResumeKey(old.id, old.secret)).issue(MAIN, ALICE, 5.0).token, ALICE, 6.0)
    await keys.refresh()
    assert len(store.keys.stored_keys(PURPOSE)) == 2
    # Where there is none, the first one is made.
    with store.writing() as connection:
        connection.execute(signing_keys.delete())
    await keys.start()
    assert len(store.keys.stored_keys(PURPOSE)) == 1


async def test_no_token_is_refused_by_another_replica_while_keys_rotate(store: Store) -> None:
    """Each reads the keys each ten minutes, the second one just before the first: so it knows a new one last."""
    now = began = datetime.now(UTC)
    replicas = [ResumeKeys(store, clock=lambda: now) for _ in range(2)]
    for each in replicas:
        await each.start()
    signed: list[set[str]] = [set(), set()]
    minute, reads_at = timedelta(minutes=1), [began + ROTATE_AFTER - timedelta(minutes=10 + late) for late in (0, 1)]
    now = reads_at[1]
    while now < began + ROTATE_AFTER + 3 * LEAD_TIME:
        for at, each in enumerate(replicas):
            if now >= reads_at[at]:
                reads_at[at] += timedelta(seconds=REFRESH_SECONDS)
                await each.refresh()
        for at, (one, other) in enumerate((replicas, replicas[::-1])):
            token = one.current.issue(MAIN, ALICE, now.timestamp()).token
            assert other.current.verify(token, ALICE, now.timestamp()) == MAIN, f"{now - began} after the first key"
            signed[at].add(token.partition(".")[0])
        now += minute
    # Both have rotated meanwhile, each from the one key to the other.
    assert signed[0] == signed[1]
    assert len(signed[0]) == 2


async def test_what_an_administrator_changes_is_followed_at_once(store: Store, nursery: trio.Nursery) -> None:
    callers = StoreCallers(store)
    keys = ResumeKeys(store, callers)
    await keys.start()
    nursery.start_soon(callers.run)
    nursery.start_soon(keys.refresh_forever)
    before = keys.current
    with store.writing() as connection:
        add_key(connection, PURPOSE, datetime.now(UTC), secrets.token_bytes)
        raise_generation(connection)
    await wait_for(lambda: keys.current is not before)
    assert keys.current.verify(before.issue(MAIN, ALICE, 5.0).token, ALICE, 6.0) == MAIN
