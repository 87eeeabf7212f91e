"""Events in the store: their order, the names in them, and the reader that servers have together."""

from datetime import timedelta

from tailnet.store.rows import EventType, Happening
from tailnet.store.store import Store
from tests.support.seeds import NOW, fill, make_id, peer_id

MAIN, GONE = peer_id("main"), peer_id("deleted meanwhile")
SECOND = timedelta(seconds=1)


def happened(store: Store, count: int = 1) -> None:
    store.events.add(
        [Happening(MAIN, EventType.STATS, NOW + number * SECOND, {"n": number}) for number in range(count)]
    )


def test_what_is_kept_of_an_event(store: Store) -> None:
    fill(store)
    store.events.add(
        [Happening(MAIN, EventType.APP_HEALTH, NOW, {"health": "healthy"}), Happening(GONE, EventType.READY, NOW)]
    )
    first, second = store.events.page(0).events
    assert (first.type, first.at, first.number < second.number, first.id != second.id) == (
        "agent.app_health",
        NOW,
        True,
        True,
    )
    assert first.data == {
        "agent_id": str(MAIN),
        "agent_name": "main",
        "workspace_id": first.data["workspace_id"],
        "workspace_name": first.data["workspace_name"],
        "owner_id": str(make_id("alice")),
        "owner_name": "alice",
        "health": "healthy",
    }
    assert None not in first.data.values()
    assert (second.data["agent_id"], second.data["agent_name"]) == (str(GONE), None)


def test_pages(store: Store) -> None:
    assert store.events.page(0) == store.events.page(7)
    happened(store, 5)
    page = store.events.page(0, 3)
    assert [event.data["n"] for event in page.events] == [0, 1, 2]
    assert (page.oldest, page.newest) == (page.events[0].number, page.events[0].number + 4)
    rest = store.events.page(page.events[-1].number, 3)
    assert [event.data["n"] for event in rest.events] == [3, 4]
    assert store.events.page(rest.newest).events == []


def test_a_reader_belongs_to_one_server_at_a_time(store: Store) -> None:
    happened(store, 3)
    newest = store.events.page(0).newest
    soon, later = NOW + 10 * SECOND, NOW + 30 * SECOND
    assert store.events.hold_reader("webhook", "one", NOW, soon) == newest, "it begins with what comes next"
    assert store.events.hold_reader("webhook", "two", NOW, later) is None
    assert store.events.hold_reader("other", "two", NOW, later) == newest
    happened(store, 2)
    assert store.events.move_reader("webhook", "one", newest + 1, soon)
    assert not store.events.move_reader("webhook", "two", newest + 2, later)
    assert store.events.hold_reader("webhook", "one", NOW, soon) == newest + 1
    assert store.events.hold_reader("webhook", "two", soon + SECOND, later) == newest + 1
    assert not store.events.move_reader("webhook", "one", newest + 2, later)
    assert store.events.hold_reader("webhook", "one", soon + SECOND, later) is None
