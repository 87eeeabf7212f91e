"""Servers for the tests of a module, which may stop them."""

from collections.abc import Iterator

import pytest

from tailnet.bus import redis as redis_module
from tailnet.replica import pair
from tests.support.missing import or_missing
from tests.support.redis import (
    RedisCluster,
    RedisMissing,
    RedisServer,
    Sentineled,
    find_valkey,
    running,
)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with or_missing(RedisMissing), running(RedisServer(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with (
        or_missing(RedisMissing),
        running(RedisServer(tmp_path_factory.mktemp("valkey"), program=find_valkey())) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def sentineled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentineled]:
    with or_missing(RedisMissing), running(Sentineled(tmp_path_factory.mktemp("sentineled"))) as servers:
        yield servers


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with or_missing(RedisMissing), running(RedisCluster(tmp_path_factory.mktemp("cluster"))) as servers:
        yield servers


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is slow is no replica that is silent."""
    monkeypatch.setattr(pair, "SILENCE_SECONDS", 60.0)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are looked at more often, and what failed is tried again sooner: nobody waits for seconds."""
    monkeypatch.setattr(redis_module, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(redis_module, "RETRY_SECONDS", (0.05, 0.1))
