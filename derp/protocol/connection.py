"""A client's whole DERP connection as a core, and the relay's side of its handshake.  Layer L1: no I/O.

Clients and the mesh speak values.  The relay's part ends with the login: afterwards relay/inbound.py forwards bytes in
place.  States: protocol/states.py.  Deadlines, keep-alives and rate limits are the driver's: the cores drop nothing
silently.  Next hop: client/client.py and server/session.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.frames import (
    HEADER,
    HEADER_BYTES,
    KEY_BYTES,
    MAX_CLIENT_FRAME_BYTES,
    MAX_CLIENT_INFO_BYTES,
    MAX_PACKET_BYTES,
    NONCE_BYTES,
    FrameReader,
    FrameType,
)
from derp.protocol.handshake import (
    OpenedClientInfo,
    open_client_info,
    open_server_info,
    parse_server_key,
    seal_client_info,
    server_key_frame,
)
from derp.protocol.messages import (
    ClientInfo,
    ClosePeer,
    ForwardPacket,
    Health,
    Message,
    NotePreferred,
    Payload,
    Ping,
    PlainMessage,
    Pong,
    RecvPackets,
    ServerInfo,
    UnknownFrame,
    WatchConns,
    encode,
    parse_from_server,
)
from derp.protocol.states import (
    CLIENT_TABLE,
    SERVER_TABLE,
    ClientInput,
    ClientState,
    Fault,
    ServerInput,
    ServerState,
)

RandomBytes: TypeAlias = Callable[[int], bytes]

_CLIENT_INPUTS: Final[dict[int, ClientInput]] = {
    FrameType.SERVER_KEY: ClientInput.SERVER_KEY,
    FrameType.SERVER_INFO: ClientInput.SERVER_INFO,
}


@dataclass(slots=True)
class ClientIdentified:
    """A client proved to the relay that it holds `key`.  Answer with `accept` or `close` before receiving more.

    `is_mesh_peer`: it also has our mesh key.  One that has another stands in `info`.
    """

    key: bytes
    info: ClientInfo
    is_mesh_peer: bool


ClientEvent: TypeAlias = Message
"""RecvPacket or RecvPackets, ServerInfo, PeerGone, PeerPresent, Ping (already answered), Pong, KeepAlive, Health,
Restarting."""


class ClientConnection:
    """The client's side.  Its driver moves bytes both ways and calls, in any order, receive_* and send_*.

    `server_key` known beforehand (from the meta certificate) is fast start: the first bytes to send are there at once.
    RemoteProtocolError kills the core; LocalProtocolError changes nothing.  Close the transport when `state` is CLOSED.
    """

    def __init__(
        self,
        private: NodePrivate,
        *,
        random_bytes: RandomBytes,
        mesh_key: MeshKey | None = None,
        is_prober: bool = False,
        app_name: str = "",
        server_key: bytes | None = None,
    ) -> None:
        self.state = ClientState.EXPECT_SERVER_KEY
        self.server_key = server_key
        self.server_info: ServerInfo | None = None
        """What the relay said last; its token bucket is for the driver to obey."""
        self.refusal = ""
        """What the relay said in place of ServerInfo.  Ours tells a client so that it is not let in, and ends the
        connection after a while: the driver need not wait for that."""
        self.skipped_frames = 0
        """Frames of unknown type, or too short for their type."""
        self.gathers_packets = False
        """Give RecvPackets in place of RecvPacket: an object and two copies less for each packet."""
        self._private = private
        self._random_bytes = random_bytes
        # Pings are answered in here, so the client can promise it.
        self._info = ClientInfo(mesh_key, can_ack_pings=True, is_prober=is_prober, app_name=app_name)
        self._reader = FrameReader(MAX_CLIENT_FRAME_BYTES)
        self._to_send: list[bytes] = []
        self._error: RemoteProtocolError | None = None
        if server_key is not None:
            self._send_client_info(server_key)
            self.state = ClientState.EXPECT_SERVER_INFO

    def receive_data(self, data: Payload) -> list[ClientEvent]:
        """Take bytes of the stream; return what they say."""
        if self.state is ClientState.CLOSED:
            self._refuse_when_closed()
        events: list[ClientEvent] = []
        gathers = self.gathers_packets and self.state is ClientState.OPEN
        run = RecvPackets(b"", [])
        try:
            for frame_type, payload in self._reader.receive_data(data):
                if gathers and frame_type == FrameType.RECV_PACKET and len(payload) >= KEY_BYTES:
                    source = bytes(payload[:KEY_BYTES])
                    if source != run.src:
                        run = RecvPackets(source, [])
                        events.append(run)
                    run.packets.append(payload[KEY_BYTES:])
                    continue
                run = RecvPackets(b"", [])
                if self.state is not ClientState.OPEN or frame_type in _CLIENT_INPUTS:
                    event = self._handshake_frame(frame_type, payload)
                else:
                    event = parse_from_server(frame_type, payload)
                if isinstance(event, UnknownFrame):
                    self.skipped_frames += 1
                elif event is not None:
                    events.append(event)
                    if isinstance(event, Ping):
                        self._to_send.append(encode(Pong(event.payload)))
        except RemoteProtocolError as error:
            self._fail(error)
        return events

    def receive_eof(self) -> None:
        """The relay closed.  RemoteProtocolError when that was in the handshake or within a frame."""
        following = CLIENT_TABLE[self.state][ClientInput.END]
        if following is Fault.REMOTE:
            self._fail(
                RemoteProtocolError(
                    "the relay closed the connection during the handshake: it may not admit this client's key"
                )
            )
        if self.state is not ClientState.CLOSED and self._reader.trailing_data():
            self._fail(RemoteProtocolError("the relay closed the connection within a frame"))
        self.state = ClientState.CLOSED

    def send_packet(self, dst: bytes, packet: Payload) -> None:
        """At most 65,536 bytes for the client whose key is `dst`."""
        self.send_packets(dst, (packet,))

    def send_packets(self, dst: bytes, packets: Sequence[Payload]) -> None:
        """All of them for `dst`, or none: LocalProtocolError."""
        self._check_send()
        longest = max(map(len, packets), default=0)
        if len(dst) != KEY_BYTES or longest > MAX_PACKET_BYTES:
            raise LocalProtocolError(
                f"a packet of {longest} bytes (limit {MAX_PACKET_BYTES}) to a key of {len(dst)}, want {KEY_BYTES}"
            )
        pack, kind = HEADER.pack, FrameType.SEND_PACKET
        self._to_send += [b"".join((pack(kind, KEY_BYTES + len(packet)), dst, packet)) for packet in packets]

    def send_ping(self, payload: bytes) -> None:
        """8 bytes, which come back in a Pong; a relay answers one ping at a time and may skip others."""
        self._send(Ping(payload))

    def send_note_preferred(self, preferred: bool) -> None:
        """Tell the relay whether it is our home."""
        self._send(NotePreferred(preferred))

    def send_watch_conns(self) -> None:
        """Mesh only: ask for a PeerPresent for everyone, and news from then on."""
        self._send_as_mesh_peer(WatchConns())

    def send_close_peer(self, key: bytes) -> None:
        """Mesh only: have every connection of `key` closed."""
        self._send_as_mesh_peer(ClosePeer(key))

    def send_forward_packet(self, src: bytes, dst: bytes, packet: bytes) -> None:
        """Mesh only: deliver a packet of our client `src` to the relay's own client `dst`."""
        self._send_as_mesh_peer(ForwardPacket(src, dst, packet))

    def data_to_send(self) -> list[bytes]:
        """What to write, in this order; whole frames each.  Handed out once."""
        to_send, self._to_send = self._to_send, []
        return to_send

    def _handshake_frame(self, frame_type: int, payload: memoryview) -> ClientEvent | None:
        what = _CLIENT_INPUTS.get(frame_type, ClientInput.OTHER_FRAME)
        following = CLIENT_TABLE[self.state][what]
        if isinstance(following, Fault):
            raise RemoteProtocolError(
                f"the peer began with a frame of type 0x{frame_type:02x}, not ServerKey: is it a DERP relay?"
            )
        event: ClientEvent | None = None
        if what is ClientInput.SERVER_KEY:
            if self.state is ClientState.EXPECT_SERVER_KEY:
                self._send_client_info(parse_server_key(payload))
        elif what is ClientInput.SERVER_INFO:
            assert self.server_key is not None
            event = self.server_info = open_server_info(self._private, self.server_key, payload)
        else:
            event = parse_from_server(frame_type, payload)
            if isinstance(event, Health):
                self.refusal = event.text
        self.state = following
        return event

    def _send_client_info(self, server_key: bytes) -> None:
        nonce = self._random_bytes(NONCE_BYTES)
        self._to_send.append(seal_client_info(self._private, server_key, self._info, nonce))
        self.server_key = server_key

    def _send_as_mesh_peer(self, message: PlainMessage) -> None:
        if self._info.mesh_key is None:
            raise LocalProtocolError("without a mesh key the relay would close the connection: set one")
        self._send(message)

    def _send(self, message: PlainMessage) -> None:
        self._check_send()
        self._to_send.append(encode(message))

    def _check_send(self) -> None:
        if self.state is not ClientState.OPEN and isinstance(CLIENT_TABLE[self.state][ClientInput.SEND], Fault):
            raise LocalProtocolError(f"nothing can be sent in the state {self.state.name}")

    def _refuse_when_closed(self) -> NoReturn:
        if self._error is not None:
            raise self._error
        raise LocalProtocolError("the connection is closed: nothing can be received")

    def _fail(self, error: RemoteProtocolError) -> NoReturn:
        self.state, self._error = ClientState.CLOSED, error
        self._to_send.clear()
        raise error


class ServerHandshake:
    """The relay's side of a login: it greets, identifies, and once its owner has decided, it admits.

    `receive_data` until that returns the ClientIdentified event; then `accept` or `close`.  The frames of a client that
    was admitted are no matter of this core: they begin in `trailing_data`, and relay/inbound.py reads them.
    """

    __slots__ = ("_error", "_held", "_mesh_key", "_private", "_random_bytes", "_to_send", "client", "nonce", "state")

    def __init__(
        self,
        private: NodePrivate,
        *,
        random_bytes: RandomBytes,
        mesh_key: MeshKey | None = None,
        greeting: bytes | None = None,
    ) -> None:
        """`greeting`: the server_key_frame of `private`, from a caller that makes many of these: it costs a curve
        computation."""
        self.state = ServerState.EXPECT_CLIENT_INFO
        self.client: OpenedClientInfo | None = None
        self.nonce = b""
        """The nonce of the client's box.  Honest clients draw a new one for each login."""
        self._private = private
        self._random_bytes = random_bytes
        self._mesh_key = mesh_key
        self._held = bytearray()
        self._to_send = [greeting or server_key_frame(private.public().raw)]
        self._error: RemoteProtocolError | None = None

    def receive_data(self, data: Payload) -> list[ClientIdentified]:
        """Take bytes of the stream; return who it is, once that is known."""
        if self._error is not None:
            raise self._error
        if SERVER_TABLE[self.state][ServerInput.OTHER_FRAME] is Fault.LOCAL:
            raise LocalProtocolError(f"nothing can be received in the state {self.state.name}")
        held = self._held
        held += data
        if len(held) < HEADER_BYTES:
            return []
        frame_type, length = HEADER.unpack_from(held)
        # Judged by its header: what a stranger sends is not held in order to find out that it is nothing.
        if frame_type != FrameType.CLIENT_INFO:
            self._fail(RemoteProtocolError(f"the client began with a frame of type 0x{frame_type:02x}, not ClientInfo"))
        if length > MAX_CLIENT_INFO_BYTES:
            self._fail(RemoteProtocolError(f"ClientInfo of {length} bytes, limit {MAX_CLIENT_INFO_BYTES}"))
        stop = HEADER_BYTES + length
        if len(held) < stop:
            return []
        payload = bytes(held[HEADER_BYTES:stop])
        self._held = held[stop:]
        try:
            opened = open_client_info(self._private, payload)
        except RemoteProtocolError as error:
            self._fail(error)
        self.client = opened
        self.nonce = payload[KEY_BYTES : KEY_BYTES + NONCE_BYTES]
        self._advance(ServerInput.CLIENT_INFO, "identify")
        claimed = opened.info.mesh_key
        is_mesh_peer = claimed is not None and claimed == self._mesh_key  # in constant time
        return [ClientIdentified(opened.key, opened.info, is_mesh_peer)]

    def receive_eof(self) -> None:
        """The client left.  RemoteProtocolError when that was within its ClientInfo."""
        within_a_frame = self.state is ServerState.EXPECT_CLIENT_INFO and bool(self._held)
        self.state = ServerState.CLOSED
        if within_a_frame:
            self._fail(RemoteProtocolError("the client closed the connection within a frame"))

    def accept(self, info: ServerInfo | None = None) -> None:
        """Admit the client that was identified: ServerInfo goes out."""
        self._advance(ServerInput.ACCEPT, "accept")
        assert self.client is not None
        self._to_send.append(self.client.seal_server_info(info or ServerInfo(), self._random_bytes(NONCE_BYTES)))

    def close(self) -> None:
        """Refuse or drop the client.  DERP has no word for it: close the transport when all is written."""
        self._advance(ServerInput.CLOSE, "close")

    def data_to_send(self) -> list[bytes]:
        """What to write, in this order; whole frames each.  Handed out once."""
        to_send, self._to_send = self._to_send, []
        return to_send

    def trailing_data(self) -> bytes:
        """What was received and belongs to no frame of the handshake: the client's first frames, or their beginning."""
        return bytes(self._held)

    def _advance(self, what: ServerInput, verb: str) -> None:
        following = SERVER_TABLE[self.state][what]
        if isinstance(following, Fault):
            raise LocalProtocolError(f"cannot {verb} in the state {self.state.name}")
        self.state = following

    def _fail(self, error: RemoteProtocolError) -> NoReturn:
        self.state, self._error = ServerState.CLOSED, error
        self._to_send.clear()
        self._held.clear()
        raise error
