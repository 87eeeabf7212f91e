"""Relays of one region in this process, over TLS with an authority of the tests' own; and an impostor that a relay
takes for another of its region, whose every byte the test decides.
"""

import atexit
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from derp.config import MeshPeer, TlsConfig
from derp.keys import MeshKey, NodePrivate
from derp.protocol.messages import ForwardPacket, Message, Pong, WatchConns
from derp.protocol.upgrade import derp_answer
from derp.server.server import RelayServer
from tests.derp.server.world import HOST, PATIENCE_SECONDS, Caller, Carrier, call, port_of, relay_config
from tests.support.certificates import Issued, client_context, issue, server_context
from tests.support.derp_server import ServerConnection

MESH_KEY = MeshKey.parse("5f" * 32)
OTHER_KEY = MeshKey.parse("60" * 32)
NAMES = ("alpha.test", "beta.test", "gamma.test", "impostor.test")


@functools.cache
def authority() -> Issued:
    return issue(common_name="authority", is_authority=True)


@functools.cache
def leaf() -> Issued:
    """One certificate for all names of the region."""
    return issue(*NAMES, issuer=authority())


@functools.cache
def tls_config() -> TlsConfig:
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "leaf.crt").write_bytes(leaf().pem)
    (folder / "leaf.key").touch(mode=0o600)
    (folder / "leaf.key").write_bytes(leaf().key_pem)
    return TlsConfig(cert_file=folder / "leaf.crt", key_file=folder / "leaf.key")


class Node:
    """One relay of the region; `join` makes it dial others."""

    carriers: tuple[Carrier, ...] = ("tls", "websocket")
    """By which clients can come."""

    def __init__(self, name: str, *, max_keys: int = 1000, mesh_key: MeshKey = MESH_KEY, **changes: Any) -> None:
        changes = {"tls": tls_config(), "mesh_key": mesh_key, "max_connections": max_keys // 2} | changes
        config = relay_config(**changes)
        if config.quic:
            self.carriers = ("tls", "websocket", "quic")
        self._take(name, RelayServer(config, mesh_context=client_context(authority())))

    def _take(self, name: str, server: RelayServer) -> None:
        self.name = name
        self.config = server.config
        self.server = server
        server.open()
        self.relay = server.relay
        assert self.relay.mesh is not None
        self.mesh = self.relay.mesh
        self.router = self.relay.router
        self.key = self.relay.public_key.raw
        self.peer = MeshPeer(host=name, port=port_of(server), dial_host=HOST)
        self.callers: list[Caller] = []
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._tasks: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as self._tasks:
                    self._tasks.start_soon(self.server.run)
                    task_status.started()
        finally:
            self.server.close()
            with trio.CancelScope(shield=True):
                for caller in self.callers:
                    await caller.aclose()
            self._stopped.set()

    async def call(
        self, *, private: NodePrivate | None = None, mesh_key: MeshKey | None = None, carrier: Carrier = "tls"
    ) -> Caller:
        """A client of this relay, closed with it at the latest."""
        caller = await call(self.server, carrier, private=private, mesh_key=mesh_key)
        self.callers.append(caller)
        return caller

    def join(self, *peers: MeshPeer) -> None:
        """Dial these from now on."""
        assert self._tasks is not None
        self._tasks.start_soon(self.mesh.run, peers)

    async def stop(self) -> None:
        """As if the process ended: every socket is closed."""
        self._scope.cancel()
        await self._stopped.wait()


@asynccontextmanager
async def open_nodes(*nodes: Node) -> AsyncIterator[trio.Nursery]:
    """Run these until the end of the block; more may be started in the nursery."""
    with trio.fail_after(3 * PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await nursery.start(node.run)
            yield nursery
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_region(count: int, **changes: Any) -> AsyncIterator[list[Node]]:
    """`count` relays, each of which dials all others and itself, as operators write one list for all of them."""
    nodes = [Node(name, **changes) for name in NAMES[:count]]
    async with open_nodes(*nodes):
        for node in nodes:
            node.join(*(each.peer for each in nodes))
        yield nodes


async def until(caller: Caller, condition: Callable[[], bool]) -> None:
    """Round trips between `caller` and its relay until that relay got so far."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():
            await caller.ping()
            await trio.sleep(0.002)  # a relay closes whoever sends thousands of pings a second


async def hears_nothing(caller: Caller) -> None:
    """Whatever the relay sent before it read this ping would come before the pong."""
    caller.core.send_ping(b"anything")
    await caller.flush()
    assert await caller.receive() == Pong(b"anything")


async def knows(caller: Caller, node: Node, *others: Caller) -> None:
    """Until `node`, which `caller` is connected to, has a route to all `others`."""
    await until(caller, lambda: all(other.key in node.router.routes for other in others))


async def knows_not(caller: Caller, node: Node, other: Caller) -> None:
    await until(caller, lambda: other.key not in node.router.routes)


class Impostor:
    """One connection that a relay made to what it takes for another relay."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], core: ServerConnection) -> None:
        self.stream = stream
        self.core = core
        self.inbox: list[Message] = []
        self.ended = trio.Event()

    async def write(self, data: bytes) -> None:
        """Any bytes."""
        await self.stream.send_all(data)

    async def write_until_closed(self, data: bytes, again: bool = False) -> None:
        """Write this, or this again and again without ever reading, until the relay has hung up."""
        try:
            await self.write(data)
            while again:
                await self.write(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        await self.wait_closed()

    async def receive(self) -> Message:
        with trio.fail_after(PATIENCE_SECONDS):
            while not self.inbox:
                data = await self.stream.receive_some(65536)
                assert data, "the relay hung up"
                self.inbox += self.core.receive_data(data)
        return self.inbox.pop(0)

    async def receive_forwarded(self) -> ForwardPacket:
        message = await self.receive()
        assert isinstance(message, ForwardPacket)
        return message

    async def wait_closed(self) -> None:
        """Read on until the relay hangs up."""
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                while await self.stream.receive_some(65536):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass


class ImpostorHost:
    """Where relays that dial `peer` end up; `accept` gives their connections, when they have asked for its clients."""

    def __init__(self, port: int, private: NodePrivate) -> None:
        self.peer = MeshPeer(host="impostor.test", port=port, dial_host=HOST)
        self.private = private
        self._send, self._receive = trio.open_memory_channel[Impostor](100)

    async def accept(self) -> Impostor:
        with trio.fail_after(PATIENCE_SECONDS):
            return await self._receive.receive()

    async def serve(self, tcp: trio.SocketStream) -> None:
        stream = trio.SSLStream(tcp, server_context(leaf()), server_side=True, https_compatible=True)
        core = ServerConnection(self.private, random_bytes=lambda count: b"r" * count, mesh_key=MESH_KEY)
        try:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive_some(1)
            await stream.send_all(derp_answer(self.private.public().raw) + b"".join(core.data_to_send()))
            messages = core.receive_data(await stream.receive_some(65536))
            assert len(messages) == 1
            messages = core.accept()
            await stream.send_all(b"".join(core.data_to_send()))
            while not messages:
                messages = core.receive_data(await stream.receive_some(65536))
            assert messages == [WatchConns()]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        await self._send.send(Impostor(stream, core))
        await trio.sleep_forever()  # serve_listeners closes it when this ends


@asynccontextmanager
async def open_impostor() -> AsyncIterator[ImpostorHost]:
    listeners = await trio.open_tcp_listeners(0, host=HOST)
    port = listeners[0].socket.getsockname()[1]
    host = ImpostorHost(port, NodePrivate.generate())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, host.serve, listeners)
        yield host
        nursery.cancel_scope.cancel()
