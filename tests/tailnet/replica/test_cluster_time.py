"""Whose clock counts, and what becomes of stamps."""

from tailnet.replica.cluster_time import JUMP_SECONDS, UNITS_PER_SECOND, ClusterTime


def units(seconds: float) -> int:
    return int(seconds * UNITS_PER_SECOND)


def test_stamps_rise_also_within_one_unit() -> None:
    time = ClusterTime()
    assert [time.stamp(1.0), time.stamp(1.0), time.stamp(1.0)] == [units(1), units(1) + 1, units(1) + 2]
    assert time.stamp(2.0) == units(2)


def test_a_newcomer_follows_the_first_that_has_peers_even_backwards() -> None:
    time = ClusterTime()
    assert not time.hear(units(5), peer_count=3, own_peer_count=0, now=1000.0)
    assert time.read(1001.0) == units(6)
    # Later ones that are behind do not turn it back.
    assert not time.hear(units(1), peer_count=3, own_peer_count=0, now=1001.0)
    assert time.read(1001.0) == units(6)


def test_between_two_with_peers_the_larger_wins() -> None:
    ahead, behind = ClusterTime(), ClusterTime()
    ahead.stamp(100.0)
    behind.stamp(10.0)
    assert not ahead.hear(behind.read(11.0), 1, 1, now=101.0)
    assert behind.hear(ahead.read(101.0), 1, 1, now=11.0)
    assert ahead.read(101.0) == behind.read(11.0) == units(101)


def test_who_has_no_peers_moves_nobody_who_has() -> None:
    time = ClusterTime()
    time.stamp(1.0)
    assert not time.hear(units(5000), peer_count=0, own_peer_count=1, now=1.0)
    assert time.read(1.0) == units(1)


def test_who_has_no_peers_moves_nobody_who_knows_the_time() -> None:
    time = ClusterTime()
    time.hear(units(5), peer_count=3, own_peer_count=0, now=1.0)
    assert not time.hear(units(5000), peer_count=0, own_peer_count=0, now=1.0)
    assert time.read(1.0) == units(5)


def test_a_small_step_is_taken_and_nothing_is_stamped_anew_until_they_add_up() -> None:
    time = ClusterTime()
    time.stamp(1.0)
    step = 0.6 * JUMP_SECONDS
    assert not time.hear(units(1 + step), 1, 1, now=1.0)
    assert time.hear(units(1 + 2 * step), 1, 1, now=1.0)
    assert time.jump_count == 1
    time.restamp()
    assert not time.hear(units(1 + 3 * step), 1, 1, now=1.0)


def test_stamps_made_anew_are_computed_and_not_added_to() -> None:
    time = ClusterTime()
    first = [time.stamp(at) for at in (1.0, 2.0)]
    assert time.hear(units(10), 1, 1, now=3.0)
    time.restamp()
    assert [time.stamp(at) for at in (1.0, 2.0)] == [epoch + units(7) for epoch in first]


def test_without_connections_no_jump_is_told() -> None:
    time = ClusterTime()
    time.stamp(1.0)
    assert not time.hear(units(500), 1, 0, now=1.0)
    assert time.read(1.0) == units(500)
