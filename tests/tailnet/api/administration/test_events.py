"""Events for whoever comes with a token of an administrator."""

from tailnet.services.events import Events
from tailnet.store.outbox import Outbox
from tailnet.store.rows import EventType
from tailnet.store.store import Store
from tests.support.administration import make_admin_world
from tests.support.seeds import NOW, fill, peer_id

PATH = "events"


async def test_events_with_a_token(store: Store) -> None:
    fill(store)
    world = make_admin_world(store)
    outbox = Outbox(store)
    world.services.events = Events(store, outbox, is_on=True, clock=lambda: NOW)
    world.services.events.note(peer_id("main"), EventType.READY)
    await outbox.flush()
    async with world.client() as client:
        answer = await client.get(PATH)
        assert [event["type"] for event in answer.json()["events"]] == ["agent.ready"]
        assert answer.json()["next"] == 1
        wrong = await client.get(f"{PATH}?limit=x")
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (400, "limit")
        world.services.events.is_on = False
        assert (await client.get(PATH)).status_code == 404
    async with world.client(token="") as client:
        assert (await client.get(PATH)).status_code == 401
