"""The rows of the comparison: what the generator runs, which numbers of it count, and what we promised.

A target is a bound on ours divided by the genuine relay's number in the same round, from the table of the relay's
issue.  Two metrics are special: `connect_rate` is better when larger, and `growth` is a cost divided by our own
cost of the case named `pairs10`, so it needs no other relay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Carrier = Literal["plain", "tls"]
CARRIERS: tuple[Carrier, ...] = ("plain", "tls")

Result = dict[str, Any]

BASE_CASE = "pairs10"
# The genuine relay's ceiling is the highest open-loop rate at which it loses (next to) nothing, one frame a write.
# What it carries in a closed loop is more than that, because there nobody sends while it is behind: the search begins
# with that rate and comes down.
CEILING_CASE = "single10"
CEILING_STEPS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
CEILING_LOSS = 0.002
CEILING_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Goal:
    """One number of a case, and the bound on its ratio for each carrier."""

    metric: str
    plain: float
    tls: float

    def target(self, carrier: Carrier) -> float:
        return self.plain if carrier == "plain" else self.tls


@dataclass(frozen=True, slots=True)
class Case:
    """One run of the generator.  `fresh` asks for a relay that served nobody before: for what memory is measured."""

    name: str
    title: str
    arguments: tuple[str, ...]
    goals: tuple[Goal, ...]
    websocket: bool = False
    fresh: bool = False
    ceiling: bool = False  # the rate is a share of the genuine relay's ceiling, measured in the same run
    quick: bool = True  # part of --quick


def cost(plain: float, tls: float) -> tuple[Goal, ...]:
    return (Goal("cpu", plain, tls),)


LATENCY = (Goal("p50", 1.2, 1.2), Goal("p99", 1.0, 1.0))
SINGLE = ("-frames", "1")


def _connect(memory_plain: float, memory_tls: float) -> tuple[Goal, ...]:
    return Goal("memory", memory_plain, memory_tls), Goal("connect_cpu", 0.7, 1.0), Goal("connect_rate", 1.0, 1.0)


CASES: tuple[Case, ...] = (
    Case("pairs10", "10 pairs, 8 frames a write", (), cost(1 / 6, 1 / 3)),
    Case("pairs100", "100 pairs, 8 frames a write", ("-pairs", "100"), cost(1 / 6, 1 / 3)),
    Case("small10", "10 pairs, 64 B", ("-size", "64"), cost(1 / 2, 1 / 1.7)),
    Case("small100", "100 pairs, 64 B", ("-size", "64", "-pairs", "100"), cost(1 / 2, 1 / 1.7)),
    Case("large10", "10 pairs, 8 KiB", ("-size", "8192"), cost(1 / 7, 1 / 2.2)),
    Case("large100", "100 pairs, 8 KiB", ("-size", "8192", "-pairs", "100"), cost(1 / 7, 1 / 2.2)),
    Case("single10", "10 pairs, 1 frame a write", SINGLE, cost(1 / 2.3, 1 / 2)),
    Case("single100", "100 pairs, 1 frame a write", (*SINGLE, "-pairs", "100"), cost(1 / 2.3, 1 / 2)),
    Case("open10000", "10,000 packets/s over 10 pairs", (*SINGLE, "-rate", "10000"), cost(0.6, 1.0)),
    Case("open1000", "1,000 packets/s on one pair", (*SINGLE, "-rate", "1000", "-pairs", "1"), cost(0.7, 1.0)),
    Case("all16", "all-to-all of 16", ("-scenario", "alltoall", "-pairs", "16"), cost(1 / 2, 1 / 1.5)),
    Case("fanin8", "fan-in 8 to 1", ("-scenario", "fanin", "-pairs", "1"), cost(1 / 2, 1 / 1.5)),
    Case("ws10", "websocket, 10 pairs, 8 frames a write", (), cost(1.0, 1.0), websocket=True),
    Case("wssingle10", "websocket, 10 pairs, 1 frame a write", SINGLE, cost(1.0, 1.0), websocket=True),
    Case("latency500", "latency at 500 packets/s", (*SINGLE, "-rate", "500", "-pairs", "1"), LATENCY),
    Case("latency70", "latency at 70 % of derper's ceiling", SINGLE, LATENCY, ceiling=True),
    Case("idle", "idle clients", ("-scenario", "idle", "-idle", "2000"), _connect(1 / 8, 1 / 3), fresh=True),
    Case(
        "wsidle",
        "idle websocket clients",
        ("-scenario", "idle", "-idle", "2000"),
        # The table's 1/4 is for websocket over TCP; over TLS the session's own memory rules, so its bound stays 1/3.
        (Goal("memory", 1 / 4, 1 / 3),),
        websocket=True,
        fresh=True,
    ),
    Case("at1000", "10 pairs beside 1,000 clients", ("-idle", "1000"), (Goal("growth", 1.3, 1.3),), fresh=True),
    Case(
        "at10000",
        "10 pairs beside 10,000 clients",
        ("-idle", "10000"),
        (Goal("growth", 1.3, 1.3),),
        fresh=True,
        quick=False,
    ),
)

UNITS = {
    "cpu": "us/packet",
    "p50": "us",
    "p99": "us",
    "memory": "bytes/client",
    "connect_cpu": "us/connect",
    "connect_rate": "connects/s",
    "growth": "x own cost at 10 pairs",
}
# The same in a chart's label; growth is the one bar that is not a ratio to the genuine relay.
WORDS = {
    "cpu": "CPU",
    "p50": "p50",
    "p99": "p99",
    "memory": "memory",
    "connect_cpu": "CPU a connect",
    "connect_rate": "connects/s, more is better",
    "growth": "CPU to own at 10",
}
LARGER_IS_BETTER = {"connect_rate"}


def number(metric: str, result: Result, base: Result | None) -> float | None:
    """The value of one metric in the generator's result; None where it cannot be told."""
    traffic, connect = result.get("traffic"), result.get("connect")
    match metric:
        case "cpu":
            return _float(traffic, "server_cpu_us_per_packet")
        case "p50" | "p99":
            return _float(traffic["latency_us"], metric) if traffic and traffic["latency_us"] else None
        case "memory":
            return _float(connect, "bytes_per_client")
        case "connect_cpu":
            return _float(connect, "server_cpu_us")
        case "connect_rate":
            return _float(connect, "per_second")
        case "growth":
            here = _float(traffic, "server_cpu_us_per_packet")
            alone = _float(base["traffic"], "server_cpu_us_per_packet") if base else None
            return here / alone if here is not None and alone else None
    raise KeyError(metric)


def _float(part: dict[str, Any] | None, name: str) -> float | None:
    return float(part[name]) if part else None


def met(metric: str, ratio: float, target: float) -> bool:
    return ratio >= target if metric in LARGER_IS_BETTER else ratio <= target


def chosen(only: tuple[str, ...], *, quick: bool) -> Iterator[Case]:
    """The cases to run, in the order of the table, with those that others need."""
    wanted = {case.name for case in CASES if (not only and (case.quick or not quick)) or case.name in only}
    for case in CASES:
        if case.name in wanted:
            if any(goal.metric == "growth" for goal in case.goals):
                wanted.add(BASE_CASE)
            if case.ceiling:
                wanted.add(CEILING_CASE)
    return (case for case in CASES if case.name in wanted)
