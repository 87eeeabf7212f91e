"""Relays and NATs in schedules of faults: whose rule's absence is noticed; such a schedule follows from its seed.

That no law is broken, and that every case was met, is in test_schedules.py.
"""

from random import Random

import pytest

from sim.nats import House, has_nats
from sim.plan import make_plan
from sim.play import play
from sim.relay_mutations import RELAY_MUTATIONS
from sim.relays import has_relays

SEED = 28


@pytest.mark.parametrize("name", RELAY_MUTATIONS)
def test_a_rule_taken_away_is_noticed(name: str) -> None:
    mutation = RELAY_MUTATIONS[name]
    with mutation.taken_away():
        broken = play(make_plan(mutation.seed)).broken
    assert mutation.is_noticed(broken), f"{broken}; `python -m sim --mutations` finds a schedule that notices"


# A relay leaves while another one does that a client came from; in the second the two mesh when one leaves already.
@pytest.mark.parametrize("seed", [1552, 5813])
def test_packets_keep_their_order_where_relays_leave_one_after_the_other(seed: int) -> None:
    assert play(make_plan(seed)).broken is None


# One peer knows of a hundred addresses of another one, which has moved and has a new one.
@pytest.mark.parametrize("seed", [224, 2173])
def test_no_law_asks_for_more_than_can_be_known(seed: int) -> None:
    assert play(make_plan(seed)).broken is None


# A pong is on its way to an address that a peer has left, for a network where another one's address is its own.
@pytest.mark.parametrize("seed", [4180])
def test_what_is_on_its_way_to_an_address_does_not_follow_who_leaves_it(seed: int) -> None:
    assert play(make_plan(seed)).broken is None


def test_a_schedule_with_relays_follows_from_its_seed() -> None:
    assert has_relays(make_plan(SEED))
    assert has_nats(make_plan(SEED))
    first, second = (play(make_plan(SEED), record=True) for _ in range(2))
    assert any("is at the relay of" in line for line in first.story)
    assert first.story == second.story
    assert first.event_count == second.event_count


# From a house of which mapping and filtering to one of which a path comes about, when both try.
@pytest.mark.parametrize(
    ("here", "there", "can"),
    [
        ((True, "ports"), (True, "ports"), True),
        ((False, "ports"), (True, "ports"), False),
        ((True, "ports"), (False, "ports"), False),
        ((False, "addresses"), (True, "addresses"), True),
        ((True, "ports"), (False, "nothing"), False),
        ((False, "nothing"), (True, "ports"), False),
        ((False, "nothing"), (False, "nothing"), True),
        ((False, "addresses"), (False, "addresses"), False),
    ],
)
def test_which_nats_permit_a_path(here: tuple[bool, str], there: tuple[bool, str], can: bool) -> None:
    houses = []
    for number, (is_one_port, filters) in enumerate((here, there)):
        house = House(number, Random(number))
        house.is_open = house.is_blocked = False
        house.is_one_port, house.filters = is_one_port, filters
        houses.append(house)
    assert houses[0].can_reach(houses[1]) == can
