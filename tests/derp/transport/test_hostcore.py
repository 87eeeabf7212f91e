"""What hosts do alike, without sockets: timers and their defects.  Deliveries and pauses: test_reactor.py."""

import pytest

from derp.transport.hostcore import HostCore


def test_a_due_timer_is_called_and_a_flush_follows() -> None:
    time = [0.0]
    host = HostCore(lambda: time[0])
    happened: list[str] = []
    host.flushers.append(lambda: happened.append("flush"))
    host.call_at(5.0, lambda: happened.append("call"))
    time[0] = 4.9
    host.tick()
    host.run_timers()
    assert happened == []
    time[0] = 5.0
    host.tick()
    host.run_timers()
    assert happened == ["call", "flush"]


def test_a_timer_that_fails_is_logged_and_those_behind_it_have_their_turn(caplog: pytest.LogCaptureFixture) -> None:
    host = HostCore(lambda: 1.0)
    called: list[str] = []
    host.call_at(0.5, lambda: [][0])
    host.call_at(0.5, lambda: called.append("second"))
    host.run_timers()
    host.run_timers()
    assert called == ["second"]
    assert [record.message for record in caplog.records] == ["! a timer failed; please report this"]
