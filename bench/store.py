"""What a read waits for beside writers, and what batches save: SQLite, and PostgreSQL where Debian's package is there.

    python bench/store.py                  # some forty seconds for each kind of store
    python bench/store.py --seconds 1 --reports 500

Each row has its baseline in the same run: readers and writers that share four threads and a lock, as the store had them
before it had a writer's thread; and one transaction for each report.  Ratios count; times are this machine's.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import trio

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tailnet.services.reports import AgentReports
from tailnet.store.outbox import Outbox
from tailnet.store.rows import MetadataValue, StatsReport
from tailnet.store.store import Store
from tailnet.store.writer import SWITCH_SECONDS
from tailnet.types import PeerID
from tests.support.postgresql import PostgresqlMissing, running_cluster
from tests.support.seeds import AgentSpec, fill, make_id, seed_document

AGENTS = 200
WRITERS = 8
BATCH_SECONDS = 0.05
BATCH_VALUES = 4_000  # of which so many are taken as need 50 ms
SHARED_THREADS = 4
READ_EVERY_SECONDS = 0.002
TARGET_WAIT_SECONDS = 0.005
TARGET_TRANSACTIONS = 10.0

Write = Callable[[Sequence[MetadataValue]], Awaitable[object]]


@dataclass
class Waits:
    """How long reads took, in seconds, and how many batches were written meanwhile."""

    reads: list[float]
    batches: int

    def __str__(self) -> str:
        return f"p50 {quantile(self.reads, 0.5) * 1e3:7.2f} ms   p99 {quantile(self.reads, 0.99) * 1e3:7.2f} ms"


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def agent_ids() -> list[PeerID]:
    return [PeerID(make_id(f"agent {number}").bytes) for number in range(AGENTS)]


def values(count: int) -> list[MetadataValue]:
    ids, now = agent_ids(), datetime.now(UTC)
    return [MetadataValue(ids[at % AGENTS], f"key {at // AGENTS}", f"{time.time()}", "", now) for at in range(count)]


def values_for(store: Store, seconds: float) -> int:
    """How many values one batch has that takes about so long."""
    store.reports.put_metadata(values(BATCH_VALUES))
    took = []
    for _ in range(3):
        started = time.perf_counter()
        store.reports.put_metadata(values(BATCH_VALUES))
        took.append(time.perf_counter() - started)
    return max(1, int(BATCH_VALUES * seconds / statistics.median(took)))


async def read_beside(read: Callable[[], Awaitable[object]], write: Write | None, count: int, seconds: float) -> Waits:
    """Read one agent again and again while eight writers write one batch after the other."""
    waits = Waits([], 0)
    batch = values(count)  # once: to make it would hold up the reader, who is on this thread

    async def keep_writing() -> None:
        assert write is not None
        while True:
            await write(batch)
            waits.batches += 1

    async with trio.open_nursery() as nursery:
        if write is not None:
            for _ in range(WRITERS):
                nursery.start_soon(keep_writing)
            await trio.sleep(4 * BATCH_SECONDS)
        ends_at = trio.current_time() + seconds
        while trio.current_time() < ends_at:
            started = time.perf_counter()
            await read()
            waits.reads.append(time.perf_counter() - started)
            await trio.sleep(READ_EVERY_SECONDS)
        nursery.cancel_scope.cancel()
    return waits


async def measure_reads(store: Store, seconds: float) -> dict[str, Waits]:
    count = await trio.to_thread.run_sync(values_for, store, BATCH_SECONDS)
    main = agent_ids()[0]
    shared = trio.CapacityLimiter(SHARED_THREADS)

    async def read() -> object:
        return await store.run(store.callers.get_agent, main)

    async def read_shared() -> object:
        return await trio.to_thread.run_sync(store.callers.get_agent, main, limiter=shared)

    async def write(batch: Sequence[MetadataValue]) -> object:
        return await store.run(store.reports.put_metadata, batch)

    async def write_shared(batch: Sequence[MetadataValue]) -> object:
        # Called plainly it takes the lock of writers, in this thread.
        return await trio.to_thread.run_sync(store.reports.put_metadata, batch, limiter=shared)

    return {
        "idle": await read_beside(read, None, count, seconds),
        "beside 8 writers": await read_beside(read, write, count, seconds),
        "the same on four shared threads": await read_beside(read_shared, write_shared, count, seconds),
    }


@dataclass
class Cost:
    """What it took to have reports stored."""

    transactions: int
    seconds: float
    cpu_seconds: float


async def measure_batches(store: Store, reports: int) -> dict[str, Cost]:
    """The statistics of many agents, through the outbox and one by one."""
    ids, writer = agent_ids(), store.database.writer

    def stats(number: int) -> StatsReport:
        return StatsReport(ids[number % AGENTS], number, 1, 2, {"connections_by_proto": {"TCP": 1}}, datetime.now(UTC))

    outbox = Outbox(store)
    agents_reports = AgentReports(store, outbox)

    async def behind() -> int:
        before = writer.transactions
        # As they come: a second's reports of all agents, then the next second's.
        for start in range(0, reports, AGENTS):
            for number in range(start, min(reports, start + AGENTS)):
                agents_reports.note_stats(stats(number))
            await outbox.flush()
        return writer.transactions - before

    async def one_by_one() -> int:
        for number in range(reports):
            await trio.to_thread.run_sync(store.reports.insert_stats, [stats(number)])
        return reports

    found: dict[str, Cost] = {}
    for name, work in (("outbox", behind), ("one transaction for each", one_by_one)):
        started, cpu = time.perf_counter(), time.process_time()
        transactions = await work()
        found[name] = Cost(transactions, time.perf_counter() - started, time.process_time() - cpu)
    return found


def measure(name: str, url: str, seconds: float, reports: int) -> bool:
    """Print the rows of one kind of store; whether its targets are met."""
    store = Store.open(url)
    try:
        fill(
            store, seed_document(tuple(AgentSpec(f"agent {number}", f"w{number}", "alice") for number in range(AGENTS)))
        )
        click.echo(f"{name}: reads of one agent")
        waits: dict[str, Waits] = trio.run(measure_reads, store, seconds)
        for row, found in waits.items():
            click.echo(f"  {row:34} {found}   {found.batches} batches")
        more = quantile(waits["beside 8 writers"].reads, 0.99) - quantile(waits["idle"].reads, 0.99)
        is_quick = more <= TARGET_WAIT_SECONDS
        click.echo(
            f"  p99 above idle {more * 1e3:.2f} ms, at most {TARGET_WAIT_SECONDS * 1e3:.0f}: {verdict(is_quick)}"
        )
        click.echo(f"{name}: {reports:,} reports of {AGENTS} agents")
        costs: dict[str, Cost] = trio.run(measure_batches, store, reports)
        for row, cost in costs.items():
            took = f"{cost.seconds:6.2f} s   {cost.cpu_seconds:6.2f} s CPU"
            click.echo(f"  {row:34} {cost.transactions:6,} transactions   {took}")
        ratio = costs["one transaction for each"].transactions / max(1, costs["outbox"].transactions)
        is_saving = ratio >= TARGET_TRANSACTIONS
        click.echo(f"  {ratio:.0f} times fewer, at least {TARGET_TRANSACTIONS:.0f}: {verdict(is_saving)}")
        return is_quick and is_saving
    finally:
        store.close()


def verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


@contextmanager
def stores() -> Iterator[list[tuple[str, str]]]:
    """(name, URL) of an empty store of each kind that there is."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-store-"))
        found = [("SQLite", f"sqlite:///{folder}/store.db")]
        try:
            # As it is delivered: it waits for the disk, where the tests' does not.
            cluster: Any = stack.enter_context(
                running_cluster("fsync=on", "synchronous_commit=on", "full_page_writes=on")
            )
            found.append(("PostgreSQL", cluster.url(cluster.make_database())))
        except PostgresqlMissing as missing:
            click.echo(f"{missing}: SQLite only")
        yield found


@click.command()
@click.option("--seconds", default=5.0, show_default=True, help="of each row of reads")
@click.option("--reports", default=4_000, show_default=True, help="that are stored either way")
def main(seconds: float, reports: int) -> None:
    """Measure, print, and leave with status 1 when a target is missed."""
    sys.setswitchinterval(SWITCH_SECONDS)  # as `tailnet serve` does
    with stores() as found:
        met = [measure(name, url, seconds, reports) for name, url in found]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
