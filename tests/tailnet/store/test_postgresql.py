"""PostgreSQL: what each error means, no password in any of them, and servers that meet on one database."""

import threading
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa

from tailnet.errors import StoreError, StoreTrouble
from tailnet.store import reports
from tailnet.store.database import Database
from tailnet.store.postgresql import MAX_READERS, PostgresqlDialect
from tailnet.store.reports import EXTERNAL_LOG_SOURCE
from tailnet.store.rows import LifecycleChange, LifecycleState, LogBatch, MetadataValue, PresenceChange, Role
from tailnet.store.schema import agent_stats, counters
from tailnet.store.store import Store
from tailnet.store.urls import parse_store_url
from tailnet.types import PeerID
from tests.support.postgresql import PASSWORD, Cluster
from tests.support.seeds import NOW, fill, make_id, peer_id

pytestmark = pytest.mark.stores("postgresql")


def failure(code: str, text: str) -> psycopg.Error:
    """An error of the server, as the driver raises it."""
    return psycopg.errors.lookup(code)(text)


@pytest.mark.parametrize(
    ("error", "trouble", "words"),
    [
        (failure("57P01", "terminating connection due to administrator command"), "unreachable", "restarting"),
        (failure("08006", "connection lost"), "unreachable", "not to be reached"),
        (failure("28P01", f"password {PASSWORD} wrong"), "refused", "check user, password"),
        (failure("42501", "permission denied for schema public"), "refused", "grant it the schema"),
        (failure("53300", "too many"), "crowded", "max_connections"),
        (failure("53100", "could not extend file"), "full", "free some space"),
        (failure("55P03", "canceling statement due to lock timeout"), "locked", "pg_stat_activity"),
        (failure("57014", "canceling statement due to statement timeout"), "slow", "overloaded"),
        (failure("25006", "cannot execute UPDATE in a read-only transaction"), "read_only", "Name the primary"),
        (failure("40P01", "deadlock detected"), "conflict", "another server"),
        (failure("23505", "duplicate key value"), "unfit", "duplicate key"),
        (failure("22001", "value too long"), "unfit", "too long"),
        (failure("XX001", "invalid page in block 7"), "damaged", "restore it"),
        (failure("42P01", 'relation "agents" does not exist'), "other", "agents"),
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), "unfit", "NUL"),
        (psycopg.OperationalError("connection failed: FATAL:  sorry, too many clients already"), "crowded", "raise"),
        (psycopg.OperationalError('FATAL:  password authentication failed for user "x"'), "refused", "user"),
        (psycopg.OperationalError('FATAL:  database "x" does not exist'), "refused", "database"),
        (
            psycopg.OperationalError("connection refused\nIs the server running?"),
            "unreachable",
            "(connection refused Is",
        ),
        (psycopg.errors.ConnectionTimeout("connection timeout expired"), "unreachable", "timeout"),
    ],
)
def test_what_errors_mean(error: Exception, trouble: str, words: str) -> None:
    dialect = PostgresqlDialect(parse_store_url(f"postgresql://alice:{PASSWORD}@db/tailnet"))
    for each in (error, sa.exc.OperationalError("SELECT 1", None, error)):
        explained = dialect.error(each)
        assert (explained.trouble.value, words in str(explained)) == (trouble, True), str(explained)
        assert str(explained).startswith("store postgresql+psycopg://<secret>@db/tailnet: ")
        assert PASSWORD not in str(explained)


@pytest.mark.parametrize(
    ("what", "trouble"),
    [({"password": "wrong-hunter3"}, "refused"), ({"user": "nobody"}, "refused"), ({"database": "no_such"}, "refused")],
)
def test_who_is_not_let_in_is_told_and_no_password_is(
    cluster: Cluster, what: dict[str, str], trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"database": "postgres", **what}
    with pytest.raises(StoreError) as caught:
        Database.open(cluster.url(**given))
    assert caught.value.trouble.value == trouble
    chain, error = "", caught.value.__cause__
    while error is not None:
        chain, error = f"{chain}{error!r}", error.__cause__
    for said in (str(caught.value), caplog.text, chain):
        assert "hunter3" not in said
        assert PASSWORD not in said


def test_a_server_that_is_not_there(tmp_path: object) -> None:
    with pytest.raises(StoreError, match="not to be reached") as caught:
        Database.open(f"postgresql://alice@/tailnet?host={tmp_path}")
    assert caught.value.trouble is StoreTrouble.UNREACHABLE


def test_the_database_of_another_program(cluster: Cluster, store_url: str) -> None:
    name = str(parse_store_url(store_url).database)
    with cluster.connect(name) as connection:
        connection.execute("CREATE TABLE songs (title text)")
    with pytest.raises(StoreError, match="belongs to another program"):
        Database.open(store_url)
    with cluster.connect(name) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("songs",)]


def test_settings_of_a_connection(store: Store) -> None:
    def setting(connection: sa.Connection, name: str) -> str:
        return str(connection.exec_driver_sql(f"SHOW {name}").scalar_one())

    def settings(connection: sa.Connection) -> list[str]:
        names = ("transaction_isolation", "transaction_read_only", "statement_timeout", "lock_timeout")
        return [setting(connection, name) for name in names]

    with store.reading() as connection:
        assert settings(connection) == ["repeatable read", "on", "10s", "5s"]
    with store.writing() as connection:
        assert settings(connection) == ["read committed", "off", "10s", "5s"]
        usual = setting(connection, "synchronous_commit")
        connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
    with store.database.writing(durable=False) as connection:
        assert setting(connection, "synchronous_commit") == "off"
    with store.writing() as connection:
        assert setting(connection, "synchronous_commit") == usual  # what the server says, for what must not be lost


def write_impatiently(store: Store) -> None:
    with store.writing() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '20ms'")
        connection.execute(counters.update().values(value=7))


def test_a_lock_that_somebody_holds(cluster: Cluster, store: Store) -> None:
    name = str(store.database.dialect.url.database)
    with cluster.connect(name) as other, other.transaction():
        other.execute("LOCK TABLE counters")
        with pytest.raises(StoreError, match="held a lock for too long") as caught:
            write_impatiently(store)
    assert caught.value.trouble is StoreTrouble.LOCKED
    store.database.check()


def test_out_of_connections(cluster: Cluster, store_url: str) -> None:
    name = str(parse_store_url(store_url).database)
    Store.open(store_url).close()
    with cluster.connect(name) as admin:
        admin.execute(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 1")
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO guest")
        try:
            first = psycopg.connect(host=str(cluster.folder), user="guest", password=PASSWORD, dbname=name)
            with pytest.raises(StoreError, match="max_connections") as caught:
                Store.open(cluster.url(name, user="guest"))
            assert caught.value.trouble is StoreTrouble.CROWDED
            first.close()
        finally:
            admin.execute("DROP OWNED BY guest")
            admin.execute("DROP ROLE guest")


def test_a_connection_that_the_server_cut_is_replaced(cluster: Cluster, store: Store) -> None:
    store.database.check()
    with store.writing() as connection:
        connection.execute(counters.insert().values(name="before", value=1))
    with cluster.connect() as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tailnet'")
    store.database.check()
    with store.writing() as connection:
        connection.execute(counters.insert().values(name="after", value=1))


def test_a_server_uses_few_connections(cluster: Cluster, store: Store) -> None:
    barrier = threading.Barrier(MAX_READERS + 1)

    def read() -> None:
        with store.reading() as connection:
            connection.exec_driver_sql("SELECT 1")
            barrier.wait(30)

    threads = [threading.Thread(target=read) for _ in range(MAX_READERS)]
    for thread in threads:
        thread.start()
    with store.writing():
        barrier.wait(30)
    for thread in threads:
        thread.join()
    with cluster.connect() as admin:
        row = admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tailnet' AND datname = %s",
            [store.database.dialect.url.database],
        ).fetchone()
    assert row == (MAX_READERS + 1,)


@pytest.fixture
def both(store: Store, store_url: str) -> Iterator[tuple[Store, Store]]:
    """Two servers' stores on one database."""
    fill(store)
    other = Store.open(store_url)
    yield store, other
    other.close()


def test_servers_share_callers(both: tuple[Store, Store]) -> None:
    one, other = both
    before = other.callers.callers_generation()
    assert one.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN)
    assert other.callers.callers_generation() > before
    user = other.callers.find_user("alice")
    assert user is not None
    assert user.admin


def test_who_decides_first_decides_for_both(both: tuple[Store, Store]) -> None:
    keys: list[bytes] = []
    gate = threading.Barrier(2)

    def make(store: Store, number: int) -> None:
        gate.wait(30)
        keys.append(store.keys.lasting_key("relay", NOW, lambda count: bytes([number]) * count, 32))

    threads = [threading.Thread(target=make, args=(store, at)) for at, store in enumerate(both)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_an_agent_that_is_being_reported_on_is_not_deleted_half_way(
    cluster: Cluster, both: tuple[Store, Store]
) -> None:
    """Between the look whether an agent exists and the row that names it, another server must not delete it."""
    one, other = both
    report = {"agent_id": peer_id("main"), "created_at": NOW, "connection_count": 1, "rx_bytes": 2, "tx_bytes": 3}
    with one.writing() as connection:
        assert reports._known_agents(connection, [peer_id("main")]) == {peer_id("main")}
        deleted = threading.Thread(target=other.callers.delete_agent, args=(peer_id("main"),))
        deleted.start()
        wait_blocked(cluster, deleted)
        connection.execute(agent_stats.insert().values(report={}, **report))
    deleted.join()
    assert one.callers.get_agent(peer_id("main")) is None
    assert one.reports.latest_stats(peer_id("main")) is None


def wait_blocked(cluster: Cluster, thread: threading.Thread) -> None:
    """Until somebody waits for a lock, or the thread did not have to."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with cluster.connect() as admin:
        while thread.is_alive() and admin.execute(query).fetchone() == (0,):
            pass


def test_servers_that_write_the_same_agents_never_wait_in_a_circle(both: tuple[Store, Store]) -> None:
    """Each in its own order, as they come: the store has them in one."""
    ids = [peer_id(name) for name in ("main", "gpu", "web")]
    failures: list[Exception] = []
    gate = threading.Barrier(2)

    def write(store: Store, order: list[PeerID]) -> None:
        gate.wait(30)
        for round_ in range(40):
            try:
                at = NOW + timedelta(seconds=round_)
                store.reports.put_metadata([MetadataValue(each, "key", str(round_), "", at) for each in order])
                store.reports.update_lifecycles([LifecycleChange(each, LifecycleState.READY, at) for each in order])
                store.presence.record([PresenceChange(each, came_at=at) for each in order], "x", at, timedelta(30))
                store.reports.insert_logs([LogBatch(each, EXTERNAL_LOG_SOURCE, [(3, "x")], at) for each in order])
            except StoreError as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=pair) for pair in zip(both, (ids, ids[::-1]), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(both[0].reports.list_logs(ids[0])) == 80
