"""One QUIC connection without its socket, for the relay and for its clients: aioquic behind one file.  Layer L2.

Bytes of the control stream and datagrams in and out, places, deadlines: whoever owns the socket (quic_wire.py,
quic_client.py) drives it.  aioquic's own bounds are for the web, and parts of it that are private are used to hold
tighter ones: hence its narrow range in pyproject.toml.  What travels how is decided in protocol/quic.py.
"""

import logging
import os
import ssl
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from math import inf
from typing import Any, Final, NamedTuple

from aioquic import tls
from aioquic._buffer import Buffer  # which aioquic.buffer passes on without saying so
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.recovery import QuicPacketPacer
from aioquic.quic.retry import QuicRetryTokenHandler
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from derp.close_reason import CloseReason
from derp.errors import ConfigError
from derp.protocol.quic import ALPN, DATAGRAM_BYTES, UDP_BYTES, ResetTokens, cut, is_reset
from derp.text import error_text, printable
from derp.transport.host import Piece, WireEnded
from derp.transport.platform import named_file
from derp.transport.quic_window import FIRST_PACKETS, PacketWindow

# aioquic tells of each connection's every step, and of each bad packet of a stranger.
logging.getLogger("quic").setLevel(logging.CRITICAL)
_window: Any = PacketWindow  # which asks for less than aioquic's own type, and is called in the same way
register_congestion_control("derp", _window)

# What a peer may send into the stream before we have taken it: a frame of the longest packet, and as much again.
STREAM_BYTES: Final = 128 * 1024
# What may wait in a connection beyond what the path takes now: a dozen packets, the least that waits behind a TCP
# socket.  What waits here is out of reach of the queue's drop policy.
SLACK_BYTES: Final = 16 * 1024
# Datagrams that wait while a rate limit keeps their sender from being read: no more than a TCP socket would hold.
_MAX_HELD: Final = 256
# Nothing from the other side for so long: it is gone.  Clients send something every 15 s.
IDLE_SECONDS: Final = 45.0
PING_SECONDS: Final = 15.0
ID_BYTES: Final = 8
# What comes within a quarter of a round trip is acknowledged together, between these bounds: we announce 25 ms, and no
# queue on the way is seen in so little (quic_window.py).  At 20 Mbit/s over 20 ms a packet costs its two ends 70 us;
# with aioquic's millisecond it is 96, since every second one is acknowledged alone.
_ACK_SHARE: Final = 0.25
_LEAST_ACK_SECONDS: Final = 0.001
_MOST_ACK_SECONDS: Final = 0.008
# RFC 9000 section 14.1: what does not fill so much of a datagram is no first packet.
_LEAST_FIRST_BYTES: Final = 1200
_STREAM: Final = 0  # the client's first bidirectional one
_VERSIONS: Final = [QuicProtocolVersion.VERSION_1.value]


class Place(NamedTuple):
    """Where a datagram came from, and what `sendmsg` needs to answer from the address to which it came."""

    source: tuple[Any, ...]
    via: tuple[tuple[int, int, bytes], ...] = ()


class HeadKind(Enum):
    """What a datagram that belongs to no connection is."""

    FIRST = "first"
    UNKNOWN_VERSION = "unknown version"
    OTHER = "other"


class Head(NamedTuple):
    """What is readable of a datagram's first packet."""

    kind: HeadKind
    destination: bytes
    source: bytes
    version: int
    token: bytes


def connection_id(datagram: bytes) -> bytes:
    """The connection that a datagram says it is for: of those we made the names of."""
    if datagram[0] & 0x80:
        return datagram[6 : 6 + ID_BYTES] if datagram[5:6] == bytes([ID_BYTES]) else b""
    return datagram[1 : 1 + ID_BYTES]


def read_head(datagram: bytes) -> Head | None:
    """Of a datagram for no connection that we know; None if it is no QUIC."""
    try:
        header = pull_quic_header(Buffer(data=datagram), host_cid_length=ID_BYTES)
    except ValueError:
        return None
    kind = HeadKind.OTHER
    if header.packet_type is QuicPacketType.VERSION_NEGOTIATION or header.version is None:
        pass  # answered, two servers could be made to talk to each other for ever
    elif header.version not in _VERSIONS:
        # Answered only when it is as long as a first packet has to be, so nothing is amplified.
        kind = HeadKind.UNKNOWN_VERSION if len(datagram) >= _LEAST_FIRST_BYTES else HeadKind.OTHER
    elif header.packet_type is QuicPacketType.INITIAL and len(datagram) >= _LEAST_FIRST_BYTES:
        kind = HeadKind.FIRST
    return Head(kind, header.destination_cid, header.source_cid, header.version or 0, header.token)


# A sleep shorter than this costs more than it spreads: at 20 Mbit/s four packets leave together.
_PACE_SECONDS: Final = 0.002
# What a sender that was held up may make good for at once, and whoever was silent may send: RFC 9002's ten packets, or
# 10 ms of the rate, as timers of a busy machine are late by so much.
_BURST_SECONDS: Final = 0.01


class _Pacer(QuicPacketPacer):
    """Has packets leave at the window's own rate, in small bursts (RFC 9002 section 7.7)."""

    def __init__(self, window: PacketWindow) -> None:
        super().__init__(max_datagram_size=UDP_BYTES)
        self._window = window
        self.credit_bytes = inf
        """What may leave now."""
        self._credited_at = 0.0

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """The window has a rate of its own."""

    def next_send_time(self, now: float) -> Any:  # None for at once, as aioquic has it too
        rate = self._window.pacing_rate
        if rate == inf:
            return None
        most = max(FIRST_PACKETS * UDP_BYTES, rate * _BURST_SECONDS)
        self.credit_bytes = min(self.credit_bytes + (now - self._credited_at) * rate, most)
        self._credited_at = now
        return None if self.credit_bytes > 0 else now + max(_PACE_SECONDS, -self.credit_bytes / rate)

    def update_after_send(self, now: float) -> None:
        self.credit_bytes -= UDP_BYTES

    def settle(self, datagrams: Sequence[tuple[bytes, Any]]) -> None:
        """Each of these was taken for a full one."""
        self.credit_bytes += len(datagrams) * UDP_BYTES - sum(len(datagram) for datagram, _ in datagrams)


class _Connection(QuicConnection):
    """With a stream whose window slides by what was taken: aioquic's doubles for ever, so that after a gigabyte a peer
    may have us keep another one, and nothing slows it down."""

    def __init__(self, tokens: ResetTokens | None = None, **arguments: Any) -> None:
        """`tokens`: of a server."""
        super().__init__(**arguments)
        is_client = self.configuration.is_client
        self._tokens = tokens
        self._name_resets()
        self.taken_bytes = 0
        recovery: Any = self._loss
        self.window: PacketWindow = recovery._cc
        recovery._pacer = self.pacer = _Pacer(self.window)
        self.window.path_rtt = lambda: recovery._rtt_latest
        # The peer opens no streams but the client its one.
        for limit, count in ((self._local_max_streams_bidi, 0 if is_client else 1), (self._local_max_streams_uni, 0)):
            limit.value = limit.sent = count

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        self._name_resets()

    def _name_resets(self) -> None:
        """aioquic draws the tokens of connection IDs, and nobody would know them after a crash."""
        if self._tokens is not None:
            for name in self._host_cids:
                name.stateless_reset_token = self._tokens.token(name.cid)

    def _write_stream_limits(self, builder: Any, space: Any, stream: Any) -> None:
        if stream.stream_id != _STREAM:
            return
        wanted = self.taken_bytes + STREAM_BYTES
        sent = stream.max_stream_data_local_sent
        # 0: what we sent was lost.  Else told when half of it is used up, not for every packet.
        if sent and wanted - sent < STREAM_BYTES // 2:
            return
        # What this calls doubles the limit first if more than half of it is used.
        doubles = stream.receiver.highest_offset * 4 > wanted
        stream.max_stream_data_local = wanted // 2 if doubles else wanted
        super()._write_stream_limits(builder, space, stream)


class QuicLine:
    """One connection.  After `receive`, `handle_timeout` or anything that sends, its owner transmits what
    `datagrams_to_send` gives, and asks `next_timeout`."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._received = bytearray()
        self._pending_bytes = 0
        self._has_ended_output = False
        self._is_urgent = True
        self.packets: list[bytes] = []
        """Datagrams that came and were not taken yet."""
        self.dropped_count = 0
        """Datagrams for which there was no room in `packets`."""
        self.is_open = False
        """Whether the handshake is done."""
        self.has_peer_ended = False
        """No more bytes come in the stream."""
        self.ended: WireEnded | None = None
        """Set when the connection is no more, by whoever ended it."""
        self.names: set[bytes] = {connection.host_cid, connection.original_destination_connection_id}
        """The connection IDs under which datagrams for it come."""
        self.new_names: list[bytes] = [*self.names]
        self.old_names: list[bytes] = []
        """What became of `names` since the owner last emptied both."""

    # --- receiving

    def receive(self, datagram: bytes, place: Place, now: float) -> None:
        """Take a datagram of this connection."""
        connection = self._connection
        if connection.configuration.is_client and is_reset(datagram, connection._peer_cid.stateless_reset_token):
            self.ended = self.ended or WireEnded(CloseReason.SOCKET_FAILED, "the relay has started anew")
            return
        count = len(self.packets)
        connection.receive_datagram(datagram, place, now)
        self._note_events()
        if len(self.packets) == count:
            self._is_urgent = True

    def take_stream(self, most_bytes: int) -> bytes:
        """Bytes of the stream, which the peer may then replace by new ones."""
        taken = bytes(self._received[:most_bytes])
        del self._received[:most_bytes]
        self._connection.taken_bytes += len(taken)
        self._is_urgent = True
        return taken

    @property
    def has_stream(self) -> bool:
        """Whether `take_stream` gives anything."""
        return bool(self._received)

    def _note_events(self) -> None:
        while (event := self._connection.next_event()) is not None:
            match event:
                case events.DatagramFrameReceived(data=data):
                    if len(self.packets) < _MAX_HELD:
                        self.packets.append(data)
                    else:
                        self.dropped_count += 1
                    continue
                case events.StreamDataReceived(data=data, end_stream=is_last):
                    self._received += data
                    self.has_peer_ended |= is_last
                case events.HandshakeCompleted():
                    self.is_open = True
                case events.ConnectionIdIssued(connection_id=name):
                    self.names.add(name)
                    self.new_names.append(name)
                case events.ConnectionIdRetired(connection_id=name):
                    self.names.discard(name)
                    self.old_names.append(name)
                case events.StreamReset() | events.StopSendingReceived():
                    self.close(CloseReason.PROTOCOL_ERROR, "the control stream was reset")
                case events.ConnectionTerminated(error_code=code, reason_phrase=text):
                    self.ended = self.ended or _ending(code, text, is_open=self.is_open)
            self._is_urgent = True
        closing = self._connection._close_event
        if closing is not None and self.ended is None:
            # By aioquic itself, for what the peer did: its event comes some round trips later.
            self.ended = _ending(closing.error_code, closing.reason_phrase, is_open=self.is_open)

    # --- sending

    def send_stream(self, data: Piece) -> None:
        """Put bytes into the stream, in order; nothing is lost on the way."""
        if not self._has_ended_output and self.ended is None:
            self._connection.send_stream_data(_STREAM, bytes(data))
            self._pending_bytes += len(data)

    def send_frames(self, frames: Piece) -> None:
        """Send whole frames: packets that fit as datagrams, anything else in the stream."""
        datagrams, pieces = cut(memoryview(frames), self._datagram_bytes)
        for datagram in datagrams:
            self._connection.send_datagram_frame(datagram)
            self._pending_bytes += len(datagram)
        if pieces:
            self.send_stream(b"".join(pieces))

    def send_datagram(self, datagram: bytes) -> None:
        """Send one datagram that is no frame."""
        if self._datagram_bytes:
            self._connection.send_datagram_frame(datagram)
            self._is_urgent = True

    @property
    def _datagram_bytes(self) -> int:
        allowed = self._connection._remote_max_datagram_frame_size
        # The frame's own head counts for that limit.
        return min(DATAGRAM_BYTES, allowed - 3) if allowed is not None and allowed > 3 else 0

    @property
    def has_room(self) -> bool:
        """Whether more may be sent: what waits is not much more than what the path takes now."""
        recovery = self._connection._loss
        free = min(recovery.congestion_window - recovery.bytes_in_flight, self._connection.pacer.credit_bytes)
        return bool(self._pending_bytes < max(free, 0) + SLACK_BYTES)

    @property
    def has_unsent(self) -> bool:
        """Whether bytes of the stream are not acknowledged yet, or its end."""
        stream = self._connection._streams.get(_STREAM)
        return stream is not None and (bool(stream.sender._buffer) or not stream.sender.buffer_is_empty)

    def ping(self) -> None:
        """Have the peer show that it is there, and routers on the way keep what they know of us."""
        self._connection.send_ping(0)
        self._is_urgent = True

    def change_address(self) -> None:
        """Our own address has changed: go on under another name, so that nobody on the way can tell who we are."""
        self._connection.change_connection_id()
        self.ping()

    def end_output(self) -> None:
        """Tell the peer that no more bytes come in the stream."""
        if not self._has_ended_output and self.ended is None:
            if self.is_open:
                self._connection.send_stream_data(_STREAM, b"", end_stream=True)
            self._has_ended_output = self._is_urgent = True

    def close(self, reason: CloseReason, text: str = "") -> None:
        """End the connection; the next `datagrams_to_send` tells the peer."""
        self.ended = self.ended or WireEnded(reason, text)
        if reason is CloseReason.PROTOCOL_ERROR:
            code, frame = QuicErrorCode.PROTOCOL_VIOLATION, QuicFrameType.PADDING  # which stands for any
            self._connection.close(error_code=code, frame_type=frame, reason_phrase=text[:100])
        else:
            self._connection.close(error_code=QuicErrorCode.NO_ERROR, reason_phrase=text[:100])

    @property
    def may_wait(self) -> bool:
        """Whether nothing is to be sent before `next_timeout`: only packets came, which are acknowledged then, and
        nothing waits to be sent.  To find that out by `datagrams_to_send` costs 15 us, more than half of a receive."""
        return not (self._is_urgent or self._pending_bytes or self.ended)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Place]]:
        """What to transmit, each to its place."""
        connection = self._connection
        delay = _ACK_SHARE * self.rtt_seconds
        connection._ack_delay = min(max(delay, _LEAST_ACK_SECONDS), _MOST_ACK_SECONDS)
        self._is_urgent = False
        datagrams: list[tuple[bytes, Place]] = connection.datagrams_to_send(now)
        connection.pacer.settle(datagrams)
        self._note_events()
        stream = connection._streams.get(_STREAM)
        self._pending_bytes = sum(map(len, connection._datagrams_pending))
        if stream is not None:
            self._pending_bytes += sum(each.stop - each.start for each in stream.sender._pending)
        if not self._pending_bytes:
            connection.window.note_idle()
        return datagrams

    # --- time

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`."""
        at: float | None = self._connection.get_timer()
        return at

    def handle_timeout(self, now: float) -> None:
        """Do what is due by `now`: packets counted as lost, or the end."""
        at = self._connection.get_timer()
        if at is not None and at <= now:
            self._is_urgent = True
            self._connection.handle_timer(now)
            self._note_events()

    # --- about it

    @property
    def place(self) -> Place | None:
        """Where the peer is now."""
        place: Place | None = self._connection.get_peer_address()
        return place

    @property
    def rtt_seconds(self) -> float:
        """The smoothed round-trip time; 0.0 while nothing was measured."""
        return float(self._connection._loss._rtt_smoothed)

    def peer_chain(self) -> list[bytes]:
        """The peer's certificates as DER, leaf first."""
        context = self._connection.tls
        found = [context._peer_certificate, *context._peer_certificate_chain]
        return [one.public_bytes(Encoding.DER) for one in found if one is not None]


class QuicDoor:
    """The server's side of what is not a connection, yet or any more.  `configure` it before anything else."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: the relay's own, from one start to the next."""
        self._tokens = ResetTokens(secret, os.urandom)
        self._configuration: QuicConfiguration | None = None
        self._retry = QuicRetryTokenHandler()

    def configure(self, chain: bytes, key: bytes) -> None:
        """Show this certificate from now on, both PEM, leaf first.  ConfigError says why it cannot be."""
        try:
            certificates = x509.load_pem_x509_certificates(chain)
            private = tls.load_pem_private_key(key)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"QUIC cannot show the certificate of TLS: {error_text(error)}") from error
        self._configuration = _configuration(
            is_client=False, certificate=certificates[0], certificate_chain=certificates[1:], private_key=private
        )

    def negotiate(self, head: Head) -> bytes:
        """The answer to a version that we do not speak."""
        answer: bytes = encode_quic_version_negotiation(
            source_cid=head.destination, destination_cid=head.source, supported_versions=_VERSIONS
        )
        return answer

    def ask_again(self, head: Head, place: Place, now: float) -> bytes:
        """A Retry: have the client show that it gets what is sent to its address, before it costs us anything."""
        name = os.urandom(ID_BYTES)
        token = self._retry.create_token(
            address=place.source,
            original_destination_connection_id=head.destination,
            retry_source_connection_id=name,
            now=now,
        )
        answer: bytes = encode_quic_retry(
            version=head.version,
            source_cid=name,
            destination_cid=head.source,
            original_destination_cid=head.destination,
            retry_token=token,
        )
        return answer

    def reset(self, datagram: bytes) -> bytes | None:
        """What tells its sender that the connection is no more; None for what no client of ours would have sent."""
        return self._tokens.reset(datagram, connection_id(datagram))

    def accept(self, head: Head, place: Place, now: float) -> QuicLine | None:
        """A connection for this first packet, which is to be given to it; None if its token is not one of ours."""
        original, retried = head.destination, None
        if head.token:
            try:
                original = self._retry.validate_token(
                    address=place.source, destination_cid=head.destination, token=head.token, now=now
                )
            except ValueError:
                return None
            retried = head.destination
        line = QuicLine(
            _Connection(
                self._tokens,
                configuration=self._configuration,
                original_destination_connection_id=original,
                retry_source_connection_id=retried,
            )
        )
        line.names.add(head.destination)
        line.new_names = [*line.names]
        return line


def dial(place: Place, server_name: str, now: float, *, alpn: str = ALPN) -> QuicLine:
    """The client's side of a connection; it has begun.  Whoever dials checks `peer_chain` when it is open: nothing of
    the certificate has been looked at then, but that the peer has its key."""
    connection = _Connection(
        configuration=_configuration(
            alpn_protocols=[alpn], is_client=True, server_name=server_name or None, verify_mode=ssl.CERT_NONE
        )
    )
    connection.connect(place, now)
    return QuicLine(connection)


def check_chain(chain: Sequence[bytes], context: ssl.SSLContext) -> str:
    """Why a peer's certificates are not to be trusted by the roots of a context; empty if they are."""
    if context.verify_mode == ssl.CERT_NONE:
        return ""
    roots = b"".join(ssl.DER_cert_to_PEM_cert(root).encode() for root in context.get_ca_certs(binary_form=True))
    # Without any it goes by the folder of the system's, of which it tells nothing before it has looked into it.
    folder = ssl.get_default_verify_paths().capath if not roots else None
    try:
        leaf, *others = (x509.load_der_x509_certificate(one) for one in chain)
        with named_file(roots) as path:  # OpenSSL reads them: some of the system's are too old for cryptography
            tls.verify_certificate(leaf, others, cafile=path if roots else None, capath=folder)
    except (ValueError, tls.Alert) as error:
        return error_text(error)
    return ""


def _configuration(**settings: Any) -> QuicConfiguration:
    # No session tickets are issued, nor is any kept: so there is no 0-RTT, whose packets anybody may send again.
    configuration = QuicConfiguration(
        alpn_protocols=[ALPN],
        congestion_control_algorithm="derp",
        connection_id_length=ID_BYTES,
        idle_timeout=IDLE_SECONDS,
        max_datagram_frame_size=65536,
        max_datagram_size=UDP_BYTES,
        max_stream_data=STREAM_BYTES,
        supported_versions=_VERSIONS,
    )
    return replace(configuration, **settings)


def _ending(code: int, text: str, *, is_open: bool) -> WireEnded:
    """Why a connection ended, by the code with which it was closed."""
    text = printable(text, 100)
    if code in (QuicErrorCode.NO_ERROR, QuicErrorCode.APPLICATION_ERROR):
        return WireEnded(CloseReason.CLOSED_BY_PEER, text)
    if text == "Idle timeout":
        return WireEnded(CloseReason.SOCKET_FAILED, f"nothing came for {IDLE_SECONDS:g} s")
    if code >= QuicErrorCode.CRYPTO_ERROR and not is_open:
        return WireEnded(CloseReason.TLS_FAILED, f"QUIC: {text or f'TLS alert {code - QuicErrorCode.CRYPTO_ERROR}'}")
    return WireEnded(CloseReason.PROTOCOL_ERROR, f"QUIC error 0x{code:x}: {text}")
