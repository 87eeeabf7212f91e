"""The genuine WireGuard device (tests/interop/go/cmd/wgpeer) and ours, each at an end of a UDP loopback.

`open_tunnel()` gives both: `tunnel.send` puts packets in on our side, `tunnel.peer_send` on the other; what comes out
is received from `tunnel.came` and `tunnel.peer_came`.  The driver here is the smallest there is: one socket, one task.
"""

import math
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address

import trio

from derp.keys import NodePrivate
from tailnet.wireguard.device import Device
from tailnet.wireguard.messages import INITIATION
from tests.support.go_program import lines_of, run, tell
from tests.support.gobuild import WGPEER
from tests.support.peers import PATIENCE_SECONDS, require

HERE, THERE = (bytes.fromhex("fd7a115ca1e0") + bytes(9) + bytes((number,)) for number in (1, 2))
HOST = "127.0.0.1"


def ipv6(source: bytes, destination: bytes, body: bytes) -> bytes:
    """A packet of protocol 59, which nobody answers."""
    return b"\x60\0\0\0" + len(body).to_bytes(2, "big") + b";\x40" + source + destination + body


class Tunnel:
    """Our device with its socket, and the program at the other end."""

    def __init__(self, device: Device, peer_key: bytes, socket: trio.socket.SocketType) -> None:
        self.device = device
        self.peer = device.configure(peer_key, [THERE], trio.current_time())
        self.sent: list[bytes] = []
        """Handshakes and other datagrams that nobody asked for, as they were sent."""
        self.program: trio.Process | None = None
        self.port = 0
        self._socket = socket
        self._put, self.came = trio.open_memory_channel[bytes](math.inf)
        self._peer_put, self.peer_came = trio.open_memory_channel[bytes](math.inf)
        self._changed = trio.Event()
        self._loaded = trio.Event()

    async def send(self, *bodies: bytes) -> None:
        packets = [ipv6(HERE, THERE, body) for body in bodies]
        for datagram in self.device.seal(self.peer, packets, trio.current_time()):
            await self._socket.sendto(datagram, (HOST, self.port))
        await self.flush()

    async def flush(self) -> None:
        for outgoing in self.device.datagrams_to_send():
            self.sent.append(outgoing.datagram)
            await self._socket.sendto(outgoing.datagram, (HOST, self.port))
        self._changed.set()

    async def initiate(self) -> None:
        """Begin a new handshake, whatever the timers say."""
        now = trio.current_time()
        self.peer.timers.handshake_sent_at = -math.inf
        self.device._initiate(self.peer, now)
        self.device._schedule(self.peer)
        await self.flush()

    async def peer_send(self, body: bytes) -> None:
        await self.tell(f"send {ipv6(THERE, HERE, body).hex()}")

    async def load_peer(self, seconds: int) -> None:
        """Put the genuine device under load."""
        await self.tell(f"load {seconds}")
        with trio.fail_after(PATIENCE_SECONDS):
            await self._loaded.wait()

    async def tell(self, line: str) -> None:
        assert self.program is not None
        await tell(self.program, line)

    async def next(self, came: "trio.MemoryReceiveChannel[bytes]") -> bytes:
        """The body of the next packet that came out of either side."""
        with trio.fail_after(PATIENCE_SECONDS):
            return (await came.receive())[40:]

    @property
    def initiations(self) -> int:
        return sum(datagram[0] == INITIATION for datagram in self.sent)

    async def receive(self) -> None:
        while True:
            datagram, address = await self._socket.recvfrom(2048)
            now = trio.current_time()
            for _, packets in self.device.open([datagram], repr(address).encode(), now):
                for packet in packets:
                    self._put.send_nowait(bytes(packet))
            await self.flush()

    async def keep_time(self) -> None:
        while True:
            self._changed = trio.Event()
            at = self.device.next_timeout()
            with trio.move_on_at(math.inf if at is None else at):
                await self._changed.wait()
            if at is not None and trio.current_time() >= at:
                self.device.handle_timeout(trio.current_time())
                await self.flush()

    async def read_program(self, task_status: trio.TaskStatus[None]) -> None:
        assert self.program is not None
        async for line in lines_of(self.program):
            if line.startswith(b"packet "):
                self._peer_put.send_nowait(bytes.fromhex(line[7:].decode()))
            elif line == b"loaded":
                self._loaded.set()
            else:
                self.port = int(line)
                task_status.started()


@asynccontextmanager
async def open_tunnel(preshared: bytes = bytes(32)) -> AsyncIterator[Tunnel]:
    """Both ends, which have said nothing to each other yet."""
    binary, theirs = require(WGPEER), NodePrivate.generate()
    device = Device(
        NodePrivate.generate(), random=secrets.token_bytes, now=trio.current_time(), unix_seconds=time.time()
    )
    socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    with socket:
        await socket.bind((HOST, 0))
        tunnel = Tunnel(device, theirs.public().raw, socket)
        device.configure(tunnel.peer.public, [THERE], trio.current_time(), preshared=preshared)
        tunnel.peer = device.find(tunnel.peer.public) or tunnel.peer
        arguments = {
            "private": theirs.raw.hex(),
            "peer": device.public.hex(),
            "psk": preshared.hex(),
            "endpoint": f"{HOST}:{socket.getsockname()[1]}",
            "allowed": f"{IPv6Address(HERE)}/128",
        }
        command = [str(binary), *(f"-{name}={value}" for name, value in arguments.items())]
        async with trio.open_nursery() as nursery:
            tunnel.program = await nursery.start(lambda task_status: run(command, task_status))
            with trio.fail_after(PATIENCE_SECONDS):
                await nursery.start(lambda task_status: tunnel.read_program(task_status))
            nursery.start_soon(tunnel.receive)
            nursery.start_soon(tunnel.keep_time)
            yield tunnel
            nursery.cancel_scope.cancel()
