"""A container engine that is a script, and a clock for nodes on loopback."""

import os
from pathlib import Path

import pytest
import trio.testing

from tests.support.engines import make_engine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where its command line and its answers are."""
    make_engine(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def quick_clock() -> trio.testing.MockClock:
    """It jumps when nothing is under way on loopback, which takes no time that counts."""
    return trio.testing.MockClock(autojump_threshold=0.01)
