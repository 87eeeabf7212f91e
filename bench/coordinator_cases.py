"""The rows of the coordinator's comparison: what the generator runs, which numbers count, and what we promised.

A target is a bound on ours divided by the Go baseline's number in the same round, from the table of the coordinator's
issue.  Some metrics need no other server: `growth` is a cost per delivery divided by our own at 200 peers, `relay` a
cost per relayed packet beside a busy coordinator divided by our own without one; `api_idle` and `api_growth` are the
memory of HTTP connections that stay, and what is left of those that left, divided by what we allow.
"""

from dataclasses import dataclass
from typing import Any, Final

Result = dict[str, Any]

BASE_CASE: Final = "peers200"
OWN_METRICS: Final = frozenset({"growth", "relay", "api_idle", "api_growth"})


@dataclass(frozen=True, slots=True)
class Goal:
    """One number of a case, and the bound on its ratio."""

    metric: str
    target: float


@dataclass(frozen=True, slots=True)
class Case:
    """One run of the generator on a server that served nobody before."""

    name: str
    title: str
    agents: int
    arguments: tuple[str, ...]
    goals: tuple[Goal, ...]
    relay: bool = False
    api: bool = False
    quick: bool = True


def _peers(agents: int, *more: str) -> tuple[str, ...]:
    return ("-agents", str(agents), "-clients", str(agents), *more)


# Updates on their way at any time in a closed loop: enough to keep a server busy, and below every queue on the way.
# (The generator: 64.)  In the open loops every peer updates some times a second, far below what either server takes.
CPU, FAN_OUT = Goal("cpu", 0.6), Goal("p99", 1.0)
MEMORY, CONNECT = Goal("memory", 0.2), (Goal("connect", 1.0), Goal("connect_cpu", 1.0))

CASES: Final = (
    Case("closed200", "200+200, 1 tunnel", 200, _peers(200), (CPU, FAN_OUT)),
    Case("closed200x10", "200+200, 10 tunnels", 200, _peers(200, "-tunnels", "10"), (CPU, FAN_OUT)),
    Case("closed1000", "1,000+1,000, 1 tunnel", 1000, _peers(1000), (CPU, FAN_OUT, MEMORY, *CONNECT)),
    Case("open200", "200+200, 2,000 updates/s", 200, _peers(200, "-rate", "2000"), (CPU, FAN_OUT)),
    Case(
        "open200x10",
        "200+200, 10 tunnels, 400 updates/s",
        200,
        _peers(200, "-tunnels", "10", "-rate", "400"),
        (CPU, FAN_OUT),
    ),
    Case("open1000", "1,000+1,000, 2,000 updates/s", 1000, _peers(1000, "-rate", "2000"), (CPU, FAN_OUT)),
    Case(
        "maps1000",
        "1,000+1,000 with the map stream",
        1000,
        _peers(1000, "-maps", "-idle"),
        (MEMORY, *CONNECT),
    ),
    Case("peers100", "100 peers", 50, _peers(50), (Goal("growth", 1.3),)),
    Case(BASE_CASE, "200 peers", 100, _peers(100), (CPU,)),
    Case("peers1000", "1,000 peers", 500, _peers(500), (Goal("growth", 1.3),)),
    Case("peers5000", "5,000 peers", 2500, _peers(2500), (CPU, Goal("growth", 1.3)), quick=False),
    # The relay's own generator (bench/load) beside this one: 10 pairs, eight frames of 1,280 bytes a write.
    Case("api", "1,000 requests of the API", 0, (), (Goal("api_idle", 1.0), Goal("api_growth", 1.0)), api=True),
    Case(
        "relay",
        "relay beside 1,000 updating peers",
        500,
        _peers(500, "-rate", "1000"),
        (Goal("relay", 1.1),),
        relay=True,
    ),
)

UNITS: Final = {
    "cpu": "us/delivery",
    "p99": "us",
    "memory": "bytes/peer",
    "connect": "s",
    "connect_cpu": "CPU s",
    "growth": "x own at 200",
    "relay": "x own alone",
    "api_idle": "x 20 KiB",
    "api_growth": "x 5 MiB",
}


def number(metric: str, result: Result, base: Result | None) -> float | None:
    """The value of one metric in a result; None where it cannot be told."""
    traffic, connect = result.get("traffic"), result.get("connect")
    match metric:
        case "cpu":
            return float(traffic["server_cpu_us_per_delivery"]) if traffic else None
        case "p99":
            return float(traffic["latency_us"]["p99"]) if traffic else None
        case "memory":
            return float(connect["bytes_per_peer"]) if connect else None
        case "connect":
            return float(connect["seconds"]) if connect else None
        case "connect_cpu":
            return float(connect["server_cpu_seconds"]) if connect else None
        case "growth":
            here, there = number("cpu", result, None), number("cpu", base, None) if base else None
            return here / there if here is not None and there else None
        case "relay":
            return float(result["relay"]["beside_us"]) / float(result["relay"]["alone_us"])
        case "api_idle":
            return float(result["api"]["idle_bytes"]) / (20 * 1024) if "api" in result else None
        case "api_growth":
            return float(result["api"]["growth_bytes"]) / (5 * 1024 * 1024) if "api" in result else None
    raise KeyError(metric)


def chosen(only: tuple[str, ...], *, quick: bool) -> list[Case]:
    """The cases to run, in the order of the table, with the one that growth needs."""
    wanted = {case.name for case in CASES if (not only and (case.quick or not quick)) or case.name in only}
    if any(goal.metric == "growth" for case in CASES if case.name in wanted for goal in case.goals):
        wanted.add(BASE_CASE)
    return [case for case in CASES if case.name in wanted]
