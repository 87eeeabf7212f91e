"""Seeded schedules of faults against the replicas' cores: no law is broken, and every case was met.

`python -m sim --seeds 0..1000000` plays as many as you like; a seed that breaks a law prints a short story.
"""

import os
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest

from sim.mutations import MUTATIONS
from sim.plan import FAULTS, PEERS, make_plan
from sim.play import Played, play, shrink
from tailnet.replica.codec import KINDS

# Schedules that are played here and looked at, in parts, and those that a process of its own plays: what measures the
# coverage makes them three times as slow.
PART, PARTS, COUNT = 25, 4, 1000
# A run that never met one of these says nothing about it.
CASES = {
    "DISCONNECTED told",
    "LOST told",
    "NODE told",
    "READY_FOR_HANDSHAKE told",
    "clock jumps",
    "ended: coordinator close",
    "ended: graceful disconnect",
    "ended: peer ID overwritten by new connection",
    "sessions again",
    "slept",
    "one way for long",
    "sent away, and back",
    "silenced",
    "presence written",
    "left, and somebody else's",
    "swept in the store",
    "address changes",
    "direct in the end",
    "path is dead",
    "relayed in the end",
    "router restarts",
    "packet by the mesh",
    "packet direct",
    "packet in a mailbox",
    "packet promised",
    "packet relayed",
    "packet to nobody",
    "relay leaves",
    "relay left",
    "told that a key is DISCONNECTED",
    *FAULTS,
    *PEERS,
    *(f"heard {kind.__name__}" for kind in KINDS),
}


@cache
def played(part: int) -> tuple[Played, ...]:
    return tuple(play(make_plan(seed)) for seed in range(part * PART, (part + 1) * PART))


@pytest.mark.parametrize("part", range(PARTS))
def test_no_law_is_broken(part: int) -> None:
    assert [(each.plan.seed, each.broken) for each in played(part) if each.broken is not None] == []


def test_every_case_was_met() -> None:
    met: Counter[str] = Counter()
    for part in range(PARTS):
        for each in played(part):
            met.update(each.met)
    assert {case for case in CASES if not met[case]} == set()


@pytest.mark.parametrize("first", range(PART * PARTS, COUNT, 50))
def test_no_law_is_broken_in_many(first: int) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-m", "sim", "--seeds", f"{first}..{first + 50}"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "; 0 broken" in told.stdout


# In the first a replica is frozen when its bus would say that it is deaf; in the second an agent comes from a server
# that was killed, and whose wall clock was ahead; in the third a replica is frozen while an agent comes and says
# goodbye, and takes both when the agent has come to another one.
@pytest.mark.parametrize("seed", [1628, 2141, 6528])
def test_no_law_asks_for_more_than_can_be_known(seed: int) -> None:
    assert play(make_plan(seed)).broken is None


# A replica leaves, and its clock jumps, or a session of its begins, while a peer that it sent away is on the way.
@pytest.mark.parametrize("seed", [1290, 6093, 8145])
def test_who_is_sent_away_is_lost_by_no_comparison(seed: int) -> None:
    assert play(make_plan(seed)).broken is None


# Two replicas meet late, and a client removed its tunnel at one while it came to the other.
def test_what_came_over_before_any_replica_was_met_is_named_again() -> None:
    assert play(make_plan(3047)).broken is None


def test_a_schedule_follows_from_its_seed() -> None:
    first, second = (play(make_plan(11), record=True) for _ in range(2))
    assert first.story == second.story
    assert first.event_count == second.event_count


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_rule_taken_away_is_noticed(name: str) -> None:
    mutation = MUTATIONS[name]
    with mutation.taken_away():
        broken = play(make_plan(mutation.seed)).broken
    assert mutation.is_noticed(broken), f"{broken}; `python -m sim --mutations` finds a schedule that notices"


def test_a_broken_schedule_becomes_a_short_story() -> None:
    mutation = MUTATIONS["silence is told as DISCONNECTED"]
    plan = make_plan(mutation.seed)
    with mutation.taken_away():
        short = shrink(plan)
    assert short.broken is not None
    assert len(short.plan.steps) < len(plan.steps)
    assert (short.plan.agents, short.plan.clients) < (plan.agents, plan.clients)
    assert any(" and r" in line and line.endswith("have a session") for line in short.story)
    assert any("  -- " in line for line in short.story)
    assert any("is silent" in line for line in short.story)
    assert len(short.story) < 40
    assert "disconnected, which it did not" in short.story[-1]
