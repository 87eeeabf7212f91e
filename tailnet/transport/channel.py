"""The tailnet RPC on the reactor: websocket bytes in, calls out, and back.  Layer L2; no task per peer or stream.

reactor -> Channel.received -> rpc/connection.py (yamux, dRPC) -> services/tailnet_rpc.py -> coordinator/core.py
-> services/hub.py -> another Channel's output -> the reactor's flush.  What the kernel does not take waits in the
yamux session, which bounds it per stream.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from derp.close_reason import CloseReason
from derp.protocol.websocket import CloseCode, close_frame
from derp.relay.deadlines import Deadlines
from derp.transport.alarm import Alarm
from derp.transport.host import Host, Wire, WireEnded
from tailnet.errors import Flood, ProtocolError
from tailnet.rpc.connection import ConnectionEvent, ServerConnection
from tailnet.rpc.yamux import SessionLimits
from tailnet.transport.accounts import DEFAULT_ACCOUNT_LIMITS, Account, Accounts

# (channel, event, call id, value) for every event of a connection, in order.
Serve = Callable[["Channel", ConnectionEvent, int, Any], None]


class Connected(Protocol):
    """A peer's connection of either kind: a Channel, or one of version 1 (services/legacy.py)."""

    caller: Any
    account: Account | None
    charged_bytes: int
    """What the account was charged for it; Channels.charge keeps it."""

    def handle_timeout(self, now: float) -> None: ...

    def close(self, code: CloseCode, text: str, reason: CloseReason) -> None: ...


Ended = Callable[[Connected, CloseReason, str], None]

# Genuine peers send header and body of a yamux frame as messages of their own; dRPC packets have at most 4 MiB.
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
# Deadlines of sessions are many seconds: 10,000 channels, each due every 15 s, need not wake the process for each.
_GRAIN_SECONDS: Final = 0.25
# Callers that left and whose reports of a minute ago still count are looked at this often.
_FORGET_SECONDS: Final = 60.0


class Channels:
    """What all channels of a server share: who serves them, and which of them have something to send."""

    def __init__(
        self, host: Host, serve: Serve, ended: Ended, limits: SessionLimits, accounts: Accounts | None = None
    ) -> None:
        self.host = host
        self.serve = serve
        self._ended = ended
        self.limits = limits
        self.accounts = accounts if accounts is not None else Accounts(DEFAULT_ACCOUNT_LIMITS)
        self.shed_count = 0
        self._will_forget = False
        self.dirty: list[Channel] = []
        self.open: set[Connected] = set()
        self.deadlines = Deadlines[Connected]()
        """When each has to be looked at: a ping, the end of a silence."""
        self._alarm = Alarm(host, self._handle_timeout, self.deadlines, grain_seconds=_GRAIN_SECONDS)
        host.flushers.append(self.flush)

    def flush(self) -> None:
        """Send what the channels have, each in one call to the kernel; end those that must end."""
        while self.dirty or self.accounts.is_overdrawn:
            dirty, self.dirty = self.dirty, []
            for channel in dirty:
                channel.is_dirty = False
                channel.send_output()
            if self.accounts.is_overdrawn:
                self._shed()

    def charge(self, channel: Connected, size: int) -> None:
        """So many bytes are held for a channel now."""
        account = channel.account
        if account is not None and size != channel.charged_bytes:
            self.accounts.hold(account, size - channel.charged_bytes)
            channel.charged_bytes = size

    def forget(self, channel: Connected, reason: CloseReason, text: str) -> None:
        """A channel ended."""
        self.open.discard(channel)
        self.set_deadline(channel, None)
        self.charge(channel, 0)
        account, channel.account = channel.account, None
        if account is not None:
            if reason is CloseReason.FLOOD:
                self.accounts.shut(account, self.host.now)
            self.accounts.close(account, self.host.now)
            self._forget_later()
        self._ended(channel, reason, text)

    def _forget_later(self) -> None:
        if self.accounts.has_idle and not self._will_forget:
            self._will_forget = True
            self.host.call_at(self.host.now + _FORGET_SECONDS, self._forget_idle)

    def _forget_idle(self) -> None:
        self._will_forget = False
        self.accounts.forget_idle(self.host.now)
        self._forget_later()

    def _shed(self) -> None:
        """Memory is worth more than the sockets of whoever fills it: the fattest go, until it is enough."""
        accounts, limits = self.accounts, self.accounts.limits
        accounts.is_overdrawn = False
        overdrawn, accounts.overdrawn = accounts.overdrawn, {}
        for account in overdrawn:
            mine = sorted((each for each in self.open if each.account is account), key=lambda each: each.charged_bytes)
            while account.held_bytes > limits.held_bytes and mine:
                self._shed_one(mine.pop(), f"its caller's sockets hold more than {limits.held_bytes:,} bytes together")
        if accounts.held_bytes > limits.total_held_bytes:
            everybody = sorted(self.open, key=lambda each: each.charged_bytes)
            while accounts.held_bytes > limits.total_held_bytes and everybody:
                text = f"all sockets hold more than {limits.total_held_bytes:,} bytes together, and this one most"
                self._shed_one(everybody.pop(), text)

    def _shed_one(self, channel: Connected, text: str) -> None:
        self.shed_count += 1
        channel.close(CloseCode.POLICY_VIOLATION, text, CloseReason.TOO_SLOW)
        # Its last words may find no room for long; what it held goes now.
        self.charge(channel, 0)

    def set_deadline(self, channel: Connected, at: float | None) -> None:
        """Call its `handle_timeout` then; None: not any more."""
        if at is None:
            self.deadlines.clear(channel)
        else:
            self.deadlines.set(channel, at)
            self._alarm.by(at)

    def _handle_timeout(self, now: float) -> None:
        for channel in self.deadlines.handle_timeout(now):
            channel.handle_timeout(now)


class Channel:
    """One websocket of an agent or a client, server side.  A reactor session.

    `caller` is whoever authenticated; the service reads it.  Sending goes through `connection`, then `touch`.
    """

    __slots__ = (
        "_ending",
        "_in_hand_bytes",
        "_shared",
        "account",
        "caller",
        "calls",
        "charged_bytes",
        "connection",
        "is_dirty",
        "wire",
    )

    def __init__(
        self, shared: Channels, wire: Wire, rpcs: Mapping[str, Any], caller: Any, account: Account | None = None
    ) -> None:
        self._shared = shared
        self.account = account
        self.charged_bytes = 0
        self._in_hand_bytes = 0
        self.wire = wire
        self.caller = caller
        now = shared.host.now
        self.connection: ServerConnection[Any] = ServerConnection(rpcs, now=now, limits=shared.limits)
        self.calls: dict[int, Any] = {}  # the service's, by call id; it forgets what ended
        self.is_dirty = False
        # when everything else has been sent: the close frame, then the end
        self._ending: tuple[bytes, CloseReason, str] | None = None
        shared.open.add(self)
        shared.set_deadline(self, self.connection.next_timeout())

    @property
    def host(self) -> Host:
        """The reactor that serves it."""
        return self._shared.host

    @property
    def is_open(self) -> bool:
        """False once the wire is gone, or about to go."""
        return self._ending is None and self.wire.session is self

    def touch(self) -> None:
        """There may be output: it leaves with the next flush."""
        if not self.is_dirty:
            self.is_dirty = True
            self._shared.dirty.append(self)

    def received(self, at: int, end: int) -> int:
        shared = self._shared
        connection = self.connection
        if self._ending is not None:
            return end  # its calls are over; what it still says concerns nobody
        try:
            for event, call_id, value in connection.receive_data(shared.host.view[at:end]):
                shared.serve(self, event, call_id, value)
        except ProtocolError as error:
            # The peer's log should have the reason too: a go-away, answers to what came before, a close frame.
            is_flood = isinstance(error, Flood)
            code = CloseCode.POLICY_VIOLATION if is_flood else CloseCode.PROTOCOL_ERROR
            self.close(code, str(error), CloseReason.FLOOD if is_flood else CloseReason.PROTOCOL_ERROR)
            raise
        if connection.has_output:
            self.touch()
        if connection.held_bytes or self.charged_bytes:
            self._charge()
        return end

    def take_in_hand(self, size: int) -> None:
        """The service keeps requests of so many bytes more, or less, until they are answered."""
        self._in_hand_bytes += size
        self._charge()

    def _charge(self) -> None:
        """Count what is in memory for this peer.  A payload that waits for many receivers is counted for each."""
        if self._ending is None:
            connection = self.connection
            waiting = connection.held_bytes + connection.waiting_bytes
            self._shared.charge(self, waiting + self._in_hand_bytes + len(self.wire.tail))

    def writable(self) -> None:
        self.send_output()

    def send_output(self) -> None:
        """Give the kernel what the session has to send; close the wire if that was the last."""
        wire = self.wire
        if wire.session is not self:
            return
        try:
            # A session hands out what windows allow at once, so a peer that does not read its socket is bounded by
            # its windows here and by its streams' queues behind them.
            while not wire.blocked and self.connection.has_output:
                pieces = self.connection.data_to_send()
                size = sum(map(len, pieces))
                sent = wire.send(pieces, size)
                if sent < size:
                    wire.push(memoryview(b"".join(pieces))[sent:])
            if wire.blocked:
                self._shared.host.await_room(wire)
            elif self._ending is not None:
                self._send_ending(*self._ending)
            if wire.blocked or self.connection.session.unsent_bytes or self.charged_bytes:
                self._charge()
        except WireEnded as error:
            self._shared.host.fail(wire, error)

    def handle_timeout(self, now: float) -> None:
        """A deadline of the session passed."""
        if not self.is_open:
            return  # somebody whose turn was before ours ended it
        try:
            for event, call_id, value in self.connection.handle_timeout(now):
                self._shared.serve(self, event, call_id, value)
        except ProtocolError as error:
            # PeerSilent above all: the peer is gone, whatever TCP still believes.
            self.close(CloseCode.GOING_AWAY, str(error), CloseReason.PROTOCOL_ERROR)
            self._shared.host.fail(self.wire, error)
            return
        self._shared.set_deadline(self, self.connection.next_timeout())
        if self.connection.has_output:
            self.touch()

    def close(self, code: CloseCode, text: str, reason: CloseReason) -> None:
        """End the calls now, send what is waiting and a websocket close frame, then end the link."""
        if not self.is_open:
            return
        self._ending = (close_frame(code, text), reason, text)
        self._end_calls()
        self.send_output()

    def _end_calls(self) -> None:
        """Whatever ends the session ends its calls: other peers hear of it now, however long the kernel takes to give
        this one's last words away."""
        self._shared.set_deadline(self, None)
        for event, call_id, value in self.connection.receive_eof():
            self._shared.serve(self, event, call_id, value)

    def _send_ending(self, frame: bytes, reason: CloseReason, text: str) -> None:
        wire = self.wire
        if frame:
            self._ending = (b"", reason, text)
            wire.send_raw(frame)
        if wire.tail:
            self._shared.host.await_room(wire)
        else:
            self._shared.host.close(wire, reason, text)

    def ended(self, reason: CloseReason, text: str) -> None:
        try:
            self._end_calls()
        finally:
            self._shared.forget(self, reason, text)
