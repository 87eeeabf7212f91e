"""What waits of one kind: fair between agents, bounded for each, and what is given up is counted."""

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tailnet.store.outbox_queue import ITEM_OVERHEAD_BYTES, Entry, Kind, Loss, Queue
from tailnet.types import PeerID
from tests.support.seeds import peer_id

A, B = peer_id("a"), peer_id("b")


@dataclass(frozen=True)
class Report:
    agent: PeerID
    key: str
    text: str = ""


def kind(*, merged: bool = False, max_items: int = 3, max_bytes: int = 100_000) -> Kind[Report]:
    def write(_: object) -> None: ...

    def both(older: Report, newer: Report) -> Report:
        return Report(newer.agent, newer.key, older.text + newer.text)

    options: dict[str, Any] = {"key_of": lambda report: report.key, "merge": both} if merged else {}
    return Kind(
        name="reports",
        write=write,
        agent_of=lambda report: report.agent,
        size_of=lambda report: len(report.text),
        max_items=max_items,
        max_bytes=max_bytes,
        **options,
    )


def texts(entries: list[Entry[Report]]) -> list[str]:
    return [entry.item.text for entry in entries]


def everything(queue: Queue[Report]) -> list[str]:
    return texts(queue.take(1_000_000, 1_000_000_000))


def test_each_counts_and_the_oldest_of_an_agent_goes() -> None:
    queue = Queue(kind())
    for text in "12345":
        queue.put(Report(A, "k", text), 0.0)
    queue.put(Report(B, "k", "b"), 0.0)
    assert everything(queue) == ["3", "4", "5", "b"]
    assert (queue.lost[Loss.AGENT], queue.merged, queue.count, queue.size) == (2, 0, 0, 0)


def test_an_agent_has_so_many_bytes() -> None:
    queue = Queue(kind(max_items=100, max_bytes=2 * (ITEM_OVERHEAD_BYTES + 10)))
    for text in "123":
        queue.put(Report(A, "k", text * 10), 0.0)
    queue.put(Report(A, "k", "x" * 5_000), 0.0)  # one that is larger than the share is the last to go
    assert everything(queue) == []
    assert queue.lost[Loss.AGENT] == 4


def test_one_key_is_one_report_in_its_old_place() -> None:
    queue = Queue(kind(merged=True))
    for key, text in (("x", "1"), ("y", "2"), ("x", "3")):
        queue.put(Report(A, key, text), 5.0 if text == "1" else 9.0)
    assert (queue.oldest_since(), queue.merged) == (5.0, 1)
    assert [each.text for each in queue.waiting_of(A)] == ["13", "2"]
    assert everything(queue) == ["13", "2"]
    assert (queue.oldest_since(), queue.lost.total()) == (None, 0)


def test_agents_take_turns() -> None:
    queue = Queue(kind(max_items=10))
    for number in range(5):
        queue.put(Report(A, "k", f"a{number}"), 0.0)
    for number in range(2):
        queue.put(Report(B, "k", f"b{number}"), 0.0)
    assert texts(queue.take(3, 1_000_000)) == ["a0", "a1", "a2"]
    assert texts(queue.take(3, 1_000_000)) == ["b0", "b1", "a3"]


def test_a_batch_has_so_many_bytes() -> None:
    queue = Queue(kind())
    for text in "123":
        queue.put(Report(A, "k", text * 600), 0.0)
    assert texts(queue.take(10, 1_500)) == ["1" * 600, "2" * 600]  # it may be one report over


def test_what_is_given_back_comes_first_and_is_the_older() -> None:
    queue = Queue(kind(max_items=4))
    for text in "123":
        queue.put(Report(A, "k", text), 1.0)
    taken = queue.take(2, 1_000_000)
    queue.put(Report(A, "k", "4"), 2.0)
    queue.give_back(taken)
    assert [each.text for each in queue.waiting_of(A)] == ["1", "2", "3", "4"]
    taken = queue.take(4, 1_000_000)
    for text in "567":
        queue.put(Report(A, "k", text), 3.0)
    queue.give_back(taken)
    assert everything(queue) == ["4", "5", "6", "7"]
    assert queue.lost[Loss.AGENT] == 3


def test_what_is_given_back_merges_under_what_came_meanwhile() -> None:
    queue = Queue(kind(merged=True))
    queue.put(Report(A, "k", "old"), 1.0)
    taken = queue.take(1, 1_000_000)
    queue.put(Report(A, "k", "new"), 2.0)
    queue.give_back(taken)
    assert queue.oldest_since() == 1.0
    assert everything(queue) == ["oldnew"]


def test_the_oldest_may_be_given_up_for_the_whole() -> None:
    queue = Queue(kind())
    for agent in (A, A, B):
        queue.put(Report(agent, "k", "x"), 0.0)
    assert queue.lose_oldest() == ITEM_OVERHEAD_BYTES + 1
    assert queue.lose_oldest() == ITEM_OVERHEAD_BYTES + 1
    assert [len(queue.waiting_of(agent)) for agent in (A, B)] == [1, 0]
    assert queue.lost[Loss.TOTAL] == 2


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([A, B]), st.sampled_from("xyz"), st.integers(0, 900)),
        st.tuples(st.just("take"), st.integers(1, 5), st.booleans(), st.integers(100, 3_000)),
        st.tuples(st.just("lose"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(steps, st.booleans())
def test_its_sums_are_right_whatever_happens(steps: list[Any], merged: bool) -> None:
    queue = Queue(kind(merged=merged, max_items=4, max_bytes=4_000))
    put = done = 0
    for what, first, second, third in steps:
        if what == "put":
            queue.put(Report(first, second, "x" * third), 0.0)
            put += 1
        elif what == "take":
            taken = queue.take(first, third)
            if second:
                queue.give_back(taken)
            else:
                done += len(taken)
        elif queue.count:
            queue.lose_oldest()
        waiting = [each for agent in (A, B) for each in queue.waiting_of(agent)]
        assert queue.count == len(waiting)
        assert queue.size == sum(len(each.text) + ITEM_OVERHEAD_BYTES for each in waiting)
        assert all(len(queue.waiting_of(agent)) <= 4 for agent in (A, B))
        # Nothing vanishes: it waits, was taken, became part of another, or is counted as lost.
        assert put == done + queue.count + queue.merged + queue.lost.total()
