"""Who waits for a link: woken by a change, by nothing else, and bounded."""

from datetime import timedelta

import pytest
import trio

from tailnet.services import link_watch
from tailnet.services.link_watch import AGAIN_SECONDS, LinkWatch
from tailnet.store.store import Store
from tests.support.seeds import NOW, fill, make_id

ALICE, BOB = make_id("alice"), make_id("bob")


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    return store


async def test_a_look_wakes_those_whose_links_changed(filled: Store, nursery: trio.Nursery) -> None:
    watch = LinkWatch(filled)
    filled.credentials.put_link(BOB, "git", b"1", None, NOW)
    woken: list[str] = []

    async def wait(name: str, known: object) -> None:
        with watch.watching(make_id(name), "git") as watcher:
            await watcher.wait_changed(known)  # type: ignore[arg-type]  # a time or None
            woken.append(name)

    nursery.start_soon(wait, "alice", None)
    nursery.start_soon(wait, "bob", NOW)
    await trio.testing.wait_all_tasks_blocked()
    assert len(watch) == 2
    await watch.look()
    await trio.testing.wait_all_tasks_blocked()
    assert woken == []
    filled.credentials.put_link(ALICE, "git", b"1", None, NOW)
    await watch.look()
    await trio.testing.wait_all_tasks_blocked()
    assert woken == ["alice"]
    filled.credentials.delete_link(BOB, "git")
    await watch.look()
    await trio.testing.wait_all_tasks_blocked()
    assert woken == ["alice"], "what is there no more is nothing to come for"
    filled.credentials.put_link(BOB, "git", b"2", None, NOW + timedelta(seconds=1))
    await watch.look()
    await trio.testing.wait_all_tasks_blocked()
    assert woken == ["alice", "bob"]
    assert len(watch) == 0


async def test_what_was_seen_before_is_no_news(filled: Store) -> None:
    """Who comes later may have read a newer link than the last look saw."""
    watch = LinkWatch(filled)
    with watch.watching(ALICE, "git") as first, watch.watching(ALICE, "git") as second:
        assert first is second
        first.wake(NOW)
        with trio.move_on_after(0) as scope:
            await second.wait_changed(NOW + timedelta(seconds=1))
        assert scope.cancelled_caught
        with trio.fail_after(5):
            await first.wait_changed(None)


async def test_nobody_waits_for_ever(filled: Store, autojump_clock: trio.testing.MockClock) -> None:
    watch = LinkWatch(filled)
    began = trio.current_time()
    with watch.watching(ALICE, "git") as watcher:
        await watcher.wait_changed(None)
    assert trio.current_time() - began == AGAIN_SECONDS


async def test_bounds(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_watch, "MAX_WATCHERS_PER_LINK", 2)
    monkeypatch.setattr(link_watch, "MAX_WATCHERS", 3)
    watch = LinkWatch(filled)
    with watch.watching(ALICE, "git"), watch.watching(ALICE, "git"):
        with pytest.raises(trio.WouldBlock), watch.watching(ALICE, "git"):
            pass
        with watch.watching(BOB, "git"), pytest.raises(trio.WouldBlock), watch.watching(BOB, "other"):
            pass
        with watch.watching(BOB, "other"):
            assert len(watch) == 3
    assert len(watch) == 0


async def test_nothing_is_asked_while_nobody_waits(filled: Store, nursery: trio.Nursery) -> None:
    watch = LinkWatch(filled)
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1

    watch.look = look  # type: ignore[method-assign]  # counted
    nursery.start_soon(watch.run)
    await trio.testing.wait_all_tasks_blocked()
    assert looks == 0
    with watch.watching(ALICE, "git"):
        await trio.testing.wait_all_tasks_blocked()
        assert looks == 1
        watch.changed(BOB, "git")
        await trio.testing.wait_all_tasks_blocked()
        assert looks == 1
        watch.changed(ALICE, "git")
        await trio.testing.wait_all_tasks_blocked()
        assert looks == 2
