"""What clients carried is what came in and what left, less what was lost, once each."""

import pytest

from derp.relay import usage as module
from derp.relay.usage import NOTHING, OTHERS, Tally, Usage, usage_of
from tests.derp.relay.world import World


def test_what_was_read_is_not_read_again_and_what_was_lost_is_not_out() -> None:
    client = World().connect("a")
    tally = Tally(10)
    assert tally.note(client, "acme", "d") == 0
    assert tally.take() == {}
    client.packets_in, client.bytes_in, client.packets_out, client.bytes_out = 2, 200, 5, 500
    client.packets_lost, client.bytes_lost, client.packets_nowhere, client.bytes_nowhere = 1, 100, 1, 70
    assert usage_of(client) == Usage(2, 200, 4, 400, 2, 170)
    assert tally.note(client, "acme", "d") == 600
    assert tally.note(client, "acme", "d") == 0
    client.bytes_in += 5
    assert tally.note(client, "acme", "d") == 5
    client.bytes_in += 1
    assert tally.note(client, "acme", "e") == 1
    tally.depart(client)
    assert tally.take() == {
        ("d", "acme", client.key): Usage(2, 205, 4, 400, 2, 170),
        ("e", "acme", client.key): Usage(bytes_in=1),
    }
    assert tally.take() == {}


def test_who_comes_from_another_process_counts_from_then_on() -> None:
    client = World().connect("a")
    client.packets_in, client.bytes_in, client.packets_out, client.bytes_out = 2, 200, 5, 500
    tally = Tally(10)
    tally.adopt(client)
    assert tally.note(client, "acme", "d") == 0
    client.packets_in, client.bytes_in, client.packets_lost, client.bytes_lost = 3, 230, 1, 100  # of what came along
    assert tally.note(client, "acme", "d") == -70
    assert tally.take() == {("d", "acme", client.key): Usage(1, 30, -1, -100, 1, 100)}


def test_for_whom_there_is_no_room_there_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally(2)
    for number in range(5):
        tally.add("d", "t", bytes([number]), Usage(1, 10))
    assert tally.take() == {
        ("d", "t", b"\0"): Usage(1, 10),
        ("d", "t", b"\1"): Usage(1, 10),
        ("d", "t", OTHERS): Usage(3, 30),
    }
    monkeypatch.setattr(module, "MAX_TENANTS", 1)
    for number in range(6):
        tally.add("d", f"t{number}", b"x", Usage(1, 10))
    assert tally.take() == {
        ("d", "t0", b"x"): Usage(1, 10),
        ("d", "t1", b"x"): Usage(1, 10),
        ("d", "t2", OTHERS): Usage(1, 10),
        ("d", "default", OTHERS): Usage(3, 30),
    }


def test_sums() -> None:
    assert NOTHING.plus(Usage(1, 2, 3, 4, 5, 6)) == Usage(1, 2, 3, 4, 5, 6)
    assert Usage(5, 5, 5, 5, 5, 5).plus(Usage(1, 2, 3, 4, 5, 6), -1) == Usage(4, 3, 2, 1, 0, -1)
