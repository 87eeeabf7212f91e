"""What one core carries: simulated agents that boot and report at their real intervals, on SQLite and on PostgreSQL.

    python bench/agents.py                  every row, some twenty minutes
    python bench/agents.py --quick          fifty agents for some seconds: does it work? Its numbers mean nothing
    python bench/agents.py --only sizes --only restart

The agents are a process of their own (agents_load.py), so what they cost is apart from what the server costs; on a
machine with two cores they still compete with it, and `late` says how late they were themselves.  Ratios are taken
within this run.  Leaves with status 1 when a target is missed; writes JSON to bench/out.
"""

import http.client
import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import click
import trio

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.compare import machine
from bench.coordinator import process_cpu, run_generator
from bench.generator import RunFailed
from bench.store import measure_reads, quantile
from tailnet.store.store import Store
from tailnet.store.writer import SWITCH_SECONDS
from tests.support.gobuild import COORDINATOR_LOAD, build
from tests.support.postgresql import Cluster, PostgresqlMissing, running_cluster
from tests.support.seeds import AgentSpec, fill, seed_document
from tests.support.tailnet_servers import TAILNET_COMMAND, Seed, Server, running_server

OUT = Path(__file__).resolve().parent / "out"
ONE_BY_ONE = [sys.executable, str(Path(__file__).resolve().parent / "one_by_one.py")]
STORES = ("SQLite", "PostgreSQL")
SIZES = (500, 1_000, 2_000, 5_000)
BOOT_SECONDS = 240.0
# Between two questions of the API: fifty a second, which costs the server a twentieth of a core.
ASK_EVERY_SECONDS = 0.02
# As it is delivered: it waits for the disk, where the tests' does not.
_DURABLE = ("fsync=on", "synchronous_commit=on", "full_page_writes=on", "max_connections=50")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    sizes: Sequence[int] = SIZES
    window_seconds: float = 30.0  # three rounds of metadata
    rhythm: float = 1.0
    peers: int = 200  # of the fan-out, and as many clients
    updates: int = 1_000  # a second
    beside: int = 2_000  # agents that report beside them
    most: int = 5_000
    batching: int = 500
    returning: int = 1_000
    rounds: int = 3


QUICK = Scale(
    sizes=(50,),
    window_seconds=4.0,
    rhythm=0.1,
    peers=20,
    updates=100,
    beside=50,
    most=50,
    batching=50,
    returning=50,
    rounds=1,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One number with its target."""

    name: str
    what: str
    value: float
    unit: str
    target: str
    met: bool


@dataclass(frozen=True, slots=True)
class Carried:
    """What one server did for so many agents in one window."""

    store: str
    agents: int
    boot_seconds: float
    boot_server_seconds: float  # CPU
    server_cores: float
    database_cores: float
    generator_cores: float
    resident_mb: float
    store_mb: float
    store_mb_per_hour: float
    reports_per_second: float
    written: float
    transactions: float
    lost: float
    failures: int
    report_p99_ms: float | None
    late_p99_ms: float | None
    api_p50_ms: float
    api_p99_ms: float


@dataclass
class Report:
    """All that was found."""

    carried: list[Carried] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def note(self, name: str, what: str, value: float, unit: str, target: float, *, least: bool = False) -> None:
        met = value >= target if least else value <= target
        row = Row(name, what, value, unit, f"{'>=' if least else '<='} {target:g}", met)
        self.rows.append(row)
        click.echo(f"  {row.what:62} {row.value:10.2f} {row.unit:5} {row.target:>8}  {'met' if met else 'MISSED'}")


# --- a server with agents


class Agents:
    """The load, booted.  `window` measures."""

    def __init__(self, server: Server, folder: Path, count: int, rhythm: float) -> None:
        script = Path(__file__).resolve().parent / "agents_load.py"
        words = [sys.executable, str(script), "--url", server.url, "--seed", str(folder / "seed.json")]
        words += ["--agents", str(count), "--rhythm", str(rhythm)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[str] = self._process.stdin
        self._stdout: IO[str] = self._process.stdout
        self.booted = self._next()

    def window(self, meanwhile: Callable[[], None]) -> dict[str, Any]:
        """What the agents did while `meanwhile` ran."""
        self._tell()
        meanwhile()
        self._tell()
        return self._next()

    def stop(self) -> None:
        self._stdin.close()
        self._process.wait(30)
        self._stdout.close()

    def _tell(self) -> None:
        self._stdin.write("x\n")
        self._stdin.flush()

    def _next(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line:
            raise RunFailed("the simulated agents ended: see above")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def agents_of(server: Server, folder: Path, count: int, rhythm: float) -> Iterator[Agents]:
    """So many agents, the last ones of the seed, until the block ends."""
    agents = Agents(server, folder, count, rhythm)
    try:
        yield agents
    finally:
        agents.stop()


@contextmanager
def served(
    store: str, agents: int, program: Sequence[str] = TAILNET_COMMAND
) -> Iterator[tuple[Server, Path, Cluster | None]]:
    """A server on a fresh store of that kind with so many agents in it."""
    seed = Seed()
    owner = seed.add_user("load")
    for _ in range(agents):
        seed.add_agent(owner)
    environment = {"TAILNET_API_RATE_LIMIT": "0", "TAILNET_LOG_LEVEL": "warning"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-agents-")))
        cluster: Cluster | None = None
        url = ""
        if store == "PostgreSQL":
            cluster = stack.enter_context(running_cluster(*_DURABLE))
            url = cluster.url(cluster.make_database())
        server = stack.enter_context(
            running_server("ours", folder, seed, environment=environment, store=url, program=program)
        )
        yield server, folder, cluster


def numbers(server: Server) -> dict[str, float]:
    """The server's metrics, those of a name summed up."""
    host = urlsplit(server.url).netloc
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request("GET", "/metrics")
    found: dict[str, float] = {}
    for line in connection.getresponse().read().decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    connection.close()
    return found


def tree_cpu(pid: int) -> float:
    """CPU seconds of a process and its children, also of those that ended since."""
    total = 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    children: list[int] = [pid]
    for each in children:
        try:
            text = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            below = Path(f"/proc/{each}/task/{each}/children").read_text().split()
        except OSError:
            continue
        total += sum(map(int, text[11:15] if each == pid else text[11:13])) / ticks
        children += map(int, below)
    return total


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def store_mb(folder: Path, cluster: Cluster | None) -> float:
    """What its rows take: of SQLite the pages in use, since its log is folded into the file now and then."""
    if cluster is None:
        with closing(sqlite3.connect(f"file:{folder}/store.db?mode=ro", uri=True)) as connection:
            pages, free, size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return float((pages - free) * size / 1e6)
    with cluster.connect() as connection:
        query = "SELECT sum(pg_database_size(datname)) FROM pg_database WHERE datname LIKE 'store%'"
        row = connection.execute(query).fetchone()
        assert row is not None
        return float(row[0]) / 1e6


def ask_api(server: Server, seed: Path, seconds: float) -> list[float]:
    """Seconds that the API took for one agent's page, asked again and again over one connection."""
    document = json.loads(seed.read_text())
    agents, token = document["agents"], document["users"][0]["token"]
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    took: list[float] = []
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        agent = agents[len(took) % len(agents)]["id"]
        began = time.perf_counter()
        connection.request("GET", f"/api/v2/workspaceagents/{agent}", headers={"Coder-Session-Token": token})
        answer = connection.getresponse()
        answer.read()
        took.append(time.perf_counter() - began)
        if answer.status != 200:
            raise RunFailed(f"the API answers {answer.status}")
        time.sleep(ASK_EVERY_SECONDS)
    connection.close()
    return took


def carry(store: str, count: int, scale: Scale, program: Sequence[str] = TAILNET_COMMAND) -> Carried:
    """Boot so many agents, and measure a window of their reports."""
    with served(store, count, program) as (server, folder, cluster):
        boot_cpu = process_cpu(server.pid)
        with agents_of(server, folder, count, scale.rhythm) as agents:
            boot_cpu = process_cpu(server.pid) - boot_cpu
            time.sleep(3.0)  # what the boot left to be written
            took: list[float] = []
            before, size = numbers(server), store_mb(folder, cluster)
            cpu = process_cpu(server.pid)
            database = tree_cpu(cluster.pid) if cluster is not None else 0.0
            window = agents.window(lambda: took.extend(ask_api(server, folder / "seed.json", scale.window_seconds)))
            seconds = window["seconds"]
            cpu = (process_cpu(server.pid) - cpu) / seconds
            database = (tree_cpu(cluster.pid) - database) / seconds if cluster is not None else 0.0
            time.sleep(1.5)  # the last reports are on their way
            after = numbers(server)
            grown = store_mb(folder, cluster) - size
            carried = Carried(
                store=store,
                agents=count,
                boot_seconds=agents.booted["seconds"],
                boot_server_seconds=boot_cpu,
                server_cores=cpu,
                database_cores=database,
                generator_cores=window["cores"],
                resident_mb=resident_mb(server.pid),
                store_mb=size + grown,
                store_mb_per_hour=grown / seconds * 3_600,
                reports_per_second=sum(window["calls"].values()) / seconds,
                written=after["tailnet_outbox_written_total"] - before["tailnet_outbox_written_total"],
                transactions=after["tailnet_store_transactions_total"] - before["tailnet_store_transactions_total"],
                # Since the start of the server, so what the boot lost counts too.
                lost=after["tailnet_outbox_lost_total"],
                failures=sum(window["failures"].values()),
                report_p99_ms=window["report_p99_ms"],
                late_p99_ms=window["late_p99_ms"],
                api_p50_ms=1e3 * quantile(took, 0.5),
                api_p99_ms=1e3 * quantile(took, 0.99),
            )
    say_carried(carried)
    return carried


def say_carried(found: Carried) -> None:
    p99, late = found.report_p99_ms or 0.0, found.late_p99_ms or 0.0
    click.echo(
        f"  {found.store:10} {found.agents:5,} agents: boot {found.boot_seconds:5.1f} s; cores: server "
        f"{found.server_cores:.2f}, database {found.database_cores:.2f}, agents {found.generator_cores:.2f}; "
        f"{found.resident_mb:.0f} MB, store {found.store_mb:.1f} MB (+{found.store_mb_per_hour:.0f} an hour); "
        f"{found.reports_per_second:.0f} reports/s, {found.written:.0f} rows in {found.transactions:.0f} transactions, "
        f"{found.lost:.0f} lost, {found.failures} failed; p99 of a report {p99:.0f} ms (late {late:.0f}), "
        f"API p50 {found.api_p50_ms:.1f} ms, p99 {found.api_p99_ms:.1f} ms"
    )


# --- rows


def reads(report: Report, scale: Scale) -> None:
    """A read beside eight writers: bench/store.py has it, and its baseline."""
    sys.setswitchinterval(SWITCH_SECONDS)  # as `tailnet serve` does; nothing else here has threads
    with tempfile.TemporaryDirectory(prefix="bench-agents-") as folder:
        store = Store.open(f"sqlite:///{folder}/store.db")
        try:
            fill(store, seed_document(tuple(AgentSpec(f"agent {at}", f"w{at}", "alice") for at in range(200))))
            waits = trio.run(measure_reads, store, min(5.0, scale.window_seconds))
        finally:
            store.close()
    more = 1e3 * (quantile(waits["beside 8 writers"].reads, 0.99) - quantile(waits["idle"].reads, 0.99))
    report.note("reads", "a read beside eight writers of 50 ms, p99 above idle", more, "ms", 5.0)


def sizes(report: Report, scale: Scale) -> None:
    """The table: every size on both kinds of store, and how the cost of a report grows."""
    for store in stores():
        found = [carry(store, count, scale) for count in scale.sizes]
        report.carried += found
        if len(found) > 1:
            first, last = (each.server_cores / each.agents for each in (found[0], found[-1]))
            what = f"{store}: CPU for each of {found[-1].agents:,} agents, against {found[0].agents:,}"
            report.note("sizes", what, last / first, "x", 1.3)


def one_core(report: Report, scale: Scale) -> None:
    """Everything that so many agents report, on SQLite."""
    found = next((each for each in report.carried if (each.store, each.agents) == ("SQLite", scale.most)), None)
    if found is None:
        found = carry("SQLite", scale.most, scale)
        report.carried.append(found)
    report.note("one-core", f"{found.agents:,} agents' reports on SQLite", found.server_cores, "cores", 1.0)
    report.note("one-core", "reports that were lost or failed", found.lost + found.failures, "", 0.0)


def batching(report: Report, scale: Scale) -> None:
    """The same agents with one write for each report."""
    behind = carry("SQLite", scale.batching, scale)
    alone = carry("SQLite", scale.batching, scale, ONE_BY_ONE)
    ratio = alone.transactions / max(1.0, behind.transactions)
    report.note(
        "batching", f"transactions of {scale.batching:,} agents, one write a report", ratio, "x", 10.0, least=True
    )
    click.echo(f"  and {alone.server_cores / behind.server_cores:.2f} times the CPU")


def beside(report: Report, scale: Scale) -> None:
    """What an update costs a coordinator, and how long it takes, beside agents that report."""
    with served("SQLite", scale.peers + scale.beside) as (server, folder, _):

        def updates() -> dict[str, Any]:
            words = [str(build(COORDINATOR_LOAD)), "-url", server.url, "-pid", str(server.pid)]
            words += ["-seed", str(folder / "seed.json"), "-agents", str(scale.peers), "-clients", str(scale.peers)]
            words += ["-rate", str(scale.updates), "-measure", f"{min(5.0, scale.window_seconds)}s"]
            traffic: dict[str, Any] = run_generator(words)["traffic"]
            return traffic

        updates()  # the first traffic of a process is dearer: neither side gets it
        alone = [updates() for _ in range(scale.rounds)]
        with agents_of(server, folder, scale.beside, scale.rhythm) as agents:
            time.sleep(3.0)
            cpu, began = process_cpu(server.pid), time.monotonic()
            agents.window(lambda: time.sleep(scale.window_seconds / 2))
            reporting = (process_cpu(server.pid) - cpu) / (time.monotonic() - began)
            busy = [updates() for _ in range(scale.rounds)]
    cost = statistics.median(each["server_cpu_us_per_delivery"] for each in alone)
    # What the reports cost by themselves is taken off: what is left is the updates'.
    beside_cost = statistics.median(
        each["server_cpu_us_per_delivery"] - 1e6 * reporting / each["deliveries_per_second"] for each in busy
    )
    click.echo(f"  an update: {cost:.0f} us alone, {beside_cost:.0f} us beside {reporting:.2f} cores of reports")
    report.note("beside", f"CPU of an update beside {scale.beside:,} agents", beside_cost / cost, "x", 1.1)
    p99 = [statistics.median(each["latency_us"]["p99"] for each in runs) for runs in (alone, busy)]
    click.echo(f"  fan-out p99: {p99[0] / 1e3:.2f} ms alone, {p99[1] / 1e3:.2f} ms beside them")
    report.note("beside", f"fan-out p99 beside {scale.beside:,} agents", p99[1] / p99[0], "x", 1.1)


def restart(report: Report, scale: Scale) -> None:
    """Everybody comes back after a restart, on either kind of store."""
    found: dict[str, list[tuple[float, float]]] = {}
    kinds = stores()
    for at in range(scale.rounds):
        for store in kinds if at % 2 else kinds[::-1]:
            with served(store, scale.returning) as (server, folder, cluster):
                words = [str(build(COORDINATOR_LOAD)), "-url", server.url, "-pid", str(server.pid), "-idle"]
                words += ["-seed", str(folder / "seed.json"), "-settle", "0s"]
                words += ["-agents", str(scale.returning), "-clients", str(scale.returning)]
                database = tree_cpu(cluster.pid) if cluster is not None else 0.0
                connect = run_generator(words)["connect"]
                database = tree_cpu(cluster.pid) - database if cluster is not None else 0.0
                # Where the database is a process of its own, its CPU counts too.
                cpu = connect["server_cpu_seconds"] + database
                found.setdefault(store, []).append((connect["seconds"], cpu))
    both = {store: [statistics.median(values) for values in zip(*runs, strict=True)] for store, runs in found.items()}
    for store, (seconds, cpu) in both.items():
        click.echo(f"  {store:10} {scale.returning:,} agents and as many clients: {seconds:.2f} s, {cpu:.2f} s CPU")
    if len(both) == 2:
        for at, what in enumerate(("time", "CPU")):
            ratio = both["PostgreSQL"][at] / both["SQLite"][at]
            report.note("restart", f"{what} to come back on PostgreSQL, against SQLite", ratio, "x", 1.2)


ROWS: dict[str, Callable[[Report, Scale], None]] = {
    "reads": reads,
    "sizes": sizes,
    "one-core": one_core,
    "batching": batching,
    "beside": beside,
    "restart": restart,
}


def stores() -> Sequence[str]:
    """Kinds of store that there are here."""
    try:
        with running_cluster():
            return STORES
    except PostgresqlMissing as missing:
        click.echo(f"{missing}: SQLite only")
        return STORES[:1]


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--quick", is_flag=True, help="fifty agents at ten times the pace")
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="these rows")
@click.option("--agents", "sizes_given", multiple=True, type=int, help="sizes for the table, instead of 500 to 5,000")
@click.option("--seconds", default=None, type=float, help="of each measured window, 30 by default")
@click.option("--rounds", default=None, type=int, help="of the rows that are ratios, 3 by default")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=OUT, help="folder for JSON")
def main(
    quick: bool,
    only: tuple[str, ...],
    sizes_given: tuple[int, ...],
    seconds: float | None,
    rounds: int | None,
    out: Path,
) -> None:
    # 5,000 agents are 5,000 descriptors here and there; children inherit the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    scale = QUICK if quick else Scale()
    changes: dict[str, Any] = {"sizes": sizes_given, "most": max(sizes_given)} if sizes_given else {}
    changes |= {"window_seconds": seconds} if seconds is not None else {}
    changes |= {"rounds": rounds} if rounds is not None else {}
    scale = Scale(**(asdict(scale) | changes))
    report = Report()
    failures: list[str] = []
    for name, row in ROWS.items():
        if only and name not in only:
            continue
        click.echo(f"{name}: {(row.__doc__ or '').strip()}")
        try:
            row(report, scale)
        except RunFailed as failed:
            failures.append(f"{name}: {failed}")
            click.echo(f"  failed: {failed}")
    out.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "failures": failures, **asdict(report)}
    (out / "agents.json").write_text(json.dumps(found, indent=1) + "\n")
    click.echo(f"written: {out / 'agents.json'}")
    sys.exit(0 if not failures and all(each.met for each in report.rows) else 1)


if __name__ == "__main__":
    main()
