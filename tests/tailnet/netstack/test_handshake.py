"""SYNs: what they say, and when they go out again."""

import pytest

from tailnet.netstack.handshake import Handshake
from tailnet.netstack.limits import Limits
from tailnet.netstack.segment import ACK, SYN, SynOptions, parse_syn_options


def test_the_times_of_retransmissions() -> None:
    handshake = Handshake(7, Limits())
    handshake.begin()
    now, sent = 100.0, []
    while True:
        assert handshake.due
        handshake.segment(now, None)
        sent.append(now - 100)
        assert handshake.at is not None
        now = handshake.at
        if not handshake.on_deadline(now):
            break
    assert sent == [0, 1, 3, 7, 15, 31]
    assert now == 163


def test_before_its_time_nothing_happens() -> None:
    handshake = Handshake(7, Limits())
    handshake.begin()
    handshake.segment(100.0, None)
    assert handshake.on_deadline(100.9)
    assert not handshake.due


def test_a_late_caller_does_not_end_it_early() -> None:
    handshake = Handshake(7, Limits())
    handshake.begin()
    handshake.segment(100.0, None)
    assert handshake.on_deadline(500.0)
    assert handshake.due


def test_karn() -> None:
    handshake = Handshake(7, Limits())
    handshake.begin()
    handshake.segment(100.0, None)
    assert handshake.end(100.25) == 0.25
    handshake.begin()
    handshake.segment(100.0, None)
    handshake.segment(101.0, None)
    assert handshake.end(101.25) is None


def test_what_a_syn_says() -> None:
    handshake = Handshake(7, Limits())
    ack, flags, window, options = handshake.segment(0.0, None)
    assert (ack, flags, window) == (0, SYN, 65535)
    assert parse_syn_options(options) == SynOptions(1220, 7, True)


@pytest.mark.parametrize(
    ("peer", "answer"),
    [
        (SynOptions(1000, 8, True), SynOptions(1220, 7, True)),
        (SynOptions(1000, None, True), SynOptions(1220, None, True)),
        (SynOptions(1000, 0, False), SynOptions(1220, 7, False)),
        (SynOptions(), SynOptions(1220, None, False)),
    ],
)
def test_an_answer_takes_up_only_what_was_offered(peer: SynOptions, answer: SynOptions) -> None:
    handshake = Handshake(7, Limits())
    handshake.irs, handshake.peer = 99, peer
    ack, flags, window, options = handshake.segment(0.0, 5000)
    assert (ack, flags, window) == (100, SYN | ACK, 5000)
    assert parse_syn_options(options) == answer
