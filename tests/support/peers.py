"""Drives the genuine DERP client: the Go program tests/interop/go/cmd/derppeer, one process, many named clients.

`open_peers()` starts the program; `peers.connect("a", relay.url)` gives a `Peer` whose methods mirror the genuine
client and whose `receive()` gives its messages as dictionaries (see `describe` in peer.go).  Every wait is bounded.
"""

import base64
import json
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Any

import trio

from tests.support.gobuild import DERPPEER, DERPPEER_WEBSOCKET, GoMissing, GoProgram, build
from tests.support.missing import or_missing

# A hang guard, far above anything a healthy relay needs on a slow machine, and never part of what is asserted.
PATIENCE_SECONDS = 60.0

Event = dict[str, Any]


def require(program: GoProgram) -> Path:
    """The built program.  Without a Go toolchain: skips on a developer's machine, fails in CI (CI=true)."""
    with or_missing(GoMissing):
        return build(program)


class PeerError(Exception):
    """The genuine client answered a request with an error; the text is its own."""


@dataclass(frozen=True, slots=True)
class Node:
    """A DERP-map node for the genuine client; `cert_name` may be a pin, `sha256-raw:<hex of the leaf's SHA-256>`."""

    host: str
    port: int
    cert_name: str = ""
    ipv4: str = "127.0.0.1"
    insecure: bool = False


@dataclass(slots=True)
class Peer:
    """One genuine client.  `hello` is the reply to connect: server_key, first, local, and with TLS tls, meta_key."""

    name: str
    key: bytes
    hello: Event
    _program: "Peers"
    _events: trio.MemoryReceiveChannel[Event]

    async def send(self, dst: bytes, packet: bytes) -> None:
        """Returns when the client has written the packet to its socket."""
        await self._ask("send", dst=dst.hex(), data=_text(packet))

    async def forward(self, src: bytes, dst: bytes, packet: bytes) -> None:
        await self._ask("forward", src=src.hex(), dst=dst.hex(), data=_text(packet))

    async def ping(self) -> float:
        """Round trip in seconds through the client's own Ping.  Raises PeerError after its 5 s."""
        return float((await self._ask("ping"))["seconds"])

    async def send_ping(self, payload: bytes) -> None:
        """Write a Ping of these 8 bytes; the Pong arrives as an event."""
        await self._ask("send_ping", data=_text(payload))

    async def note_preferred(self, preferred: bool) -> None:
        await self._ask("prefer", on=preferred)

    async def close_peer(self, key: bytes) -> None:
        await self._ask("close_peer", dst=key.hex())

    async def pause(self, paused: bool) -> None:
        """Stop or resume reading from the relay (one more message may be taken first)."""
        await self._ask("pause", on=paused)

    async def burst(self, to: "Peer", *, count: int, size: int, window: int) -> Event:
        """Send `count` numbered packets, at most `window` in flight; reply: sent, received, reordered, corrupt."""
        return await self._ask("burst", to=to.name, count=count, size=size, window=window)

    async def close(self) -> None:
        await self._ask("close")

    async def receive(self, *kinds: str) -> Event:
        """The next message, or the next of these kinds; keep-alives, and what our relay tells users, are passed over
        unless asked for."""
        with trio.fail_after(PATIENCE_SECONDS):
            async for event in self._events:
                if event["event"] in kinds or (not kinds and event["event"] not in ("keep_alive", "health")):
                    return event
        raise PeerError(f"{self.name}: the client program ended")

    async def receive_packet(self) -> tuple[bytes, bytes]:
        """(source key, packet) of the next message, which must be a packet."""
        event = await self.receive()
        assert event["event"] == "packet", event
        return bytes.fromhex(event["src"]), base64.b64decode(event["data"])

    async def _ask(self, op: str, **arguments: object) -> Event:
        return await self._program.ask(op, self.name, **arguments)


@dataclass(slots=True)
class Peers:
    """The running program."""

    _process: trio.Process
    _writing: trio.Lock = field(default_factory=trio.Lock)
    _replies: dict[int, trio.MemorySendChannel[Event]] = field(default_factory=dict)
    _events: dict[str, trio.MemorySendChannel[Event]] = field(default_factory=dict)
    _last_id: int = 0

    async def connect(
        self,
        name: str,
        where: str | Node,
        *,
        private_key: bytes | None = None,
        mesh_key: str = "",
        prober: bool = False,
        app_name: str = "",
        can_ack_pings: bool = False,
        watch: bool = False,
        reconnect: bool = False,
    ) -> Peer:
        """Connect to a URL or as to the one node of a region; returns when ServerInfo came, so others reach the client.

        With a websocket program the URL is ws:// or wss://.  Raises PeerError with the client's own words.
        """
        arguments: dict[str, object] = {
            "mesh_key": mesh_key,
            "prober": prober,
            "app_name": app_name,
            "can_ack_pings": can_ack_pings,
            "watch": watch,
            "reconnect": reconnect,
        }
        if isinstance(where, Node):
            node = {"host": where.host, "ipv4": where.ipv4, "port": where.port}
            arguments["node"] = node | {"cert_name": where.cert_name, "insecure": where.insecure}
        else:
            arguments["url"] = where
        if private_key is not None:
            arguments["private_key"] = private_key.hex()
        # The queue is there before the client is: its first events may overtake the reply.
        send, receive = trio.open_memory_channel[Event](math.inf)
        self._events[name] = send
        hello = await self.ask("connect", name, **arguments)
        if hello["first"]["event"] == "health" and not reconnect:  # our relay says why it lets nobody in
            raise PeerError(hello["first"]["problem"])
        return Peer(name, bytes.fromhex(hello["key"]), hello, self, receive)

    async def ask(self, op: str, peer: str, **arguments: object) -> Event:
        """One request, one reply.  Raises PeerError."""
        self._last_id += 1
        ident = self._last_id
        send, receive = trio.open_memory_channel[Event](1)
        self._replies[ident] = send
        line = json.dumps({"id": ident, "op": op, "peer": peer} | arguments) + "\n"
        assert self._process.stdin is not None
        with trio.fail_after(PATIENCE_SECONDS):
            async with self._writing:
                await self._process.stdin.send_all(line.encode())
            reply = await receive.receive()
        if not reply["ok"]:
            raise PeerError(reply["error"])
        return reply

    async def _read(self) -> None:
        assert self._process.stdout is not None
        pending = bytearray()
        async for chunk in self._process.stdout:
            pending += chunk
            *whole, rest = pending.split(b"\n")
            pending = bytearray(rest)
            for line in whole:
                self._sort(json.loads(line))
        for channel in (*self._events.values(), *self._replies.values()):
            channel.close()

    def _sort(self, line: Event) -> None:
        if "id" in line:
            self._replies.pop(line["id"]).send_nowait(line)
        else:
            self._events[line["peer"]].send_nowait(line)


@asynccontextmanager
async def open_peers(*, websocket: bool = False, trusted: Path | None = None) -> AsyncIterator[Peers]:
    """Start the program and stop it at the end.

    `trusted` is a PEM file that takes the place of the system's certificate roots.
    """
    binary = require(DERPPEER_WEBSOCKET if websocket else DERPPEER)
    environment = dict(os.environ)
    # A proxy of the machine's environment would be asked for 127.0.0.1.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        environment.pop(name, None)
    if websocket:
        environment["TS_DEBUG_DERP_WS_CLIENT"] = "1"
    if trusted is not None:
        environment["SSL_CERT_FILE"] = str(trusted)
    process = await trio.lowlevel.open_process([str(binary)], stdin=PIPE, stdout=PIPE, env=environment)
    peers = Peers(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peers._read)
            yield peers
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                await pipe.aclose()


def _text(packet: bytes) -> str:
    return base64.b64encode(packet).decode()
