"""A relay in this process on real sockets, callers who may say anything to it, and two bystanders whose packets must
go on whatever the callers do.
"""

import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

import trio

from derp.client.client import Identity, reach
from derp.client.dial import DialOptions
from derp.close_reason import CloseReason
from derp.config import RelayConfig, TlsConfig
from derp.keys import MeshKey, NodePrivate
from derp.protocol.connection import ClientConnection
from derp.protocol.messages import KeepAlive, Message, Pong, RecvPacket, ServerInfo
from derp.server.server import RelayServer, serve_relay
from derp.server.statistics import read_statistics

HOST = "127.0.0.1"
PATIENCE_SECONDS = 60.0  # a hang guard, never part of what is asserted
SELF_SIGNED = TlsConfig(self_signed=True, hostname=HOST)
DISCO = b"TS\xf0\x9f\x92\xac" + bytes(56)

Carrier = Literal["plain", "tls", "websocket", "quic"]
CARRIERS: tuple[Carrier, ...] = ("plain", "tls", "websocket")  # of streams, which keep all frames in order
Wanted = TypeVar("Wanted")


def relay_config(**changes: Any) -> RelayConfig:
    """A relay for one test: a fresh key, a free port, no STUN."""
    settings: dict[str, Any] = {
        "private_key": NodePrivate.generate(),
        "listen": ((HOST, 0),),
        "stun_enabled": False,
        "self_check": False,  # its client would be counted with those of the test
    }
    return RelayConfig(**(settings | changes))


def config_for(carrier: Carrier, **changes: Any) -> RelayConfig:
    """The same, with TLS where the carrier wants it."""
    if carrier == "quic":
        return relay_config(tls=SELF_SIGNED, quic=True, **changes)
    return relay_config(**({"tls": SELF_SIGNED} if carrier == "tls" else {}), **changes)


@asynccontextmanager
async def open_server(
    config: RelayConfig | None = None, reread: Callable[[], RelayConfig] | None = None
) -> AsyncIterator[RelayServer]:
    """serve_relay in the background; cancelled at the end of the block."""
    async with trio.open_nursery() as nursery:
        with trio.fail_after(3 * PATIENCE_SECONDS):
            yield await nursery.start(serve_relay, config or relay_config(), reread)
        nursery.cancel_scope.cancel()


def port_of(server: RelayServer, kind: str = "derp") -> int:
    """The port of the first listener of this kind; "derp" is with or without TLS, and a coordinator's too."""
    kinds = ("derp", "tailnet") if kind == "derp" else (kind,)
    return next(one.port for one in server.listening if one.kind.removesuffix("+tls") in kinds)


def move_clock(server: RelayServer, seconds: float) -> None:
    """Let so much time pass for everything that has a deadline.  It is noticed with the next thing that happens."""
    clock = server.reactor._clock
    server.reactor._clock = lambda: clock() + seconds


def closed(server: RelayServer) -> dict[str, int]:
    """The counted reasons that are not zero."""
    return {reason.value: count for reason, count in server.lobby.closed_count.items() if count}


class Caller:
    """A client on the value-level core that can also write what no client would."""

    def __init__(self, stream: Any, core: ClientConnection, private: NodePrivate) -> None:
        self.stream = stream
        self.core = core
        self.key = private.public().raw
        self.inbox: list[Message] = []

    async def write(self, data: bytes) -> None:
        """Any bytes."""
        await self.stream.send_all(data)

    async def flush(self) -> None:
        await self.write(b"".join(self.core.data_to_send()))

    async def send(self, dst: bytes, *packets: bytes) -> None:
        for packet in packets:
            self.core.send_packet(dst, packet)
        await self.flush()

    async def receive(self) -> Message:
        """The next message but keep-alives: the relay draws the time of the first one, so one may stand anywhere."""
        while True:
            message = await self._next()
            if not isinstance(message, KeepAlive):
                return message

    async def receive_a(self, kind: type[Wanted]) -> Wanted:
        """The next message of a kind; others are skipped."""
        while True:
            message = await self._next()
            if isinstance(message, kind):
                return message

    async def _next(self) -> Message:
        with trio.fail_after(PATIENCE_SECONDS):
            while not self.inbox:
                data = await self.stream.receive_some(65536)
                assert data, "the relay closed the connection"
                self.inbox += self.core.receive_data(data)
        return self.inbox.pop(0)

    async def ping(self) -> None:
        """A round trip: whatever this caller wrote before has been served when it returns."""
        payload = os.urandom(8)
        self.core.send_ping(payload)
        await self.flush()
        while (await self.receive_a(Pong)).payload != payload:
            pass

    async def wait_closed(self) -> None:
        """Read until the relay ends the connection, in whatever way."""
        with trio.fail_after(PATIENCE_SECONDS):
            await drained(self.stream)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


async def drained(stream: Any) -> bytes:
    """Everything until the end of a stream, also if the other side resets it."""
    received: list[bytes] = []
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        while data := await stream.receive_some(65536):
            received.append(data)
    return b"".join(received)


async def call(
    server: RelayServer,
    carrier: Carrier = "plain",
    *,
    private: NodePrivate | None = None,
    mesh_key: MeshKey | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> Caller:
    """A client that has shaken hands."""
    private = private or NodePrivate.generate()
    scheme = "https" if server.tls is not None else "http"
    options = DialOptions(
        insecure_for_tests=True,
        force_websocket=carrier == "websocket",
        only_quic=carrier == "quic",
        environment=None,
        headers=headers,
    )
    url = f"{scheme}://{HOST}:{port_of(server)}/derp"
    reached = await reach(url, Identity(private, mesh_key=mesh_key), options, "", PATIENCE_SECONDS)
    caller = Caller(reached.dialled.stream, reached.core, private)
    caller.inbox += [event for event in reached.events if not isinstance(event, ServerInfo | KeepAlive)]
    return caller


async def dial(server: RelayServer, kind: str = "derp", *, tls: bool = False) -> Any:
    """A stream on which nothing was said; with `tls` after that handshake."""
    stream = await trio.open_tcp_stream(HOST, port_of(server, kind))
    if not tls:
        return stream
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    wrapped = trio.SSLStream(stream, context, server_hostname=HOST, https_compatible=True)
    await wrapped.do_handshake()
    return wrapped


async def ask(server: RelayServer, request: bytes, kind: str = "derp", *, tls: bool = False) -> bytes:
    """Send bytes to the front door; everything it says until it closes."""
    stream = await dial(server, kind, tls=tls)
    with trio.fail_after(PATIENCE_SECONDS):
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(request)
        answer = await drained(stream)
    await trio.aclose_forcefully(stream)
    return answer


class Bystanders:
    """Two clients that talk to each other; every packet must arrive, in order, with nothing between."""

    def __init__(self, one: Caller, other: Caller) -> None:
        self.one, self.other = one, other
        self.count = 0

    async def go_on(self, rounds: int = 20) -> None:
        """So many packets each way, each sent when the one before has come."""
        with trio.fail_after(PATIENCE_SECONDS):
            for _ in range(rounds):
                for source, target in ((self.one, self.other), (self.other, self.one)):
                    self.count += 1
                    packet = self.count.to_bytes(4, "big") * 100
                    await source.send(target.key, packet)
                    received = await target.receive()
                    assert received == RecvPacket(source.key, packet), received

    async def aclose(self) -> None:
        await self.one.aclose()
        await self.other.aclose()


@asynccontextmanager
async def open_bystanders(server: RelayServer) -> AsyncIterator[Bystanders]:
    """They talk before, may be asked to while the block runs, and talk after it."""
    pair = Bystanders(await call(server), await call(server))
    await pair.go_on(2)
    yield pair
    await pair.go_on(2)
    await pair.aclose()


def count_of(server: RelayServer, reason: CloseReason) -> int:
    """Connections ended for a reason."""
    return server.lobby.closed_count[reason]


def packets_sent(server: RelayServer) -> int:
    """What all connections have been given, as /metrics counts it."""
    return read_statistics(server.relay, server.lobby, server.ports, []).packets_sent
