"""Flows between two sides: whose answer goes where, what ends one, and what it costs who opens many."""

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tailnet.errors import LocalProtocolError
from tailnet.node.flows import (
    DNS_IDLE_SECONDS,
    IDLE_SECONDS,
    MAX_WAITING,
    NEW_FLOWS_PER_SECOND,
    Flows,
    idle_seconds_of,
)

Key = tuple[str, int]
LONGEST = 10


class Echo:
    """A far end that says back what it hears, and who it is."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.is_closed = False
        self._out, self._in = trio.open_memory_channel[bytes](math.inf)

    async def send(self, payload: bytes) -> None:
        if len(payload) > LONGEST:
            raise LocalProtocolError("too long")
        if payload == b"refuse":
            raise ConnectionRefusedError("nobody is there")
        self._out.send_nowait(b"%d %b" % (self.key[1], payload))

    async def receive(self) -> bytes:
        return await self._in.receive()

    def close(self) -> None:
        self.is_closed = True


class World:
    def __init__(self) -> None:
        self.ends: list[Echo] = []
        self.heard: list[tuple[Key, bytes]] = []
        self.opens: Callable[[], None] = lambda: None
        self.may_open = trio.Event()
        self.may_open.set()
        self.flows: Flows[Key]

    async def open(self, key: Key) -> Echo:
        await self.may_open.wait()
        self.opens()
        self.ends.append(Echo(key))
        return self.ends[-1]

    async def back(self, key: Key, payload: bytes) -> None:
        if payload.endswith(b" long"):
            raise LocalProtocolError("too long to come back")
        self.heard.append((key, payload))

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()

    @property
    def open_count(self) -> int:
        return sum(not end.is_closed for end in self.ends)


@asynccontextmanager
async def world(max_flows: int = 100, max_flows_per_owner: int = 100) -> AsyncIterator[World]:
    made = World()
    async with trio.open_nursery() as nursery:
        made.flows = Flows(nursery, made.open, made.back, max_flows=max_flows, max_flows_per_owner=max_flows_per_owner)
        yield made
        nursery.cancel_scope.cancel()


async def test_each_gets_the_answers_to_what_it_said() -> None:
    async with world() as made:
        for key, payload in ((("a", 1), b"x"), (("a", 2), b"y"), (("a", 1), b"z")):
            made.flows.take(key, payload)
        await made.settle()
        assert sorted(made.heard) == [(("a", 1), b"1 x"), (("a", 1), b"1 z"), (("a", 2), b"2 y")]
        assert (len(made.ends), made.flows.lost_datagrams) == (2, 0)


async def test_silence_ends_a_flow(autojump_clock: trio.testing.MockClock) -> None:
    assert (idle_seconds_of(53), idle_seconds_of(54)) == (DNS_IDLE_SECONDS, IDLE_SECONDS)
    async with world() as made:
        made.flows.take(("a", 1), b"x", 30)
        for _ in range(3):
            await trio.sleep(29)
            made.flows.take(("a", 1), b"x", 30)
        await trio.sleep(29)
        assert made.open_count == 1, "each datagram begins the time anew"
        made.ends[0]._out.send_nowait(b"unasked")
        await trio.sleep(29)
        assert made.open_count == 1, "also one that comes back"
        await trio.sleep(2)
        assert (made.open_count, len(made.flows._flows)) == (0, 0)
        made.flows.take(("a", 1), b"x", 30)
        await made.settle()
        assert made.open_count == 1


async def test_an_end_that_refuses_ends_its_flow_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as made:
        made.flows.take(("a", 1), b"x")
        made.flows.take(("a", 2), b"refuse")
        await made.settle()
        assert (made.open_count, len(made.flows._flows)) == (1, 1)
        assert "a flow ended: nobody is there" in caplog.text

        def fail() -> None:
            raise trio.TooSlowError

        made.opens = fail
        made.flows.take(("a", 3), b"x")
        await made.settle()
        assert (len(made.flows._flows), made.flows.lost_datagrams) == (1, 1)


async def test_what_is_too_long_is_lost_and_nothing_else() -> None:
    async with world() as made:
        for payload in (b"one", bytes(LONGEST + 1), b"long", b"two"):
            made.flows.take(("a", 1), payload)
        await made.settle()
        assert [payload for _, payload in made.heard] == [b"1 one", b"1 two"]
        assert made.flows.lost_datagrams == 2


async def test_what_waits_for_a_far_end_is_bounded() -> None:
    async with world() as made:
        made.may_open = trio.Event()
        for number in range(MAX_WAITING + 5):
            made.flows.take(("a", 1), b"%d" % number)
        await made.settle()
        assert made.flows.lost_datagrams == 5
        made.may_open.set()
        await made.settle()
        assert [payload for _, payload in made.heard] == [b"1 %d" % number for number in range(MAX_WAITING)]


async def test_who_was_silent_for_the_longest_makes_room() -> None:
    async with world(max_flows=4, max_flows_per_owner=2) as made:
        for key in (("a", 1), ("a", 2), ("b", 3), ("b", 4), ("a", 1)):
            made.flows.take(key, b"x")
            await made.settle()
        made.flows.take(("a", 5), b"x")
        await made.settle()
        assert {end.key for end in made.ends if end.is_closed} == {("a", 2)}, "its own"
        made.flows.take(("c", 6), b"x")
        await made.settle()
        assert {end.key for end in made.ends if end.is_closed} == {("a", 2), ("b", 3)}, "of all"
        assert (len(made.flows._flows), made.open_count) == (4, 4)
        made.flows.take(("a", 2), b"again")
        await made.settle()
        assert made.heard[-1] == (("a", 2), b"2 again")


async def test_who_opens_many_is_slowed_down(autojump_clock: trio.testing.MockClock) -> None:
    """One that is new for each datagram costs what the bucket allows; others are not charged for it."""
    burst = int(NEW_FLOWS_PER_SECOND)
    async with world(max_flows=10, max_flows_per_owner=5) as made:
        for number in range(3 * burst):
            made.flows.take(("a", number), b"x")
        made.flows.take(("b", 0), b"x")
        await made.settle()
        assert made.flows.opened_flows == burst + 1
        assert made.flows.lost_datagrams >= 2 * burst
        assert (("b", 0), b"0 x") in made.heard
        assert len(made.flows._flows) == made.open_count == 6
        await trio.sleep(1)
        for number in range(3 * burst):
            made.flows.take(("a", number), b"x")
        assert made.flows.opened_flows == 2 * burst + 1
