"""Drives agents and clients of the tailnet protocol on the genuine layers: tests/interop/go_tailnet/cmd/peer.

`open_tailnet_peers()` starts the program; `program.peer("a")` names a peer.  What happens unasked is kept in queues,
one for each stream, so a test waits for what it wants and then asserts on it.  Every wait is bounded.
Requests and responses are protojson with the schema's own names; ids are uuid.UUID here and bytes on the wire.
"""

import base64
import json
import math
import os
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Any

import trio

from tests.support.gobuild import TAILNET_PEER
from tests.support.peers import PATIENCE_SECONDS, require
from tests.support.tailnet_servers import TAILSCALE_PREFIX, Agent, Server, User, address

TAILNET = "/coder.tailnet.v2.Tailnet/"
AGENT = "/coder.agent.v2.Agent/"
CODE_UNIMPLEMENTED = 12

Event = dict[str, Any]


class PeerError(Exception):
    """An operation failed: `status` and `body` of a refused dial, or `code` of an RPC error, else 0 and ''."""

    def __init__(self, error: Event) -> None:
        super().__init__(error["text"])
        self.status: int = error.get("status", 0)
        self.body: str = error.get("body", "")
        self.code: int = error.get("code", 0)

    def json(self) -> Event:
        """The refusal's body."""
        parsed: Event = json.loads(self.body)
        return parsed


class StreamEnded(Exception):
    """The stream a test waits on ended; the text is the genuine library's error."""


@dataclass(frozen=True, slots=True)
class Update:
    """One peer update, or with kind ERROR the error text of a response in `reason`."""

    kind: str
    id: uuid.UUID | None = None
    node: Event | None = None
    reason: str = ""


@dataclass(slots=True)
class TailnetPeer:
    """One agent or client.  Keys are made with it; dial first, then coordinate or boot."""

    name: str
    program: "TailnetPeers"
    node_key: str = ""
    id: uuid.UUID | None = None
    _updates: deque[Update] = field(default_factory=deque)

    # Doors.

    async def dial_agent(self, server: Server, agent: Agent, *, version: str | None = "2.4", **more: Any) -> None:
        """GET /me/rpc as this agent.  `more`: token, token_in, query, receive_buffer."""
        self.id = agent.id
        path = "/api/v2/workspaceagents/me/rpc"
        await self._dial("dial", server, path, version, {"token": agent.token} | more)

    async def dial_client(
        self, server: Server, user: User, agent: Agent, *, version: str | None = "2.0", **more: Any
    ) -> None:
        """GET /{agent}/coordinate as this user."""
        path = f"/api/v2/workspaceagents/{agent.id}/coordinate"
        await self._dial("dial", server, path, version, {"token": user.token} | more)

    async def dial_tailnet(self, server: Server, user: User, *, version: str | None = "2.3", **more: Any) -> None:
        """GET /tailnet as this user."""
        await self._dial("dial", server, "/api/v2/tailnet", version, {"token": user.token} | more)

    async def dial_raw(self, server: Server, token: str, path: str, *, version: str | None = "2.0") -> None:
        """The websocket of a door and nothing above it."""
        await self._dial("raw_dial", server, path, version, {"token": token})

    async def dial_legacy_agent(self, server: Server, agent: Agent) -> None:
        self.id = agent.id
        path = "/api/v2/workspaceagents/me/coordinate"
        await self._dial("legacy_dial", server, path, None, {"token": agent.token})

    async def dial_legacy_client(self, server: Server, user: User, agent: Agent) -> None:
        path = f"/api/v2/workspaceagents/{agent.id}/coordinate"
        await self._dial("legacy_dial", server, path, None, {"token": user.token})

    async def _dial(self, op: str, server: Server, path: str, version: str | None, more: Event) -> None:
        query = dict(more.pop("query", {}))
        if version is not None:
            query["version"] = version
        if not self.node_key:
            self.node_key = (await self.ask("identity"))["node_key"]
        self._updates.clear()
        self.program.forget(self.name)
        await self.ask(op, url=server.url, path=path, query=query, **more)

    # RPCs.

    async def call(self, rpc: str, request: Event | None = None) -> Event:
        """One unary RPC.  Raises PeerError with the code."""
        response: Event = (await self.ask("call", rpc=rpc, request=request or {}))["response"]
        return response

    async def open(self, rpc: str, stream: str, request: Event | None = None) -> None:
        """A streaming RPC; with a request a server stream."""
        more = {} if request is None else {"request": request}
        await self.ask("open", rpc=rpc, stream=stream, **more)

    async def message(self, stream: str) -> Event:
        """The next message of a stream.  Raises StreamEnded."""
        event = await self.program.next(self.name, stream)
        if event["event"] == "end":
            raise StreamEnded(event["error"]["text"])
        assert not event.get("problems"), event  # what a genuine peer would refuse
        message: Event = event["message"]
        return message

    async def boot(self, *, minor: int = 4, **node: Any) -> Event:
        """Walk an agent's start on a dialled session: manifest, and which RPCs were answered."""
        assert self.id is not None
        node.setdefault("addresses", [address(TAILSCALE_PREFIX, self.id)])
        return await self.ask("boot", minor=minor, node=node)

    # Coordination.

    async def coordinate(self) -> None:
        await self.open(TAILNET + "Coordinate", "coordinate")

    async def send(self, **request: Any) -> None:
        """A CoordinateRequest as given."""
        await self.ask("send", stream="coordinate", request=request)

    async def update(self, **node: Any) -> Event:
        """update_self with this peer's keys and these fields; gives the node as sent."""
        sent: Event = (await self.ask("update", stream="coordinate", node=node))["node"]
        return sent

    async def add_tunnel(self, ident: uuid.UUID) -> None:
        await self.send(add_tunnel={"id": wire(ident)})

    async def remove_tunnel(self, ident: uuid.UUID) -> None:
        await self.send(remove_tunnel={"id": wire(ident)})

    async def ready_for(self, *idents: uuid.UUID) -> None:
        await self.send(ready_for_handshake=[{"id": wire(ident)} for ident in idents])

    async def disconnect(self) -> None:
        await self.send(disconnect={})

    async def next_update(self) -> Update:
        """The next peer update or error of the coordination stream.  Raises StreamEnded."""
        while not self._updates:
            message = await self.message("coordinate")
            if "error" in message:
                self._updates.append(Update("ERROR", reason=message["error"]))
            for each in message.get("peer_updates", []):
                ident = unwire(each["id"])
                self._updates.append(Update(each["kind"], ident, each.get("node"), each.get("reason", "")))
        return self._updates.popleft()

    async def next_node(self) -> tuple[uuid.UUID, Event]:
        """(peer, node) of the next update, which must be a NODE."""
        update = await self.next_update()
        assert update.kind == "NODE", update
        assert update.id is not None
        assert update.node is not None
        return update.id, update.node

    async def wait_ended(self, stream: str = "coordinate") -> list[Event]:
        """Wait for the end of a stream; gives what came before it."""
        before = []
        while True:
            try:
                before.append(await self.message(stream))
            except StreamEnded:
                return before

    async def wait_closed(self) -> None:
        """Wait for the end of the session."""
        await self.program.next(self.name, "closed")

    async def hang_up(self, how: str = "tcp") -> None:
        """`tcp`: without a word; `websocket`: close 1000; `yamux`: as the session's own Close."""
        await self.ask("hang_up", how=how)

    # Relay.

    async def open_relay(self, *, websocket: bool = False) -> None:
        """Connect the genuine DERP client to the server's own relay, and wait until others reach it."""
        await self.ask("relay", websocket=websocket)
        event = await self.program.next(self.name, "relay")
        assert event["event"] == "relay_ready", event

    async def send_packet(self, to: "TailnetPeer", payload: bytes) -> None:
        await self.ask("relay_send", to=to.node_key, payload=base64.b64encode(payload).decode())

    async def packet(self) -> tuple[str, bytes]:
        """(sender's node key, payload) of the next packet."""
        event = await self.program.next(self.name, "relay")
        assert event["event"] == "relay_packet", event
        return event["from"], base64.b64decode(event["payload"])

    # Raw.

    async def write(self, data: bytes, *, as_: str = "binary", repeat: int = 1) -> Event:
        return await self.ask("raw_write", hex=data.hex(), **{"as": as_}, repeat=repeat)

    async def wait_raw_closed(self) -> tuple[int, bytes]:
        """(close code or -1, all bytes the server sent before)."""
        received = b""
        while True:
            event = await self.program.next(self.name, "raw")
            if event["event"] == "raw_closed":
                return event["code"], received
            received += bytes.fromhex(event["hex"])

    async def raw_bytes(self, count: int) -> bytes:
        """At least `count` bytes from the server, in whole messages."""
        received = b""
        while len(received) < count:
            event = await self.program.next(self.name, "raw")
            assert event["event"] == "raw_message", event
            received += bytes.fromhex(event["hex"])
        return received

    async def ask(self, op: str, **arguments: Any) -> Event:
        return await self.program.ask(op, self.name, **arguments)


@dataclass(slots=True)
class TailnetPeers:
    """The running program."""

    _process: trio.Process
    _writing: trio.Lock = field(default_factory=trio.Lock)
    _replies: dict[int, trio.MemorySendChannel[Event]] = field(default_factory=dict)
    _queues: dict[tuple[str, str], tuple[trio.MemorySendChannel[Event], trio.MemoryReceiveChannel[Event]]] = field(
        default_factory=dict
    )
    _last_id: int = 0

    def peer(self, name: str) -> TailnetPeer:
        return TailnetPeer(name, self)

    async def next(self, peer: str, queue: str) -> Event:
        with trio.fail_after(PATIENCE_SECONDS):
            return await self._queue(peer, queue)[1].receive()

    def forget(self, peer: str) -> None:
        """Drop what a peer's earlier connection left in its queues; the relay connection is another matter."""
        for name, queue in list(self._queues):
            if name == peer and queue != "relay":
                del self._queues[name, queue]

    async def ask(self, op: str, peer: str, **arguments: Any) -> Event:
        """One request, one reply.  Raises PeerError."""
        self._last_id += 1
        send, receive = trio.open_memory_channel[Event](1)
        self._replies[self._last_id] = send
        line = json.dumps({"id": self._last_id, "op": op, "peer": peer} | arguments) + "\n"
        assert self._process.stdin is not None
        with trio.fail_after(PATIENCE_SECONDS):
            async with self._writing:
                await self._process.stdin.send_all(line.encode())
            reply = await receive.receive()
        if not reply.get("ok"):
            raise PeerError(reply["error"])
        return reply

    def _queue(self, peer: str, queue: str) -> tuple[trio.MemorySendChannel[Event], trio.MemoryReceiveChannel[Event]]:
        if (peer, queue) not in self._queues:
            self._queues[peer, queue] = trio.open_memory_channel[Event](math.inf)
        return self._queues[peer, queue]

    async def _read(self) -> None:
        assert self._process.stdout is not None
        pending = bytearray()
        async for chunk in self._process.stdout:
            pending += chunk
            *whole, rest = pending.split(b"\n")
            pending = bytearray(rest)
            for line in whole:
                self._sort(json.loads(line))
        for send in (*(pair[0] for pair in self._queues.values()), *self._replies.values()):
            send.close()

    def _sort(self, line: Event) -> None:
        if "id" in line:
            self._replies.pop(line["id"]).send_nowait(line)
            return
        # Streams have their names; relay_* and raw_* share a queue each, so that their order is kept.
        queue = line.get("stream") or line["event"].split("_")[0]
        self._queue(line["peer"], queue)[0].send_nowait(line)


@asynccontextmanager
async def open_tailnet_peers(trusted: Path | None = None) -> AsyncIterator[TailnetPeers]:
    """Start the program and stop it at the end.  `trusted`: an authority in place of the system's."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"SSL_CERT_FILE": str(trusted)} if trusted is not None else {}
    process = await trio.lowlevel.open_process([str(require(TAILNET_PEER))], stdin=PIPE, stdout=PIPE, env=environment)
    program = TailnetPeers(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(program._read)
            yield program
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                await pipe.aclose()


def wire(ident: uuid.UUID) -> str:
    """An id as protojson has it."""
    return base64.b64encode(ident.bytes).decode()


def unwire(text: str) -> uuid.UUID:
    return uuid.UUID(bytes=base64.b64decode(text))
