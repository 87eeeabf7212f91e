"""Keep-alive probes and the bound of challenges."""

from tailnet.netstack.keepalive import GIVE_UP, PROBE, Challenges, KeepAlive
from tailnet.netstack.limits import KeepAliveTimes, Limits

TIMES = KeepAliveTimes(idle=100, interval=10, probes=3)


def test_probes_then_the_end() -> None:
    keep_alive = KeepAlive(TIMES)
    assert keep_alive.at(50.0) == 150.0
    assert keep_alive.on_deadline(149.0, 50.0) is None
    for at in (150.0, 160.0, 170.0):
        assert keep_alive.at(50.0) == at
        assert keep_alive.on_deadline(at, 50.0) == PROBE
    assert keep_alive.on_deadline(180.0, 50.0) == GIVE_UP


def test_an_answer_begins_anew() -> None:
    keep_alive = KeepAlive(TIMES)
    assert keep_alive.on_deadline(150.0, 50.0) == PROBE
    assert keep_alive.at(151.0) == 251.0
    for at in (251.0, 261.0, 271.0):
        assert keep_alive.on_deadline(at, 151.0) == PROBE
    assert keep_alive.on_deadline(281.0, 151.0) == GIVE_UP


def test_a_late_caller_has_its_next_time_ahead() -> None:
    keep_alive = KeepAlive(TIMES)
    assert keep_alive.on_deadline(1000.0, 50.0) == PROBE
    assert keep_alive.at(50.0) == 1010.0


def test_challenges_are_bounded_in_each_period() -> None:
    challenges = Challenges(Limits(challenges_per_period=3, challenge_period_seconds=5))
    assert [challenges.may_answer(10.0 + n / 10) for n in range(5)] == [True] * 3 + [False] * 2
    assert not challenges.may_answer(14.9)
    assert challenges.may_answer(15.0)
