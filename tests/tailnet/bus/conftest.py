"""A Redis for the tests of a module, which may stop it."""

from collections.abc import Iterator

import pytest

from tests.support.missing import missing
from tests.support.redis import RedisMissing, RedisServer, running_redis


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    try:
        with running_redis(tmp_path_factory.mktemp("redis")) as server:
            yield server
    except RedisMissing as error:
        missing(str(error))
