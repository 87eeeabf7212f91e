"""Secrets become files of their user's own."""

import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tailnet.agent.context import Context
from tailnet.agent.manifest import Secret
from tailnet.agent.secret_files import write_secrets
from tests.support.agents import open_context


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    async with open_context() as made:
        yield made


async def test_secrets(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    old = tmp_path / "old"
    old.write_text("before")
    secrets = [
        Secret("~/keys/key", b"two\0"),
        Secret("old", b"three"),
        Secret(str(tmp_path / "old" / "below-a-file"), b"four"),
        Secret("nul\0", b"five"),
    ]
    with caplog.at_level(logging.WARNING):
        write_secrets(secrets, context)
    written = tmp_path / "keys" / "key"
    assert written.read_bytes() == b"two\0"
    assert old.read_bytes() == b"three"
    assert {path.stat().st_mode & 0o777 for path in (written, old)} == {0o600}
    assert sorted(os.listdir(tmp_path)) == ["keys", "old"], "nothing half-written is left"
    assert "below-a-file cannot be written" in caplog.text
    assert "four" not in caplog.text
