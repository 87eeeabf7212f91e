"""Who goes when a replica leaves: pace and order in virtual time.  server/test_rolling.py has it with whole servers."""

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from derp.close_reason import CloseReason
from derp.protocol.websocket import CloseCode
from derp.transport.reactor import Reactor
from tailnet.services import waves
from tailnet.services.waves import Waves


class Member:
    """A peer's connection that notes when it was closed."""

    account = None
    charged_bytes = 0
    caller = None

    def __init__(self, active_at: float = 0.0) -> None:
        self.active_at = active_at
        self.closed_at: float | None = None
        self.why = ("", CloseReason.CLOSED_BY_PEER)

    def handle_timeout(self, now: float) -> None: ...

    def close(self, code: CloseCode, text: str, reason: CloseReason) -> None:
        assert self.closed_at is None
        self.closed_at, self.why = trio.current_time(), (code.name, reason)


def active_at(member: object) -> float:
    assert isinstance(member, Member)
    return member.active_at


def play(line: Waves, now: float, step: float) -> list[tuple[float, list[Member]]]:
    """Ask every `step` seconds until all had their turn."""
    found = []
    while line:
        found.append((now, [each for each in line.due(now) if isinstance(each, Member)]))
        now += step
    return found


@pytest.mark.parametrize("step", [0.02, 0.25, 7.0])
@pytest.mark.parametrize("count", [1, 3, 60, 6_000])
def test_no_more_than_a_sixtieth_goes_in_a_second(count: int, step: float) -> None:
    played = play(Waves([Member() for _ in range(count)], active_at, 70.0, 1000.0), 1000.0, step)
    rate, gone = max(count / 60, 1.0), 0
    for now, going in played:
        gone += len(going)
        assert gone <= 1 + (now - 1000.0) * rate
        assert gone >= min(int((now - 1000.0) * rate), count)
    assert gone == count
    assert played[-1][0] <= 1060.0 + step


def test_all_have_gone_before_the_time_is_up() -> None:
    for seconds in (10.0, 1.0, 0.0):
        played = play(Waves([Member() for _ in range(6_000)], active_at, seconds, 0.0), 0.0, 0.02)
        assert played[-1][0] <= seconds + 0.02


def test_the_longest_idle_go_first_and_who_is_needed_meanwhile_goes_later() -> None:
    members = [Member(active_at=float(number * 7 % 100)) for number in range(100)]
    line = Waves(members, active_at, 1000.0, 0.0)
    first = [each for now in range(30) for each in line.due(float(now))]
    assert [active_at(each) for each in first] == [float(number) for number in range(len(first))]
    needed = next(each for each in members if each.active_at == 90.0)
    needed.active_at = 200.0
    rest = [each for now in range(30, 70) for each in line.due(float(now))]
    assert len(first) > 40
    assert len(first) + len(rest) == 100
    assert rest[-1] is needed
    assert all(active_at(one) < active_at(other) for one, other in pairwise(rest))


async def test_they_are_told_that_the_server_goes_and_nobody_twice(autojump_clock: MockClock) -> None:
    host = Reactor(clock=trio.current_time)
    members = [Member() for _ in range(120)]
    left_at: dict[object, float] = {}
    here: set[Member] = set(members)
    began = trio.current_time()
    left_alone = members[7]

    def leave(member: object, now: float) -> None:
        assert isinstance(member, Member)
        left_at[member] = now
        assert member.closed_at is None  # the coordinator knows before the connection ends
        here.discard(left_alone)  # it hangs up by itself

    await waves.send_away(here, active_at, leave, host, 70.0)
    closed = [each.closed_at for each in members if each.closed_at is not None]
    assert left_alone.closed_at is None
    assert len(closed) == len(left_at) == 119
    assert {each.why for each in members if each is not left_alone} == {("GOING_AWAY", CloseReason.DRAINED)}
    for number, at in enumerate(sorted(closed)):
        assert number <= 1 + (at - began) * 2
    pauses = {round(later - earlier, 6) for earlier, later in pairwise(sorted(set(closed)))}
    assert len(pauses) > 20  # by chance
