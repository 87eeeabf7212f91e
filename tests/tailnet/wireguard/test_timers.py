"""Timers one by one; that devices as a whole keep the genuine times is in test_device.py."""

from math import inf

import pytest

from tailnet.wireguard.timers import MAX_RETRIES, Due, Timers
from tests.vectors.wireguard import VECTORS


def due(timers: Timers) -> list[tuple[float, Due]]:
    """Everything that comes if nothing else happens, at its time."""
    found = []
    while (at := timers.next_due()) < inf:
        assert timers.pop_due(at - 0.001) is None
        what = timers.pop_due(at)
        assert what is not None
        found.append((at, what))
    return found


def test_constants_are_the_genuine_ones() -> None:
    assert VECTORS["constants"]["MaxTimerHandshakes"] == MAX_RETRIES


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (lambda timers: timers.initiation_sent(1.0, 0.25), [(6.25, Due.RETRY)]),
        (lambda timers: timers.data_sent(1.0, 0.25), [(16.25, Due.NEW_HANDSHAKE)]),
        (lambda timers: timers.data_received(1.0), [(11.0, Due.KEEPALIVE)]),
        (lambda timers: timers.session_begun(1.0), [(541.0, Due.FORGET)]),
        (lambda timers: timers.response_sent(1.0), [(541.0, Due.FORGET)]),
        (lambda timers: timers.gave_up(1.0), [(541.0, Due.FORGET)]),
        (lambda timers: timers.keep_alive(1.0, 25.0), [(26.0, Due.PERSISTENT_KEEPALIVE)]),
    ],
)
def test_each_is_due_at_its_time(what: object, expected: list[tuple[float, Due]]) -> None:
    timers = Timers()
    assert callable(what)
    what(timers)
    assert due(timers) == expected


def test_what_stops_them() -> None:
    timers = Timers()
    timers.initiation_sent(1.0, 0.0)
    timers.handshake_done()
    timers.data_sent(1.0, 0.0)
    timers.packet_received(2.0)
    timers.data_received(1.0)
    timers.packet_sent(2.0)
    assert due(timers) == []
    timers.session_begun(1.0)
    timers.data_sent(1.0, 0.0)
    timers.stop()
    assert due(timers) == []


def test_data_while_a_keepalive_is_due_asks_for_another() -> None:
    timers = Timers()
    for now in (1.0, 2.0):
        timers.data_received(now)
    assert timers.pop_due(11.0) is Due.KEEPALIVE
    timers.packet_sent(11.0)
    timers.keepalive_sent(11.0)
    assert timers.pop_due(21.0) is Due.KEEPALIVE
    timers.keepalive_sent(21.0)
    assert due(timers) == []


def test_a_persistent_keepalive_waits_while_something_passes() -> None:
    timers = Timers()
    timers.keep_alive(0.0, 25.0)
    timers.packet_sent(10.0)
    timers.packet_received(20.0)
    assert timers.next_due() == 45.0
    timers.keep_alive(20.0, None)
    assert due(timers) == []


def test_an_initiation_that_must_wait_is_not_lost() -> None:
    timers = Timers()
    assert not timers.initiation_must_wait(0.0)
    timers.response_sent(0.0)
    assert timers.initiation_must_wait(3.0)
    assert due(timers)[0] == (5.0, Due.RETRY)
    assert not timers.initiation_must_wait(5.0)


def test_a_retry_keeps_its_jitter_when_more_data_comes() -> None:
    timers = Timers()
    timers.initiation_sent(0.0, 0.3)
    assert timers.initiation_must_wait(1.0)
    assert due(timers) == [(5.3, Due.RETRY)]
