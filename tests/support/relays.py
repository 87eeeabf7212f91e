"""Starts a relay as an operator would, ours or the genuine derper, with the same command line.

`async with open_relay("ours", tls=True) as relay` picks a free port on 127.0.0.1, starts the process, waits until it
accepts connections, and ends it by its pid.  The flags are derper's own: ours takes them with the same meaning.
"""

import hashlib
import re
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from tests.support.gobuild import DERPER, ROOT
from tests.support.manual_certificates import write_certificate
from tests.support.peers import Node, require
from tests.support.relay_command import HOST, RelayKind, command_line

# A cold start of the interpreter on a busy machine takes seconds; a relay that needs this long is broken.
START_SECONDS = 30.0
# A drain of ours takes 30 s at most, and the last clients 3 s more to hang up.
STOP_SECONDS = 60.0


class RelayFailed(Exception):
    """The relay ended, or never listened; the text holds what it printed."""


@dataclass(frozen=True, slots=True)
class Relay:
    """A running relay.  With TLS, `pin` is `sha256-raw:<hex>` of its certificate and `certificate` the PEM file."""

    kind: RelayKind
    port: int
    stun_port: int
    tls: bool
    pid: int
    folder: Path
    pin: str = ""
    certificate: Path | None = None

    @property
    def url(self) -> str:
        """For URL clients: http or https, path /derp."""
        return f"{'https' if self.tls else 'http'}://{HOST}:{self.port}/derp"

    @property
    def websocket_url(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://{HOST}:{self.port}/derp"

    @property
    def node(self) -> Node:
        """For region clients; needs TLS.  Verified by the pin."""
        assert self.tls, "a genuine region client always uses TLS"
        return Node(HOST, self.port, cert_name=self.pin)

    def output(self) -> str:
        """What the relay printed so far, both streams."""
        return (self.folder / "output").read_text(errors="replace")

    async def says(self, text: str) -> None:
        """Return once the relay printed `text`: its log is written a moment after what it tells of."""
        with trio.move_on_after(START_SECONDS):
            while text not in self.output():  # noqa: ASYNC110  # another process tells nobody
                await trio.sleep(0.05)
        assert text in self.output()


@asynccontextmanager
async def open_relay(
    kind: RelayKind,
    *,
    tls: bool = False,
    hostname: str = HOST,
    mesh_key: str = "",
    stun: bool = False,
    port: int = 0,
    extra: tuple[str, ...] = (),
) -> AsyncIterator[Relay]:
    """Start one relay and stop it at the end.  Raises RelayFailed, also when it does not stop as it is told.

    With TLS and an IP address as `hostname` the relay makes its own certificate; a name gets one.  `extra`: more flags.
    """
    with tempfile.TemporaryDirectory(prefix="relay-") as name:
        folder = Path(name)
        port = port or free_port(socket.SOCK_STREAM)
        stun_port = free_port(socket.SOCK_DGRAM) if stun else 0
        if kind == "genuine":
            require(DERPER)
        if tls and hostname != HOST:
            (folder / "certs").mkdir()
            write_certificate(folder / "certs", hostname)
        command = command_line(kind, folder, port, tls=tls, hostname=hostname, mesh_key=mesh_key, stun_port=stun_port)
        with (folder / "output").open("wb") as output:
            process = await trio.lowlevel.open_process(
                [*command, *extra], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT
            )
        relay = Relay(kind, port, stun_port, tls, process.pid, folder)
        try:
            await wait_listening(process, relay)
            yield await trio.to_thread.run_sync(_with_certificate, relay, hostname) if tls else relay
        finally:
            stopped = await stop_process(process)
        if not stopped:
            raise RelayFailed(f"{kind} relay did not stop within {STOP_SECONDS:.0f} s of SIGTERM:\n{relay.output()}")


def free_port(kind: socket.SocketKind) -> int:
    """A port of 127.0.0.1 that nobody uses now.  derper cannot tell which port it got for port 0."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def free_port_of_both() -> int:
    """A port of 127.0.0.1 that nobody uses now, over TCP or UDP: many a TCP port is the near end of a connection."""
    while True:
        with socket.socket() as probe, socket.socket(type=socket.SOCK_DGRAM) as other:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
            with suppress(OSError):
                other.bind((HOST, port))
                return port


@contextmanager
def port_of_nobody() -> Iterator[int]:
    """A port of 127.0.0.1 on which nobody listens, and nobody can begin to: connections to it are refused."""
    with socket.socket() as held:
        held.bind((HOST, 0))
        yield held.getsockname()[1]


async def wait_listening(process: trio.Process, relay: Relay) -> None:
    """Poll, since derper says that it serves before it listens."""
    with trio.move_on_after(START_SECONDS):
        while process.poll() is None:
            try:
                stream = await trio.open_tcp_stream(HOST, relay.port)
            except OSError:
                await trio.sleep(0.02)
                continue
            await stream.aclose()
            return
    raise RelayFailed(f"{relay.kind} relay did not listen (exit code {process.poll()}):\n{relay.output()}")


def _with_certificate(relay: Relay, hostname: str) -> Relay:
    """Ask the relay itself for its certificate, as an operator with openssl would."""
    pem = ssl.get_server_certificate((hostname, relay.port), timeout=START_SECONDS)
    path = relay.folder / "served.pem"
    path.write_text(pem)
    pin = f"sha256-raw:{hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()}"
    return Relay(relay.kind, relay.port, relay.stun_port, True, relay.pid, relay.folder, pin, path)


def printed_pin(relay: Relay) -> str:
    """The pin in what the relay printed for the operator's DERP map; empty if it printed none."""
    found = re.search(r"sha256-raw:[0-9a-f]{64}", relay.output())
    return found.group() if found else ""


class Stoppable(Protocol):
    """What trio.Process has of this."""

    def poll(self) -> int | None: ...

    def send_signal(self, sig: signal.Signals, /) -> None: ...

    def kill(self) -> None: ...

    async def wait(self) -> int: ...


async def stop_process(process: Stoppable) -> bool:
    """Send SIGTERM; whether it ended by itself."""
    ended = False
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_SECONDS):
            await process.wait()
            ended = True
        if not ended:
            process.kill()
            await process.wait()
    return ended
