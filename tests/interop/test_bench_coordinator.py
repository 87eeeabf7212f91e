"""The coordinator's bench: its generator's peers are served like genuine ones, and its table says what it measured."""

import pytest

from bench.coordinator import Clock, Round, judge, run_case
from bench.coordinator_cases import CASES, Case, Goal, Result
from tests.support.gobuild import COORDINATOR_LOAD, TAILNET_COORDINATOR
from tests.support.peers import require
from tests.support.tailnet_servers import ServerKind

pytestmark = pytest.mark.interop

CLOCK = Clock(0.1, 0.3)


@pytest.mark.parametrize("kind", ["go-baseline", "ours"])
@pytest.mark.parametrize("more", [(), ("-batch", "3"), ("-maps", "-rate", "200")], ids=["closed", "batches", "open"])
def test_every_update_reaches_everyone_it_is_for(kind: ServerKind, more: tuple[str, ...]) -> None:
    require(COORDINATOR_LOAD)
    require(TAILNET_COORDINATOR)
    arguments = ("-agents", "6", "-clients", "4", "-tunnels", "3", "-inflight", "3", "-settle", "0s", *more)
    result = run_case(kind, Case("small", "small", 6, arguments, ()), CLOCK)
    traffic = result["traffic"]
    # A client has 3 receivers and an agent 2: all of what was sent arrived, and at the edges of the window no more
    # than what is on its way differs.
    assert traffic["undelivered"] == 0
    assert 2 * traffic["updates"] - 10 <= traffic["deliveries"] <= 3 * traffic["updates"] + 10
    assert traffic["latency_us"]["samples"] == pytest.approx(traffic["deliveries"], abs=10)
    assert result["connect"]["server_cpu_seconds"] > 0


def rounds(*pairs: tuple[float, float]) -> list[Round]:
    def result(cost: float) -> Result:
        return {"traffic": {"server_cpu_us_per_delivery": cost, "generator_cores": 0.5}}

    return [{("a", "ours"): result(ours), ("a", "go-baseline"): result(go)} for ours, go in pairs]


@pytest.mark.parametrize(("target", "met"), [(0.51, True), (0.49, False)])
def test_the_median_round_is_judged_and_ratios_are_within_rounds(target: float, met: bool) -> None:
    case = Case("a", "a", 1, (), (Goal("cpu", target),))
    row = judge(case, case.goals[0], rounds((10, 10), (50, 100), (4, 16)))
    assert (row.ratio, row.lowest, row.highest, row.met) == (0.5, 0.25, 1.0, met)


def test_a_round_that_failed_is_left_out() -> None:
    case = Case("a", "a", 1, (), (Goal("cpu", 1.0),))
    row = judge(case, case.goals[0], [*rounds((1, 2)), {}])
    assert row.ratio == 0.5
    assert judge(case, case.goals[0], [{}]).met is None


def test_rows_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
