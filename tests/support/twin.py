"""A small relay on the value-level core, for tests of clients: it routes packets and does what a test tells it to.

`serve` speaks HTTP and DERP on any stream, `speak` DERP alone; `open_twin` listens on loopback.
"""

import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from derp.errors import ProtocolError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.connection import ClientIdentified
from derp.protocol.messages import (
    ClosePeer,
    ForwardPacket,
    PeerGone,
    PeerPresent,
    PlainMessage,
    RecvPacket,
    SendPacket,
    ServerInfo,
    WatchConns,
)
from derp.protocol.states import ServerState
from derp.protocol.upgrade import Refusal, UpgradeKind, judge_request
from derp.transport.http import Request, ServerHttp
from derp.transport.websocket import WebSocketStream
from tests.support.derp_server import ServerConnection, ServerEvent

PATIENCE_SECONDS = 60.0


@dataclass(eq=False)
class Session:
    """One client of the twin."""

    core: ServerConnection
    stream: trio.abc.Stream
    _writing: trio.Lock = field(default_factory=trio.Lock)

    async def send(self, *messages: PlainMessage) -> None:
        for message in messages:
            self.core.send(message)
        await self.flush()

    async def flush(self) -> None:
        async with self._writing:
            data = b"".join(self.core.data_to_send())
            if data:
                await self.stream.send_all(data)


@dataclass(eq=False)
class TwinRelay:
    """answer: instead of the upgrade, if it returns bytes.  refused: keys not admitted.  info: what it says of itself.

    events: everything clients said, with their keys; requests: the HTTP heads.
    """

    private: NodePrivate = field(default_factory=NodePrivate.generate)
    mesh_key: MeshKey | None = None
    answer: Callable[[Request], bytes | None] = lambda request: None
    refused: set[bytes] = field(default_factory=set)
    info: ServerInfo = field(default_factory=ServerInfo)
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    events: list[tuple[bytes, ServerEvent]] = field(default_factory=list)
    sessions: dict[bytes, Session] = field(default_factory=dict)
    _watchers: list[Session] = field(default_factory=list)
    _news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    @property
    def key(self) -> bytes:
        return self.private.public().raw

    async def wait(self, kind: type, count: int = 1) -> list[tuple[bytes, ServerEvent]]:
        """All events of this kind, as soon as there are `count`."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                found = [entry for entry in self.events if isinstance(entry[1], kind)]
                if len(found) >= count:
                    return found
                await self._news.park()

    async def serve(self, stream: trio.abc.Stream) -> None:
        http, request = ServerHttp(), None
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError):
            while request is None:
                data = await stream.receive_some()
                if not data:
                    return
                request = http.receive_data(data)
            self.requests.append(request)
            instead = self.answer(request)
            if instead is not None:
                await stream.send_all(instead)
                return
            judged = judge_request(request.method, request.http_version, request.headers, self.key)
            if isinstance(judged, Refusal):
                await stream.send_all(http.send_response(judged.status, judged.headers, judged.sentence.encode()))
                return
            if judged.answer:
                await stream.send_all(judged.answer)
            if judged.kind is UpgradeKind.WEBSOCKET:
                stream = WebSocketStream(stream, is_client=False, received=http.trailing_data())
                await self.speak(stream)
            else:
                await self.speak(stream, http.trailing_data())

    async def speak(self, stream: trio.abc.Stream, received: bytes = b"") -> None:
        session = Session(ServerConnection(self.private, random_bytes=os.urandom, mesh_key=self.mesh_key), stream)
        try:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError):
                await session.flush()
                data: bytes | bytearray = received
                while session.core.state is not ServerState.CLOSED:
                    data = data or await stream.receive_some()
                    if not data:
                        session.core.receive_eof()
                        break
                    await self._take(session, session.core.receive_data(data))
                    data = b""
        finally:
            await trio.aclose_forcefully(stream)
            await self._leave(session)

    async def drop(self, key: bytes) -> None:
        """Close a client's connection."""
        await self.sessions[key].stream.aclose()

    async def _take(self, session: Session, events: list[ServerEvent]) -> None:
        for event in events:
            if isinstance(event, ClientIdentified):
                if event.key in self.refused:
                    session.core.close()
                else:
                    self.sessions[event.key] = session
                    events = [*events, *session.core.accept(self.info)]
                    await self._announce(PeerPresent(event.key))
        await session.flush()
        assert session.core.client is not None
        mine = session.core.client.key
        for event in events:
            self.events.append((mine, event))
            await self._act(session, mine, event)
        self._news.unpark_all()

    async def _act(self, session: Session, mine: bytes, event: ServerEvent) -> None:
        if isinstance(event, SendPacket) and event.dst in self.sessions:
            await self.sessions[event.dst].send(RecvPacket(mine, event.packet))
        elif isinstance(event, ForwardPacket) and event.dst in self.sessions:
            await self.sessions[event.dst].send(RecvPacket(event.src, event.packet))
        elif isinstance(event, WatchConns):
            self._watchers.append(session)
            await session.send(*(PeerPresent(key) for key in self.sessions))
        elif isinstance(event, ClosePeer) and event.key in self.sessions:
            await self.drop(event.key)

    async def _leave(self, session: Session) -> None:
        key = session.core.client.key if session.core.client else b""
        if session in self._watchers:
            self._watchers.remove(session)
        if self.sessions.get(key) is session:
            del self.sessions[key]
            await self._announce(PeerGone(key))

    async def _announce(self, message: PlainMessage) -> None:
        for watcher in self._watchers:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await watcher.send(message)


@asynccontextmanager
async def open_twin(twin: TwinRelay, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[TwinRelay]:
    """Let the twin listen on a port of 127.0.0.1."""

    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            if tls is None:
                await twin.serve(stream)
                return
            secure = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
            with contextlib.suppress(trio.BrokenResourceError):
                await secure.do_handshake()
                await twin.serve(secure)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(twin.port, host="127.0.0.1")
        twin.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, one, [listener])
        yield twin
        nursery.cancel_scope.cancel()
