"""A real store in a real file, and a whole coordinator in the test's own process, for every test that wants one."""

import logging
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from derp import log
from tailnet.config import CoordinatorConfig
from tailnet.server.server import CoordinatorServer, serve_coordinator
from tailnet.store.store import Store
from tests.support.missing import or_missing
from tests.support.postgresql import Cluster, PostgresqlMissing, running_cluster
from tests.support.seeds import fill

Serve = Callable[..., Awaitable[CoordinatorServer]]


BOTH: Final = ("sqlite", "postgresql")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What depends on the store runs on both kinds: all of tests/tailnet/store, and what `pytest.mark.stores` marks.

    With --every-store all that uses one does.
    """
    if "store_kind" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("stores")
    is_on_both = Path(__file__).parent / "store" in metafunc.definition.path.parents or metafunc.config.getoption(
        "--every-store"
    )
    if marker is not None or is_on_both:
        metafunc.parametrize("store_kind", (marker.args if marker is not None else ()) or BOTH, indirect=True)


@pytest.fixture(autouse=True)
def _own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that other tests ran in this process may have left a log that nobody reads."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [each for each in root.handlers if not isinstance(each, log._Lines)])


@pytest.fixture
def store_kind(request: pytest.FixtureRequest) -> str:
    """Which kind of store this test runs on: SQLite, where nothing says otherwise."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL for all tests.  Who stops it starts a cluster of his own."""
    with or_missing(PostgresqlMissing), running_cluster() as started:
        yield started


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, made once: the migrations take longer than most tests."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def migrated_database(cluster: Cluster) -> str:
    """The same on PostgreSQL."""
    name = cluster.make_database()
    Store.open(cluster.url(name)).close()
    return name


@pytest.fixture(scope="session")
def filled_file(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of tests/support/seeds.py, made once."""
    path = tmp_path_factory.mktemp("seeded") / "tailnet.db"
    shutil.copy(migrated_file, path)
    _fill(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def filled_database(cluster: Cluster, migrated_database: str) -> str:
    """The same on PostgreSQL."""
    name = cluster.make_database(migrated_database)
    _fill(cluster.url(name))
    return name


def _fill(url: str) -> None:
    store = Store.open(url)
    fill(store)
    store.close()


@pytest.fixture
def store_url(request: pytest.FixtureRequest, store_kind: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a store of this test's own: filled or migrated where a test wants that, else still to be made."""
    wanted = request.fixturenames
    what = "filled" if "filled_url" in wanted else "migrated" if "store" in wanted else ""
    if store_kind == "sqlite":
        if what:
            shutil.copy(request.getfixturevalue(f"{what}_file"), tmp_path / "tailnet.db")
        yield f"sqlite:///{tmp_path / 'tailnet.db'}"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    name = cluster.make_database(request.getfixturevalue(f"{what}_database") if what else "template1")
    yield cluster.url(name)
    cluster.drop_database(name)


@pytest.fixture
def filled_url(store_url: str) -> str:
    """The URL of a store with what tests/support/seeds.py has."""
    return store_url


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An open store with all tables."""
    opened = Store.open(store_url)
    yield opened
    opened.close()


@pytest.fixture
async def serve(filled_url: str, nursery: trio.Nursery) -> Serve:
    """`await serve(**settings)` starts a server; the test's end cancels it."""

    async def start(reread: Callable[[], CoordinatorConfig] | None = None, **settings: Any) -> CoordinatorServer:
        defaults: dict[str, Any] = {"listen": (("127.0.0.1", 0),), "stun_listen": (), "store": filled_url}
        defaults["self_check"] = False  # its client would be counted, and a busy machine be called unwell
        config = CoordinatorConfig(
            **{**defaults, "drain_seconds": 2.0, "replica_notice_seconds": 0.0, **settings},
        )
        server: CoordinatorServer = await nursery.start(serve_coordinator, config, reread)
        return server

    return start


@pytest.fixture
async def server(serve: Serve) -> CoordinatorServer:
    return await serve()
