"""dRPC: one call, or one after the other, on one byte stream.  Layer L1: no I/O; spec: storj.io/drpc 0.0.34.

Frame: control u8 = kind << 1 | done, bit 7 = may be ignored; then stream, message and length as varints; then data.
Frames with one (stream, message) are a packet, the last one is marked done; ids only rise, each side counts its own.
A call is one dRPC stream: Invoke with the path, messages both ways, CloseSend, and Close, Error or Cancel.

ServerStream and ClientStream turn bytes into events and calls into bytes; rpc/connection.py puts them on
yamux streams.
"""

import enum
import struct
from typing import Any, Final, NoReturn, TypeAlias

from tailnet.errors import CODE_UNIMPLEMENTED, LocalProtocolError, RemoteProtocolError, RpcError, Unimplemented
from tailnet.rpc.call_states import TRANSITIONS, CallState, CallStep
from tailnet.rpc.metadata import decode_metadata, encode_metadata
from tailnet.rpc.varint import decode_varint, encode_varint

Buffer: TypeAlias = bytes | bytearray | memoryview

# Genuine sides cut messages into frames of this size, and refuse packets above the second.
SPLIT_BYTES: Final = 64 * 1024
MAX_PACKET_BYTES: Final = 4 << 20
# A frame of several that make a packet costs 1.5 us, however little it carries.
_SMALL_BYTES: Final = 1024
_ERROR_HEAD: Final = struct.Struct("!Q")


class PacketKind(enum.IntEnum):
    """What a packet is for.  Six bits on the wire; 0 is reserved."""

    INVOKE = 1  # data: path of the rpc
    MESSAGE = 2  # data: one encoded message, may be empty
    ERROR = 3  # data: u64 code, then text
    CANCEL = 4  # the sender lost interest
    CLOSE = 5  # the call is over
    CLOSE_SEND = 6  # no more messages from the sender
    INVOKE_METADATA = 7  # data: pairs of strings, before its Invoke


DONE: Final = 0x01
MAY_BE_IGNORED: Final = 0x80  # "control" in the spec: a packet that old peers skip if they do not know its kind


class CallEvent(enum.Enum):
    """First part of each event tuple `(event, value)`."""

    INVOKED = "a call begins; value: the path.  Server side only"
    MESSAGE = "value: bytes"
    CLOSE_SEND = "the peer sends no more messages; value None"
    CLOSED = "the peer closed the call; value None"
    FAILED = "the peer ended the call with an error; value: RpcError"
    CANCELLED = "the client lost interest; value None"


# A plain tuple: one is made per message, and a class would cost more than cutting the frame.
Event: TypeAlias = tuple[CallEvent, Any]
# kind, may be ignored, dRPC stream, data
Packet: TypeAlias = tuple[int, bool, int, bytes]

_INVOKED, _MESSAGE, _CLOSE_SEND = CallEvent.INVOKED, CallEvent.MESSAGE, CallEvent.CLOSE_SEND
_CLOSED, _FAILED, _CANCELLED = CallEvent.CLOSED, CallEvent.FAILED, CallEvent.CANCELLED
_IDLE, _OPEN, _ENDED = CallState.IDLE, CallState.OPEN, CallState.ENDED
_SEND_CLOSED, _RECEIVE_CLOSED = CallState.SEND_CLOSED, CallState.RECEIVE_CLOSED
_KIND_MESSAGE: Final = int(PacketKind.MESSAGE)
_MESSAGE_DONE: Final = bytes((PacketKind.MESSAGE << 1 | DONE,))


def encode_frame(control: int, stream_id: int, message_id: int, data: Buffer = b"") -> bytes:
    """One whole frame."""
    head = bytes((control,)) + encode_varint(stream_id) + encode_varint(message_id) + encode_varint(len(data))
    return head + data


def encode_message_frames(stream_id: int, message_id: int, payload: bytes) -> list[Buffer]:
    """A message as pieces: heads of a few bytes, and the payload itself, which is not copied.

    So one payload, encoded once, is shared by any number of receivers.
    """
    size = len(payload)
    ids = encode_varint(stream_id) + encode_varint(message_id)
    if size <= SPLIT_BYTES:
        return [_MESSAGE_DONE + ids + encode_varint(size), payload]
    pieces: list[Buffer] = []
    view = memoryview(payload)
    for at in range(0, size, SPLIT_BYTES):
        part = view[at : at + SPLIT_BYTES]
        control = _KIND_MESSAGE << 1 | (DONE if at + SPLIT_BYTES >= size else 0)
        pieces += (bytes((control,)) + ids + encode_varint(len(part)), part)
    return pieces


class _PacketReader:
    """Cuts a byte stream into packets, as genuine readers do: ids rise, a new id drops an unfinished packet."""

    __slots__ = (
        "_buffer",
        "_dead",
        "_least",
        "_needed",
        "_packet",
        "_packet_control",
        "_packet_id",
        "held_bytes",
        "small_frames",
    )

    def __init__(self) -> None:
        self._buffer: bytes | bytearray = b""  # an unfinished frame
        self._needed = 0  # do not look at it again before it is this long
        self._packet: bytearray | None = None  # an unfinished packet
        self._packet_id = (0, 0)
        self._packet_control = 0
        self._least = (1, 1)  # the smallest id that may come
        self._dead = False
        self.held_bytes = 0  # what the peer makes us keep: the caller bounds the sum over its streams
        self.small_frames = 0  # cut far below where genuine sides cut; the caller counts them and sets this back

    def _fail(self, reason: str) -> NoReturn:
        self._dead = True
        self._buffer, self._packet, self.held_bytes = b"", None, 0
        raise RemoteProtocolError(reason)

    def _packets(self, data: Buffer) -> list[Packet]:
        if self._dead:
            raise LocalProtocolError("this stream broke the protocol; nothing can be received any more")
        if self._buffer:
            assert isinstance(self._buffer, bytearray)
            self._buffer += data
            if len(self._buffer) < self._needed:
                self.held_bytes += len(data)
                return []
            data = self._buffer
        # bytes index and slice faster than views, and a slice of them is the message itself.
        frozen = bytes(data)
        packets: list[Packet] = []
        at, size = 0, len(frozen)
        while at < size:
            try:
                control = frozen[at]
                stream_id, start = frozen[at + 1], at + 2
                if stream_id > 127:
                    stream_id, start = decode_varint(frozen, start - 1)
                message_id = frozen[start]
                start += 1
                if message_id > 127:
                    message_id, start = decode_varint(frozen, start - 1)
                length = frozen[start]
                start += 1
                if length > 127:
                    length, start = decode_varint(frozen, start - 1)
            except IndexError:
                self._needed = size - at + 1
                break
            except RemoteProtocolError as error:
                self._fail(str(error))
            if length > MAX_PACKET_BYTES:
                self._fail(f"a frame announces {length} bytes, limit {MAX_PACKET_BYTES}")
            end = start + length
            if end > size:
                self._needed = end - at
                break
            packet_id = (stream_id, message_id)
            if packet_id < self._least:
                self._fail(f"packet id {packet_id} after {self._least}: ids only rise")
            if control & DONE and (self._packet is None or packet_id != self._packet_id):
                self._packet = None
                self._least = (stream_id, message_id + 1)
                packets.append(((control & 0x7E) >> 1, control >= MAY_BE_IGNORED, stream_id, frozen[start:end]))
            else:
                self._join(control, packet_id, frozen[start:end], packets)
            at = end
        self._buffer = bytearray(frozen[at:]) if at < size else b""
        self.held_bytes = size - at if self._packet is None else size - at + len(self._packet)
        return packets

    def _join(self, control: int, packet_id: tuple[int, int], data: bytes, packets: list[Packet]) -> None:
        """One frame of several: keep it, and emit the packet with its last."""
        if self._packet is None or packet_id != self._packet_id:
            # An unfinished packet that is overtaken was interrupted, by a Cancel for example: that is legal.
            self._packet = bytearray()
            self._packet_id = self._least = packet_id
            self._packet_control = control
        if (control ^ self._packet_control) & 0x7E:
            self._fail(f"the kind changes within packet {packet_id}")
        self._packet_control |= control & MAY_BE_IGNORED
        self._packet += data
        if len(data) < _SMALL_BYTES:
            self.small_frames += 1
        if len(self._packet) > MAX_PACKET_BYTES:
            self._fail(f"a packet of more than {MAX_PACKET_BYTES} bytes")
        if control & DONE:
            stream_id, message_id = packet_id
            self._least = (stream_id, message_id + 1)
            kind, ignorable = (self._packet_control & 0x7E) >> 1, self._packet_control >= MAY_BE_IGNORED
            packets.append((kind, ignorable, stream_id, bytes(self._packet)))
            self._packet = None


class _CallStream(_PacketReader):
    """What both sides share: the state of the call in hand, and speaking in it."""

    __slots__ = ("_sent", "state", "stream_id")

    def __init__(self) -> None:
        super().__init__()
        self.state = _IDLE
        self.stream_id = 0  # the dRPC stream of the call in hand
        self._sent = 0  # message id of the last packet we sent in it

    @property
    def live(self) -> bool:
        """Whether a call is in hand that has not ended."""
        return self.state is not _IDLE and self.state is not _ENDED

    @property
    def may_send(self) -> bool:
        """Whether a message may be sent now."""
        return self.state is _OPEN or self.state is _RECEIVE_CLOSED

    @property
    def may_receive(self) -> bool:
        """Whether the peer may still send messages."""
        return self.state is _OPEN or self.state is _SEND_CLOSED

    def message_head(self, size: int) -> bytes:
        """The head of a message of `size` bytes, up to SPLIT_BYTES; the payload has to follow it."""
        if self.state is not _OPEN and self.state is not _RECEIVE_CLOSED:
            raise LocalProtocolError(f"no message can be sent: {self.state.value}")
        self._sent = message_id = self._sent + 1
        return _MESSAGE_DONE + encode_varint(self.stream_id) + encode_varint(message_id) + encode_varint(size)

    def send_message(self, payload: bytes) -> list[Buffer]:
        """A message of any size as pieces; the payload is not copied."""
        if len(payload) > MAX_PACKET_BYTES:
            raise LocalProtocolError(f"a message of {len(payload)} bytes: peers refuse more than {MAX_PACKET_BYTES}")
        if len(payload) <= SPLIT_BYTES:
            return [self.message_head(len(payload)), payload]
        if not self.may_send:
            raise LocalProtocolError(f"no message can be sent: {self.state.value}")
        self._sent += 1
        return encode_message_frames(self.stream_id, self._sent, payload)

    def send_close_send(self) -> bytes:
        """Say that no more messages come from us."""
        return self._step(CallStep.SEND_CLOSE, PacketKind.CLOSE_SEND)

    def send_close(self) -> bytes:
        """End the call."""
        return self._step(CallStep.END, PacketKind.CLOSE)

    def send_error(self, error: RpcError) -> bytes:
        """End the call with an error."""
        return self._step(CallStep.END, PacketKind.ERROR, _ERROR_HEAD.pack(error.code) + error.text.encode())

    def _step(self, step: CallStep, kind: PacketKind, data: bytes = b"", flags: int = 0) -> bytes:
        after = TRANSITIONS.get((self.state, step))
        if after is None:
            raise LocalProtocolError(f"{kind.name} cannot be sent: {self.state.value}")
        self.state = after
        return self._frame(kind, data, flags)

    def _frame(self, kind: PacketKind, data: bytes = b"", flags: int = 0) -> bytes:
        self._sent += 1
        return encode_frame(kind << 1 | DONE | flags, self.stream_id, self._sent, data)

    def _receive_packet(self, kind: int, ignorable: bool, data: bytes, events: list[Event]) -> None:
        """A packet of the call in hand that is no Message."""
        if self.state is _ENDED:
            return
        if kind == PacketKind.CLOSE_SEND:
            after = TRANSITIONS.get((self.state, CallStep.RECEIVE_CLOSE))
            if after is not None:
                self.state = after
                events.append((_CLOSE_SEND, None))
        elif kind == PacketKind.CLOSE:
            self._end(_CLOSED, None, events)
        elif kind == PacketKind.CANCEL:
            self._end(_CANCELLED, None, events)
        elif kind == PacketKind.ERROR:
            self._end(_FAILED, _decode_error(data), events)
        elif kind == PacketKind.INVOKE:
            self._fail("Invoke within a call")
        elif not ignorable:
            self._fail(f"unknown packet kind {kind}")

    def _end(self, event: CallEvent, value: RpcError | None, events: list[Event]) -> None:
        self.state = TRANSITIONS[self.state, CallStep.END]
        events.append((event, value))


class ServerStream(_CallStream):
    """The server's side of one byte stream.  `receive_data` gives INVOKED first; `metadata` belongs to that call.

    RemoteProtocolError: this byte stream is lost (reset it), the others of the session are not.
    """

    __slots__ = ("_metadata_id", "metadata")

    def __init__(self) -> None:
        super().__init__()
        self.metadata: dict[str, str] | None = None
        self._metadata_id = 0

    def receive_data(self, data: Buffer) -> list[Event]:
        """Take bytes of the stream, however cut."""
        events: list[Event] = []
        for kind, ignorable, stream_id, payload in self._packets(data):
            if stream_id != self.stream_id:
                self._receive_next(kind, ignorable, stream_id, payload, events)
            elif kind != _KIND_MESSAGE:
                self._receive_packet(kind, ignorable, payload, events)
            elif self.state is _OPEN or self.state is _SEND_CLOSED:
                events.append((_MESSAGE, payload))
        return events

    def _receive_next(self, kind: int, ignorable: bool, stream_id: int, data: bytes, events: list[Event]) -> None:
        """A packet of a call that is not in hand yet; ids rise, so the one in hand is over."""
        if kind not in (PacketKind.INVOKE, PacketKind.INVOKE_METADATA):
            if ignorable:
                return
            self._fail(f"packet kind {kind} before the Invoke of its call")
        if self.live:
            self._end(_CANCELLED, None, events)
        if kind == PacketKind.INVOKE_METADATA:
            try:
                self.metadata, self._metadata_id = decode_metadata(data), stream_id
            except RemoteProtocolError as error:
                self._fail(str(error))
            return
        try:
            path = data.decode()
        except UnicodeDecodeError:
            self._fail("the path of an Invoke is not UTF-8")
        if self._metadata_id != stream_id:
            self.metadata = None
        self.state = TRANSITIONS[self.state, CallStep.INVOKE]
        self.stream_id, self._sent = stream_id, 0
        events.append((_INVOKED, path))


class ClientStream(_CallStream):
    """The client's side of one byte stream: `invoke`, then messages."""

    __slots__ = ()

    def invoke(self, path: str, metadata: dict[str, str] | None = None) -> bytes:
        """Begin a call.  Genuine clients hold these bytes back until the first message; both forms are legal."""
        after = TRANSITIONS.get((self.state, CallStep.INVOKE))
        if after is None:
            raise LocalProtocolError("the call in hand has not ended")
        self.state = after
        self.stream_id, self._sent = self.stream_id + 1, 0
        head = self._frame(PacketKind.INVOKE_METADATA, encode_metadata(metadata)) if metadata else b""
        return head + self._frame(PacketKind.INVOKE, path.encode())

    def send_cancel(self) -> bytes:
        """Lose interest, and say so.  (Most clients just end the byte stream.)"""
        return self._step(CallStep.END, PacketKind.CANCEL, flags=MAY_BE_IGNORED)

    def receive_data(self, data: Buffer) -> list[Event]:
        """Take bytes of the stream, however cut."""
        events: list[Event] = []
        for kind, ignorable, stream_id, payload in self._packets(data):
            if stream_id < self.stream_id:
                continue  # an answer that crossed the end of an earlier call
            if stream_id > self.stream_id:
                if not ignorable:
                    self._fail(f"the server speaks in call {stream_id}, which was never made")
            elif kind != _KIND_MESSAGE:
                self._receive_packet(kind, ignorable, payload, events)
            elif self.state is _OPEN or self.state is _SEND_CLOSED:
                events.append((_MESSAGE, payload))
        return events


def _decode_error(data: bytes) -> RpcError:
    if len(data) < _ERROR_HEAD.size:
        return RpcError(f"{_text(data)} (without a code)")
    (code,) = _ERROR_HEAD.unpack_from(data)
    text = _text(data[_ERROR_HEAD.size :])
    return Unimplemented(text) if code == CODE_UNIMPLEMENTED else RpcError(text, code)


def _text(data: bytes) -> str:
    # Errors go into logs: bounded, and whatever the peer sends becomes text.
    return data[:1024].decode("utf-8", "replace")
