"""10,000 agents in one stream of JSON lines: seconds, peak memory, and what others feel meanwhile.

    python bench/administration.py                 # under a minute for each kind of store
    python bench/administration.py --agents 1000

The server is a process of its own, so is the sender; this one asks /healthz on a connection that stays, every 10 ms,
first alone and then beside the stream.  The baseline is in the same run: one PUT for each agent, one after the other.
"""

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tailnet.store.store import Store
from tests.support.postgresql import PostgresqlMissing, running_cluster
from tests.support.seeds import fill, make_id

TOKEN = "a-token-of-the-bench-with-forty-characters"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
IDLE_SECONDS = 5.0
ASK_EVERY_SECONDS = 0.01
SINGLES = 300


def agent(number: int) -> dict[str, Any]:
    return {
        "workspace_id": str(make_id("dev")),
        "name": f"agent {number}",
        "token": str(make_id(f"token {number}")),
        "directory": "/home/coder",
        "architecture": "amd64",
        "operating_system": "linux",
        "environment": {"CODER": "true", "WORKSPACE": f"dev {number}"},
    }


def lines(count: int) -> bytes:
    ids = ((number, str(make_id(f"agent {number}"))) for number in range(count))
    return "".join(json.dumps({"kind": "agent", "id": i, **agent(n)}) + "\n" for n, i in ids).encode()


@contextmanager
def server(store: str, folder: Path) -> Iterator[tuple[int, int]]:
    """A coordinator on that store: its port, and its process."""
    tokens = folder / "admin.tokens"
    tokens.write_text(f"bench:{TOKEN}\n")
    tokens.chmod(0o600)
    words = ["--listen=127.0.0.1:0", "--stun-listen=off", f"--store={store}", f"--admin-token-file={tokens}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tailnet", "serve", "--json", "--admin-rate-limit=0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        port = next(told["port"] for line in process.stdout if (told := json.loads(line)).get("event") == "listening")
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


class Prober(threading.Thread):
    """Asks /healthz again and again until it is stopped."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._is_over = threading.Event()
        self.milliseconds: list[float] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        while not self._is_over.is_set():
            began = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            self.milliseconds.append((time.perf_counter() - began) * 1e3)
            self._is_over.wait(ASK_EVERY_SECONDS)

    def stop(self) -> str:
        self._is_over.set()
        self.join()
        ordered = sorted(self.milliseconds)
        p99, most = ordered[int(len(ordered) * 0.99)], ordered[-1]
        return f"/healthz p50 {statistics.median(ordered):6.2f} ms  p99 {p99:6.2f} ms  most {most:6.1f} ms"


def memory_mib(pid: int, what: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) / 1024


def probe(port: int, seconds: float) -> str:
    prober = Prober(port)
    prober.start()
    time.sleep(seconds)
    return prober.stop()


def send(port: int, path: Path) -> tuple[float, dict[str, int]]:
    """Have another process send the stream; seconds, and results by their word."""
    code = (
        "import http.client, json, sys, time, collections\n"
        "c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]))\n"
        "began = time.perf_counter()\n"
        "c.request('POST', '/api/v2/admin/bulk', open(sys.argv[2], 'rb').read(), {'Authorization': sys.argv[3]})\n"
        "text = c.getresponse().read()\n"
        "seconds = time.perf_counter() - began\n"
        "words = collections.Counter(json.loads(line).get('result', 'refused') for line in text.splitlines())\n"
        "print(json.dumps([seconds, words]))\n"
    )
    words = [sys.executable, "-c", code, str(port), str(path), HEADERS["Authorization"]]
    seconds, found = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return seconds, found


def one_by_one(port: int, count: int) -> float:
    """Agents a second, each by a PUT of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    began = time.perf_counter()
    for number in range(count):
        path = f"/api/v2/admin/agents/{make_id(f'single {number}')}"
        body = json.dumps({**agent(number), "token": str(make_id(f"single token {number}"))})
        connection.request("PUT", path, body, HEADERS)
        assert connection.getresponse().read()
    return count / (time.perf_counter() - began)


def run(name: str, store: str, folder: Path, agents: int) -> None:
    opened = Store.open(store)
    fill(opened)
    opened.close()
    path = folder / "agents.jsonl"
    path.write_bytes(lines(agents))
    with server(store, folder) as (port, pid):
        probe(port, 1.0)
        print(f"{name}: alone                {probe(port, IDLE_SECONDS)}")
        for what in ("created", "unchanged"):
            before = memory_mib(pid, "VmRSS")
            prober = Prober(port)
            prober.start()
            seconds, found = send(port, path)
            felt = prober.stop()
            assert found == {what: agents}, found
            grown = memory_mib(pid, "VmHWM") - before
            print(f"{name}: {agents:,} {what:9} {seconds:5.2f} s  peak +{grown:4.0f} MiB on {before:4.0f}  {felt}")
        rate = one_by_one(port, SINGLES)
        print(f"{name}: one PUT each         {agents / rate:5.1f} s for as many (measured on {SINGLES})")


@click.command()
@click.option("--agents", default=10_000)
def main(agents: int) -> None:
    """Run on SQLite, and on PostgreSQL where it is installed."""
    with tempfile.TemporaryDirectory() as folder:
        run("SQLite    ", f"sqlite:///{folder}/tailnet.db", Path(folder), agents)
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(running_cluster())
        except PostgresqlMissing as missing:
            print(missing)
            return
        with tempfile.TemporaryDirectory() as folder:
            run("PostgreSQL", cluster.url(cluster.make_database()), Path(folder), agents)


if __name__ == "__main__":
    main()
