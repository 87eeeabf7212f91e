"""What goes into the coordinator's brain and what comes out: values only (layer L1).

In: one Request per CoordinateRequest.  Out: effects, to be carried out in list order.  services/hub.py encodes
each Deliver once and hands the same bytes to all its receivers; a receiver whose buffer is full comes back as
handle_overflow.  `C` is whatever the hub uses to name a connection; the core only hashes and returns it.
Numbers and names: CoordinateResponse in proto/tailnet.proto.
"""

from collections.abc import Container, Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Generic, TypeVar

from tailnet.coordinator.nodes import Node
from tailnet.types import PeerID

C = TypeVar("C", bound=Hashable)


class Kind(IntEnum):
    """PeerUpdate.kind on the wire."""

    NODE = 1  # here is the peer's node
    DISCONNECTED = 2  # it said goodbye: the receiver drops it at once, live session or not
    LOST = 3  # it may come back: the receiver keeps a live session for 15 minutes
    READY_FOR_HANDSHAKE = 4  # it has programmed you, so WireGuard may start; never carries a node


# The classes below are not frozen only because a frozen slotted dataclass costs three times as much to make, and one
# is made for each update.  Nobody changes them.


@dataclass(slots=True)
class Update:
    """One PeerUpdate: what a receiver is told about one peer."""

    peer_id: PeerID
    kind: Kind
    node: Node | None
    reason: str


@dataclass(slots=True)
class Request:
    """One CoordinateRequest, ids still as they came.  `node` is update_self.

    `allowed` is the authoriser's answer for add_tunnel, obtained before the request was handed in; only a policy
    with `needs_decision` looks at it.
    """

    node: Node | None = None
    add_tunnel: bytes | None = None
    remove_tunnel: bytes | None = None
    disconnect: bool = False
    ready_for_handshake: Sequence[bytes] = ()
    allowed: Container[bytes] = ()


@dataclass(slots=True)
class Deliver(Generic[C]):
    """Send one CoordinateResponse with these updates, in this order, to each of the receivers."""

    receivers: tuple[C, ...]
    updates: tuple[Update, ...]


@dataclass(slots=True)
class SendError(Generic[C]):
    """Send CoordinateResponse.error; best effort, dropped when the buffer is full."""

    connection: C
    text: str


@dataclass(slots=True)
class EndConnection(Generic[C]):
    """End this connection's stream; the core has already forgotten it."""

    connection: C
    reason: str


class Outward:
    """What other replicas are told (replica/messages.py): only a coordinator that has some says it."""

    __slots__ = ()


Effect = Deliver[C] | SendError[C] | EndConnection[C] | Outward

# One response holds many updates, so that a peer who returns to a thousand tunnels does not fill its response buffer
# (512) with single updates.  dRPC splits messages at 64 KiB, so a larger batch would save nothing and come near the
# 4 MiB at which a receiver gives up.
MAX_BATCH_BYTES: Final = 64 * 1024
# Id, kind, longest reason and the tags around them.
_UPDATE_OVERHEAD_BYTES: Final = 64


def batches(updates: Sequence[Update]) -> Iterator[tuple[Update, ...]]:
    """Cut updates for one receiver into responses of at most MAX_BATCH_BYTES, one update at the least."""
    start, size = 0, 0
    for at, update in enumerate(updates):
        length = _UPDATE_OVERHEAD_BYTES + (0 if update.node is None else len(update.node.raw))
        if size + length > MAX_BATCH_BYTES and at > start:
            yield tuple(updates[start:at])
            start, size = at, 0
        size += length
    if start < len(updates):
        yield tuple(updates[start:])
