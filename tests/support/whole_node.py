"""Drives a whole genuine node: tests/interop/go_tailscaled/cmd/wholenode, one process, one peer.  Ours is an Engine.

`open_whole_node(...)` starts it; `node.ask("get", 19, 1000)` gives what it answers.  `open_pair(...)` joins one to a
relay together with an engine of ours whose UDP path can be cut.  Used by bench/ too.
"""

import os
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any
from unittest import mock

import trio

from derp.client.dial import DialOptions
from derp.keys import NodePrivate
from derp.map import DERPNode, DERPRegion
from tailnet.node.core import PeerNode
from tailnet.node.engine import Engine, open_engine
from tailnet.node.streams import TunnelStream
from tailnet.paths.endpoint import Endpoint
from tailnet.sodium import public_of
from tailnet.transport.udp import UdpSockets
from tests.support.go_program import PATIENCE_SECONDS, Answering, run, tell
from tests.support.relay_command import HOST
from tests.support.wireguard_peer import HERE, THERE

REGION = 900
ECHO, SINK, COUNT, SOURCE, PLAIN = 7, 9, 10, 19, 20
"""Ports of the genuine node."""

# Without it a node drops peers that are idle; the other is for two of them, who else find paths from pings alone.
_ENVIRONMENT = {"TS_DEBUG_TRIM_WIREGUARD": "false"}
_RELAY_ONLY = {"TS_DEBUG_ALWAYS_USE_DERP": "true"}


class WholeNodeError(Exception):
    """The genuine node could not do what it was told; the text is its own."""


class WholeNode(Answering):
    """The running program."""

    failure = WholeNodeError

    def __init__(self, process: trio.Process, public: bytes, disco: bytes) -> None:
        super().__init__(process)
        self.public, self.disco = public, disco
        self.pid = process.pid

    async def ask(self, *words: object) -> dict[str, Any]:
        """Give an order and await the answer.  Raises WholeNodeError with the node's own words, trio.TooSlowError."""
        await tell(self._process, " ".join(map(str, words)))
        return await self.answer()

    async def meet(self, disco_public: bytes, endpoints: str = "") -> None:
        """Tell it of its peer, and where that may be reached, separated by spaces."""
        await self.ask("peer", disco_public.hex(), endpoints)

    async def endpoints(self) -> str:
        """Where it may be reached, separated by spaces; it knows some seconds after it began."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not (text := str((await self.ask("endpoints")).get("text", ""))):  # noqa: ASYNC110  # another process
                await trio.sleep(0.05)
        return text

    async def reach(self, is_direct: bool | None = None) -> str:
        """Until it has reached its peer, in this way if that matters; which way: "derp-900", or an address and port.

        It dials its relay when it has something to say; what is sent to it before is lost.
        """
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                with suppress(WholeNodeError):
                    way = str((await self.ask("ping", "disco"))["text"])
                    if is_direct in (None, not way.startswith("derp-")):
                        return way
                await trio.sleep(0.05)  # another process tells nobody


async def node_program(
    nursery: trio.Nursery, command: Sequence[str], private: NodePrivate, peer: bytes, **flags: object
) -> WholeNode:
    """Start one, or another program that obeys the same; it ends with the nursery."""
    told: dict[str, object] = {"private": private.raw.hex(), "peer": peer.hex(), **flags}
    environment = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
    words = ["env", *environment, *command, *(f"--{name}={value}" for name, value in told.items())]
    process = await nursery.start(lambda task_status: run(words, task_status))
    node = WholeNode(process, private.public().raw, b"")
    node.disco = bytes.fromhex((await node.answer())["text"])
    return node


@asynccontextmanager
async def open_whole_node(
    binary: Path,
    private: NodePrivate,
    peer: bytes,
    relay_port: int,
    *,
    here: bytes = THERE,
    there: bytes = HERE,
    is_direct: bool = True,
) -> AsyncIterator[WholeNode]:
    """A genuine node at a relay on loopback with TLS, which has not been told its peer's disco key.

    If not `is_direct` it opens no UDP, and dials its relay anew each 26 s, as genuine nodes do that cannot send: for
    two genuine nodes alone.
    """
    command = ["env", *(f"{name}={value}" for name, value in ({} if is_direct else _RELAY_ONLY).items()), str(binary)]
    async with trio.open_nursery() as nursery:
        yield await node_program(
            nursery,
            command,
            private,
            peer,
            derp=HOST,
            port=relay_port,
            here=IPv6Address(here),
            there=IPv6Address(there),
        )
        nursery.cancel_scope.cancel()


class CutSockets(UdpSockets):
    """UDP that can be cut as a firewall cuts it: nothing passes in either direction, and nobody says so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False
        self.sent_count = self.received_count = 0
        """Datagrams that passed."""

    def send(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> int:
        if self.is_cut:
            return len(datagrams)
        self.sent_count += len(datagrams)
        return super().send(endpoint, datagrams)

    async def serve(
        self, sock: Any, receive: Callable[[list[bytes], Endpoint], None], pump: Callable[[], None]
    ) -> None:
        def take(datagrams: list[bytes], source: Endpoint) -> None:
            if not self.is_cut:
                self.received_count += len(datagrams)
                receive(datagrams, source)

        await super().serve(sock, take, pump)


@dataclass(slots=True)
class Pair:
    """An engine of ours and a genuine node that know each other's keys; where the other is they find out."""

    engine: Engine
    peer: WholeNode
    sockets: CutSockets

    async def dial(self, port: int) -> TunnelStream:
        return await self.engine.dial(THERE, port)

    async def wait_way(self, is_direct: bool) -> None:
        """Until we send to the peer in this way; packets keep both looking for one."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                await self.engine.ping(THERE, timeout_seconds=PATIENCE_SECONDS)
                known = self.engine.core.paths.find(self.peer.public)
                assert known is not None
                if (known.best is not None and known.is_trusted(trio.current_time())) == is_direct:
                    return
                await trio.sleep(0.05)


def region_at(port: int, host: str = HOST, stun_port: int = -1) -> DERPRegion:
    """The relay of region 900 as a map has it, by an address of one family."""
    ipv4, ipv6 = ("none", host) if ":" in host else (host, "none")
    node = DERPNode("900a", REGION, host, ipv4=ipv4, ipv6=ipv6, derp_port=port, stun_port=stun_port)
    return DERPRegion(REGION, "test", "Test", nodes=(node,))


@asynccontextmanager
async def open_pair(binary: Path, port: int, certificate: Path, *, is_direct: bool = True) -> AsyncIterator[Pair]:
    """Both nodes at a relay on loopback with TLS."""
    ours, theirs, disco = NodePrivate.generate(), NodePrivate.generate(), os.urandom(32)
    options = DialOptions(context=ssl.create_default_context(cafile=certificate), environment=None)
    with mock.patch("tailnet.node.engine.UdpSockets", CutSockets):
        async with (
            open_whole_node(binary, theirs, ours.public().raw, port) as node,
            open_engine(
                ours,
                [HERE],
                {REGION: region_at(port)},
                REGION,
                disco_private=disco,
                is_direct=is_direct,
                options=options,
            ) as engine,
        ):
            assert isinstance(engine.sockets, CutSockets)
            await engine.relays.wait_connected(REGION)
            known = PeerNode(node.public, (THERE,), node.disco, (), REGION)
            engine.core.configure(known, trio.current_time())
            await node.meet(public_of(disco))
            await node.reach()
            yield Pair(engine, node, engine.sockets)


async def send_hashed(stream: TunnelStream, data: bytes) -> None:
    """As the genuine source sends: the bytes, their SHA-256 in hex, the end."""
    await stream.send_all(data)
    await stream.send_all(sha256(data).hexdigest().encode())
    await stream.send_eof()


async def receive_all(stream: TunnelStream) -> bytes:
    """To the end of the stream."""
    pieces = []
    while piece := await stream.receive_some():
        pieces.append(piece)
    return b"".join(pieces)
