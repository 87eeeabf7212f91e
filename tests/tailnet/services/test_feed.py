"""Feeds: the newest value, the newest of each key, every event once; who is dropped, and that nobody else minds."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.services.feed import DropReason, Event, Feed, FollowerDropped, newest_only


def values(events: Sequence[Event[Any]]) -> list[Any]:
    return [event.value for event in events]


async def test_the_value_of_now_and_then_the_newest() -> None:
    feed = Feed[str](key=newest_only)
    feed.publish("a")
    with feed.follow() as follower:
        assert values(await anext(follower)) == ["a"]
        feed.publish("b")
        feed.publish("c")
        assert values(await anext(follower)) == ["c"], "what was in between is of no use"
        with trio.move_on_after(0) as patience:
            await anext(follower)
        assert patience.cancelled_caught, "each is given once"
        feed.publish("d")
        assert values(await anext(follower)) == ["d"], "a wait that was given up loses nothing"


async def test_a_follower_waits_for_the_first_value() -> None:
    feed, seen = Feed[str](key=newest_only), list[str]()

    async def follow() -> None:
        with feed.follow() as follower:
            seen.extend(values(await anext(follower)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        assert (seen, feed.newest, feed.counts.followers) == ([], None, 1)
        feed.publish("a")
    assert (seen, feed.counts.followers) == (["a"], 0)


async def test_of_each_key_the_newest_in_the_order_of_change() -> None:
    feed = Feed[tuple[str, int]](kept=10, key=lambda pair: pair[0])
    for pair in (("cpu", 1), ("disk", 1), ("cpu", 2)):
        feed.publish(pair)
    with feed.follow() as follower:
        events = await anext(follower)
        assert [(event.id, event.value) for event in events] == [(2, ("disk", 1)), (3, ("cpu", 2))]
        feed.publish(("disk", 2))
        feed.publish(("disk", 3))
        assert values(await anext(follower)) == [("disk", 3)]


async def test_who_comes_back_gets_what_it_missed_once_and_in_order() -> None:
    feed = Feed[str](kept=100)
    with feed.follow() as follower:
        for line in "abc":
            feed.publish(line)
        seen = list(await anext(follower))
    feed.publish("d")
    with feed.follow(after=seen[-1].id) as follower:
        seen += await anext(follower)
        feed.publish("e")
        seen += await anext(follower)
    assert values(seen) == list("abcde")
    assert [event.id for event in seen] == [1, 2, 3, 4, 5]


async def test_ids_of_the_store_outlive_a_restart() -> None:
    """A feed that begins anew knows nothing of what a client saw before: with the store's ids it need not."""
    feed = Feed[str](kept=100)
    with feed.follow(after=41) as follower:
        feed.publish("seen already", event_id=41)
        feed.publish("new", event_id=57)
        assert values(await anext(follower)) == ["new"]


@pytest.mark.parametrize("key", [None, lambda value: value], ids=["events", "keys"])
async def test_who_falls_behind_is_dropped_alone(key: Any) -> None:
    feed = Feed[int](kept=3, key=key)
    with feed.follow() as quick:

        async def fall_behind() -> None:
            with feed.follow() as slow:
                for number in range(4):
                    feed.publish(number)
                    assert values(await anext(quick)) == [number]
                await anext(slow)

        with pytest.raises(FollowerDropped, match="no longer kept") as dropped:
            await fall_behind()
        assert dropped.value.reason is DropReason.BEHIND
        assert feed.counts.followers == 1
        feed.publish(4)
        assert values(await anext(quick)) == [4]
    assert dict(feed.counts.dropped) == {DropReason.BEHIND: 1}
    # One that asks for what is gone cannot be served; one that comes anew begins with what there is.
    with pytest.raises(FollowerDropped), feed.follow(after=1) as late:
        await anext(late)
    with feed.follow() as late:
        assert values(await anext(late)) == [2, 3, 4]


async def test_a_closed_feed_tells_what_it_has_and_ends() -> None:
    feed = Feed[str](kept=10)
    told: list[list[str]] = []

    async def follow() -> None:
        with feed.follow() as follower:
            told.append([value async for events in follower for value in values(events)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        feed.publish("last words")
        feed.close("canceled")
        feed.close("again")
        nursery.start_soon(follow)
    assert told == [["last words"]] * 2
    assert feed.closed_because == "canceled"


async def test_a_reader_that_does_not_take_its_message_is_dropped(autojump_clock: MockClock) -> None:
    feed = Feed[str](patience_seconds=10.0)
    feed.publish("a")

    async def send() -> None:
        with feed.follow() as follower:
            async for _ in follower:
                with follower.sending():
                    await trio.sleep(9.0)
                with follower.sending():
                    await trio.sleep_forever()

    with pytest.raises(FollowerDropped, match="for 10 s") as dropped:
        await send()
    assert dropped.value.reason is DropReason.SLOW
    assert trio.current_time() == pytest.approx(19.0)
    assert feed.counts.dropped == {DropReason.SLOW: 1}


async def test_who_is_cancelled_was_not_slow(autojump_clock: MockClock) -> None:
    feed = Feed[str]()
    with trio.move_on_after(1), feed.follow() as follower, follower.sending():
        await trio.sleep_forever()
    assert (feed.counts.followers, feed.counts.dropped) == (0, {})


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 40), st.booleans())
def test_what_came_since_is_what_a_list_would_say(numbers: list[int], after: int, is_keyed: bool) -> None:
    feed = Feed[int](kept=5, key=(lambda value: value) if is_keyed else None)
    everything = [Event(feed.publish(number), number) for number in numbers]
    newest = {event.value if is_keyed else event.id: event for event in everything}
    wanted = sorted(newest.values(), key=lambda event: event.id)
    # Whatever was ever pushed out as the oldest of six counts, also when its key came again later.
    lost, alive = 0, dict[int, Event[int]]()
    for event in everything:
        alive.pop(event.value if is_keyed else event.id, None)
        alive[event.value if is_keyed else event.id] = event
        if len(alive) > 5:
            lost = alive.pop(next(iter(alive))).id
    if after < lost:
        with pytest.raises(FollowerDropped):
            feed.since(after)
    else:
        assert feed.since(after) == [event for event in wanted if event.id > after]


# --- server-sent events: what resources to come build on a feed


class Lines:
    """An ASGI app that streams a feed as server-sent events, from Last-Event-ID on."""

    def __init__(self, feed: Feed[str]) -> None:
        self.feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        with self.feed.follow(int(request.headers.get("last-event-id", "0"))) as follower:
            async for events in follower:
                text = "".join(f"id: {each.id}\nevent: data\ndata: {json.dumps(each.value)}\n\n" for each in events)
                with follower.sending():
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[list[str]]) -> None:
            await serve(app, config, shutdown_trigger=shutdown.wait, task_status=task_status)

        [bind] = await nursery.start(run)
        with trio.fail_after(20):
            yield int(bind.rpartition(":")[2])
        shutdown.set()
        nursery.cancel_scope.cancel()


async def read_events(port: int, after: int, count: int) -> list[tuple[int, str]]:
    """Dial, read that many events and hang up without a word."""
    received = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        head = f"GET / HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {after}\r\n\r\n"
        await stream.send_all(head.encode())
        while received.count(b"\n\n") < count:
            chunk = await stream.receive_some()
            assert chunk, received
            received += chunk
    lines = [line for line in received.decode().splitlines() if line.startswith(("id: ", "data: "))]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    return [(int(number.removeprefix("id: ")), json.loads(data.removeprefix("data: "))) for number, data in pairs]


async def test_server_sent_events_with_replay() -> None:
    feed = Feed[str](kept=1000)
    seen: list[tuple[int, str]] = []
    async with served(Starlette(routes=[Route("/", Lines(feed))])) as port:
        for round_ in range(5):
            for number in range(20):
                feed.publish(f"line {round_ * 20 + number}")
            # A follower that hangs up in the middle of what is there, and comes back with the last id it has read.
            seen += (await read_events(port, seen[-1][0] if seen else 0, 7))[:7]
        seen += await read_events(port, seen[-1][0], 65)
    assert seen == [(number + 1, f"line {number}") for number in range(100)]
