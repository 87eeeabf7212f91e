"""The services of deploy/replicas/compose.yaml as processes: its commands, its environment, what it mounts.

Each service has an address of its own in 127.0.0.0/8, as a container has one, and each of the file's ports is a free
one; names, ports and the network are replaced wherever the file and what it mounts have them, and nothing else is.
PostgreSQL and HAProxy are Debian's.  No pytest here: benches start the same.
"""

import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa
import yaml

from derp.text import host_port
from tests.support.certificates import issue
from tests.support.gobuild import ROOT
from tests.support.postgresql import PASSWORD, Cluster, running_cluster
from tests.support.redis import find_valkey
from tests.support.relays import free_port
from tests.support.tailnet_servers import TAILNET_COMMAND

FILE: Final = ROOT / "deploy" / "replicas" / "compose.yaml"
REPLICAS: Final = ("replica-1", "replica-2", "replica-3")
# Hang guards.  Three replicas start at once, and a machine may be busy with as much again.
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 130.0  # as the file says; a replica that leaves takes some 75
_EVERY_ADDRESS: Final = "0.0.0.0"


class ProgramMissing(Exception):
    """A server of the compose file is not installed here."""


def interpolated(value: Any, given: Mapping[str, str]) -> Any:
    """A part of a compose file with `${NAME}`, `${NAME:-else}` and `${NAME:?what to do}` replaced.  Raises KeyError."""
    if isinstance(value, Mapping):
        return {key: interpolated(each, given) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, given) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(
        r"\$\{([A-Z_]+)(?::-([^}]*)|:\?[^}]*)?\}",
        lambda found: given.get(found[1], found[2]) if found[2] is not None else given[found[1]],
        value,
    )


class Composed:
    """The services.  `start` and `stop` as a test likes; running_compose() starts and ends them all."""

    def __init__(self, folder: Path, cluster: Cluster, more: Mapping[str, str]) -> None:
        certificate = folder / "balancer.pem"
        given = {
            "PUBLIC_NAME": "localhost",
            "TLS_PEM": str(certificate),
            "STORE_PASSWORD": PASSWORD,
            "BUS_PASSWORD": PASSWORD,
        }
        document = interpolated(yaml.safe_load(FILE.read_text()), given)
        self.services: dict[str, dict[str, Any]] = document["services"]
        self._folder, self._cluster, self._more = folder, cluster, more
        self._networks = [each["subnet"] for each in document["networks"]["default"]["ipam"]["config"]]
        network = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
        self.addresses = {name: f"{network}.{number}" for number, name in enumerate(self.services, start=1)}
        self._ports: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        issued = issue(self.addresses["balancer"])
        certificate.touch(mode=0o600)
        certificate.write_bytes(issued.pem + issued.key_pem)
        self.certificate = folder / "authority.pem"
        """Who trusts it trusts the balancer, as `context` does."""
        self.certificate.write_bytes(issued.pem)
        self.context = ssl.create_default_context(cafile=self.certificate)

    @property
    def url(self) -> str:
        """Where agents and clients dial."""
        return f"https://{host_port(*self.address('balancer', 443))}"

    @property
    def store(self) -> str:
        return self.environment(REPLICAS[0])["TAILNET_STORE"]

    def port(self, written: int | str) -> int:
        """The port that stands for one of the file's."""
        if str(written) not in self._ports:
            self._ports[str(written)] = free_port(socket.SOCK_STREAM)
        return self._ports[str(written)]

    def address(self, service: str, port: int) -> tuple[str, int]:
        return self.addresses[service], self.port(port)

    def translated(self, service: str, text: str) -> str:
        """A setting or a configuration with names, ports and networks of this machine."""
        for name, address in self.addresses.items():
            text = re.sub(rf"\b{name}:(\d+)", lambda found, to=address: f"{to}:{self.port(found[1])}", text)  # type: ignore[misc]
        own = self.addresses[service]
        text = re.sub(rf"{re.escape(_EVERY_ADDRESS)}:(\d+)", lambda found: f"{own}:{self.port(found[1])}", text)
        text = re.sub(r"\bbind :(\d+)", lambda found: f"bind {own}:{self.port(found[1])}", text)
        for network in self._networks:
            text = text.replace(network, "127.0.0.1/32")  # from where this machine dials its other addresses
        return text

    def environment(self, service: str) -> dict[str, str]:
        """What the service is told, for this machine."""
        told = {name: self.translated(service, text) for name, text in self.services[service]["environment"].items()}
        if "TAILNET_STORE" in told:
            url = sa.make_url(told["TAILNET_STORE"])
            assert url.host == "postgres"
            told["TAILNET_STORE"] = self._cluster.url(
                str(url.database), user=str(url.username), password=str(url.password)
            )
            told |= {"TAILNET_ACCESS_URL": self.url, **self._more}
        return told

    def command(self, service: str) -> list[str]:
        """What the service runs, for this machine.  Raises ProgramMissing, RedisMissing."""
        described = self.services[service]
        program, *words = [*described.get("entrypoint", []), *described.get("command", [])]
        mounted = self._mounted(service)
        words = [mounted.get(word, word) for word in words]
        if program == "tailnet":
            return [*TAILNET_COMMAND, *words]
        if program == "valkey-server":
            here = ["--port", str(self.port(6379)), "--bind", self.addresses[service], "--dir", str(self._folder)]
            return [find_valkey(), *words, *here]
        if shutil.which(program) is None:
            raise ProgramMissing(f"{program} is not installed: apt-get install {program}")
        return [program, *words]

    def start(self, *services: str) -> None:
        """Start them at once, and return when each takes connections at the port that others know."""
        if "postgres" in services:
            self._cluster.start()
        waiting = set(services) - {"postgres"}
        for service in waiting:
            environ = {name: text for name, text in os.environ.items() if not name.startswith(("TAILNET_", "DERP_"))}
            if "environment" in self.services[service]:
                environ |= self.environment(service)
            with self.log(service).open("ab") as log:
                self.processes[service] = subprocess.Popen(
                    self.command(service), cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        deadline = time.monotonic() + START_SECONDS
        while waiting:
            for service in tuple(waiting):
                with socket.socket() as sock:
                    if sock.connect_ex(self.address(service, self._serves_at(service))) == 0:
                        waiting.remove(service)
                        continue
                if self.processes[service].poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{service} does not serve:\n{self.log(service).read_text()}")
            time.sleep(0.02)

    def log(self, service: str) -> Path:
        return self._folder / f"{service}.log"

    def stop(self, service: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, and return when it has ended."""
        if service == "postgres":
            self._cluster.stop()
            return
        process = self.processes.pop(service)
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _serves_at(self, service: str) -> int:
        listens = self.services[service].get("environment", {}).get("TAILNET_LISTEN", "")
        return {"balancer": 443, "valkey": 6379}.get(service) or int(listens.rpartition(":")[2])

    def _mounted(self, service: str) -> dict[str, str]:
        """Files as the service knows them -> copies for this machine."""
        found = {}
        for volume in self.services[service].get("volumes", []):
            source, target, *_ = volume.split(":")
            made = self._folder / f"{service}-{Path(target).name}"
            found[target] = str(made)
            text = (FILE.parent / source).read_text()
            made.touch(mode=0o600)
            made.write_text(text)
        for made in map(Path, found.values()):
            text = self.translated(service, made.read_text())
            for target, other in found.items():
                text = text.replace(target, other)
            made.write_text(text)
        return found


@contextmanager
def running_compose(folder: Path, more: Mapping[str, str] = MappingProxyType({})) -> Iterator[Composed]:
    """All services, each behind those that it depends on; `more`: further settings of the replicas.

    Raises ProgramMissing, PostgresqlMissing, RedisMissing.
    """
    with running_cluster() as cluster:  # which is there before the others' addresses are
        composed = Composed(folder, cluster, more)
        with cluster.connect() as connection:
            connection.execute(f"CREATE DATABASE {composed.services['postgres']['environment']['POSTGRES_DB']}")
        try:
            for services in _in_order(composed.services):
                composed.start(*services - {"postgres"})
            yield composed
        finally:
            for service in tuple(composed.processes):
                composed.stop(service, signal.SIGKILL)


def _in_order(services: Mapping[str, Mapping[str, Any]]) -> Iterator[set[str]]:
    """Those that depend on nothing, then those that depend on these, and so on."""
    done: set[str] = set()
    while len(done) < len(services):
        ready = {name for name in services if set(services[name].get("depends_on", ())) <= done} - done
        yield ready
        done |= ready
