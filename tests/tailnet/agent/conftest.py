"""A container engine that is a script."""

import os
from pathlib import Path

import pytest

from tests.support.engines import make_engine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where its command line and its answers are."""
    make_engine(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path
