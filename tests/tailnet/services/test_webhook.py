"""The webhook against a real receiver: signed, in order, until taken; slow, dead, refusing and gone receivers.

The clock of the tests stands still; `jump` passes a pause or a deadline.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.config import WebhookTarget
from tailnet.services import webhook as module
from tailnet.services.events import Events
from tailnet.services.webhook import LOOK_SECONDS, MAX_TRIES, GivenUp, Outcome, Webhook
from tailnet.signatures import sign
from tailnet.store.outbox import Outbox
from tailnet.store.retention import Retention
from tailnet.store.rows import EventType
from tailnet.store.store import Store
from tailnet.transport.fetch import Poster
from tailnet.types import PeerID
from tests.support.receivers import Receiver, answer
from tests.support.seeds import NOW, fill, peer_id
from tests.support.sites import Message

pytestmark = pytest.mark.stores

MAIN, GPU = peer_id("main"), peer_id("gpu")
SECRETS = (b"n" * 32, b"o" * 32)


class World:
    """A webhook whose turns the test takes."""

    def __init__(self, store: Store, receiver: Receiver, clock: MockClock) -> None:
        self.store = store
        self.receiver = receiver
        self.clock = clock
        self.now = NOW
        self.outbox = Outbox(store)
        self.events = Events(store, self.outbox, is_on=True, clock=lambda: self.now)
        self.webhook = self.make("one")

    def make(self, server_id: str) -> Webhook:
        target = WebhookTarget(self.receiver.url, SECRETS)
        return Webhook(self.store, self.events, target, server_id, clock=lambda: self.now, jitter=lambda: 1.0)

    async def happened(self, agent_id: PeerID = MAIN, kind: EventType = EventType.CONNECTED, **details: Any) -> None:
        self.events.note(agent_id, kind, details)
        await self.outbox.flush()

    async def turn(self, webhook: Webhook | None = None) -> float:
        return await (webhook or self.webhook).take_turn()

    def ids(self) -> list[str]:
        return [message.headers["webhook-id"] for message in self.receiver.messages]

    def told(self) -> list[Any]:
        """Agent and number of each message."""
        found = [json.loads(message.body)["data"] for message in self.receiver.messages]
        return [(each["agent_name"], each["n"]) for each in found]


@pytest.fixture
async def world(store: Store, nursery: trio.Nursery, mock_clock: MockClock) -> AsyncIterator[World]:
    receiver = Receiver()
    await nursery.start(receiver.serve)
    fill(store)
    made = World(store, receiver, mock_clock)
    async with open_webhook(made.webhook):
        await made.turn()  # it begins with what comes next
        yield made


@asynccontextmanager
async def open_webhook(webhook: Webhook) -> AsyncIterator[Webhook]:
    async with Poster(timeout_seconds=10.0, max_connections=8) as webhook._poster:
        yield webhook


def of_agent(name: str) -> Callable[[Message], bool]:
    return lambda message: bool(json.loads(message.body)["data"]["agent_name"] == name)


async def test_what_is_told_and_how_it_is_signed(world: World, mock_clock: MockClock) -> None:
    await world.happened(MAIN, EventType.APP_HEALTH, health="healthy")
    world.now += timedelta(seconds=2.5)
    assert await world.turn() == LOOK_SECONDS
    [message] = world.receiver.messages
    body = json.loads(message.body)
    assert (body["type"], body["timestamp"]) == ("agent.app_health", "2026-01-02T03:04:05.678901Z")
    assert (body["data"]["agent_id"], body["data"]["agent_name"]) == (str(MAIN), "main")
    assert body["data"]["health"] == "healthy"
    [event] = world.store.events.page(0).events
    headers = message.headers
    assert (headers["webhook-id"], headers["content-type"]) == (str(event.id), "application/json")
    timestamp = int(headers["webhook-timestamp"])
    assert timestamp == int(world.now.timestamp())
    assert headers["webhook-signature"] == sign(SECRETS, str(event.id), timestamp, message.body)
    assert message.path == "/hook"
    await world.turn()
    assert len(world.receiver.messages) == 1, "what is taken is not told again"


async def test_many_agents_each_in_order(world: World, mock_clock: MockClock) -> None:
    for number in range(60):
        await world.happened((MAIN, GPU, peer_id("web"))[number % 3], n=number)
    while len(world.receiver.messages) < 60:
        await world.turn()
    told = world.told()
    assert sorted(number for _, number in told) == list(range(60))
    for name in ("main", "gpu", "web"):
        mine = [number for agent, number in told if agent == name]
        assert mine == sorted(mine)
    assert world.receiver.connections <= 8


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (answer(500), Outcome.REFUSED),
        (answer(404), Outcome.REFUSED),
        (answer(302, "Location: /elsewhere"), Outcome.REFUSED),
        (b"", Outcome.UNREACHABLE),
        (b"what?\r\n\r\n", Outcome.UNREACHABLE),
    ],
)
async def test_a_receiver_that_fails_is_tried_with_one_event_and_growing_pauses(
    world: World, response: bytes, outcome: Outcome, mock_clock: MockClock
) -> None:
    world.receiver.respond = lambda message: response
    for number in range(5):
        await world.happened((MAIN, GPU)[number % 2], n=number)
    pause = await world.turn()
    first = len(world.receiver.messages)
    assert 1 <= first <= 2  # those that were on their way at once
    assert 1.0 <= pause <= 2.0
    assert 0 < await world.turn() <= pause, "it rests"
    assert len(world.receiver.messages) == first
    pauses = []
    for _ in range(10):
        world.clock.jump(pause)
        pause = await world.turn()
        pauses.append(pause)
    assert len(world.receiver.messages) == first + 10
    assert pauses == sorted(pauses)
    assert pauses[-1] == 300.0
    assert world.webhook.outcomes == {outcome: first + 10}
    world.now += timedelta(seconds=100)
    await world.turn()
    assert (world.webhook.waiting_count, world.webhook.oldest_seconds, dict(world.webhook.given_up)) == (5, 100.0, {})
    # It comes back: all is told, nothing was lost.
    world.receiver.messages.clear()
    world.receiver.respond = lambda message: answer(200)
    world.clock.jump(pause)
    while world.webhook.outcomes[Outcome.TAKEN] < 5:
        world.clock.jump(await world.turn())
    assert sorted(number for _, number in world.told()) == list(range(5))
    assert world.webhook.waiting_count == 0
    assert all(message.path == "/hook" for message in world.receiver.messages), "nobody followed a redirect"


async def test_a_receiver_that_never_answers(world: World, nursery: trio.Nursery, mock_clock: MockClock) -> None:
    world.receiver.respond = lambda message: None
    await world.happened(n=1)
    pauses: list[float] = []

    async def turn() -> None:
        pauses.append(await world.turn())

    nursery.start_soon(turn)
    await world.receiver.wait_messages(1)
    world.clock.jump(10.1)
    while not pauses:
        await wait_all_tasks_blocked()
    assert world.webhook.outcomes == {Outcome.UNREACHABLE: 1}
    assert pauses[0] == 1.0


async def test_a_dead_receiver(world: World, store: Store, mock_clock: MockClock) -> None:
    world.webhook.target = WebhookTarget("http://127.0.0.1:9/hook", SECRETS)
    await world.happened(n=1)
    assert await world.turn() == 1.0
    assert world.webhook.outcomes == {Outcome.UNREACHABLE: 1}


async def test_what_it_asks_to_wait_is_waited(world: World, mock_clock: MockClock) -> None:
    world.receiver.respond = lambda message: answer(429, "Retry-After: 77")
    await world.happened(n=1)
    assert await world.turn() == 77.0
    world.clock.jump(77.0)
    world.receiver.respond = lambda message: answer(503, "Retry-After: 99999999")
    assert await world.turn() == 300.0


async def test_one_event_that_is_refused_holds_up_its_agent_alone_and_is_given_up(
    world: World, mock_clock: MockClock
) -> None:
    is_main = of_agent("main")
    world.receiver.respond = lambda message: answer(500 if is_main(message) and b'"n":0' in message.body else 204)
    await world.happened(MAIN, n=0)
    await world.happened(MAIN, n=1)
    for number in range(20):
        await world.happened(GPU, n=number)
    while world.webhook.outcomes[Outcome.TAKEN] < 20:
        world.clock.jump(await world.turn())
    assert not world.webhook.given_up
    assert ("main", 1) not in world.told(), "its agent's next one comes behind it"
    while not world.webhook.given_up:
        world.clock.jump(await world.turn())
    assert world.told().count(("main", 0)) == MAX_TRIES
    assert world.webhook.given_up == {GivenUp.REFUSED: 1}
    while world.webhook.waiting_count:
        world.clock.jump(await world.turn())
    assert ("main", 1) in world.told()
    assert len(set(world.ids())) == 22


async def test_a_receiver_that_wants_no_more(world: World, mock_clock: MockClock) -> None:
    world.receiver.respond = lambda message: answer(410)
    await world.happened(n=1)
    await world.turn()
    assert world.webhook.is_gone
    world.clock.jump(10_000)
    await world.turn()
    assert len(world.receiver.messages) == 1
    world.receiver.respond = lambda message: answer(204)
    world.webhook.retarget(replace(world.webhook.target or WebhookTarget("", ()), secrets=SECRETS[:1]))
    await world.turn()
    assert (world.webhook.is_gone, world.webhook.outcomes[Outcome.TAKEN]) == (False, 1)
    first, second = world.receiver.messages
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert (len(first.headers["webhook-signature"].split()), len(second.headers["webhook-signature"].split())) == (2, 1)


async def test_another_server_goes_on_where_this_one_ended(world: World, mock_clock: MockClock) -> None:
    await world.happened(n=1)
    await world.turn()
    world.receiver.respond = lambda message: answer(500)
    await world.happened(n=2)
    await world.turn()
    world.receiver.respond = lambda message: answer(204)
    world.receiver.messages.clear()
    async with open_webhook(world.make("two")) as other:
        assert await world.turn(other) == LOOK_SECONDS
        assert not world.receiver.messages, "one delivers at a time"
        await world.webhook.finish()
        await world.turn(other)
        assert world.told() == [("main", 2)]
        # The other one dies without a word; this one takes over when its time is up.
        await world.happened(n=3)
        world.clock.jump(LOOK_SECONDS)
        await world.turn()
        assert world.told() == [("main", 2)]
        world.now += module.HELD + timedelta(seconds=1)
        await world.turn()
        assert world.told() == [("main", 2), ("main", 3)]


async def test_events_that_are_kept_no_longer_are_counted(world: World, mock_clock: MockClock) -> None:
    world.receiver.respond = lambda message: answer(500)
    for number in range(5):
        await world.happened(n=number)
    pause = await world.turn()
    for step in world.store.retention.steps(Retention(max_events=2), world.now):
        while due := step.find():
            step.remove(due)
    world.receiver.respond = lambda message: answer(204)
    world.receiver.messages.clear()
    while world.webhook.waiting_count:
        world.clock.jump(pause)
        pause = await world.turn()
    assert world.told() == [("main", 3), ("main", 4)]
    assert world.webhook.given_up == {GivenUp.EXPIRED: 3}


async def test_more_than_one_look_at_the_store(
    world: World, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    monkeypatch.setattr(module, "BATCH_EVENTS", 3)
    for number in range(10):
        await world.happened(n=number)
    pauses = [await world.turn() for _ in range(5)]
    assert pauses == [0.0, 0.0, 0.0, LOOK_SECONDS, LOOK_SECONDS]
    assert world.told() == [("main", number) for number in range(10)]


async def test_nobody_is_told_without_a_target(store: Store, nursery: trio.Nursery, mock_clock: MockClock) -> None:
    receiver = Receiver()
    await nursery.start(receiver.serve)
    fill(store)
    world = World(store, receiver, mock_clock)
    world.webhook.target = None
    await world.happened(n=1)
    assert await world.turn() == LOOK_SECONDS
    assert not receiver.messages
