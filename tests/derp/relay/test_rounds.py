"""Everybody has a turn in each round, and nobody costs a wake-up who is not there."""

import pytest

from derp.relay.rounds import Round


def turns(members: Round[str], until: float) -> list[tuple[float, list[str]]]:
    """All turns up to a time, each taken when it is due."""
    taken = []
    while (at := members.next_timeout()) is not None and at <= until:
        taken.append((at, members.handle_timeout(at)))
    return taken


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 399, 1000])
def test_everybody_has_one_turn_a_round(count: int) -> None:
    names = {number: str(number) for number in range(count)}
    members = Round(names, 10.0)
    members.begin(100.0)
    taken = turns(members, 100.0 + 0.5 + 10.0 - 1e-6)
    assert sorted(name for _, part in taken for name in part) == sorted(names.values())
    assert max(len(part) for _, part in taken) <= count // 20 + 1
    assert len(taken) <= 20
    assert len(turns(members, 121.0)) <= 23


def test_a_round_of_one_is_one_call() -> None:
    members = Round({1: "a"}, 10.0)
    members.begin(0.0)
    assert turns(members, 40.0) == [(0.5, ["a"]), (10.5, ["a"]), (20.5, ["a"]), (30.5, ["a"])]


def test_an_empty_table_costs_nothing_until_somebody_comes() -> None:
    names: dict[int, str] = {}
    members = Round(names, 10.0)
    assert members.next_timeout() is None
    names[1] = "a"
    members.begin(5.0)
    members.begin(5.4)  # a second one begins no other round
    assert turns(members, 5.5) == [(5.5, ["a"])]
    del names[1]
    assert turns(members, 100.0) == [(15.5, [])]
    assert members.next_timeout() is None
    names[2] = "b"
    members.begin(200.0)
    assert turns(members, 200.5) == [(200.5, ["b"])]
