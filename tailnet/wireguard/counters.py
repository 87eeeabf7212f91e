"""What a device counts: why it dropped something, and what passed (layer L1).  Plain integers, read when asked."""

from enum import Enum


class Drop(Enum):
    """Why a datagram or a packet goes no further; the label set of its metric."""

    MALFORMED = "malformed"  # too short, of a wrong length, of no known type
    WRONG_MAC1 = "wrong_mac1"  # not for our key
    UNDER_LOAD = "under_load"  # too many handshakes: a cookie was asked for, or not even that
    FORGED_HANDSHAKE = "forged_handshake"  # does not open: made for another key, or with one that its sender has not
    UNKNOWN_PEER = "unknown_peer"  # a proven key that is not configured
    OLD_INITIATION = "old_initiation"  # its time stamp is not newer than the last one: a replay
    TOO_SOON = "too_soon"  # the peer's last initiation was accepted less than 20 ms ago
    UNKNOWN_INDEX = "unknown_index"  # of no session here: long over, or a guess
    UNEXPECTED_RESPONSE = "unexpected_response"  # an answer to something else than what we sent last
    WRONG_COOKIE = "wrong_cookie"  # a cookie reply that does not belong to our last message
    EXPIRED = "expired"  # of a session that is older than 180 s
    REPLAYED = "replayed"  # its counter was seen, or is too old to tell
    FORGED_PACKET = "forged_packet"
    NOT_IPV6 = "not_ipv6"  # what is inside is no whole IPv6 packet
    FOREIGN_SOURCE = "foreign_source"  # the peer sends with an address that is not its own
    STAGED = "staged"  # our own packet, which waited for a session: newer ones took its place, or no answer came


class Counters:
    """Of one device, since it was made."""

    __slots__ = (
        "cookie_replies_received",
        "cookie_replies_sent",
        "drops",
        "initiations_received",
        "initiations_sent",
        "keepalives_sent",
        "packets_received",
        "packets_sent",
        "responses_received",
        "responses_sent",
    )

    def __init__(self) -> None:
        self.drops = dict.fromkeys(Drop, 0)
        self.initiations_sent = self.initiations_received = 0
        self.responses_sent = self.responses_received = 0
        self.cookie_replies_sent = self.cookie_replies_received = 0
        self.keepalives_sent = 0
        self.packets_sent = self.packets_received = 0
        """With something inside; those received include the ones dropped as NOT_IPV6 or FOREIGN_SOURCE."""
