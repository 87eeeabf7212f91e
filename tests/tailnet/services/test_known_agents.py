"""Manifests for when the store is away: the last one that was read, not for ever, and not of too many agents."""

import pytest

from tailnet.auth.callers import STALE_SECONDS
from tailnet.errors import StoreError, StoreTrouble
from tailnet.services.known_agents import KnownAgents
from tailnet.store.store import Store
from tests.support.seeds import defined_document, fill, make_id, peer_id

MAIN, GPU, WEB = peer_id("main"), peer_id("gpu"), peer_id("web")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store, defined_document())
    return store


def take_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise StoreError("gone", StoreTrouble.UNREACHABLE)

    monkeypatch.setattr(store.database.dialect, "look", away)


async def test_who_was_known_within_ten_minutes_stays_known(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    known = KnownAgents(filled, clock=clock)
    before = await known.read(MAIN)
    assert before is not None
    assert (before.row.name, len(before.definitions.scripts)) == ("main", 2)
    take_away(filled, monkeypatch)
    clock.now += STALE_SECONDS
    assert await known.read(MAIN) is before
    with pytest.raises(StoreError):
        await known.read(GPU)
    clock.now += 1
    with pytest.raises(StoreError):
        await known.read(MAIN)


async def test_what_is_read_is_what_the_store_has_now(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownAgents(filled)
    await known.read(MAIN)
    filled.callers.delete_agent(MAIN)
    assert await known.read(MAIN) is None
    assert (known.last_known(MAIN), known.size) == (None, 0)
    take_away(filled, monkeypatch)
    with pytest.raises(StoreError):  # a deleted agent does not come back with the store's absence
        await known.read(MAIN)


async def test_what_an_agent_may_name(filled: Store) -> None:
    known = KnownAgents(filled)
    assert known.last_known(MAIN) is None
    await known.read(MAIN)
    main = known.last_known(MAIN)
    assert main is not None
    assert main.checked_apps() == {make_id("editor of main")}
    assert main.slugs() == {"editor", "shell"}


async def test_so_many_bytes_are_kept(filled: Store) -> None:
    known = KnownAgents(filled)
    for agent in (MAIN, GPU, WEB):
        await known.read(agent)
    small = KnownAgents(filled, max_bytes=known.size - 1)
    for agent in (GPU, WEB, MAIN):
        await small.read(agent)
    assert [small.last_known(agent) is not None for agent in (GPU, WEB, MAIN)] == [False, True, True]
    assert 0 < small.size < known.size
    for _ in range(3):
        await small.read(MAIN)  # the same again takes no more
    assert small.last_known(WEB) is not None
