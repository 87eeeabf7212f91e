"""The pace of a drain, in virtual time; what it does to real connections is in test_server.py."""

import math
from itertools import pairwise
from typing import cast

import pytest
import trio

from derp.server.drain import drain_clients
from derp.server.relay import Relay


class Leaving:
    """A relay with so many clients; `stuck` of them never get rid of their packets, and the last hangs up `late`."""

    def __init__(self, clients: int, stuck: int = 0, alone: bool = False, late: int = 0) -> None:
        self.left = clients
        self.stuck = stuck
        self.alone = alone
        self.late = late
        self.announced: list[tuple[float, float]] = []
        self.closed: list[tuple[float, int]] = []
        self.router = self

    @property
    def clients(self) -> range:
        return range(self.left)

    def has_neighbours(self) -> bool:
        return not self.alone

    def announce_restart(self, reconnect_in_seconds: float, try_for_seconds: float) -> None:
        assert not self.closed
        self.announced.append((reconnect_in_seconds, try_for_seconds))

    def close_clients(self, count: int) -> int:
        closing = min(count, self.left - self.stuck)
        self.closed.append((trio.current_time(), closing))
        self.left -= closing
        if self.left == 0 and self.late > 0:
            self.late -= 1
            return 1
        return self.left

    async def drain(self, seconds: float) -> float:
        """How long it took."""
        started = trio.current_time()
        await drain_clients(cast(Relay, self), seconds)
        return trio.current_time() - started


async def test_clients_are_told_first_and_then_closed(autojump_clock: trio.testing.MockClock) -> None:
    relay = Leaving(3)
    assert await relay.drain(25.0) == 0.0
    assert relay.announced == [(2.0, 60.0)]
    assert relay.left == 0


@pytest.mark.parametrize(
    ("clients", "seconds", "most"), [(500, 25.0, 0.5), (20_000, 25.0, 20.0), (100_000, 25.0, 22.5)]
)
async def test_closes_are_even_and_within_the_deadline(
    clients: int, seconds: float, most: float, autojump_clock: trio.testing.MockClock
) -> None:
    relay = Leaving(clients)
    took = await relay.drain(seconds)
    assert took <= most
    assert relay.left == 0
    per_step = max(count for _, count in relay.closed)
    assert per_step <= max(clients / (0.9 * seconds), 1000.0) / 10 + 1
    pauses = {round(later[0] - earlier[0], 3) for earlier, later in pairwise(relay.closed)}
    assert pauses == {0.1}


async def test_one_without_another_node_closes_faster_as_nobody_can_come_back_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    alone, meshed = Leaving(10_000, alone=True), Leaving(10_000)
    assert await alone.drain(25.0) < 1.0 < 9.0 < await meshed.drain(25.0)


async def test_the_last_one_to_hang_up_is_waited_for_no_longer_than_needed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert await Leaving(3, late=2).drain(25.0) == pytest.approx(0.02)


async def test_the_deadline_is_kept_for_those_who_never_finish(autojump_clock: trio.testing.MockClock) -> None:
    relay = Leaving(10, stuck=2)
    assert await relay.drain(5.0) == 5.0
    assert relay.left == 2


async def test_no_time_at_all(autojump_clock: trio.testing.MockClock) -> None:
    relay = Leaving(5000)
    assert await relay.drain(0.0) == 0.0
    assert math.isclose(sum(count for _, count in relay.closed), 5000 - relay.left)
