"""Seeded schedules of faults against the replicas' cores: no law is broken, and every case was met.

`python -m sim --seeds 0..1000000` plays as many as you like; a seed that breaks a law prints a short story.
"""

from collections import Counter
from functools import cache

import pytest

from sim.mutations import MUTATIONS, RARE
from sim.plan import make_plan
from sim.play import Played, play, shrink

PART = 30
# 300 schedules take 8 s of CPU, and a busy machine thrice that.
PARTS = 10
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
    *("cut", "kill", "stop", "freeze", "lossy", "blackout"),
    *("node", "redial", "roam", "goodbye", "vanish", "open", "shut"),
    *(f"heard {kind}" for kind in ("Came", "Gone", "NodeIs", "Open", "Ready", "Shut", "Sync", "Synced", "Who")),
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


def test_a_schedule_follows_from_its_seed() -> None:
    first, second = (play(make_plan(11), record=True) for _ in range(2))
    assert first.story == second.story
    assert first.event_count == second.event_count


@pytest.mark.parametrize("name", [name for name in MUTATIONS if name not in RARE])
def test_a_rule_taken_away_is_noticed(name: str) -> None:
    with MUTATIONS[name]():
        assert any(play(make_plan(seed)).broken is not None for seed in range(2 * PART))


def test_a_broken_schedule_becomes_a_short_story() -> None:
    name = "silence is told as DISCONNECTED"
    with MUTATIONS[name]():
        plan = next(plan for plan in map(make_plan, range(2 * PART)) if play(plan).broken is not None)
        short = shrink(plan)
    assert short.broken is not None
    assert len(short.plan.steps) < len(plan.steps)
    assert "disconnected, which it did not" in short.story[-1]
