"""Server-sent events, byte by byte: data, pings, ids, and why it ends.  In virtual time, without sockets."""

from collections.abc import Callable, Sequence

import pytest
import trio
from starlette.requests import Request
from starlette.types import Message
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.api.middleware import KEY, Exchange
from tailnet.api.sse import EventStream, Source, Told, error_event, last_event_id
from tailnet.services.feed import DropReason, Event, Feed, newest_only
from tailnet.transport.asgi import LEAVERS
from tests.support.standing import Standing

PING = b"event: ping\n\n"


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw})


def told(events: Sequence[Event[bytes]]) -> Sequence[Told]:
    return [(event.id, event.value) for event in events]


class World:
    """A caller of one stream."""

    def __init__(self, asked: Request, feed: Feed[bytes] | None = None, *more: Feed[bytes]) -> None:
        self.feed = feed or Feed[bytes](key=newest_only)
        self.start: Message = {}
        self.received: list[bytes] = []
        self.is_complete = False
        self.is_over = False
        self.standing = Standing()
        self.leavers: list[Callable[[], None]] = []
        self.is_deaf = False
        sources = [Source(each.follow, told) for each in (self.feed, *more)]
        self.stream = EventStream(asked, sources, self.standing.permit)

    async def run(self) -> None:
        exchange = Exchange("an id", "user", "alice")
        scope = {"type": "http", "path": "/x", KEY: exchange, "extensions": {LEAVERS: self.leavers}}
        await self.stream(scope, self._receive, self._send)
        assert not self.start, "it begins when the app has returned"
        assert exchange.rest is not None
        await exchange.rest(self._receive, self._send)
        self.is_over = True

    async def _receive(self) -> Message:
        raise AssertionError("a task that waits for this is 4 KiB for each follower")

    async def _send(self, message: Message) -> None:
        if self.is_deaf:
            await trio.sleep_forever()
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.received.append(message["body"])
            self.is_complete = not message.get("more_body")


async def test_data_and_pings(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    world = World(request())
    world.feed.publish(b'{"a":1}\n')
    nursery.start_soon(world.run)
    await trio.sleep(10)
    world.feed.publish(b"2\n")
    await trio.sleep(10)
    world.feed.publish(b"3\n")
    await trio.sleep(30)
    assert world.received == [
        b'event: data\ndata: {"a":1}\n\n',
        b"event: data\ndata: 2\n\n",
        PING,
        b"event: data\ndata: 3\n\n",
        PING,
        PING,
    ]
    headers = dict(world.start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert (headers[b"cache-control"], headers[b"x-accel-buffering"]) == (b"no-cache", b"no")
    assert b"content-length" not in headers
    assert not world.is_complete


async def test_a_busy_stream_pings_too(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    world = World(request())
    nursery.start_soon(world.run)
    for _ in range(31):
        world.feed.publish(b"x")
        await trio.sleep(1)
    assert world.received.count(PING) == 2


async def test_browsers_get_ids_and_programs_only_the_lines_they_know(nursery: trio.Nursery) -> None:
    world = World(request(accept="text/event-stream"))
    world.feed.publish(b"1", 41)
    nursery.start_soon(world.run)
    await wait_all_tasks_blocked()
    assert world.received == [b"event: data\ndata: 1\nid: 41\n\n"]


@pytest.mark.parametrize(("text", "number"), [("41", 41), ("", 0), ("x", 0), ("-1", 0), ("9" * 19, 0), ("\u00b2", 0)])
def test_where_a_browser_was(text: str, number: int) -> None:
    raw = [(b"last-event-id", text.encode("latin-1"))]
    asked = Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw})
    assert last_event_id(asked) == number


async def test_why_it_ends(nursery: trio.Nursery) -> None:
    closed, withdrawn = World(request()), World(request())
    for world in (closed, withdrawn):
        world.feed.publish(b"1")
        nursery.start_soon(world.run)
    await wait_all_tasks_blocked()
    closed.feed.close("the server leaves")
    withdrawn.standing.withdraw()
    await wait_all_tasks_blocked()
    for world, why in ((closed, "the server leaves"), (withdrawn, "authorization withdrawn")):
        assert world.received[1:] == [error_event("The stream ended.", why)]
        assert world.is_complete
        assert not world.feed.counts.followers
    assert error_event("a", "b") == b'event: error\ndata: {"message":"a","detail":"b"}\n\n'


async def test_a_caller_that_leaves_is_forgotten(nursery: trio.Nursery) -> None:
    world = World(request())
    world.feed.publish(b"1")
    nursery.start_soon(world.run)
    await wait_all_tasks_blocked()
    for tell in world.leavers:
        tell()
    await wait_all_tasks_blocked()
    assert (len(world.received), world.is_complete, world.feed.counts.followers) == (1, False, 0)
    assert (world.is_over, world.standing.changes.watchers) == (True, 0)


async def test_a_right_that_changed_and_is_still_there(nursery: trio.Nursery) -> None:
    world = World(request())
    nursery.start_soon(world.run)
    await wait_all_tasks_blocked()
    for _ in range(3):
        world.standing.change()
        await wait_all_tasks_blocked()
    world.feed.publish(b"1")
    await wait_all_tasks_blocked()
    assert world.received == [b"event: data\ndata: 1\n\n"]


async def test_a_token_that_expires_ends_it_with_the_next_ping(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    world = World(request())
    nursery.start_soon(world.run)
    await trio.sleep(10)
    world.standing.end = 1008, "authorization withdrawn"
    await trio.sleep(10)
    assert world.received == [PING, error_event("The stream ended.", "authorization withdrawn")]


async def test_several_sources_in_one_stream(nursery: trio.Nursery) -> None:
    second = Feed[bytes](kept=9)
    world = World(request(), None, second)
    nursery.start_soon(world.run)
    world.feed.publish(b"1")
    await wait_all_tasks_blocked()
    second.publish(b"2")
    await wait_all_tasks_blocked()
    second.close("that one ended")
    await wait_all_tasks_blocked()
    ends = error_event("The stream ended.", "that one ended")
    assert world.received == [b"event: data\ndata: 1\n\n", b"event: data\ndata: 2\n\n", ends]
    assert (world.is_over, world.feed.counts.followers) == (True, 0)


async def test_one_that_reads_nothing_is_dropped_alone_and_by_name(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tailnet.api")
    feed = Feed[bytes](key=newest_only)
    deaf, other = World(request(), feed), World(request(), feed)
    nursery.start_soon(deaf.run)
    nursery.start_soon(other.run)
    await wait_all_tasks_blocked()
    deaf.is_deaf = True
    feed.publish(b"1")
    await trio.sleep(11)
    assert (feed.counts.dropped, feed.counts.followers) == ({DropReason.SLOW: 1}, 1)
    assert other.received == [b"event: data\ndata: 1\n\n"]
    assert not deaf.received
    [line] = caplog.messages
    assert line.startswith("! user alice is told no more at /x: nothing of the last message was taken for 10 s")
