"""A schedule: what is done to a cluster, and when.  It follows from its seed, and can be played with less of it."""

from dataclasses import dataclass, replace
from random import Random
from typing import Final, NamedTuple

FAULT_SECONDS: Final = 40.0
# A silent replica is waited for 6 s, an unconfirmed tunnel 30 s, peers dial again within 10 s.
QUIET_SECONDS: Final = 50.0
# What needs none of these is right by then: a replica notices within 15 s that a peer without a network is gone.
SOON_SECONDS: Final = 20.0


class Step(NamedTuple):
    """One thing that happens: `what` with its numbers, which mean what sim/world.py makes of them."""

    at: float
    what: str
    who: int = 0
    other: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:7.3f}  {self.what} {self.who} {self.other} {self.seconds:.1f}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run follows from."""

    seed: int
    replicas: int
    agents: int
    clients: int
    is_bus: bool  # a carrier that may lose and repeat; else links that break and are dialled anew
    apart_seconds: float  # until the first replicas find each other
    steps: tuple[Step, ...]

    def without(self, *places: int) -> "Plan":
        """The same, less these steps."""
        return replace(self, steps=tuple(step for at, step in enumerate(self.steps) if at not in places))


# What happens, and how often beside the others.
PEERS: Final = {"node": 12, "redial": 4, "roam": 4, "goodbye": 2, "vanish": 2, "blink": 2, "open": 4, "shut": 3}
FAULTS: Final = {
    "cut": 4,
    "one way": 3,
    "deaf": 2,
    "lossy": 4,
    "blackout": 1,
    "kill": 3,
    "stop": 2,
    "freeze": 3,
    "store away": 2,
}

# So many schedules have each of the stories below beside all else.
STORY_SHARE: Final = 0.1
# How far steps lie from a moment: within one latency, a hold or a dial, or a silence.
WIDTHS: Final = (0.05, 0.5, 4)


def make_plan(seed: int) -> Plan:
    """The schedule of this number."""
    random = Random(f"plan {seed}")
    replicas = random.choice((2, 3, 3, 4))
    agents, clients = random.randint(1, 3), random.randint(2, 7)
    apart_seconds = random.uniform(2, 10) if random.random() < 0.25 else 0.0
    steps: list[Step] = []
    moments = [random.uniform(1, FAULT_SECONDS) for _ in range(2)]
    if apart_seconds:
        moments += [random.uniform(1, apart_seconds), apart_seconds]
    for _ in range(random.randint(0, 6)):
        what = random.choices(list(FAULTS), list(FAULTS.values()))[0]
        one = random.randrange(replicas)
        two = (one + random.randrange(1, replicas)) % replicas
        step = Step(random.uniform(1, FAULT_SECONDS), what, one, two, random.choice((0.5, 2, 4, 8, 15, 25)))
        steps.append(step)
        moments += [step.at, step.at + step.seconds]
    moments = [at for at in moments if at < FAULT_SECONDS]
    for _ in range(random.randint(10, 50)):
        what = random.choices(list(PEERS), list(PEERS.values()))[0]
        who = random.randrange(agents + clients)
        other = random.randrange(agents)
        at = random.uniform(1, FAULT_SECONDS)
        if random.random() < 0.7:  # what breaks rules are coincidences, so most steps stand close to others
            at = min(FAULT_SECONDS, max(1, random.choice(moments) + random.uniform(-0.3, 1) * random.choice(WIDTHS)))
        steps.append(Step(at, what, who, other, random.uniform(0.5, 12)))
    steps += _more(Random(f"more {seed}"), replicas, agents, clients)
    return Plan(seed, replicas, agents, clients, random.random() < 0.5, apart_seconds, tuple(sorted(steps)))


def _more(random: Random, replicas: int, agents: int, clients: int) -> list[Step]:
    """Stories that chance tells too seldom.  Their draws are their own: all else of a schedule stays what it is."""
    steps: list[Step] = []
    if random.random() < STORY_SHARE:  # all replicas are updated, one after the other
        at, pause, seconds = random.uniform(1, 10), random.uniform(0.5, 8), random.choice((2, 8, 25))
        steps += [Step(at + place * pause, "stop", place, 0, seconds) for place in range(replicas)]
    client, agent = agents + random.randrange(clients), random.randrange(agents)
    if random.random() < STORY_SHARE:  # a tunnel is opened to an agent that has been there for long, and goes now
        at = random.uniform(34, 39)
        steps += [Step(at - 3, "shut", client, agent), Step(at, "open", client, agent)]
        steps += [Step(at + random.uniform(0, 0.15), "goodbye", agent, 0, 12.0)]
    if random.random() < STORY_SHARE:  # the others call one silent, which wakes a moment later
        at = random.uniform(5, 30)
        steps += [Step(at, "freeze", random.randrange(replicas), 0, random.uniform(6, 7.5))]
    if random.random() < STORY_SHARE:  # a tunnel is removed at a replica that the others do not hear, and is not named
        at, one = random.uniform(3, 8), random.randrange(replicas)
        steps += [Step(at, "cut", one, (one + 1) % replicas, 25.0), Step(at + 10, "roam", client)]
        steps += [Step(at + 11, "shut", client, agent), Step(at + 12, "roam", client)]
    return steps
