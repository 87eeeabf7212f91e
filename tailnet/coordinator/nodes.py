"""Nodes: what a peer says about itself, and what must hold before others are told (layer L1).

The core never decodes a node: the service parses it once, keeps the serialized bytes for everyone who is told, and
names the few fields checked here.  A node that receivers cannot read ends *their* coordination, not its sender's,
so it is stopped at the door.  Whose addresses they may be is the matter of coordinator/policy.
"""

import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import AddressValueError, IPv6Address
from typing import Final, NamedTuple

KEY_PREFIX: Final = b"np"
KEY_BYTES: Final = 34
DISCO_PREFIX: Final = "discokey:"
DISCO_LENGTH: Final = len(DISCO_PREFIX) + 64
_HEX: Final = frozenset("0123456789abcdefABCDEF")


class Refusal(Enum):
    """Why a request was refused: also the label set of the metric."""

    MALFORMED = "malformed"
    NODE_SIZE = "node_size"
    NODE_KEY = "node_key"
    NODE_ADDRESS = "node_address"
    TUNNEL = "tunnel"
    TUNNEL_COUNT = "tunnel_count"
    READY_FOR_HANDSHAKE = "ready_for_handshake"
    READY_FOR_HANDSHAKE_COUNT = "ready_for_handshake_count"


class Complaint(NamedTuple):
    """A reason for the metric and the sentence for the peer."""

    reason: Refusal
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may ask for.  Every excess is answered: see Coordinator.handle_request."""

    # A genuine node is 300 to 900 bytes; a host with a bridge per container adds 25 for each of its endpoints, so this
    # is one with 20,000.  A receiver holds 4 MiB before it counts as one that does not read, eight of the longest.
    node_bytes: int = 512 * 1024
    # Agents have at most three, clients one.  Each is parsed, at some microseconds.
    addresses: int = 16
    # A proxy that reaches every agent of a large installation, doubled.  About 250 bytes each.
    tunnels: int = 10_000
    # An agent acknowledges in one request everyone whom one response named, never more than share a tunnel with it.
    ready_for_handshake: int = 10_000


@dataclass(slots=True, eq=False)
class Node:
    """A node as one peer sent it.  Never changed after it was made.

    `raw` is the serialized Node message, made with deterministic order (sorted maps): two nodes are the same when
    their `raw` is, as_of included.  Unknown fields stay inside it.
    """

    raw: bytes
    key: bytes  # 34 bytes: "np" and the 32 of the node public key
    disco: str  # discokey:<64 hex digits>
    preferred_derp: int  # 0: no home yet, receivers ignore such a node
    addresses: tuple[str, ...]
    allowed_ips: tuple[str, ...]

    @property
    def public_key(self) -> bytes:
        """The 32 bytes by which relays know it."""
        return self.key[len(KEY_PREFIX) :]


def complain_about_size(node: Node, limits: Limits) -> Complaint | None:
    """Judge what may grow without bound."""
    if len(node.raw) > limits.node_bytes:
        return Complaint(Refusal.NODE_SIZE, f"node has {len(node.raw)} bytes, limit {limits.node_bytes}")
    for name, prefixes in (("addresses", node.addresses), ("allowed_ips", node.allowed_ips)):
        if len(prefixes) > limits.addresses:
            return Complaint(Refusal.NODE_SIZE, f"node has {len(prefixes)} {name}, limit {limits.addresses}")
    return None


def complain_about_keys(node: Node) -> Complaint | None:
    """Judge the two keys by the form that genuine receivers insist on."""
    if len(node.key) != KEY_BYTES or not node.key.startswith(KEY_PREFIX):
        return Complaint(
            Refusal.NODE_KEY, f'node key must be "np" and 32 bytes, {KEY_BYTES} in all, got {len(node.key)} bytes'
        )
    disco = node.disco
    if len(disco) != DISCO_LENGTH or not disco.startswith(DISCO_PREFIX) or not _HEX.issuperset(disco[9:]):
        return Complaint(Refusal.NODE_KEY, f"node disco must be discokey:<64 hex digits>, got {disco[:80]!r}")
    return None


# All eight groups, as addresses made of random ids are nearly always written: read in a third of the time that
# ipaddress takes, twice for each peer that connects.
_FULL_ADDRESS: Final = re.compile(":".join(["([0-9a-f]{1,4})"] * 8) + "/128")


def parse_single_address(text: str) -> IPv6Address | None:
    """Read `<IPv6 address>/128`; None for anything else.

    Stricter than ipaddress.IPv6Interface, which takes zones and `/0128`; receivers do not.
    """
    full = _FULL_ADDRESS.fullmatch(text)
    if full is not None:
        return IPv6Address(int("".join([group.zfill(4) for group in full.groups()]), 16))
    address, slash, bits = text.partition("/")
    if not slash or bits != "128" or "%" in address:
        return None
    try:
        return IPv6Address(address)
    except AddressValueError:
        return None


def same_identity(node: Node, known: Node) -> bool:
    """Whether everything that complain_about_keys and the policies judge is as in a node already accepted."""
    return (
        node.key == known.key
        and node.disco == known.disco
        and node.addresses == known.addresses
        and node.allowed_ips == known.allowed_ips
    )
