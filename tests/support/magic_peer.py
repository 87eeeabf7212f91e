"""A genuine node (magicsock and wireguard-go, tests/interop/go_tailscaled/cmd/magicpeer) and one made of our two cores.

`open_nodes(relay)` joins both to a relay and makes them known to each other.  `nodes.send` and `nodes.peer_send` put
packets in, `nodes.next(nodes.came)` and `nodes.next(nodes.peer_came)` give what came out.
"""

import math
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address

import trio

from derp.client.client import DerpClient, open_derp_client
from derp.client.dial import DialOptions
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from tailnet.paths.core import Paths, RelaySource, Source
from tailnet.paths.disco import is_disco
from tailnet.paths.endpoint import Endpoint
from tailnet.wireguard.device import Device
from tests.support.go_program import lines_of, run, tell
from tests.support.gobuild import MAGICPEER
from tests.support.peers import PATIENCE_SECONDS, require
from tests.support.relay_command import HOST
from tests.support.relays import Relay
from tests.support.wireguard_peer import HERE, THERE, ipv6

REGION = 900


class Nodes:
    """Our node, and what the genuine one says."""

    def __init__(
        self, private: NodePrivate, peer_key: bytes, socket: trio.socket.SocketType, derp: DerpClient, is_direct: bool
    ) -> None:
        now = trio.current_time()
        key = private.public().raw
        self.paths = Paths(key, secrets.token_bytes(32), random=secrets.token_bytes, now=now, is_direct=is_direct)
        self.device = Device(private, random=secrets.token_bytes, now=now, unix_seconds=time.time())
        self.peer = self.device.configure(peer_key, [THERE], now)
        self.endpoint = Endpoint(HOST, socket.getsockname()[1])
        self.paths.region_up(REGION)
        self.paths.set_local_endpoints([self.endpoint], now)
        self.is_direct = is_direct
        """False: no datagram passes our socket in either direction."""
        self.ways: list[bool] = []
        """Of each packet that came: whether by UDP."""
        self.program: trio.Process | None = None
        self._socket, self._derp = socket, derp
        self._put, self.came = trio.open_memory_channel[bytes](math.inf)
        self._peer_put, self.peer_came = trio.open_memory_channel[bytes](math.inf)
        self._pong_put, self.pongs = trio.open_memory_channel[bytes](math.inf)
        self._changed = trio.Event()

    async def send(self, body: bytes) -> None:
        await self._carry(self.device.seal(self.peer, [ipv6(HERE, THERE, body)], trio.current_time()))
        await self.flush()

    async def peer_send(self, body: bytes) -> None:
        await self.tell(f"send {ipv6(THERE, HERE, body).hex()}")

    async def ask_peer(self) -> str:
        """How the genuine node reaches us: an address and port, or derp-900."""
        await self.tell("ping")
        with trio.fail_after(PATIENCE_SECONDS):
            return (await self.pongs.receive()).decode()

    async def next(self, came: "trio.MemoryReceiveChannel[bytes]") -> bytes:
        with trio.fail_after(PATIENCE_SECONDS):
            return (await came.receive())[40:]

    async def exchange(self, number: int) -> None:
        """A packet each way."""
        await self.send(b"ours %d" % number)
        assert await self.next(self.peer_came) == b"ours %d" % number
        await self.peer_send(b"theirs %d" % number)
        assert await self.next(self.came) == b"theirs %d" % number

    async def tell(self, line: str) -> None:
        assert self.program is not None
        await tell(self.program, line)

    async def flush(self) -> None:
        for outgoing in self.device.datagrams_to_send():
            await self._carry([outgoing.datagram])
        for said in self.paths.datagrams_to_send():
            await self._say(said.endpoint, said.region, said.datagram)
        self._changed.set()

    async def _carry(self, datagrams: list[bytes]) -> None:
        to = self.paths.find(self.peer.public)
        assert to is not None
        for datagram in datagrams:
            endpoint, region = self.paths.route(to, trio.current_time())
            await self._say(endpoint, region, datagram)

    async def _say(self, endpoint: Endpoint | None, region: int | None, datagram: bytes) -> None:
        if self.is_direct and endpoint is not None and ":" not in endpoint.host:  # our socket is one of IPv4
            await self._socket.sendto(datagram, endpoint)
        if region is not None:
            await self._derp.send(self.peer.public, datagram)

    async def _receive(self, datagram: bytes, source: Source) -> None:
        now = trio.current_time()
        if is_disco(datagram):
            self.paths.receive(datagram, source, now)
        else:
            for _, packets in self.device.open([datagram], repr(source).encode(), now):
                for packet in packets:
                    self.ways.append(isinstance(source, Endpoint))
                    self._put.send_nowait(bytes(packet))
        await self.flush()

    async def receive_udp(self) -> None:
        while True:
            datagram, (host, port) = await self._socket.recvfrom(2048)
            if self.is_direct:
                await self._receive(datagram, Endpoint(host, port))

    async def receive_relayed(self) -> None:
        while True:
            message = await self._derp.receive()
            if isinstance(message, RecvPacket):
                await self._receive(bytes(message.packet), RelaySource(REGION, bytes(message.src)))

    async def keep_time(self) -> None:
        while True:
            self._changed = trio.Event()
            times = [at for at in (self.device.next_timeout(), self.paths.next_timeout()) if at is not None]
            at = min(times, default=math.inf)
            with trio.move_on_at(at):
                await self._changed.wait()
            if trio.current_time() >= at:
                self.device.handle_timeout(trio.current_time())
                self.paths.handle_timeout(trio.current_time())
                await self.flush()

    async def read_program(self, task_status: trio.TaskStatus[None]) -> None:
        """`started` once both are known to each other."""
        assert self.program is not None
        async for line in lines_of(self.program):
            match line.split(b" "):
                case [b"packet", packet]:
                    self._peer_put.send_nowait(bytes.fromhex(packet.decode()))
                case [b"pong", way]:
                    self._pong_put.send_nowait(way)
                case [b"disco", key]:
                    disco = bytes.fromhex(key.decode())
                    self.paths.configure(self.peer.public, disco, [], REGION, trio.current_time())
                    # Where we are it has to find out: coordination says nothing of it.
                    await self.tell(f"peer {self.paths.disco_key.hex()}")
                    task_status.started()


@asynccontextmanager
async def open_nodes(relay: Relay, *, is_direct: bool = True) -> AsyncIterator[Nodes]:
    """Both nodes, which have sent no packet to each other yet."""
    binary, ours, theirs = require(MAGICPEER), NodePrivate.generate(), NodePrivate.generate()
    options = DialOptions(context=ssl.create_default_context(cafile=relay.certificate), environment=None)
    socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    arguments = {
        "private": theirs.raw.hex(),
        "peer": ours.public().raw.hex(),
        "derp": HOST,
        "port": str(relay.port),
        "here": str(IPv6Address(THERE)),
        "there": str(IPv6Address(HERE)),
    }
    command = [str(binary), *(f"-{name}={value}" for name, value in arguments.items())]
    with socket:
        await socket.bind(("0.0.0.0", 0))  # magicsock pings from the addresses of all interfaces
        async with open_derp_client(relay.url, ours, options=options) as derp, trio.open_nursery() as nursery:
            nodes = Nodes(ours, theirs.public().raw, socket, derp, is_direct)
            nodes.program = await nursery.start(lambda task_status: run(command, task_status))
            with trio.fail_after(PATIENCE_SECONDS):
                await nursery.start(lambda task_status: nodes.read_program(task_status))
            for task in (nodes.receive_udp, nodes.receive_relayed, nodes.keep_time):
                nursery.start_soon(task)
            # It dials the relay when it has something to say; what is sent to it before is lost, and waits for a retry.
            await nodes.ask_peer()
            yield nodes
            nursery.cancel_scope.cancel()
