"""A coordinator that is replaced under its peers (SIGUSR2), and what everybody saw of it.

Agents, clients of agents and relay clients stay by dialling again whenever they are disconnected, at once; probes ask
for a page on fresh connections all the time.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from derp.client.client import open_derp_client
from derp.errors import DerpError
from derp.keys import NodePrivate
from derp.server.ports import Listening
from tests.support.regions import Successor
from tests.support.relays import free_port, stop_process
from tests.support.seeds import AgentSpec, agent_token, make_id, peer_id, user_token
from tests.support.systemd import Manager
from tests.support.tailnet_driver import AGENT_DOOR, RefusedUpgrade, client_door, open_peer

HOST = "127.0.0.1"
# Connects as one kind of peer and stays: (name, what, whom to tell once it works); returns how that ended.
Be = Callable[[str, Any, Callable[[], None]], Awaitable[object]]
PATIENCE_SECONDS = 60.0


def agents(count: int) -> tuple[AgentSpec, ...]:
    """So many agents of one user."""
    return tuple(AgentSpec(f"a{number}", f"w{number}", "alice") for number in range(count))


@dataclass
class Place:
    """Where the driver dials."""

    listening: list[Listening]


@dataclass
class Seen:
    """What one peer, or one kind of them, saw."""

    connects: int = 0
    troubles: list[str] = field(default_factory=list)  # attempts that failed
    ends: list[object] = field(default_factory=list)  # how connections ended
    gaps: list[float] = field(default_factory=list)  # seconds from an end to the next connection that works


class Replaced:
    """One run: `start`, `join` with everybody, `replace`, `stop`."""

    def __init__(self, folder: Path, store_url: str, nursery: trio.Nursery) -> None:
        self.port = free_port(socket.SOCK_STREAM)
        self.place: Any = Place([Listening("tailnet", HOST, self.port)])
        self.seen: dict[str, Seen] = {}
        self.nodes: dict[str, int] = {}  # by client: how often it was told of its agent
        self.probes: list[str] = []
        self._manager = Manager(folder)
        self._store_url = store_url
        self._nursery = nursery
        self._process: trio.Process | None = None
        self._successor: Successor | None = None

    async def start(self) -> None:
        await self._manager.open()
        command = [sys.executable, "-m", "tailnet", "serve", "--json", f"--listen={HOST}:{self.port}"]
        command += [f"--stun-listen={HOST}:{free_port(socket.SOCK_DGRAM)}", f"--store={self._store_url}"]
        environment = {name: text for name, text in os.environ.items() if not name.startswith("TAILNET_")}
        self._process = await trio.lowlevel.open_process(
            command,
            env=environment | {"NOTIFY_SOCKET": self._manager.path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert await self._manager.hear() == "READY=1"

    # --- who is there

    async def join(self, agent_names: list[str], client_of: list[str], relay_clients: int) -> None:
        """Everybody comes, and stays until the nursery is cancelled.  Returns when all are there."""
        for name in agent_names:
            self._nursery.start_soon(self._stay, f"agent {name}", self._be_agent, name)
        for name in client_of:
            self._nursery.start_soon(self._stay, f"client of {name}", self._be_client, name)
        for number in range(relay_clients):
            self._nursery.start_soon(self._stay, f"relay {number}", self._be_relay_client, NodePrivate.generate())
        everybody = len(agent_names) + len(client_of) + relay_clients
        await self._until(lambda: len(self.seen) == everybody and all(seen.connects for seen in self.seen.values()))
        await self._until(lambda: len(self.nodes) == len(client_of))
        self._nursery.start_soon(self._probe_forever)

    async def _stay(
        self, name: str, be: Callable[[str, Any, Callable[[], None]], Awaitable[object]], what: object
    ) -> None:
        seen = self.seen[name] = Seen()
        ended_at: float | None = None

        def connected() -> None:
            seen.connects += 1
            if ended_at is not None:
                seen.gaps.append(trio.current_time() - ended_at)

        while True:
            try:
                seen.ends.append(await be(name, what, connected))
            except (OSError, RefusedUpgrade, DerpError, EOFError, trio.BrokenResourceError) as error:
                seen.troubles.append(f"{type(error).__name__}: {error}")
                await trio.sleep(0.05)
                continue
            ended_at = trio.current_time()

    async def _be_agent(self, name: str, agent: str, connected: Callable[[], None]) -> object:
        async with open_peer(self.place, AGENT_DOOR, agent_token(agent)) as peer:
            await (await peer.coordinate()).update(peer.node(peer_id(agent)))
            connected()
            await peer.closed.wait()
            return peer.websocket.close_code

    async def _be_client(self, name: str, agent: str, connected: Callable[[], None]) -> object:
        door = client_door(peer_id(agent))
        async with open_peer(self.place, door, user_token("alice")) as peer:
            call = await peer.coordinate()
            await call.update(peer.node(make_id(name).bytes))
            await call.tunnel(peer_id(agent))
            connected()
            async with trio.open_nursery() as nursery:

                async def hear() -> None:
                    await call.next_node()
                    self.nodes[name] = self.nodes.get(name, 0) + 1

                nursery.start_soon(hear)
                await peer.closed.wait()
                nursery.cancel_scope.cancel()
            return peer.websocket.close_code

    async def _be_relay_client(self, name: str, private: NodePrivate, connected: Callable[[], None]) -> object:
        async with open_derp_client(f"http://{HOST}:{self.port}/derp", private) as client:
            connected()
            try:
                while True:
                    await client.receive()
            except DerpError as error:
                return type(error).__name__

    async def _probe_forever(self) -> None:
        while True:
            self.probes.append(await self._probe())
            await trio.sleep(0.01)

    async def _probe(self) -> str:
        try:
            async with await trio.open_tcp_stream(HOST, self.port) as stream:
                await stream.send_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                received = b""
                while data := await stream.receive_some():
                    received += data
        except (OSError, trio.BrokenResourceError) as error:
            return f"{type(error).__name__}: {error}"
        return received.partition(b"\r\n")[0].decode()

    # --- the replacement

    async def replace(self) -> float:
        """SIGUSR2, until the old process has ended and everybody is back; seconds from the signal to that."""
        assert self._process is not None
        before = {name: seen.connects for name, seen in self.seen.items()}
        began = trio.current_time()
        self._process.send_signal(signal.SIGUSR2)
        heard = await self._manager.hear_until("READY=1", "MAINPID=")
        (pid,) = {int(line.removeprefix("MAINPID=")) for line in heard if line.startswith("MAINPID=")}
        self._successor = Successor(pid)
        with trio.fail_after(PATIENCE_SECONDS):
            assert await self._process.wait() == 0
        await self._until(lambda: all(seen.connects > before[name] for name, seen in self.seen.items()))
        took = trio.current_time() - began
        seen_probes = len(self.probes)
        await self._until(lambda: len(self.probes) > seen_probes + 5)
        return took

    async def wait_told(self, times: int) -> None:
        """Until every client was told of its agent so often."""
        await self._until(lambda: all(count >= times for count in self.nodes.values()))

    async def stop(self) -> None:
        """Stop whatever still runs; shielded, for the end of a test."""
        with trio.CancelScope(shield=True):
            if self._process is not None:
                await stop_process(self._process)
            if self._successor is not None:
                await stop_process(self._successor)
        self._manager.close()

    async def _until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while not condition():  # noqa: ASYNC110  # other processes tell by what their peers see
                await trio.sleep(0.01)
