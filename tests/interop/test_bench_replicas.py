"""The bench of replicas: every update crosses from one replica to the other, and CPU is that of all who serve."""

from pathlib import Path

import pytest

from bench.replicas import one_user, ratio, serving, traffic_of
from tests.support.gobuild import COORDINATOR_LOAD
from tests.support.missing import or_missing
from tests.support.peers import require
from tests.support.redis import RedisMissing

pytestmark = pytest.mark.interop


def test_every_update_crosses_and_is_counted(tmp_path: Path) -> None:
    require(COORDINATOR_LOAD)
    peers = ["-agents", "6", "-clients", "6", "-inflight", "3", "-batch", "3", "-warmup", "0.1s", "-measure", "0.3s"]
    with or_missing(RedisMissing), serving("Redis carrier", tmp_path, one_user(6)) as (servers, pids):
        assert len(set(pids)) == 3
        traffic = traffic_of(servers, pids, tmp_path, peers)
    assert traffic["undelivered"] == 0
    assert traffic["deliveries"] == pytest.approx(traffic["updates"], abs=6)
    assert traffic["server_cpu_us_per_delivery"] > 0


def test_ratios_are_taken_within_a_round() -> None:
    assert ratio([10.0, 400.0, 30.0], [5.0, 100.0, 10.0]) == 3.0
