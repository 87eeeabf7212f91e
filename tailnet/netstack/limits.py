"""Bounds of the netstack with their reasons, the reasons of what it drops, and its counts.  Layer L1."""

from collections import Counter
from dataclasses import dataclass
from enum import Enum


class Drop(Enum):
    """Why a packet, or a part of one, was not taken.  The values are labels of a metric."""

    TRUNCATED = "truncated"
    NOT_IPV6 = "not_ipv6"
    NOT_FOR_US = "not_for_us"
    BAD_SOURCE = "bad_source"
    FRAGMENT = "fragment"
    EXTENSION_HEADER = "extension_header"
    UNKNOWN_PROTOCOL = "unknown_protocol"
    BAD_CHECKSUM = "bad_checksum"
    MALFORMED_TCP = "malformed_tcp"
    MALFORMED_UDP = "malformed_udp"
    MALFORMED_ICMP = "malformed_icmp"
    MALFORMED_TSMP = "malformed_tsmp"
    RATE_LIMITED = "rate_limited"
    NO_CONNECTION = "no_connection"
    NO_LISTENER = "no_listener"
    BACKLOG_FULL = "backlog_full"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    OUTSIDE_WINDOW = "outside_window"
    BAD_ACK = "bad_ack"
    CHALLENGED_RST = "challenged_rst"
    CHALLENGED_SYN = "challenged_syn"
    NO_ACK = "no_ack"
    BEYOND_WINDOW = "beyond_window"
    TOO_MANY_PIECES = "too_many_pieces"
    AFTER_CLOSE = "after_close"
    BAD_SACK = "bad_sack"
    UDP_QUEUE_FULL = "udp_queue_full"
    SIDEWAYS_ERROR = "sideways_error"


@dataclass(frozen=True, slots=True)
class KeepAliveTimes:
    """When a peer that says nothing is asked whether it lives, and when it is given up.  In seconds."""

    idle: float
    """Of silence, before the first question."""
    interval: float
    """Between questions without an answer."""
    probes: int
    """So many questions; an interval after the last of them the connection ends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one node's stack may hold, and how long it waits.  Sizes in bytes, times in seconds."""

    mtu: int = 1280
    """The smallest that IPv6 allows, and the one that every peer inside a tailnet uses."""
    verify_checksums: bool = True
    """False where WireGuard has authenticated each packet: the sum of 1,240 bytes costs 1.3 us."""

    min_receive_bytes: int = 64 * 1024
    """The window of a connection whose node has no more memory to give."""
    first_receive_bytes: int = 512 * 1024
    """What genuine peers offer after the handshake: 100 Mbit/s over 40 ms."""
    max_receive_bytes: int = 4 * 1024 * 1024
    """1.3 Gbit/s over 25 ms.  Window scale 7 covers it."""
    min_send_bytes: int = 64 * 1024
    max_send_bytes: int = 4 * 1024 * 1024
    total_send_bytes: int = 256 * 1024 * 1024
    """Of all connections; beyond it each may hold `min_send_bytes`: readers that stand still hold what was sent."""
    total_receive_bytes: int = 256 * 1024 * 1024
    """Windows of all connections beyond `min_receive_bytes` each: a window that was offered can be filled."""
    max_pieces: int = 4096
    """Out-of-order pieces of a connection: a full window of 4 MiB in segments of 1,220 bytes has 3,438."""

    max_connections: int = 16_384
    max_connections_per_peer: int = 8_192
    """Half of them, so that one peer leaves room for the others."""
    max_half_open: int = 4_096
    max_half_open_per_peer: int = 2_048
    """Genuine stacks give one client two thirds of 8,192; 200 dials at once are the most that was seen."""
    max_time_wait: int = 8_192
    """More, and the oldest ends early: 60 s at 136 closes a second."""
    dials_in_flight: int = 16
    """SYNs under way to one peer: 200 at once cost 187 retransmissions in a relay's queue of 32."""

    burst_segments: int = 16
    """Sent to one peer at once, until the path says more: half of the queue of 32 that a relay has for a receiver."""
    min_pacing_seconds: float = 0.001
    """A wake-up costs 20 us; a shorter wait would be most of its own cost."""

    first_rto: float = 1.0
    min_rto: float = 0.2
    max_rto: float = 60.0
    delayed_ack_seconds: float = 0.025
    give_up_seconds: float = 100.0
    """R2 of RFC 9293: no progress for this long ends a connection that has something to send."""
    connect_seconds: float = 63.0
    """Six retransmissions of a SYN, the first after 1 s and each twice as late as the one before."""
    time_wait_seconds: float = 60.0
    fin_wait_seconds: float = 60.0
    """After `close` the peer has this long to send its FIN."""
    keep_alive: KeepAliveTimes = KeepAliveTimes(7200.0, 75.0, 9)
    """As genuine stacks have it, until the user of a connection wants another."""

    challenges_per_period: int = 10
    challenge_period_seconds: float = 5.0
    """RFC 5961 asks for a bound: an answer to what a forger sends costs both sides a packet."""
    replies_per_second: float = 10.0
    replies_burst: int = 20
    """Echo replies, ICMP errors and resets without a connection, to one peer."""
    max_reply_buckets: int = 4_096

    udp_queue_bytes: int = 256 * 1024
    """What waits for the reader of one port: DNS answers of a burst."""
    udp_queue_datagrams: int = 512


class Counters:
    """Plain integers, raised where it happens."""

    __slots__ = (
        "accepted",
        "challenges",
        "connected",
        "drops",
        "duplicate_bytes",
        "keep_alives",
        "packets_received",
        "packets_sent",
        "probes",
        "refused",
        "resets_received",
        "resets_sent",
        "retransmissions",
        "rtos",
        "segments_received",
        "segments_sent",
        "spurious_recoveries",
        "tail_probes",
        "timed_out",
    )

    def __init__(self) -> None:
        self.drops: Counter[Drop] = Counter()
        for name in self.__slots__:
            if name != "drops":
                setattr(self, name, 0)

    accepted: int
    challenges: int
    connected: int
    drops: Counter[Drop]
    duplicate_bytes: int
    keep_alives: int
    packets_received: int
    packets_sent: int
    probes: int
    refused: int
    resets_received: int
    resets_sent: int
    retransmissions: int
    rtos: int
    segments_received: int
    segments_sent: int
    spurious_recoveries: int
    tail_probes: int
    timed_out: int
