"""Which store a command means: its own option, else the settings."""

import pytest

from tailnet.cli.store_options import store_url


def test_what_is_given_is_stronger_than_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILNET_STORE", "sqlite:///settings.db")
    assert store_url(None, None) == "sqlite:///settings.db"
    assert store_url("sqlite:///given.db", None) == "sqlite:///given.db"
