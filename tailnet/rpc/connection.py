"""Calls over one connection: dRPC on yamux, both sides.  Layer L1: bytes in, calls and messages out.

A call is one dRPC call on a yamux stream of its own; its id here is the number of that stream.  (Should a client
make several on one stream, one after the other, each gets an id of its own.)  Synchronous from the first byte to the
last, with a tuple per message and nothing else: a task or a channel per call would cost more than all of this.

Next hop up: transport/channel.py moves the bytes, services/tailnet_rpc.py acts on the calls.
"""

import enum
from collections.abc import Mapping
from typing import Any, Final, Generic, TypeAlias, TypeVar

from tailnet.errors import RemoteProtocolError, RpcError, Unimplemented
from tailnet.rpc.drpc import SPLIT_BYTES, Buffer, CallEvent, ClientStream, ServerStream
from tailnet.rpc.yamux import BUDGET_SECONDS, DEFAULT_LIMITS, GoAwayCode, SessionEvent, SessionLimits, YamuxSession

T = TypeVar("T")


class ConnectionEvent(enum.Enum):
    """First part of each event tuple `(event, call id, value)`."""

    CALLED = "a client calls; value: what the table of RPCs holds for the path.  Server side only"
    MESSAGE = "value: the encoded message, bytes"
    HALF_CLOSED = "the peer sends no more messages in this call; value None"
    ENDED = "the peer ended the call, or broke it; value: see the side's class"
    PONG = "a ping was answered; call id 0, value its number"
    GO_AWAY = "the peer takes no new calls; call id 0, value GoAwayCode.NORMAL"


# A plain tuple: one is made per message, on the way of every update.
Event: TypeAlias = tuple[ConnectionEvent, int, Any]

_CALLED, _MESSAGE, _HALF_CLOSED = ConnectionEvent.CALLED, ConnectionEvent.MESSAGE, ConnectionEvent.HALF_CLOSED
_ENDED, _PONG, _GO_AWAY = ConnectionEvent.ENDED, ConnectionEvent.PONG, ConnectionEvent.GO_AWAY
_STREAM_DATA = SessionEvent.DATA
_CALL_INVOKED, _CALL_MESSAGE = CallEvent.INVOKED, CallEvent.MESSAGE

# A client that opens a stream names its RPC in the same breath, and ends the stream when the call is over.
# Genuine sides give a stream 75 s to be acknowledged; a stream without a call is kept no longer than that.
IDLE_STREAM_SECONDS: Final = 75.0
# Unfinished packets of all calls together.  One packet has at most 4 MiB; a peer that starts many and finishes none
# is not sending messages.
MAX_HELD_BYTES: Final = 16 << 20
# Messages, and frames into which a message is cut for no reason, of one client.  A message costs some 50 us and more:
# what comes at once is a turn of everybody's time, and the rest one core's tenth.  An agent that uploads its logs sends
# some ten a second, a client that moves from network to network fewer.
MAX_MESSAGES_AT_ONCE: Final = 1024
MAX_MESSAGES: Final = 30_000  # in BUDGET_SECONDS
# Answers quote the path they do not know, but not megabytes of it.
_MAX_QUOTED: Final = 100
_U32: Final = (1 << 32) - 1


class _Connection:
    """What both sides share: the session below, time, and sending in a call."""

    __slots__ = ("session",)

    def __init__(self, *, server: bool, now: float, limits: SessionLimits) -> None:
        self.session = YamuxSession(server=server, now=now, limits=limits)
        """The streams below: for whoever counts what waits; all else goes through this class."""

    def _stream(self, call_id: int) -> ServerStream | ClientStream | None:
        raise NotImplementedError

    def data_to_send(self) -> list[Buffer]:
        """The pieces for the transport, in order; taking them is final."""
        return self.session.data_to_send()

    @property
    def has_output(self) -> bool:
        """Whether data_to_send would give anything."""
        return self.session.has_output

    def next_timeout(self) -> float | None:
        """When to call handle_timeout; None once the connection is dead."""
        return self.session.next_timeout()

    def ping(self, opaque: int) -> None:
        """Ask for a PONG, beyond the pings that keep the session alive."""
        self.session.ping(opaque)

    def go_away(self, code: GoAwayCode = GoAwayCode.NORMAL) -> None:
        """Take no new calls; those in hand go on."""
        self.session.go_away(code)

    @property
    def waiting_bytes(self) -> int:
        """What waits for the peer to read, of all calls."""
        return self.session.waiting_bytes

    def unsent_bytes(self, call_id: int) -> int:
        """How much of this call waits for the peer to read."""
        return self.session.unsent_bytes_of(call_id & _U32)

    def send_message(self, call_id: int, payload: bytes) -> bool:
        """Send one encoded message; `payload` is kept by reference, so many calls may share it.

        False: the peer does not read, its queue is full, nothing was taken; drop that peer.  True otherwise, also
        for a call that has just ended: its ENDED event was, or is about to be, delivered.
        """
        call = self._stream(call_id)
        if call is None or not call.may_send:
            return True
        if len(payload) <= SPLIT_BYTES:
            return self.session.send_data(call_id & _U32, (call.message_head(len(payload)), payload))
        return self.session.send_data(call_id & _U32, call.send_message(payload))

    def _send_last(self, call_id: int, pieces: list[Buffer]) -> None:
        # Behind a full queue the last word would never be read: drop the stream instead.
        stream_id = call_id & _U32
        if not self.session.send_data(stream_id, pieces):
            self._drop(stream_id)

    def _drop(self, stream_id: int) -> None:
        raise NotImplementedError


class _ServedCall(ServerStream):
    __slots__ = ("call_id", "deadline", "rpc")

    def __init__(self, stream_id: int) -> None:
        super().__init__()
        # Each Invoke adds 2**32: the first call has the number of its stream, and an answer that comes late for a
        # call that was cancelled finds that its id is not in hand any more.
        self.call_id = stream_id - _U32 - 1
        self.deadline = 0.0  # of a stream without a call; 0: none yet
        self.rpc: Any = None  # of the call that the service has in hand; None: it has none here


class ServerConnection(_Connection, Generic[T]):
    """The server's side.  `rpcs` says which paths this door answers; every other path gets code 12.

    ENDED comes once, and only if the client ended the call first; its value is a few words for the log.
    A call ends with `reply`, `finish` or `send_error`; then forget it.
    RemoteProtocolError from receive_data or handle_timeout ends the whole connection: `receive_eof` then ends its
    calls.  Faults inside one stream end that stream alone.
    """

    __slots__ = ("_calls", "_messages", "_refill_at", "_rpcs", "_unheard", "held_bytes")

    def __init__(self, rpcs: Mapping[str, T], *, now: float, limits: SessionLimits = DEFAULT_LIMITS) -> None:
        super().__init__(server=True, now=now, limits=limits)
        self._rpcs = rpcs
        self._calls: dict[int, _ServedCall] = {}
        self._unheard: list[Event] = []  # of a receive that ended with a fault
        self.held_bytes = 0
        """Unfinished messages of the client, as of the last receive."""
        self._messages = MAX_MESSAGES  # that may still come before `_refill_at`
        self._refill_at = now + BUDGET_SECONDS

    def _stream(self, call_id: int) -> _ServedCall | None:
        call = self._calls.get(call_id & _U32)
        return call if call is not None and call.call_id == call_id else None

    def receive_data(self, data: Buffer) -> list[Event]:
        """Take bytes off the transport, however cut; return what the client did."""
        events: list[Event] = []
        calls = self._calls
        count = 0
        for kind, stream_id, value in self.session.receive_data(data):
            if kind is not _STREAM_DATA:
                self._receive_session_event(kind, stream_id, value, events)
                continue
            call = calls.get(stream_id)
            if call is None:
                continue
            try:
                received = call.receive_data(value)
            except RemoteProtocolError as error:
                self._break(stream_id, call, str(error), events)
                continue
            unknown = ""
            for event, payload in received:
                if event is _CALL_INVOKED:
                    unknown = self._receive_invoke(call, payload, events)
                elif call.rpc is None:
                    continue
                elif event is _CALL_MESSAGE:
                    events.append((_MESSAGE, call.call_id, payload))
                else:
                    self._receive_call_event(event, call, payload, events)
            # Not before the last event is read: the stream below may be at its next call already.
            if unknown and call.live:
                refusal = Unimplemented(f"unknown rpc: {unknown[:_MAX_QUOTED]!r}")
                self._send_last(call.call_id, [call.send_error(refusal)])
            if call.held_bytes or self.held_bytes:
                self._check_held(events)
            count += len(received) + call.small_frames
            call.small_frames = 0
            if count > MAX_MESSAGES_AT_ONCE:
                self._end_flood(f"more than {MAX_MESSAGES_AT_ONCE} messages at once", events)
        self._messages -= count
        if self._messages < 0:
            self._end_flood(f"more than {MAX_MESSAGES} messages in {BUDGET_SECONDS:g} s", events)
        return events

    def _end_flood(self, reason: str, events: list[Event]) -> None:
        # What came before may have ended calls; of the rest nobody needs to hear.
        self._unheard = [event for event in events if event[0] is _ENDED]
        self.session.fail_for_flood(reason)

    def receive_eof(self) -> list[Event]:
        """The transport ended, or the session did by a fault: so do the calls.  A second time there are none."""
        events, self._unheard = self._unheard, []
        self.session.receive_eof()
        self.held_bytes = 0
        for stream_id in tuple(self._calls):
            self._receive_session_event(SessionEvent.RESET, stream_id, None, events)
        return events

    def handle_timeout(self, now: float) -> list[Event]:
        """Keep the session alive and drop streams without a call.  Raises PeerSilent when the client is dead."""
        events: list[Event] = []
        at = self.session.next_timeout()
        if at is not None and now < at:
            return events
        for kind, stream_id, value in self.session.handle_timeout(now):
            self._receive_session_event(kind, stream_id, value, events)
        if now >= self._refill_at:
            self._messages = int(MAX_MESSAGES * max((now - self._refill_at) / BUDGET_SECONDS, 1.0))
            self._refill_at = now + BUDGET_SECONDS
        overdue = []
        for stream_id, call in self._calls.items():
            if call.live:
                call.deadline = 0.0
            elif not call.deadline:
                call.deadline = now + IDLE_STREAM_SECONDS
            elif now >= call.deadline:
                overdue.append(stream_id)
        for stream_id in overdue:
            self._drop(stream_id)
        return events

    def reply(self, call_id: int, payload: bytes) -> None:
        """Answer a unary call and end it, in one write."""
        call = self._stream(call_id)
        if call is not None and call.may_send:
            call.rpc = None
            self._send_last(call_id, [*call.send_message(payload), self._last_packet(call)])

    def finish(self, call_id: int) -> None:
        """End a call well: the client reads EOF.  Does nothing to a call that has ended."""
        call = self._stream(call_id)
        if call is not None and call.live:
            call.rpc = None
            self._send_last(call_id, [self._last_packet(call)])

    def send_error(self, call_id: int, error: RpcError) -> None:
        """End a call with an error.  Does nothing to a call that has ended."""
        call = self._stream(call_id)
        if call is not None and call.live:
            call.rpc = None
            self._send_last(call_id, [call.send_error(error)])

    def rpc_of(self, call_id: int) -> T | None:
        """The table's entry of a call in hand; None when there is none."""
        call = self._stream(call_id)
        return call.rpc if call is not None else None

    def calls_in_hand(self) -> list[int]:
        """The ids of all calls that the service has not ended and was not told to be over."""
        return [call.call_id for call in self._calls.values() if call.rpc is not None]

    @staticmethod
    def _last_packet(call: _ServedCall) -> bytes:
        # With the client's CloseSend ours ends the call for both; without, only Close does.
        return call.send_close() if call.may_receive else call.send_close_send()

    def _drop(self, stream_id: int) -> None:
        self.session.reset_stream(stream_id)
        self._calls.pop(stream_id, None)
        if self.held_bytes:
            self._count_held()

    def _break(self, stream_id: int, call: _ServedCall, reason: str, events: list[Event]) -> None:
        # The call may have ended in the bytes before the fault, unheard; the service knows it as live.
        if call.rpc is not None:
            events.append((_ENDED, call.call_id, f"protocol error: {reason}"))
        self._drop(stream_id)

    def _receive_session_event(self, kind: SessionEvent, stream_id: int, value: Any, events: list[Event]) -> None:
        if kind is SessionEvent.OPENED:
            self._calls[stream_id] = _ServedCall(stream_id)
        elif kind is SessionEvent.PONG:
            events.append((_PONG, 0, value))
        elif kind is SessionEvent.GO_AWAY:
            events.append((_GO_AWAY, 0, value))
        else:
            call = self._calls.pop(stream_id, None)
            if self.held_bytes:
                self._count_held()
            if call is not None and call.rpc is not None:
                # A client ends the byte stream of a live call when its user lost interest.
                events.append((_ENDED, call.call_id, "cancelled"))
            if kind is SessionEvent.ENDED:
                # Answers that still wait have no reader any more.
                if self.session.unsent_bytes_of(stream_id):
                    self.session.reset_stream(stream_id)
                else:
                    self.session.close_stream(stream_id)

    def _receive_invoke(self, call: _ServedCall, path: str, events: list[Event]) -> str:
        """A call begins; returns its path if this door does not answer it."""
        call.call_id += _U32 + 1
        call.rpc = self._rpcs.get(path)
        if call.rpc is None:
            return path or "(empty)"
        events.append((_CALLED, call.call_id, call.rpc))
        return ""

    def _receive_call_event(self, event: CallEvent, call: _ServedCall, value: Any, events: list[Event]) -> None:
        if event is CallEvent.CLOSE_SEND:
            events.append((_HALF_CLOSED, call.call_id, None))
            return
        words = {CallEvent.CLOSED: "closed", CallEvent.CANCELLED: "cancelled"}
        events.append((_ENDED, call.call_id, words.get(event) or f"error of the client: {value}"))
        call.rpc = None

    def _check_held(self, events: list[Event]) -> None:
        self._count_held()
        if self.held_bytes > MAX_HELD_BYTES:
            self._unheard = events
            self.session.fail(f"{self.held_bytes} bytes of unfinished messages, limit {MAX_HELD_BYTES}")

    def _count_held(self) -> None:
        self.held_bytes = sum(call.held_bytes for call in self._calls.values())


class ClientConnection(_Connection):
    """The client's side: `call` for one request, `open_call` for many; answers come as events.

    ENDED comes once per call that was not closed or cancelled by us; its value is None after an orderly end, else
    an RpcError.  Its byte stream is closed by then.  After a RemoteProtocolError, which ends the whole connection,
    `receive_eof` ends the calls.
    """

    __slots__ = ("_calls",)

    def __init__(self, *, now: float, limits: SessionLimits = DEFAULT_LIMITS) -> None:
        super().__init__(server=False, now=now, limits=limits)
        self._calls: dict[int, ClientStream] = {}

    def _stream(self, call_id: int) -> ClientStream | None:
        return self._calls.get(call_id)

    def call(self, path: str, payload: bytes, metadata: dict[str, str] | None = None) -> int:
        """Call an RPC that takes one request (unary or server stream); returns the call's id."""
        call, call_id = ClientStream(), self.session.open_stream()
        self._calls[call_id] = call
        pieces = [call.invoke(path, metadata), *call.send_message(payload), call.send_close_send()]
        self.session.send_data(call_id, pieces)
        return call_id

    def open_call(self, path: str, metadata: dict[str, str] | None = None) -> int:
        """Call an RPC that takes any number of requests: go on with `send_message`."""
        call, call_id = ClientStream(), self.session.open_stream()
        self._calls[call_id] = call
        self.session.send_data(call_id, [call.invoke(path, metadata)])
        return call_id

    def close_send(self, call_id: int) -> None:
        """Send no more messages in this call; answers may still come."""
        call = self._calls.get(call_id)
        if call is None or not call.may_send:
            return
        self._send_last(call_id, [call.send_close_send()])
        if not call.live:
            self._finish(call_id)

    def close(self, call_id: int) -> None:
        """Be done with a call, as a genuine client is after its answer.  A call that has ended does nothing."""
        call = self._calls.get(call_id)
        if call is not None:
            if call.live:
                self._send_last(call_id, [call.send_close()])
            self._finish(call_id)

    def cancel(self, call_id: int) -> None:
        """Lose interest: the byte stream is dropped, which servers read as a cancellation."""
        if call_id in self._calls:
            self._drop(call_id)

    def receive_data(self, data: Buffer) -> list[Event]:
        """Take bytes off the transport, however cut; return what the server did."""
        events: list[Event] = []
        for kind, stream_id, value in self.session.receive_data(data):
            if kind is not _STREAM_DATA:
                self._receive_session_event(kind, stream_id, value, events)
                continue
            call = self._calls.get(stream_id)
            if call is None:
                continue
            try:
                received = call.receive_data(value)
            except RemoteProtocolError as error:
                self._drop(stream_id)
                events.append((_ENDED, stream_id, RpcError(f"the server broke the protocol: {error}")))
                continue
            for event, payload in received:
                if event is _CALL_MESSAGE:
                    events.append((_MESSAGE, stream_id, payload))
                else:
                    self._receive_call_event(event, stream_id, call, payload, events)
        return events

    def receive_eof(self) -> list[Event]:
        """The transport ended, or the session did by a fault: so do the calls.  A second time there are none."""
        events: list[Event] = []
        self.session.receive_eof()
        for stream_id in tuple(self._calls):
            self._receive_session_event(SessionEvent.RESET, stream_id, None, events)
        return events

    def handle_timeout(self, now: float) -> list[Event]:
        """Keep the session alive.  Raises PeerSilent when the server is dead."""
        events: list[Event] = []
        for kind, stream_id, value in self.session.handle_timeout(now):
            self._receive_session_event(kind, stream_id, value, events)
        return events

    def _finish(self, call_id: int) -> None:
        if self._calls.pop(call_id, None) is not None:
            self.session.close_stream(call_id)

    def _drop(self, stream_id: int) -> None:
        self.session.reset_stream(stream_id)
        self._calls.pop(stream_id, None)

    def _receive_session_event(self, kind: SessionEvent, stream_id: int, value: Any, events: list[Event]) -> None:
        if kind is SessionEvent.OPENED:
            self.session.reset_stream(stream_id)  # a server has nothing to call here
        elif kind is SessionEvent.PONG:
            events.append((_PONG, 0, value))
        elif kind is SessionEvent.GO_AWAY:
            events.append((_GO_AWAY, 0, value))
        elif stream_id in self._calls:
            self._finish(stream_id)
            events.append((_ENDED, stream_id, RpcError("the server dropped the call")))

    def _receive_call_event(
        self, event: CallEvent, stream_id: int, call: ClientStream, value: Any, events: list[Event]
    ) -> None:
        if event is CallEvent.CLOSE_SEND and call.live:
            events.append((_HALF_CLOSED, stream_id, None))
            return
        self._finish(stream_id)
        if event is CallEvent.CANCELLED:
            value = RpcError("the server cancelled the call")
        events.append((_ENDED, stream_id, value))
