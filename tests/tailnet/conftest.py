"""A real store in a real file, for every test of the tailnet that wants one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailnet.store.store import Store


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, made once: the migrations take longer than most tests."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """The URL of a store that does not exist yet."""
    return f"sqlite:///{tmp_path / 'tailnet.db'}"


@pytest.fixture
def store(migrated_file: Path, tmp_path: Path, store_url: str) -> Iterator[Store]:
    shutil.copy(migrated_file, tmp_path / "tailnet.db")
    opened = Store.open(store_url)
    yield opened
    opened.close()
