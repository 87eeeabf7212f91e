"""Starts what the benches measure: our relay, the genuine derper, the floor; one process each, ended by its pid."""

import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.cases import Carrier
from tests.support.gobuild import ROOT
from tests.support.manual_certificates import write_certificate
from tests.support.relay_command import HOST, command_line

SERVERS = ("ours", "derper", "floor")
START_SECONDS = 30.0
STOP_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running relay."""

    name: str
    carrier: Carrier
    port: int
    pid: int
    output: Path  # what it prints and logs

    def url(self, *, websocket: bool) -> str:
        scheme = ("ws" if websocket else "http") + ("s" if self.carrier == "tls" else "")
        return f"{scheme}://{HOST}:{self.port}/derp"


class StartFailed(Exception):
    """A relay did not come up; the text holds what it printed."""


@contextmanager
def serve(name: str, carrier: Carrier, *options: str) -> Iterator[Server]:
    """Start one relay, wait until it accepts connections, stop it at the end.  `options`: more of its command line.
    Raises StartFailed."""
    # 10,000 clients are 10,000 descriptors here and there; children inherit the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as scratch:
        folder = Path(scratch)
        port = free_port()
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [*_command(name, carrier, folder, port), *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        try:
            wait_listening(process, name, port, folder)
            yield Server(name, carrier, port, process.pid, folder / "output")
        finally:
            stop(process)


def _command(name: str, carrier: Carrier, folder: Path, port: int) -> list[str]:
    tls = carrier == "tls"
    certificates = folder / "certs"
    if tls:  # all of them present the same kind of certificate, P-256 and self-signed
        certificates.mkdir()
        write_certificate(certificates, HOST)
    if name == "floor":
        command = [sys.executable, str(ROOT / "bench" / "floor.py"), "--listen", f"{HOST}:{port}"]
        if tls:
            command += ["--certificate", str(certificates / f"{HOST}.crt"), "--key", str(certificates / f"{HOST}.key")]
        return command
    if name == "derper":
        return command_line("genuine", folder, port, tls=tls)
    # derper's default is no limit on accepts, ours has one: the connect rate would measure it.
    return [*command_line("ours", folder, port, tls=tls), *OURS_UNLIMITED]


OURS_UNLIMITED = ("--accept-connection-limit=1000000", "--accept-connection-burst=1000000")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_listening(process: subprocess.Popen[bytes], name: str, port: int, folder: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise StartFailed(f"{name} does not listen:\n{(folder / 'output').read_text(errors='replace')[-4000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
