"""Turns go round the groups; the bound is kept, and the largest group pays for it."""

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from derp.relay.turns import Turns


def drain(turns: Turns[str, str]) -> list[str]:
    """Take all, each done at once."""
    taken = []
    while (item := turns.take()) is not None:
        taken.append(item)
        turns.done(item[0])
    return taken


def test_a_newcomer_waits_for_one_turn_of_each_other_and_not_for_all_they_brought() -> None:
    turns = Turns[str, str](10_000, at_once=8)
    for number in range(4000):
        turns.add("a", f"a{number}")
    turns.add("b", "b0")
    turns.add("c", "c0")
    turns.add("b", "b1")
    assert drain(turns)[:6] == ["a0", "b0", "c0", "a1", "b1", "a2"]
    assert len(turns) == 0


def test_one_group_may_not_have_all_that_is_under_way() -> None:
    turns = Turns[str, str](100, at_once=2)
    for number in range(5):
        turns.add("a", f"a{number}")
    assert [turns.take() for _ in range(3)] == ["a0", "a1", None]
    turns.add("b", "b0")
    assert [turns.take(), turns.take()] == ["b0", None]
    turns.done("a")
    assert [turns.take(), turns.take()] == ["a2", None]
    turns.done("b")
    assert turns.take() is None


def test_when_it_is_full_the_largest_group_gives_way() -> None:
    turns = Turns[str, str](4, at_once=8)
    for number in range(3):
        assert turns.add("a", f"a{number}") is None
    assert turns.add("b", "b0") is None
    assert turns.add("a", "a3") == "a3", "its own group is the largest"
    assert turns.add("b", "b1") == "a2", "the newest of the largest group"
    assert turns.add("c", "c0") == "a1"
    assert turns.add("c", "c1") == "b1"
    assert turns.add("c", "c2") == "c2"
    assert drain(turns) == ["a0", "b0", "c0", "c1"]


@given(
    steps=st.lists(st.tuples(st.sampled_from(("add", "start", "take", "done")), st.sampled_from("abcd")), max_size=200),
    most=st.integers(1, 8),
    at_once=st.integers(1, 3),
)
def test_any_history_keeps_the_bounds_and_loses_nothing(steps: list[tuple[str, str]], most: int, at_once: int) -> None:
    turns = Turns[str, str](most, at_once=at_once)
    waiting: dict[str, deque[str]] = {group: deque() for group in "abcd"}
    taken: Counter[str] = Counter()
    for number, (what, group) in enumerate(steps):
        if what == "add":
            item = f"{group}{number}"
            loser = turns.add(group, item)
            if loser is not None:
                assert sum(map(len, waiting.values())) == most
                largest = max(map(len, waiting.values()))
                if loser == item:
                    assert len(waiting[group]) == largest
                    continue
                assert len(waiting[loser[0]]) == largest
                assert waiting[loser[0]].pop() == loser
            waiting[group].append(item)
        elif what == "start":
            may_start = not waiting[group] and taken[group] < at_once
            assert turns.start(group) is may_start
            taken[group] += may_start
        elif what == "take":
            got = turns.take()
            may = [each for each in "abcd" if waiting[each] and taken[each] < at_once]
            assert (got is None) == (not may)
            if got is not None:
                assert got[0] in may
                assert waiting[got[0]].popleft() == got
                taken[got[0]] += 1
        elif taken[group]:
            taken[group] -= 1
            turns.done(group)
        assert len(turns._ring) <= 4
        assert len(turns) == sum(map(len, waiting.values())) <= most
