"""GET /api/v2/admin/events: closed by default, pages, waits, and what is refused."""

import httpx
import pytest

from tailnet.config import CoordinatorConfig
from tailnet.store.rows import EventType, Role
from tailnet.store.store import Store
from tests.support.api_world import World, make_world
from tests.support.seeds import NOW, make_id, peer_id, user_token

PATH = "/api/v2/admin/events"
MAIN = peer_id("main")


@pytest.fixture
def world(store: Store) -> World:
    made = make_world(store, CoordinatorConfig(events=True))
    store.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN)
    return made


async def get(world: World, query: str = "", token: str = user_token("alice")) -> httpx.Response:
    async with world.client(token=token) as client:
        return await client.get(f"{PATH}{query}")


async def happened(world: World, count: int) -> None:
    for number in range(count):
        world.services.events.note(MAIN, EventType.STATS, {"n": number})
    await world.outbox.flush()


async def test_pages_from_the_first_event_on(world: World) -> None:
    assert (await get(world)).json() == {"events": [], "next": 0, "missed": False}
    await happened(world, 5)
    first = (await get(world, "?after=0&limit=3")).json()
    assert [event["data"]["n"] for event in first["events"]] == [0, 1, 2]
    event, stored = first["events"][0], world.store.events.page(0).events[0]
    assert (event["id"], event["type"], event["timestamp"]) == (
        str(stored.id),
        "agent.stats",
        "2026-01-02T03:04:05.678901Z",
    )
    assert event["data"]["agent_name"] == "main"
    rest = (await get(world, f"?after={first['next']}")).json()
    assert [event["data"]["n"] for event in rest["events"]] == [3, 4]
    assert (await get(world, f"?after={rest['next']}&wait=0")).json() == {**rest, "events": []}


async def test_from_now_on(world: World) -> None:
    await happened(world, 2)
    begun = (await get(world, "?after=now")).json()
    assert begun["events"] == []
    await happened(world, 1)
    assert len((await get(world, f"?after={begun['next']}")).json()["events"]) == 1


async def test_one_that_was_away_for_too_long_is_told(world: World) -> None:
    await happened(world, 5)
    numbers = [event.number for event in world.store.events.page(0).events]
    world.store.retention.remove_events(numbers[:3])
    for after, missed in ((numbers[0], True), (numbers[2], False), (numbers[3], False)):
        assert (await get(world, f"?after={after}")).json()["missed"] is missed


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?after=-1", "after"),
        ("?after=x", "after"),
        ("?after=9223372036854775808", "after"),
        ("?limit=0", "limit"),
        ("?limit=201", "limit"),
        ("?wait=51", "wait"),
        ("?wait=1.5", "wait"),
    ],
)
async def test_what_is_refused(world: World, query: str, field: str) -> None:
    response = await get(world, query)
    assert response.status_code == 400
    assert [each["field"] for each in response.json()["validations"]] == [field]


async def test_who_may_ask(world: World, store: Store) -> None:
    for token, status in (("", 401), (user_token("bob"), 403), (user_token("alice"), 200)):
        assert (await get(world, token=token)).status_code == status
    closed = make_world(store)
    store.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN)
    response = await get(closed)
    assert (response.status_code, response.json()["message"]) == (404, "This server keeps no events.")
