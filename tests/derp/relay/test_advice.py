"""Who is told what, when: one text in five seconds, what lasts, and "" when it is over."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from derp.relay.advice import INTERVAL_SECONDS, Advice, Cause

START = 1000.0


def told(advice: Advice[str], until: float) -> list[tuple[float, str, str]]:
    """Everything that is said until then, each at its time."""
    said = []
    while (at := advice.next_timeout()) is not None and at <= until:
        said += [(at, whom, text) for whom, _, text in advice.handle_timeout(at)]
    return said


def test_it_is_said_at_once_and_taken_back_when_it_is_over() -> None:
    advice = Advice[str]()
    advice.begin("a", Cause.MESH_BROKEN, "cut off", START)
    assert told(advice, START) == [(START, "a", "cut off")]
    advice.end("a", Cause.MESH_BROKEN, START + 60)
    assert told(advice, START + 100) == [(START + 60, "a", "")]
    assert len(advice) == 0


def test_no_client_hears_more_than_one_text_in_five_seconds() -> None:
    advice = Advice[str]()
    advice.begin("a", Cause.MESH_BROKEN, "cut off", START)
    assert told(advice, START) == [(START, "a", "cut off")]
    advice.end("a", Cause.MESH_BROKEN, START + 1)
    advice.begin("a", Cause.RATE_LIMITED, "too much", START + 2)
    advice.begin("b", Cause.RATE_LIMITED, "too much", START + 2)
    assert told(advice, START + 9) == [(START + 2, "b", "too much"), (START + 5, "a", "too much")]


def test_what_is_over_before_it_counts_is_never_said() -> None:
    advice = Advice[str]()
    advice.begin("a", Cause.DUPLICATE_KEY, "two", START, after_seconds=3.0)
    assert told(advice, START + 2) == []
    advice.end("a", Cause.DUPLICATE_KEY, START + 2)
    assert told(advice, START + 100) == []
    assert len(advice) == 0


def test_what_lasts_is_said_after_its_time() -> None:
    advice = Advice[str]()
    advice.begin("a", Cause.DUPLICATE_KEY, "two", START, after_seconds=3.0)
    advice.begin("a", Cause.DUPLICATE_KEY, "three", START + 2, after_seconds=3.0)
    assert told(advice, START + 10) == [(START + 3, "a", "three")]


def test_what_happens_again_and_again_is_said_once() -> None:
    advice = Advice[str]()
    said = []
    for second in range(20):
        advice.note("a", Cause.RATE_LIMITED, "too much", START + second, seconds=4.0)
        said += told(advice, START + second)
    assert said == [(START, "a", "too much")]
    assert told(advice, START + 60) == [(START + 19 + 4, "a", "")]


def test_several_things_stand_in_the_order_of_their_weight() -> None:
    advice = Advice[str]()
    for cause in reversed(Cause):
        advice.begin("a", cause, cause.value, START)
    assert told(advice, START) == [(START, "a", "; ".join(cause.value for cause in Cause))]


def test_who_leaves_is_forgotten() -> None:
    advice = Advice[str]()
    advice.begin("a", Cause.MESH_BROKEN, "cut off", START)
    advice.forget("a")
    advice.end("a", Cause.MESH_BROKEN, START)
    assert advice.next_timeout() is None
    assert len(advice) == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("begin", "note", "end")),
        st.sampled_from(Cause),
        st.sampled_from(("one", "two")),
        st.floats(0, 7),
    ),
    max_size=40,
)


@given(steps=STEPS)
def test_in_the_end_each_knows_how_it_stands(steps: list[tuple[str, Cause, str, float]]) -> None:
    """Against a model that keeps what is the matter, and no more."""
    advice, model, now = Advice[str](), dict[Cause, tuple[str, float]](), START
    said: list[tuple[float, str, str]] = []
    for what, cause, text, wait in steps:
        now += wait
        said += told(advice, now)
        match what:
            case "begin":
                advice.begin("a", cause, text, now)
                model[cause] = (text, math.inf)
            case "note":
                advice.note("a", cause, text, now, seconds=3.0)
                model[cause] = (text, now + 3.0)
            case "end":
                advice.end("a", cause, now)
                model.pop(cause, None)
    end = now + 2 * INTERVAL_SECONDS
    said += told(advice, end)
    expected = "; ".join(model[cause][0] for cause in Cause if cause in model and model[cause][1] > end)
    assert (said[-1][2] if said else "") == expected
    # To a millionth of a second: sums of floats differ in their last digit.
    assert all(later[0] - earlier[0] > INTERVAL_SECONDS - 1e-6 for earlier, later in pairwise(said))
    if not expected:
        told(advice, end + INTERVAL_SECONDS)
        assert len(advice) == 0, "or clients that were told once would be kept for ever"
