"""What several coordinators cost that serve as one, beside one alone in the same run.

    python bench/replicas.py                                  every row, short: some five minutes
    python bench/replicas.py --only delivery --rounds 5 --seconds 3
    python bench/replicas.py --only alone --base ../older     a checkout with its own .venv
    python bench/replicas.py --only kill --pairs 300          genuine peers; --only away --away 60
    python bench/replicas.py --only simulator --rounds 5 --base ../older

All kinds are there at once and take turns within a round; ratios are taken within a round, and the median one counts.
CPU is that of all processes that serve, the Redis among them; the generator's is not in it.
"""

import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import httpx
import trio

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import replica_faults
from bench.agents import Report
from bench.cases import Result
from bench.coordinator import run_generator
from bench.generator import RunFailed, window
from tailnet.bus.static import StaticBus
from tailnet.coordinator.messages import Kind
from tailnet.types import PeerID
from tests.support.gobuild import COORDINATOR_LOAD, build
from tests.support.redis import RedisServer
from tests.support.redis import running as running_redis
from tests.support.relays import free_port
from tests.support.replicated import Place, Told, running
from tests.support.tailnet_driver import wait_for
from tests.support.tailnet_servers import TAILNET_COMMAND, Seed, Server, running_server

HOST: Final = "127.0.0.1"
MEET_SECONDS: Final = 60.0
# Pairs of an agent at one replica and its client at the other.
PAIRS: Final = 50
BATCH: Final = 16
SCHEDULES: Final = "0..300"
# One update a wake: how late is a single one?
QUIET_RATE: Final = 200.0


@dataclass(frozen=True, slots=True)
class Options:
    """What all rows are told."""

    rounds: int = 3
    seconds: float = 2.0
    agents: int = 1_000  # that move at once
    pairs: int = 30  # of genuine peers that feel what fails
    away_seconds: float = 10.0  # of bus and store
    base: Path | None = None


@dataclass
class Measured:
    """One kind's numbers, a round each."""

    cpu: list[float] = field(default_factory=list)  # us a delivery
    p50: list[float] = field(default_factory=list)  # ms


def ratio(here: Sequence[float], there: Sequence[float]) -> float:
    """The median of what each round says."""
    return statistics.median(mine / theirs for mine, theirs in zip(here, there, strict=True))


def turns(kinds: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Number of the round, and whose turn it is: each round begins with another one, so that none always follows."""
    for number in range(rounds):
        at = number % len(kinds)
        for kind in (*kinds[at:], *kinds[:at]):
            yield number + 1, kind


def one_user(agents: int) -> Seed:
    seed = Seed()
    owner = seed.add_user("load")
    for _ in range(agents):
        seed.add_agent(owner)
    return seed


# --- servers


@contextmanager
def serving(way: str, folder: Path, seed: Seed) -> Iterator[tuple[list[Server], list[int]]]:
    """One server alone (`in process`), or two that meet by `direct link` or by `Redis carrier`; and who takes CPU."""
    with ExitStack() as stack:
        if way == "in process":
            server = stack.enter_context(running_server("ours", folder / "one", seed))
            yield [server], [server.pid]
            return
        key = folder / "cluster.key"
        key.touch(mode=0o600)
        key.write_text("ab" * 32)
        redis: list[RedisServer] = []
        if way == "Redis carrier":
            redis.append(stack.enter_context(running_redis(RedisServer(folder))))
        ports = [free_port(socket.SOCK_STREAM) for _ in range(2)]
        servers = []
        for port in ports:
            told = {
                "TAILNET_BUS_KEY_FILE": str(key),
                "TAILNET_BUS": "static:" + ",".join(f"{HOST}:{each}" for each in ports),
            }
            told |= {"TAILNET_BUS": redis[0].url} if redis else {"TAILNET_REPLICA_LISTEN": f"{HOST}:{port}"}
            servers.append(stack.enter_context(running_server("ours", folder / str(port), seed, environment=told)))
        for server in servers:
            wait_session(server.url)
        yield servers, [*(server.pid for server in servers), *(each.pid for each in redis)]


def wait_session(url: str) -> None:
    """Until it has a session with another replica."""
    give_up_at = time.monotonic() + MEET_SECONDS
    while "session" not in [each["state"] for each in httpx.get(f"{url}/debug/replicas").json()["replicas"]]:
        if time.monotonic() > give_up_at:
            raise RunFailed(f"{url} has no session with another replica")
        time.sleep(0.1)


def traffic_of(servers: Sequence[Server], pids: Sequence[int], folder: Path, more: Sequence[str]) -> Result:
    """Agents at the first server and their clients at the last; the generator's `traffic`."""
    seed = next(folder.rglob("seed.json"))
    where = ["-url", servers[0].url, "-far-url", servers[-1].url, "-pid", ",".join(map(str, pids)), "-seed", str(seed)]
    traffic: Result = run_generator([str(build(COORDINATOR_LOAD)), *where, *more, "-settle", "0s"])["traffic"]
    return traffic


# --- rows


WAYS: Final = ("in process", "direct link", "Redis carrier")
_PEERS: Final = ("-agents", str(PAIRS), "-clients", str(PAIRS))


def delivery(report: Report, options: Options) -> None:
    """An update from a peer at one replica to one at the other, beside both at one server."""
    found = {way: Measured() for way in WAYS}
    with ExitStack() as stack:
        runs = {}
        for way in WAYS:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-replicas-")))
            servers, pids = stack.enter_context(serving(way, folder, one_user(PAIRS)))
            runs[way] = partial(traffic_of, servers, pids, folder)
        for number, way in turns(WAYS, options.rounds):
            batches = runs[way]([*_PEERS, "-inflight", str(BATCH), "-batch", str(BATCH), *window(options.seconds)])
            single = runs[way]([*_PEERS, "-rate", str(QUIET_RATE), *window(options.seconds)])
            here = found[way]
            here.cpu.append(batches["server_cpu_us_per_delivery"])
            here.p50.append(single["latency_us"]["p50"] / 1000)
            click.echo(f"  round {number} {way:14} {here.cpu[-1]:8.1f} us {here.p50[-1]:8.3f} ms", err=True)
    alone = found["in process"]
    for way, most, later in (("direct link", 2.5, 0.5), ("Redis carrier", 3.5, 1.5)):
        here = found[way]
        what = f"{way}: CPU of a delivery in batches of {BATCH}, against in process"
        report.note("delivery", what, ratio(here.cpu, alone.cpu), "x", most)
        added = statistics.median(mine - theirs for mine, theirs in zip(here.p50, alone.p50, strict=True))
        report.note("delivery", f"{way}: added p50 of a single update", added, "ms", later)
    click.echo("  " + ", ".join(f"{way} {statistics.median(found[way].cpu):.1f} us" for way in WAYS))


def alone(report: Report, options: Options) -> None:
    """One server without a bus, beside a checkout from before there were replicas."""
    if options.base is None:
        click.echo("  left out: say --base, an older checkout with its .venv")
        return
    programs = {"here": TAILNET_COMMAND, "base": [str(options.base / ".venv" / "bin" / "tailnet")]}
    found: dict[str, list[float]] = {name: [] for name in programs}
    with ExitStack() as stack:
        runs = {}
        for name, program in programs.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-replicas-")))
            server = stack.enter_context(running_server("ours", folder / "one", one_user(PAIRS), program=program))
            runs[name] = partial(traffic_of, [server], [server.pid], folder)
        for number, name in turns(tuple(programs), options.rounds):
            found[name].append(runs[name]([*_PEERS, *window(options.seconds)])["server_cpu_us_per_delivery"])
            click.echo(f"  round {number} {name:6} {found[name][-1]:8.2f} us", err=True)
    report.note(
        "alone", "CPU of a delivery without a bus, against before", ratio(found["here"], found["base"]), "x", 1.01
    )


async def _move(agents: int) -> tuple[float, float]:
    """Seconds until every client knows where its agent is now, and CPU in us per agent and replica.

    Three replicas in this process, over TCP links: where the clients are, where the agents were, where they come.
    Peers have no sockets, as what a connection costs is no matter of replicas.
    """
    ports = [free_port(socket.SOCK_STREAM) for _ in range(3)]
    bus = StaticBus([(HOST, port) for port in ports])
    here, before, after = places = [Place(bus, f"place-{port}", (HOST, port)) for port in ports]
    ids = [PeerID(number.to_bytes(16, "big")) for number in range(1, 2 * agents + 1)]
    with trio.fail_after(MEET_SECONDS):
        async with running(*places):
            clients = []
            for agent_id, client_id in zip(ids[:agents], ids[agents:], strict=True):
                clients.append(here.client(client_id, agent_id))
                before.node(before.agent(agent_id), "before")
                await trio.lowlevel.checkpoint()
            await wait_for(lambda: all(_knows(client, "before") for client in clients))
            began, cpu = time.perf_counter(), time.process_time()
            for agent_id in ids[:agents]:
                after.node(after.agent(agent_id), "after")
                await trio.lowlevel.checkpoint()
            await wait_for(lambda: all(_knows(client, "after") for client in clients))
            found = time.perf_counter() - began, (time.process_time() - cpu) * 1e6 / (agents * len(places))
    wrong = {kind for client in clients for _, kind, _ in client.words} - {Kind.NODE}
    if wrong:
        raise RunFailed(f"clients were told {wrong} of agents that moved")
    return found


def _knows(client: Told, name: str) -> bool:
    return bool(client.words) and client.words[-1][2] == name


def moves(report: Report, options: Options) -> None:
    """Agents that lose their replica and come back at another, all at once."""
    found = [trio.run(_move, options.agents) for _ in range(options.rounds)]
    report.note(
        "moves", f"{options.agents:,} agents move: until all know", statistics.median(s for s, _ in found), "s", 1.0
    )
    report.note("moves", "CPU of each agent and replica", statistics.median(c for _, c in found), "us", 100.0)


def _events(tree: Path) -> float:
    """Events that the simulator of a checkout plays in a second of CPU: the schedules, its own parts and the cores."""
    command = [sys.executable, "-m", "sim", "--seeds", SCHEDULES]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    ran = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=300, check=False)
    found = re.search(r" (\d+)/s; 0 broken", ran.stdout)
    if found is None:
        raise RunFailed(f"the simulator of {tree} says: {(ran.stdout + ran.stderr)[:1000]}")
    return float(found[1])


def simulator(report: Report, options: Options) -> None:
    """Schedules in virtual time, by one core; with --base beside those of an older checkout."""
    trees = {"here": Path(__file__).resolve().parent.parent} | ({"base": options.base} if options.base else {})
    found: dict[str, list[float]] = {name: [] for name in trees}
    for number, name in turns(tuple(trees), options.rounds):
        found[name].append(_events(trees[name]))
        click.echo(f"  round {number} {name:6} {found[name][-1]:8.0f}/s", err=True)
    if options.base:
        report.note("simulator", "events, against before", ratio(found["here"], found["base"]), "x", 1.0, least=True)
    report.note("simulator", "events in a second of CPU", statistics.median(found["here"]), "/s", 100_000.0, least=True)


def kill(report: Report, options: Options) -> None:
    """One of three replicas is killed; genuine peers by the balancer of deploy/replicas."""
    trio.run(replica_faults.kill, report, options.pairs)


def rolling(report: Report, options: Options) -> None:
    """All three are replaced, one after the other, while genuine peers move."""
    trio.run(replica_faults.rolling, report, options.pairs)


def relayed(report: Report, options: Options) -> None:
    """The same two of genuine DERP clients, whose packets go by the replicas' relays."""
    trio.run(replica_faults.relayed, report, options.pairs)


def away(report: Report, options: Options) -> None:
    """The bus is paused or stopped, the store is stopped, and both."""
    trio.run(replica_faults.away, report, options.pairs, options.away_seconds)


ROWS: Final[dict[str, Callable[[Report, Options], None]]] = {
    "delivery": delivery,
    "alone": alone,
    "moves": moves,
    "simulator": simulator,
    "kill": kill,
    "rolling": rolling,
    "relayed": relayed,
    "away": away,
}


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="these rows")
@click.option("--rounds", default=Options().rounds, show_default=True)
@click.option("--seconds", default=Options().seconds, show_default=True, help="of each measured window")
@click.option("--agents", default=Options().agents, show_default=True, help="that move at once")
@click.option("--pairs", default=Options().pairs, show_default=True, help="of genuine peers, where something fails")
@click.option("--away", "away_seconds", default=Options().away_seconds, show_default=True, help="of bus and store")
@click.option(
    "--base", type=click.Path(path_type=Path, exists=True, file_okay=False), help="for the rows `alone` and `simulator`"
)
def main(only: tuple[str, ...], base: Path | None, **given: Any) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options, report = Options(**given, base=base and base.resolve()), Report()
    for name, row in ROWS.items():
        if not only or name in only:
            click.echo(f"{name}: {(row.__doc__ or '').strip()}")
            try:
                row(report, options)
            except RunFailed as failed:
                raise click.ClickException(f"{name}: {failed}") from None
    sys.exit(0 if all(each.met for each in report.rows) else 1)


if __name__ == "__main__":
    main()
