"""A PostgreSQL that takes no writes, or that another takes over from: sessions stay, it is said, and it heals."""

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tailnet.bus import store as module
from tailnet.bus.store import StoreBus
from tailnet.coordinator.messages import Kind
from tailnet.store.store import Store
from tests.support.missing import or_missing
from tests.support.postgresql import Cluster, PostgresqlMissing, running_cluster
from tests.support.replicated import MAIN, Place, Told, met, well
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Cluster]:
    """One that these tests stop."""
    with or_missing(PostgresqlMissing), running_cluster() as started:
        yield started


@pytest.fixture
def stores(postgresql: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Store]]:
    """Of two replicas, in one database."""
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.2)
    url = postgresql.url(postgresql.make_database())
    opened = Store.open(url), Store.open(url)
    yield opened
    for each in opened:
        each.close()


@asynccontextmanager
async def met_by(stores: tuple[Store, Store]) -> AsyncIterator[tuple[Place, Place, Callable[[str], object], Told]]:
    """Two replicas that this store connects, what sends a node of the agent at the first, and a client of his."""
    first, second = (Place(StoreBus(each), "replica", ("127.0.0.1", 0)) for each in stores)
    async with met(first, second) as (agent, client):
        yield first, second, lambda node: first.node(agent, node), client


def end_sessions(postgresql: Cluster, writes: str) -> None:
    """Whoever comes again finds the databases so."""
    with postgresql.connect() as connection:
        connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {writes}")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'store%'")


async def test_a_database_that_takes_no_writes(postgresql: Cluster, stores: tuple[Store, Store]) -> None:
    async with met_by(stores) as (first, second, send, client):
        end_sessions(postgresql, "on")
        try:
            await wait_for(lambda: "it takes no writes" in first.replicas.bus.trouble)
            send("a2")
            await client.hears(MAIN, Kind.NODE, "a2")
        finally:
            end_sessions(postgresql, "off")
        await well(first, second)


@contextmanager
def standby_of(stopped: Cluster) -> Iterator[Cluster]:
    """One with the same files.  Not in pytest's folder, which is closed to others."""
    with TemporaryDirectory(prefix="tailnet-pg-") as folder:
        Path(folder).chmod(0o755)
        yield stopped.copy(Path(folder))


async def test_another_server_takes_over(postgresql: Cluster, stores: tuple[Store, Store]) -> None:
    async with met_by(stores) as (first, second, send, client):
        postgresql.stop(signal.SIGINT)
        with standby_of(postgresql) as other:
            await wait_for(lambda: first.replicas.bus.trouble and second.replicas.bus.trouble)
            send("a2")
            await client.hears(MAIN, Kind.NODE, "a2")
            other.take_over(postgresql)
            other.start()
            try:
                await well(first, second)
                send("a3")
                await client.hears(MAIN, Kind.NODE, "a3")
            finally:
                other.stop(signal.SIGQUIT)
                postgresql.start()
