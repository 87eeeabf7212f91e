"""A table of deadlines against the obvious one; what is cleared is held no longer."""

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from derp.relay.deadlines import Deadlines


def test_who_is_due_is_told_once_and_in_order() -> None:
    table = Deadlines[str]()
    assert (table.next_timeout(), table.handle_timeout(1e9)) == (None, [])
    for subject, at in (("late", 30.0), ("early", 10.0), ("middle", 20.0), ("also early", 10.0)):
        table.set(subject, at)
    assert table.next_timeout() == 10.0
    assert table.handle_timeout(9.999) == []
    assert table.handle_timeout(25.0, 2) == ["early", "also early"]
    assert table.next_timeout() == 20.0
    assert table.handle_timeout(25.0) == ["middle"]
    assert (list(table), table.next_timeout()) == (["late"], 30.0)
    table.clear("late")
    table.clear("nobody")
    assert (len(table), table.next_timeout()) == (0, None)


def test_a_deadline_moves_both_ways() -> None:
    table = Deadlines[str]()
    table.set("a", 10.0)
    table.set("a", 50.0)
    assert (table.at("a"), table.next_timeout(), table.handle_timeout(49.0)) == (50.0, 50.0, [])
    table.set("a", 20.0)
    assert (table.at("a"), table.next_timeout()) == (20.0, 20.0)
    assert table.handle_timeout(20.0) == ["a"]
    assert (table.at("a"), table.handle_timeout(100.0)) == (None, [])


SUBJECTS = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), SUBJECTS, st.floats(0, 100)),
        st.tuples(st.just("clear"), SUBJECTS, st.just(0.0)),
        st.tuples(st.just("wait"), st.just(0), st.floats(0, 30)),
    ),
    max_size=200,
)


@given(steps=STEPS)
def test_any_history_is_that_of_the_obvious_table(steps: list[tuple[str, int, float]]) -> None:
    table, obvious, now = Deadlines[int](), dict[int, float](), 0.0
    for what, subject, number in steps:
        match what:
            case "set":
                table.set(subject, now + number)
                obvious[subject] = now + number
            case "clear":
                table.clear(subject)
                obvious.pop(subject, None)
            case _:
                now += number
                due = table.handle_timeout(now)
                expected = {one for one, at in obvious.items() if at <= now}
                assert set(due) == expected
                assert [obvious[one] for one in due] == sorted(obvious[one] for one in due)
                obvious = {one: at for one, at in obvious.items() if at > now}
        assert table.next_timeout() == min(obvious.values(), default=None)
        assert dict.fromkeys(table) == dict.fromkeys(obvious)
        assert {one: table.at(one) for one in table} == obvious


def test_what_is_cleared_is_held_no_longer() -> None:
    class Connection:
        """Something dear."""

    table = Deadlines[Connection]()
    kept, gone = Connection(), Connection()
    table.set(kept, 1000.0)
    table.set(gone, 500.0)
    table.set(gone, 400.0)
    seen = weakref.ref(gone)
    table.clear(gone)
    del gone
    gc.collect()
    assert seen() is None


def test_many_that_come_and_go_leave_no_heap_behind() -> None:
    table = Deadlines[int]()
    for number in range(10_000):
        table.set(number, 1e6 + number)
        table.clear(number)
        table.set(-1, 5.0 + number)  # nor does one that moves all the time
    assert len(table._heap) < 200
