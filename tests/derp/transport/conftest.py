"""Reactors, with every way to wait."""

from collections.abc import Iterator

import pytest

from derp.transport.poller import POLLERS
from tests.derp.transport.served import Served
from tests.support.kqueue import wait_with


@pytest.fixture(params=POLLERS)
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name."""
    name = str(request.param)
    wait_with(monkeypatch, name)
    return name


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.end()
