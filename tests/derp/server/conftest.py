"""What several tests of the server ask for."""

import pytest


@pytest.fixture
def refused_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused client is closed after a moment, for who reads to the end; the five seconds are in test_session.py."""
    monkeypatch.setattr("derp.server.session._REFUSED_SECONDS", 0.2)
