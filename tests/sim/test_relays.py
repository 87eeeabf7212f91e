"""Relays in schedules of faults: whose rule's absence is noticed, and that such a schedule follows from its seed.

That no law is broken, and that every case was met, is in test_schedules.py.
"""

import pytest

from sim.plan import make_plan
from sim.play import play
from sim.relay_mutations import RELAY_MUTATIONS
from sim.relays import has_relays

SEED = 8


@pytest.mark.parametrize("name", RELAY_MUTATIONS)
def test_a_rule_taken_away_is_noticed(name: str) -> None:
    mutation = RELAY_MUTATIONS[name]
    with mutation.taken_away():
        broken = play(make_plan(mutation.seed)).broken
    assert mutation.is_noticed(broken), f"{broken}; `python -m sim --mutations` finds a schedule that notices"


def test_a_schedule_with_relays_follows_from_its_seed() -> None:
    assert has_relays(make_plan(SEED))
    first, second = (play(make_plan(SEED), record=True) for _ in range(2))
    assert any("is at the relay of" in line for line in first.story)
    assert first.story == second.story
    assert first.event_count == second.event_count
