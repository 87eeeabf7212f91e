"""A relay's side of one connection at the level of values, for tests of clients: the real handshake, then messages.

The relay itself forwards bytes in place (derp/relay/inbound.py), so it has no such thing.
"""

from typing import NoReturn

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.connection import ClientIdentified, RandomBytes, ServerHandshake
from derp.protocol.frames import MAX_UNKNOWN_BYTES, FrameReader, FrameType
from derp.protocol.handshake import OpenedClientInfo
from derp.protocol.messages import (
    Message,
    Payload,
    Ping,
    PlainMessage,
    Pong,
    ServerInfo,
    UnknownFrame,
    encode,
    parse_from_client,
)
from derp.protocol.states import ServerState

ServerEvent = ClientIdentified | Message
_MESH_ONLY = (FrameType.FORWARD_PACKET, FrameType.WATCH_CONNS, FrameType.CLOSE_PEER)


class ServerConnection:
    """After the ClientIdentified event call `accept` (which returns what came behind the ClientInfo) or `close`.

    Pings are answered; mesh frames from a client without the mesh key are an error.
    """

    def __init__(self, private: NodePrivate, *, random_bytes: RandomBytes, mesh_key: MeshKey | None = None) -> None:
        self.handshake = ServerHandshake(private, random_bytes=random_bytes, mesh_key=mesh_key)
        self.is_mesh_peer = False
        self.skipped_frames = 0
        self._reader = FrameReader(MAX_UNKNOWN_BYTES)
        self._to_send: list[bytes] = []
        self._error: RemoteProtocolError | None = None

    @property
    def state(self) -> ServerState:
        return self.handshake.state

    @property
    def client(self) -> OpenedClientInfo | None:
        return self.handshake.client

    def receive_data(self, data: Payload) -> list[ServerEvent]:
        if self._error is not None:
            raise self._error
        if self.state is ServerState.ADMITTED:
            return self._frames(data)
        identified = self.handshake.receive_data(data)
        for client in identified:
            self.is_mesh_peer = client.is_mesh_peer
        return list(identified)

    def receive_eof(self) -> None:
        if self.state is ServerState.ADMITTED and self._reader.trailing_data():
            self._fail(RemoteProtocolError("the client closed the connection within a frame"))
        self.handshake.receive_eof()

    def accept(self, info: ServerInfo | None = None) -> list[ServerEvent]:
        self.handshake.accept(info)
        self._to_send += self.handshake.data_to_send()
        return self._frames(self.handshake.trailing_data())

    def close(self) -> None:
        self.handshake.close()

    def send(self, message: PlainMessage) -> None:
        if self.state is not ServerState.ADMITTED:
            raise LocalProtocolError(f"cannot send in the state {self.state.name}")
        self._to_send.append(encode(message))

    def data_to_send(self) -> list[bytes]:
        to_send, self._to_send = [*self.handshake.data_to_send(), *self._to_send], []
        return to_send

    def _frames(self, data: Payload) -> list[ServerEvent]:
        events: list[ServerEvent] = []
        try:
            for frame_type, payload in self._reader.receive_data(data):
                if frame_type in _MESH_ONLY and not self.is_mesh_peer:
                    raise RemoteProtocolError(f"a frame of type 0x{frame_type:02x} is for clients with the mesh key")
                event = parse_from_client(frame_type, payload)
                if isinstance(event, UnknownFrame):
                    self.skipped_frames += 1
                    continue
                events.append(event)
                if isinstance(event, Ping):
                    self._to_send.append(encode(Pong(event.payload)))
        except RemoteProtocolError as error:
            self._fail(error)
        return events

    def _fail(self, error: RemoteProtocolError) -> NoReturn:
        self.handshake.close()
        self._to_send.clear()
        self._error = error
        raise error
