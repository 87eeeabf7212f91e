"""What the paths count: why a disco message was dropped, and what was said (layer L1)."""

from enum import Enum


class Drop(Enum):
    """Why a disco message has no effect; the label set of its metric."""

    UNKNOWN_SENDER = "unknown_sender"  # a disco key that no configured peer has
    FORGED = "forged"  # the box does not open
    MALFORMED = "malformed"  # it opens, and holds nothing that we know
    WRONG_NODE = "wrong_node"  # sender's disco key and node key are not of one peer
    UNUSABLE_SOURCE = "unusable_source"  # a ping from where nothing can be sent: port 0, link-local, inside a tailnet
    DUPLICATE = "duplicate"  # a ping that came from there before
    UNEXPECTED_PONG = "unexpected_pong"  # to no ping of ours within 5 s
    WRONG_WAY = "wrong_way"  # call-me-maybe that did not come by a relay
    BUDGET = "budget"  # the peer has us say more than we say


class Counters:
    """Of one node, since it was made."""

    __slots__ = (
        "calls_received",
        "calls_sent",
        "drops",
        "pings_received",
        "pings_saved",
        "pings_sent",
        "pongs_received",
        "pongs_sent",
    )

    def __init__(self) -> None:
        self.drops = dict.fromkeys(Drop, 0)
        self.pings_sent = self.pings_received = 0
        self.pongs_sent = self.pongs_received = 0
        self.calls_sent = self.calls_received = 0
        self.pings_saved = 0
        """Pings that a budget did not allow."""
