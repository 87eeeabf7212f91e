"""The comparison's arithmetic: ratios within a round, medians over rounds, verdicts, and the chart's geometry."""

import re

import pytest

from bench.cases import CASES, CEILING_CASE, Case, Result, chosen, number
from bench.chart import Bar, draw
from bench.compare import Comparison, Round, Row, bars, table

PAIRS = next(case for case in CASES if case.name == "pairs10")
BESIDE = next(case for case in CASES if case.name == "at1000")
IDLE = next(case for case in CASES if case.name == "idle")


def traffic(cpu: float, *, loss: float = 0.0) -> Result:
    return {
        "traffic": {
            "server_cpu_us_per_packet": cpu,
            "latency_us": {"p50": 10.0, "p99": 20.0},
            "loss": loss,
            "generator_cores": 0.5,
        }
    }


def idle(memory: float, cpu: float, rate: float) -> Result:
    return {"connect": {"bytes_per_client": memory, "server_cpu_us": cpu, "per_second": rate}}


def compared(case: Case, *rounds: dict[str, Result], base: tuple[float, ...] = ()) -> list[Row]:
    """Rows of one plaintext case, given each round's result by server; `base` is our own cost at 10 pairs a round."""
    comparison = Comparison(("ours", "derper", "floor"), ("plain",), [case], [])
    for i, results in enumerate(rounds):
        comparison.rounds.append(Round({("plain", case.name, server): result for server, result in results.items()}))
        if base:
            comparison.rounds[-1].results["plain", "pairs10", "ours"] = traffic(base[i])
    return comparison.rows()


def test_ratios_are_taken_within_a_round_and_the_median_round_counts() -> None:
    # The second round ran on a busy machine, four times slower for everybody: medians of values would mix rounds.
    (row,) = compared(
        PAIRS,
        {"ours": traffic(1.0), "derper": traffic(5.0), "floor": traffic(0.5)},
        {"ours": traffic(4.0), "derper": traffic(28.0), "floor": traffic(2.0)},
        {"ours": traffic(1.0), "derper": traffic(8.0), "floor": traffic(0.25)},
    )
    assert row.ratio == pytest.approx(1 / 7)
    assert (row.lowest, row.highest) == (1 / 8, 1 / 5)
    assert row.floor_ratio == 2.0
    assert (row.ours, row.derper, row.floor) == (1.0, 8.0, 0.5)
    assert row.met is True
    assert "met" in table([row])


def test_a_missed_target_says_so() -> None:
    (row,) = compared(PAIRS, {"ours": traffic(2.0), "derper": traffic(5.0)})
    assert row.met is False
    assert "MISSED" in table([row])


def test_a_relay_that_failed_leaves_a_gap_and_not_a_verdict() -> None:
    (row,) = compared(PAIRS, {"derper": traffic(5.0)}, {"derper": traffic(5.0)})
    assert (row.ours, row.ratio, row.met) == (None, None, None)
    assert bars([row], "plain") == []
    (row,) = compared(PAIRS, {"derper": traffic(5.0)}, {"ours": traffic(1.0), "derper": traffic(10.0)})
    assert row.ratio == pytest.approx(0.1)


def test_the_worst_loss_of_any_round_is_shown() -> None:
    (row,) = compared(
        PAIRS, {"ours": traffic(1, loss=0.02), "derper": traffic(5)}, {"ours": traffic(1), "derper": traffic(5)}
    )
    assert row.loss_percent == {"ours": 2.0, "derper": 0.0}
    assert "ours 2.00" in table([row])


def test_growth_needs_only_ourselves() -> None:
    (row,) = compared(BESIDE, {"ours": traffic(1.5)}, base=(1.0,))
    assert row.ratio == 1.5
    assert row.met is False
    (row,) = compared(BESIDE, {"ours": traffic(1.2)}, base=(1.0,))
    assert row.met is True


def test_more_connects_are_better() -> None:
    rows = compared(IDLE, {"ours": idle(1000, 100, 3000), "derper": idle(36000, 200, 2000)})
    assert {row.metric: row.met for row in rows} == {"memory": True, "connect_cpu": True, "connect_rate": True}
    rows = compared(IDLE, {"ours": idle(5000, 150, 1500), "derper": idle(36000, 200, 2000)})
    assert {row.metric: row.met for row in rows} == {"memory": False, "connect_cpu": False, "connect_rate": False}


def test_rows_bring_the_rows_they_need() -> None:
    assert [case.name for case in chosen(("at10000",), quick=True)] == ["pairs10", "at10000"]
    names = [case.name for case in chosen(("latency70",), quick=True)]
    assert names == [CEILING_CASE, "latency70"]
    assert "at10000" not in [case.name for case in chosen((), quick=True)]
    assert list(chosen((), quick=False)) == list(CASES)


def test_a_missing_latency_is_no_number() -> None:
    assert number("p50", {"traffic": {"latency_us": None}}, None) is None
    assert number("memory", traffic(1.0), None) is None


def test_the_chart_is_logarithmic_around_equal() -> None:
    bar = [Bar("quarter", 0.25, 0.2, 0.3, 0.5, met=True), Bar("four", 4.0, 4.0, 4.0, 1.0, met=False)]
    text = draw("a < b", "two rounds", bar)
    assert "a &lt; b" in text
    (left, short), (right, long) = [
        (float(x), float(width))
        for x, width in re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)" height="12"', text)
    ]
    # A quarter and four times are equally far from equal, on either side of it.
    assert short == pytest.approx(long, abs=0.2)
    assert left + short == pytest.approx(right, abs=0.2)
