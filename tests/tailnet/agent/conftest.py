"""A container engine that is a script."""

import json
import os
from pathlib import Path

import pytest

from tests.support.engines import INSPECTED


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A command line that answers with files: `ps` and `inspect`."""
    program = tmp_path / "docker"
    program.write_text(f'#!/bin/sh\ncat {tmp_path}/"$1"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "ps").write_text("abc\n")
    (tmp_path / "inspect").write_text(json.dumps([INSPECTED]))
    return tmp_path
