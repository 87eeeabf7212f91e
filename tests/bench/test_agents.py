"""The bench of agents: what it says of targets, and that its simulated agents are served in full."""

import json
import os
import time
from dataclasses import asdict

import pytest

from bench.agents import ONE_BY_ONE, QUICK, ROWS, Report, Scale, agents_of, numbers, served, store_mb, tree_cpu
from bench.agents_load import METADATA_KEYS, Tally, quantile
from tests.support.tailnet_servers import TAILNET_COMMAND, Server

PATIENCE_SECONDS = 60.0  # a hang guard


def test_targets_are_bounds_above_or_below(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.note("a", "cores", 0.9, "cores", 1.0)
    report.note("a", "cores", 1.1, "cores", 1.0)
    report.note("b", "times", 9.0, "x", 10.0, least=True)
    report.note("b", "times", 10.0, "x", 10.0, least=True)
    assert [(row.target, row.met) for row in report.rows] == [
        ("<= 1", True),
        ("<= 1", False),
        (">= 10", False),
        (">= 10", True),
    ]
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["met", "MISSED", "MISSED", "met"]
    json.dumps(asdict(report))


def test_quick_is_smaller_in_everything() -> None:
    for name, value in asdict(QUICK).items():
        whole = asdict(Scale())[name]
        assert max(value) < min(whole) if isinstance(whole, tuple) else value < whole, name
    assert list(ROWS) == ["reads", "sizes", "one-core", "batching", "beside", "restart"]


def test_samples_are_taken_in_the_window_alone() -> None:
    tally = Tally()
    tally.note(0.1, 0.2)
    tally.is_measuring = True
    tally.note(0.3, 0.4)
    assert (tally.late, tally.took) == ([0.3], [0.4])
    assert quantile([], 0.99) is None
    assert quantile([0.001 * each for each in range(100)], 0.99) == pytest.approx(99.0)


def test_the_cpu_of_a_process_and_of_those_below_it() -> None:
    began = tree_cpu(os.getpid())
    ends_at = time.process_time() + 0.2
    while time.process_time() < ends_at:
        pass
    assert tree_cpu(os.getpid()) - began >= 0.1


@pytest.mark.parametrize("program", [TAILNET_COMMAND, ONE_BY_ONE], ids=["outbox", "one by one"])
def test_agents_boot_and_report_and_nothing_is_lost(program: list[str]) -> None:
    with served("SQLite", 3, program) as (server, folder, cluster):
        with agents_of(server, folder, 3, rhythm=0.02) as agents:
            assert agents.booted["failures"] == {}
            assert agents.booted["calls"] == 3 * 12
            before = numbers(server)
            window = agents.window(lambda: until_written(server, before["tailnet_outbox_written_total"] + 60))
        assert window["failures"] == {}
        assert window["calls"]["BatchUpdateMetadata"] > 3
        after = numbers(server)
        assert after["tailnet_outbox_lost_total"] == 0
        rows = after["tailnet_outbox_written_total"] - before["tailnet_outbox_written_total"]
        transactions = after["tailnet_store_transactions_total"] - before["tailnet_store_transactions_total"]
        if program is ONE_BY_ONE:
            # The values of one report are together, and no two reports are.
            assert rows / len(METADATA_KEYS) <= transactions
        else:
            assert transactions < rows / len(METADATA_KEYS)
        assert store_mb(folder, cluster) > 0


def until_written(server: Server, count: float) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while numbers(server)["tailnet_outbox_written_total"] < count:
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
