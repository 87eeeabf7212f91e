"""Several relays of one region as processes, ours and genuine ones, each with every other in its --mesh-with.

A node keeps its folder, and so its keys, its certificate and its port, when it is stopped and started again, be it as
another kind of relay: `await region.start(0, "genuine")`, `await region.stop(0)`, `await region.start(0, "ours")`.
"""

import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import trio

from tests.support.certificates import issue
from tests.support.gobuild import DERPER, ROOT
from tests.support.peers import require
from tests.support.relay_command import RelayKind, command_line
from tests.support.relays import START_SECONDS, Relay, RelayFailed, free_port, stop_process, wait_listening

# Every relay of the field resolves it without a name server, and genuine meshes and probes need names.
NAME = "localhost"
MESH_KEY = "5f" * 32
VALID = (timedelta(days=-1), timedelta(days=30))


class Successor:
    """A process that one of ours started and left behind: nobody's child here, so it is looked for by its number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode = 0  # whoever reaped it knows

    def poll(self) -> int | None:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except FileNotFoundError:
            return self.returncode
        return self.returncode if stat.rpartition(")")[2].split()[0] == "Z" else None

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        while self.poll() is None:  # noqa: ASYNC110  # the kernel tells its parent, and nobody else
            await trio.sleep(0.01)
        return self.returncode


class Region:
    """`count` places for relays; those that run are in `relays`."""

    def __init__(
        self,
        folder: Path,
        count: int,
        valid: tuple[timedelta, timedelta] = VALID,
        extra: tuple[str, ...] = (),
        itself: bool = True,
    ) -> None:
        self.authority = folder / "authority.pem"
        authority = issue(common_name="authority", is_authority=True)
        self.authority.write_bytes(authority.pem)
        self.folders = [folder / f"node{number}" for number in range(count)]
        self.ports = [free_port(socket.SOCK_STREAM) for _ in range(count)]
        self.stun_ports = [free_port(socket.SOCK_DGRAM) for _ in range(count)]
        self.relays: dict[int, Relay] = {}
        self._processes: dict[int, trio.Process | Successor] = {}
        self._extra = extra
        self._itself = itself
        for place in self.folders:
            certificates = place / "certs"
            certificates.mkdir(parents=True)
            leaf = issue(NAME, issuer=authority, valid=valid)
            (certificates / f"{NAME}.crt").write_bytes(leaf.pem)
            (certificates / f"{NAME}.key").touch(mode=0o600)
            (certificates / f"{NAME}.key").write_bytes(leaf.key_pem)

    def url(self, number: int) -> str:
        return f"https://{NAME}:{self.ports[number]}/derp"

    async def start(self, number: int, kind: RelayKind) -> Relay:
        """Returns when it listens."""
        if kind == "genuine":
            require(DERPER)
        folder, port, stun_port = self.folders[number], self.ports[number], self.stun_ports[number]
        command = command_line(kind, folder, port, tls=True, hostname=NAME, mesh_key=MESH_KEY, stun_port=stun_port)
        others = [each for each in self.ports if self._itself or each != port]
        command.append("--mesh-with=" + ",".join(f"{NAME}:{each}" for each in others))
        command += self._extra
        # Go and OpenSSL both take it in place of the system's roots.
        environment = os.environ | {"SSL_CERT_FILE": str(self.authority)}
        with (folder / "output").open("ab") as output:
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
            )
        self._processes[number] = process
        relay = Relay(kind, port, stun_port, True, process.pid, folder, certificate=self.authority)
        await wait_listening(process, relay)
        self.relays[number] = relay
        return relay

    async def stop(self, number: int) -> None:
        """SIGTERM, as an operator's service manager sends it; returns when the process has ended."""
        process, relay = self._processes.pop(number), self.relays.pop(number, None)
        if relay is not None and process.poll() is not None:
            raise RelayFailed(f"{relay.kind} relay had ended with {process.returncode}:\n{relay.output()}")
        if not await stop_process(process) and relay is not None:
            raise RelayFailed(f"{relay.kind} relay did not stop:\n{relay.output()}")

    async def hand_over(self, number: int) -> int:
        """SIGUSR2: ours has a new process serve in its place.  Returns when the old one has ended: the new one's id."""
        old, relay = self._processes[number], self.relays[number]
        old.send_signal(signal.SIGUSR2)
        with trio.fail_after(START_SECONDS):
            await old.wait()
        (pid,) = re.findall(r"process (\d+) serves from now on", relay.output())[-1:]
        self._processes[number] = Successor(int(pid))
        return int(pid)

    async def stop_all(self) -> None:
        for number in tuple(self._processes):
            await self.stop(number)


@asynccontextmanager
async def open_region(
    *kinds: RelayKind,
    valid: tuple[timedelta, timedelta] = VALID,
    extra: tuple[str, ...] = (),
    itself: bool = True,
) -> AsyncIterator[Region]:
    """Start one relay of each kind, the genuine ones last: those retry after 5 s only.

    valid: from when until when their certificates are, from now; extra: more flags for each; itself: whether each has
    itself in its list, as operators give all nodes one.
    """
    with tempfile.TemporaryDirectory(prefix="region-") as name:
        region = Region(Path(name), len(kinds), valid, extra, itself)
        try:
            for number in sorted(range(len(kinds)), key=lambda number: kinds[number] == "genuine"):
                await region.start(number, kinds[number])
            yield region
        finally:
            with trio.CancelScope(shield=True):
                await region.stop_all()
