"""A real store in a real file, and a whole coordinator in the test's own process, for every test that wants one."""

import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tailnet.config import CoordinatorConfig
from tailnet.server.server import CoordinatorServer, serve_coordinator
from tailnet.store.store import Store
from tests.support.seeds import fill

Serve = Callable[..., Awaitable[CoordinatorServer]]


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


@pytest.fixture(scope="session")
def filled_file(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of tests/support/seeds.py, made once."""
    path = tmp_path_factory.mktemp("seeded") / "tailnet.db"
    shutil.copy(migrated_file, path)
    store = Store.open(f"sqlite:///{path}")
    fill(store)
    store.close()
    return path


@pytest.fixture
def filled_url(filled_file: Path, tmp_path: Path, store_url: str) -> str:
    shutil.copy(filled_file, tmp_path / "tailnet.db")
    return store_url


@pytest.fixture
async def serve(filled_url: str, nursery: trio.Nursery) -> Serve:
    """`await serve(**settings)` starts a server; the test's end cancels it."""

    async def start(**settings: Any) -> CoordinatorServer:
        defaults: dict[str, Any] = {"listen": (("127.0.0.1", 0),), "stun_listen": (), "store": filled_url}
        config = CoordinatorConfig(**{**defaults, "drain_seconds": 2.0, **settings})
        server: CoordinatorServer = await nursery.start(serve_coordinator, config)
        return server

    return start


@pytest.fixture
async def server(serve: Serve) -> CoordinatorServer:
    return await serve()
