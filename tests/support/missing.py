"""What to do with a test whose server, browser or program is not installed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest


def missing(why: str) -> NoReturn:
    """Skip the test on a developer's machine, and fail it in CI (CI=true), where .ci/run has installed everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{why}; CI must run this test", pytrace=False)
    pytest.skip(why)


@contextmanager
def or_missing(*kinds: type[Exception]) -> Iterator[None]:
    """Such an error says what is not installed."""
    try:
        yield
    except kinds as error:
        missing(str(error))
