"""Play a schedule, and make one that breaks a law as short as it can be."""

from dataclasses import dataclass, field, replace

from derp.text import error_text
from sim.laws import LawBroken
from sim.plan import FAULT_SECONDS, QUIET_SECONDS, SOON_SECONDS, Plan
from sim.world import World


@dataclass(slots=True)
class Played:
    """What came of a schedule."""

    plan: Plan
    broken: str | None
    event_count: int
    met: dict[str, int]
    story: list[str] = field(default_factory=list)


def play(plan: Plan, record: bool = False) -> Played:
    """One run; the same plan gives the same run."""
    world = World(plan, record)
    broken = None
    try:
        for seconds in (SOON_SECONDS, QUIET_SECONDS):
            world.heap.run(FAULT_SECONDS + seconds)
            world.judge.quiet(is_last=seconds == QUIET_SECONDS)
            if world.relays is not None and seconds == SOON_SECONDS:
                world.relays.quiet()
    except LawBroken as error:
        broken = str(error)
        world.say(broken)
    except Exception as error:  # a core contradicts itself, or falls over
        broken = f"{type(error).__name__}: {error_text(error)}"
        world.say(broken)
    met = dict(world.judge.met)
    for process in world.processes:
        cluster = process.cluster
        for kind, count in cluster.heard.items():
            met[f"heard {kind.__name__}"] = met.get(f"heard {kind.__name__}", 0) + count
        met["slept"] = met.get("slept", 0) + cluster.sleep_count
        met["clock jumps"] = met.get("clock jumps", 0) + cluster.time.jump_count
        met["sessions again"] = met.get("sessions again", 0) + sum(
            max(0, pair.session_count - 1) for pair in cluster.pairs.values()
        )
    return Played(plan, broken, world.heap.event_count, met, world.story or [])


def shrink(plan: Plan) -> Played:
    """Leave out steps, peers and replicas for as long as some law is broken; a short story that still ends badly."""
    best = plan
    size = max(1, len(best.steps) // 2)
    while size >= 1:
        at = 0
        while at < len(best.steps):
            shorter = best.without(*range(at, at + size))
            if play(shorter).broken is not None:
                best = shorter
            else:
                at += size
        size //= 2
    for name in ("clients", "agents", "replicas"):
        while getattr(best, name) > (2 if name == "replicas" else 1):
            smaller = replace(best, **{name: getattr(best, name) - 1})
            if play(smaller).broken is None:
                break
            best = smaller
    return play(best, record=True)
