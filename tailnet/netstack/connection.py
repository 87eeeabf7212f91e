"""One TCP connection (RFC 9293): handshake, what a segment means, closing, and what it sends.  Layer L1.

RFC 5961 says which forged segments are answered with a challenge.  The two halves are sending.py and receiving.py, the
states states.py; stack.py owns connections, hands them segments and collects their packets.  User calls change state at
once; what they cause to be sent goes out with the stack's next `packets_to_send`.
"""

from typing import Final

from tailnet.errors import LocalProtocolError
from tailnet.netstack.events import End, Owner, What
from tailnet.netstack.handshake import Handshake
from tailnet.netstack.ip import HEADER_BYTES, Packet
from tailnet.netstack.keepalive import GIVE_UP, PROBE, Challenges, KeepAlive
from tailnet.netstack.limits import Drop, KeepAliveTimes
from tailnet.netstack.receiving import WINDOW_SCALE, Receiver
from tailnet.netstack.segment import (
    ACK,
    FIN,
    MAX_SACK_BLOCKS,
    PAYLOAD_AT,
    PSH,
    RST,
    SYN,
    SegmentWriter,
    SynOptions,
    encode_sack,
    parse_sack,
    parse_syn_options,
    unwrap,
)
from tailnet.netstack.sending import Sender
from tailnet.netstack.states import MAY_RECEIVE, MAY_SEND, SYNCHRONIZED, TABLE, Fault, Input, State

_MIN_MTU: Final = 1280
_MASK: Final = 0xFFFFFFFF
# A header of five words and an ACK, whatever PSH says: the segments of a stream that runs.
_PLAIN_MASK: Final = 0xF000 | FIN | SYN | RST | ACK
_PLAIN: Final = 0x5000 | ACK
_ESTABLISHED: Final = State.ESTABLISHED


_CONNECTED: Final = int(What.CONNECTED)
_READABLE: Final = int(What.READABLE)
_WRITABLE: Final = int(What.WRITABLE)
_RESET: Final = int(What.RESET)
_CLOSED: Final = int(What.CLOSED)


class Connection:
    """`send`, `receive`, `send_eof`, `close`, `abort`; the stack tells of the rest.  Made by the stack alone."""

    __slots__ = (
        "_accounted",
        "_challenges",
        "_close_at",
        "_early",
        "_fin_at",
        "_handshake",
        "_keep_alive",
        "_keep_alive_due",
        "_out_scale",
        "_owner",
        "_reset_seq",
        "_user_closed",
        "_writer",
        "end",
        "eof",
        "flow",
        "heard_at",
        "local_address",
        "local_port",
        "pending",
        "reason",
        "receiver",
        "remote_address",
        "remote_port",
        "sender",
        "state",
    )

    def __init__(self, owner: "Owner[Connection]", flow: bytes, iss: int) -> None:
        """`flow`: addresses and ports as they stand in a packet from the peer (segment.py: FLOW)."""
        self._owner = owner
        self.flow = flow
        self.remote_address, self.local_address = flow[:16], flow[16:32]
        self.remote_port = int.from_bytes(flow[32:34], "big")
        self.local_port = int.from_bytes(flow[34:36], "big")
        self._writer = SegmentWriter(self.local_address, self.remote_address, self.local_port, self.remote_port)
        self.state = State.CLOSED
        self.end: End | None = None
        self.reason = ""
        """What the peer's node said when it refused us."""
        self.eof = False
        """The peer's stream is over once what waits is read."""
        self.pending = 0
        """Flags of What that the stack has not told yet."""
        limits = owner.limits
        self._handshake = Handshake(iss, limits)
        self._out_scale = 0
        self.sender = Sender(iss, self._handshake.mss, limits, owner.counters)
        self.receiver: Receiver | None = None
        self.heard_at = owner.now
        self._reset_seq: tuple[int, int, int] | None = None
        self._accounted = 0
        self._user_closed = False
        self._fin_at: int | None = None
        self._close_at: float | None = None
        self._keep_alive = KeepAlive(limits.keep_alive)
        self._keep_alive_due = False
        self._challenges = Challenges(limits)
        self._early: list[bytes] = []  # acknowledgements of a young gap

    def __repr__(self) -> str:
        return f"<Connection {self.local_port}-{self.remote_port} {self.state.value}>"

    # --- the user ---

    @property
    def readable_bytes(self) -> int:
        return self.receiver.reassembly.waiting if self.receiver is not None else 0

    @property
    def is_ready(self) -> bool:
        """Whether the stack has something of it to send, or to look at."""
        return self in self._owner.ready

    def keep_alive(self, times: KeepAliveTimes) -> None:
        self._keep_alive.times = times
        self._owner.ready[self] = None  # it is due earlier, perhaps

    def _may_send(self) -> bool:
        return not self.sender.fin_queued and (
            self.state in MAY_SEND or self.state in (State.SYN_SENT, State.SYN_RECEIVED)
        )

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """How many bytes were taken; the rest after WRITABLE.  `bytes` are kept and not copied.

        LocalProtocolError after `send_eof`, `close` and the end of the connection.
        """
        if not self._may_send():
            raise LocalProtocolError(f"a connection in {self.state.value} sends nothing more")
        owner, sender = self._owner, self.sender
        owner.ready[self] = None
        if owner.queued_bytes > owner.limits.total_send_bytes and sender.held_bytes >= owner.limits.min_send_bytes:
            sender.block()
            return 0
        size = sender.queue(data)
        self.account()
        return size

    def account(self) -> None:
        """Tell the node how much of what was sent is still held."""
        held = self.sender.held_bytes if self.state is not State.CLOSED else 0
        if held != self._accounted:
            self._owner.queued_bytes += held - self._accounted
            self._accounted = held

    def receive(self, limit: int) -> bytes:
        """Up to `limit` bytes; b"" when there are none, of which `eof` says whether there ever will be."""
        receiver = self.receiver
        if receiver is None or limit <= 0:
            return b""
        data = receiver.read(limit, self._owner.now, self.sender.rtt.srtt)
        if receiver.ack_now and self.state in MAY_RECEIVE:
            self._owner.ready[self] = None
        return data

    def send_eof(self) -> None:
        """Nothing more will be sent; receiving goes on."""
        if self.sender.fin_queued or self.state in (State.CLOSED, State.TIME_WAIT):
            return
        self.sender.fin_queued = True
        if self.state in MAY_SEND:
            self._enter(Input.FINISH)
        self._owner.ready[self] = None

    def close(self) -> None:
        """Both directions are over for the user; what was sent is still delivered.  Unread input makes it a reset."""
        if self.state in (State.CLOSED, State.TIME_WAIT) or self._user_closed:
            return
        if self.state is State.LISTEN:
            self.refuse()
        elif self.state is State.SYN_SENT:
            self._finish(End.ABORTED, Input.ABORT)
        elif self.readable_bytes:
            self.abort()
        else:
            self._user_closed = True
            self.send_eof()
            if self.state is State.FIN_WAIT_2:
                self._close_at = self._owner.now + self._owner.limits.fin_wait_seconds

    def abort(self) -> None:
        """Reset it at once.  What was not delivered is lost."""
        if self.state in SYNCHRONIZED and self.state is not State.TIME_WAIT:
            self._reset()
        elif self.state is State.LISTEN:
            self.refuse()
        elif self.state is not State.CLOSED:
            self._finish(End.ABORTED, Input.ABORT)

    def _reset(self, end: End = End.ABORTED) -> None:
        self._reset_seq = (self.sender.board.nxt, self._acknowledged_number(), RST | ACK)
        self._owner.counters.resets_sent += 1
        self._finish(end, Input.ABORT)

    def connect(self) -> None:
        """The stack's: this is a dial.  Its SYN goes out after `start`."""
        self._enter(Input.CONNECT)

    def start(self) -> None:
        """The stack's: send the SYN now."""
        self._handshake.begin()
        self._owner.ready[self] = None

    def accept(self) -> None:
        """Answer the SYN of a connection in LISTEN."""
        if self.state is State.CLOSED:
            return  # the peer gave up meanwhile, which its event tells
        self._enter(Input.ACCEPT)
        self._close_at = None
        self.start()

    def refuse(self) -> None:
        """Answer the SYN of a connection in LISTEN with a reset."""
        if self.state is State.LISTEN:
            self._reset_seq = (0, self._handshake.irs + 1, RST | ACK)
            self._owner.counters.refused += 1
            self._finish(End.ABORTED, Input.ABORT)

    # --- states ---

    def _enter(self, by: Input) -> bool:
        """One step of the table.  True where the state changed."""
        after = TABLE[self.state][by]
        if after is Fault.LOCAL:
            raise LocalProtocolError(f"{by.value}, but the connection is in {self.state.value}")
        if isinstance(after, Fault):
            return False
        self.state = after
        owner = self._owner
        if after is State.FIN_WAIT_2 and self._user_closed:
            self._close_at = owner.now + owner.limits.fin_wait_seconds
        elif after is State.TIME_WAIT:
            self._close_at = owner.now + owner.limits.time_wait_seconds
            self.end = End.CLOSED
            self._release()
            self._tell(_CLOSED)
            owner.rest(self)
        return True

    def _finish(self, end: End, by: Input) -> None:
        """The connection is CLOSED."""
        told = self.state is State.TIME_WAIT
        if not self._enter(by):
            return
        self.end = end
        self._handshake.at = self._close_at = None
        self._handshake.due = False
        self.eof = True
        self._release()
        if not told:
            self._tell(_CLOSED if end is End.CLOSED else _CLOSED | _RESET)
        self.account()
        self._owner.ready[self] = None
        self._owner.forget(self)

    def _release(self) -> None:
        """Give back what the connection holds, except what its reader may still want."""
        self.sender.drop_unsent()
        if self.receiver is not None:
            self._owner.return_memory(self.receiver.stop())

    def _tell(self, what: int) -> None:
        if not self.pending:
            self._owner.happened(self, what)
        self.pending |= what

    # --- the handshake ---

    def receive_first_syn(self, seq: int, options: SynOptions) -> None:
        """The stack's: a SYN for a listener."""
        self._enter(Input.SYN)
        self._take_syn(seq, options)
        self._close_at = self._owner.now + self._owner.limits.connect_seconds
        self._owner.ready[self] = None

    def _take_syn(self, seq: int, options: SynOptions) -> None:
        owner, handshake = self._owner, self._handshake
        handshake.irs, handshake.peer = seq, options
        self.receiver = Receiver(seq, handshake.mss, owner.limits, owner.grant_memory)
        if options.window_scale is not None:
            self._out_scale = options.window_scale

    def _establish(self, seq: int, window: int) -> None:
        """Our SYN was acknowledged, and theirs is here."""
        owner, handshake, receiver, sender = self._owner, self._handshake, self.receiver, self.sender
        assert receiver is not None
        peer = handshake.peer
        if peer.window_scale is not None:
            receiver.scale = WINDOW_SCALE
        mss = min(peer.mss, handshake.mss)
        sender.begin(mss, sack=peer.sack_permitted, window=window, seq=seq, now=owner.now)
        rtt = handshake.end(owner.now)
        if rtt is not None:
            sender.rtt.add(rtt)
            sender.board.min_rtt = rtt
        if sender.fin_queued:
            self._enter(Input.FINISH)
        self._tell(_CONNECTED | _WRITABLE)
        owner.established(self)

    def _receive_in_syn_sent(self, seq: int, ack: int, flags: int, window: int, options: Packet) -> None:
        """RFC 9293 section 3.10.7.3."""
        owner = self._owner
        acceptable = bool(flags & ACK) and not (ack - self._handshake.iss - 1) & _MASK
        if flags & ACK and not acceptable:
            if not flags & RST:
                self._reset_seq = (ack, 0, RST)
                owner.ready[self] = None
            owner.counters.drops[Drop.BAD_ACK] += 1
            return
        if flags & RST:
            if acceptable:
                self._finish(End.REFUSED, Input.RST)
            else:
                owner.counters.drops[Drop.NO_ACK] += 1
            return
        if not flags & SYN:
            owner.counters.drops[Drop.NO_ACK] += 1
            return
        parsed = parse_syn_options(options)
        if parsed is None:
            owner.counters.drops[Drop.MALFORMED_TCP] += 1
            return
        self._take_syn(seq, parsed)
        assert self.receiver is not None
        if acceptable:
            self._enter(Input.SYN_ACK)
            self._establish(seq, window)
            self.receiver.ack_now = True
        else:  # both dialled at once
            self._enter(Input.SYN)
            self._handshake.due = True
        owner.ready[self] = None

    # --- segments ---

    def receive_segment(
        self, packet: Packet, seq: int, ack: int, flags: int, window: int, end: int, now: float
    ) -> None:
        """The stack's: a segment whose header length is sound.  Numbers and window as they stand on the wire; `flags`
        with the header length; the payload ends at `end`."""
        receiver = self.receiver
        if self.state is _ESTABLISHED and flags & _PLAIN_MASK == _PLAIN:
            assert receiver is not None
            reassembly, sender = receiver.reassembly, self.sender
            nxt = reassembly.nxt
            size = end - PAYLOAD_AT
            if not (seq - nxt) & _MASK and nxt + size <= receiver.edge:
                # The segment that was expected.
                self.heard_at = now
                una = sender.board.una
                window <<= self._out_scale
                if (ack - una) & _MASK or window != sender.window or not size:
                    number = unwrap(ack, una)
                    if una <= number <= sender.board.nxt:
                        sender.on_ack(number, nxt, window, (), size, now)
                        if sender.unblocked():
                            self._tell(_WRITABLE)
                    elif not self._tolerates_ack(number, now):
                        return
                if size:
                    # In order, so it is never one piece too many.
                    receiver.receive(nxt, packet[PAYLOAD_AT:end], now, push=bool(flags & PSH))
                    if self._fin_at is not None or not self.pending & _READABLE:
                        self._received()
                self._owner.ready[self] = None
                return
        self._receive_slowly(packet, seq, ack, flags, window, end, now)

    def _receive_slowly(
        self, packet: Packet, seq: int, ack: int, flags: int, window: int, end: int, now: float
    ) -> None:
        """RFC 9293 section 3.10.7.4 in its order."""
        owner, receiver = self._owner, self.receiver
        data_at = HEADER_BYTES + (flags >> 12) * 4
        options = packet[PAYLOAD_AT:data_at]
        if self.state is State.SYN_SENT:
            self._receive_in_syn_sent(seq, ack, flags, window, options)
            return
        if self.state is State.LISTEN or receiver is None:
            if flags & RST and (seq - self._handshake.irs - 1) & _MASK == 0:
                self._finish(End.RESET, Input.RST)
            return  # the SYN again, while the user thinks about it
        nxt = receiver.reassembly.nxt
        number = unwrap(seq, nxt)
        size = end - data_at
        if not self._is_acceptable(number, size + bool(flags & SYN) + bool(flags & FIN), flags, now):
            return
        if flags & RST:
            if number == nxt:
                owner.counters.resets_received += 1
                self._finish(End.RESET, Input.RST)
            else:
                self._challenge(Drop.CHALLENGED_RST, now)
            return
        if flags & SYN and not (self.state is State.SYN_RECEIVED and number == self._handshake.irs):
            self._challenge(Drop.CHALLENGED_SYN, now)
            return
        if not flags & ACK:
            owner.counters.drops[Drop.NO_ACK] += 1
            return
        self.heard_at = now
        if not self._receive_ack(ack, number, size, window << self._out_scale, options, now):
            return
        owner.ready[self] = None
        if self.state in MAY_RECEIVE:
            if size or flags & FIN:
                self._receive_payload(packet[data_at:end], number, bool(flags & FIN), bool(flags & PSH), now)
        elif flags & FIN and self.state is State.TIME_WAIT:
            receiver.ack_now = True
            self._close_at = now + owner.limits.time_wait_seconds

    def _is_acceptable(self, number: int, length: int, flags: int, now: float) -> bool:
        """Whether any of the segment is inside the window; else it is answered, if it may be."""
        receiver, drops = self.receiver, self._owner.counters.drops
        assert receiver is not None
        nxt = receiver.reassembly.nxt
        if length == 0:
            if nxt <= number <= receiver.edge:
                return True
        elif number + length > nxt and (number < receiver.edge or number == nxt):
            return True
        drops[Drop.OUTSIDE_WINDOW] += 1
        if flags & RST:
            return False
        if self.state is State.SYN_RECEIVED and flags & SYN and number == self._handshake.irs:
            if flags & ACK:  # both dialled, and the peer has our SYN
                return True
            self._handshake.due = True  # our answer was lost
            self._owner.ready[self] = None
            return False
        if length > 1 and number + length <= nxt:
            # One acknowledgement for a batch of duplicates: that is bounded by what they cost the peer.
            self._owner.counters.duplicate_bytes += length
            receiver.note_duplicate(number, number + length)
            receiver.ack_now = True
            self._owner.ready[self] = None
        else:
            if self.state is State.TIME_WAIT and flags & FIN:
                self._close_at = now + self._owner.limits.time_wait_seconds
            self._challenge(None, now)
        return False

    def _receive_ack(self, ack: int, seq: int, size: int, window: int, options: Packet, now: float) -> bool:
        """False where the rest of the segment is not to be looked at."""
        sender = self.sender
        if self.state is State.SYN_RECEIVED:
            if (ack - self._handshake.iss - 1) & _MASK:
                self._reset_seq = (ack, 0, RST)
                self._owner.ready[self] = None
                self._owner.counters.drops[Drop.BAD_ACK] += 1
                return False
            self._enter(Input.SYN_ACKED)
            self._establish(seq, window)
        board = sender.board
        number = unwrap(ack, board.una)
        if number > board.nxt or number < board.una:
            return self._tolerates_ack(number, now)
        blocks = parse_sack(options) if sender.sack and options else ()
        bad = board.bad_blocks
        sender.on_ack(number, seq, window, blocks, size, now)
        if board.bad_blocks > bad:
            self._owner.counters.drops[Drop.BAD_SACK] += board.bad_blocks - bad
        if sender.unblocked() and not sender.fin_queued:
            self._tell(_WRITABLE)
        if sender.fin_sent and board.is_empty:
            if self.state is State.LAST_ACK:
                self._finish(End.CLOSED, Input.FIN_ACKED)
                return False
            self._enter(Input.FIN_ACKED)
        return True

    def _tolerates_ack(self, number: int, now: float) -> bool:
        """RFC 5961 section 5: what acknowledges what was never sent, or long ago, is answered and otherwise ignored."""
        board = self.sender.board
        if board.una - self.sender.max_window <= number <= board.nxt:
            return True
        self._challenge(Drop.BAD_ACK, now)
        return False

    def _receive_payload(self, data: Packet, number: int, fin: bool, push: bool, now: float) -> None:
        owner, receiver = self._owner, self.receiver
        assert receiver is not None
        reassembly = receiver.reassembly
        end = number + len(data)
        last = receiver.edge if self._fin_at is None else min(receiver.edge, self._fin_at)
        if end > last:
            owner.counters.drops[Drop.BEYOND_WINDOW] += 1
            data, end, fin = data[: max(last - number, 0)], last, False
            receiver.ack_now = True
        if self._user_closed and end > reassembly.nxt:
            owner.counters.drops[Drop.AFTER_CLOSE] += 1
            self._reset()
            return
        if number < reassembly.nxt and len(data):
            receiver.note_duplicate(number, min(end, reassembly.nxt))
            owner.counters.duplicate_bytes += min(end, reassembly.nxt) - number
        if len(data) and not receiver.receive(number, data, now, push=push):
            owner.counters.drops[Drop.TOO_MANY_PIECES] += 1
            fin = False
        if fin and self._fin_at is None:
            self._fin_at = end
        if reassembly.pieces and receiver.is_gap_young():
            self.send_ack(self._early)
        self._received()

    def _received(self) -> None:
        """The stream moved on, perhaps to its end."""
        receiver = self.receiver
        assert receiver is not None
        if self._fin_at is not None and receiver.reassembly.nxt >= self._fin_at:
            receiver.reassembly.nxt += 1
            self._fin_at = None
            receiver.ack_now = True
            self.eof = True
            self._tell(_READABLE)
            self._enter(Input.FIN)
        elif receiver.reassembly.waiting:
            self._tell(_READABLE)

    def _challenge(self, reason: Drop | None, now: float) -> None:
        """An acknowledgement that asks a genuine peer to prove itself; so many in a period (RFC 5961 section 7)."""
        if reason is not None:
            self._owner.counters.drops[reason] += 1
        if self.receiver is not None and self._challenges.may_answer(now):
            self._owner.counters.challenges += 1
            self.receiver.ack_now = True
            self._owner.ready[self] = None

    def receive_unreachable(self, sequence: int, *, port: bool) -> None:
        """The stack's: an ICMP error quotes a segment of ours.  It ends only what is not connected (RFC 5927)."""
        if self.state is not State.SYN_SENT or (sequence - self._handshake.iss) & _MASK:
            self._owner.counters.drops[Drop.SIDEWAYS_ERROR] += 1
            return
        self._finish(End.REFUSED if port else End.UNREACHABLE, Input.RST)

    def receive_refusal(self, reason: str) -> None:
        """The stack's: the peer's node says by TSMP why its filter refuses us."""
        if self.state is State.SYN_SENT:
            self.reason = reason
            self._finish(End.REFUSED, Input.RST)

    def receive_too_big(self, sequence: int, mtu: int) -> None:
        """The stack's: a packet was longer than some link takes (RFC 8201); below 1,280 it is not believed."""
        board = self.sender.board
        mss = max(mtu, _MIN_MTU) - PAYLOAD_AT
        if self.state in SYNCHRONIZED and board.una <= unwrap(sequence, board.una) <= board.nxt:
            if mss < self.sender.mss:
                self.sender.recut(mss)
                self._owner.ready[self] = None
        else:
            self._owner.counters.drops[Drop.SIDEWAYS_ERROR] += 1

    def end_rest(self) -> None:
        """The stack's: TIME-WAIT is over."""
        self._finish(End.CLOSED, Input.TIME_OUT)

    def may_be_reused(self, seq: int) -> bool:
        """Whether a SYN with this number may begin anew where this connection rests."""
        nxt = self._acknowledged_number()
        return self.state is State.TIME_WAIT and unwrap(seq, nxt) > nxt

    # --- packets ---

    def _acknowledged_number(self) -> int:
        return self.receiver.reassembly.nxt if self.receiver is not None else 0

    def send_control(self, out: list[bytes], now: float) -> None:
        """Resets, SYNs, probes, and acknowledgements with SACK blocks."""
        out += self._early
        self._early.clear()
        if self._reset_seq is not None:
            seq, ack, flags = self._reset_seq
            self._reset_seq = None
            out.append(self._writer.build(seq, ack, flags, 0))
        if self.state is State.CLOSED:
            return
        receiver, handshake = self.receiver, self._handshake
        if handshake.due:
            offered = receiver.edge - handshake.irs - 1 if receiver is not None else None
            ack, flags, window, options = handshake.segment(now, offered)
            out.append(self._writer.build(handshake.iss, ack, flags, window, options=options))
        if receiver is None or self.state is State.SYN_RECEIVED:
            return
        if self.sender.probe_window or self._keep_alive_due:
            # Below the window, so that the peer answers, and without data, so that nothing has to be sent again.
            self.sender.probe_window = self._keep_alive_due = False
            window = receiver.window()
            out.append(self._writer.build(self.sender.board.una - 1, receiver.reassembly.nxt, ACK, window))
        if receiver.ack_now and (receiver.reassembly.pieces or receiver.duplicate is not None):
            self.send_ack(out)

    def send_data(self, out: list[bytes], budget: int, now: float) -> int:
        """Up to `budget` segments; how many there were."""
        sender, receiver = self.sender, self.receiver
        if receiver is None or self.state not in SYNCHRONIZED:
            return 0
        taken = sender.take(budget, now)
        if not taken:
            return 0
        build = self._writer.build
        ack, window = receiver.reassembly.nxt, receiver.window()
        # PSH on the last of what was written alone: elsewhere it would end the merging that peers do on arrival.
        pushed = sender.board.nxt if not sender.unsent_bytes else -1
        for sent in taken:
            flags = ACK | PSH if sent.end == pushed else ACK
            out.append(build(sent.start, ack, flags | FIN if sent.fin else flags, window, sent.payload))
        receiver.acknowledged()
        self._owner.counters.segments_sent += len(taken)
        return len(taken)

    def send_ack(self, out: list[bytes]) -> None:
        """A segment without data, if the peer is owed one."""
        receiver = self.receiver
        if receiver is None or not receiver.ack_now or self.state is State.CLOSED:
            return
        options = b""
        if self.sender.sack:
            blocks = receiver.reassembly.blocks() if receiver.reassembly.pieces else []
            if self._fin_at is not None:  # the FIN is here as well
                blocks = [(start, end + (end == self._fin_at)) for start, end in blocks]
            if receiver.duplicate is not None:
                blocks.insert(0, receiver.duplicate)
            if blocks:
                options = encode_sack(blocks[:MAX_SACK_BLOCKS])
        receiver.duplicate = None
        window = receiver.window()
        out.append(self._writer.build(self.sender.board.nxt, receiver.reassembly.nxt, ACK, window, b"", options))
        receiver.acknowledged()

    # --- time ---

    def next_deadline(self) -> float | None:
        """When `on_deadline` is due."""
        state = self.state
        if state is State.CLOSED:
            return None
        earliest = self.sender.timeout_at() if state in SYNCHRONIZED else None
        receiver = self.receiver
        for at in (self._handshake.at, self._close_at, receiver.ack_at if receiver is not None else None):
            if at is not None and (earliest is None or at < earliest):
                earliest = at
        if state in MAY_RECEIVE or state is State.CLOSE_WAIT:
            keep_alive = self._keep_alive.at(self.heard_at)
            if earliest is None or keep_alive < earliest:
                earliest = keep_alive
        return earliest

    def on_deadline(self, now: float) -> None:
        """Whatever is due by `now`."""
        owner, limits = self._owner, self._owner.limits
        owner.ready[self] = None
        if self._close_at is not None and self._close_at <= now:
            self._close_at = None
            if self.state is State.LISTEN:
                self.refuse()  # the peer has given up as well
                return
            self._finish(End.CLOSED if self.state is State.TIME_WAIT else End.TIMED_OUT, Input.TIME_OUT)
        if not self._handshake.on_deadline(now):
            owner.counters.timed_out += 1
            self._finish(End.TIMED_OUT, Input.ABORT)
        if self.state is State.CLOSED:
            return
        receiver = self.receiver
        if receiver is not None and receiver.ack_at is not None and receiver.ack_at <= now:
            receiver.ack_at = None
            receiver.ack_now = True
        if self.state in SYNCHRONIZED and not self.sender.on_timeout(now):
            self._give_up()
            return
        if self._user_closed and not self.sender.window and self.sender.unsent_bytes:
            # Nobody is left who could be told to wait.
            if now - self.sender.progress_at >= limits.fin_wait_seconds:
                self._give_up()
        elif self.state in MAY_RECEIVE or self.state is State.CLOSE_WAIT:
            asked = self._keep_alive.on_deadline(now, self.heard_at)
            if asked == GIVE_UP:
                self._give_up()
            elif asked == PROBE:
                self._keep_alive_due = True
                owner.counters.keep_alives += 1

    def _give_up(self) -> None:
        self._owner.counters.timed_out += 1
        self._reset(End.TIMED_OUT)
