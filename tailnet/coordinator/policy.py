"""Who may do what: one small class per kind of caller (layer L1).

The service picks the policy when it knows who calls; the core asks it before any part of a request is applied.
A refused request ends its peer.  Answers that need the store are obtained by the service beforehand and come
with the request (Request.allowed).  Spec: coordinator rules, the table of callers.
"""

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from ipaddress import IPv6Address
from typing import ClassVar, Final

from tailnet.coordinator.nodes import Complaint, Node, Refusal, parse_single_address
from tailnet.types import CODER_SERVICE_PREFIX, LEGACY_AGENT_ADDRESS, TAILSCALE_SERVICE_PREFIX, PeerID

NO_PERMISSION: Final = "workspace agent not found or you do not have permission"


class Policy(ABC):
    """What one connection may do."""

    __slots__ = ()
    name: ClassVar[str]
    # The service must put the authoriser's answer for add_tunnel into Request.allowed.
    needs_decision: ClassVar[bool] = False
    # Only agents program a peer before it speaks; a client that says so is confused or lying.
    may_be_ready: ClassVar[bool] = False

    @abstractmethod
    def complain_about_tunnel(self, dst: bytes, allowed: Container[bytes]) -> Complaint | None:
        """Judge a tunnel to `dst`, 16 bytes."""

    @abstractmethod
    def complain_about_addresses(self, node: Node) -> Complaint | None:
        """Judge whose addresses a node claims."""

    def keeps_tunnel(self, dst: bytes) -> bool:
        """Whether a tunnel opened by an older connection of the same id lives on under this policy."""
        return self.complain_about_tunnel(dst, (dst,)) is None


class AgentPolicy(Policy):
    """An agent: no tunnels of its own, and only the addresses that follow from its id."""

    __slots__ = ("agent_id",)
    name = "agent"
    may_be_ready = True

    def __init__(self, agent_id: PeerID) -> None:
        self.agent_id = agent_id

    def complain_about_tunnel(self, dst: bytes, allowed: Container[bytes]) -> Complaint | None:
        return Complaint(Refusal.TUNNEL, "agents cannot open tunnels")

    def complain_about_addresses(self, node: Node) -> Complaint | None:
        # Made anew at each check: it is needed once per connection, and would be half a kilobyte per idle agent.
        own = (
            self.agent_id.address(TAILSCALE_SERVICE_PREFIX),
            self.agent_id.address(CODER_SERVICE_PREFIX),
            LEGACY_AGENT_ADDRESS,
        )
        return _complain_about_addresses(node, own)


class _ClientPolicy(Policy):
    """What all clients share: any single address, for theirs are random."""

    __slots__ = ()

    def complain_about_addresses(self, node: Node) -> Complaint | None:
        return _complain_about_addresses(node, None)


class ClientPolicy(_ClientPolicy):
    """A client of the one agent in its URL."""

    __slots__ = ("agent_id",)
    name = "client"

    def __init__(self, agent_id: PeerID) -> None:
        self.agent_id = agent_id

    def complain_about_tunnel(self, dst: bytes, allowed: Container[bytes]) -> Complaint | None:
        if dst == self.agent_id:
            return None
        return Complaint(Refusal.TUNNEL, f'this connection reaches only agent "{self.agent_id}", not "{PeerID(dst)}"')


class ManyAgentsPolicy(_ClientPolicy):
    """A client of every agent its user may SSH to, as the authoriser decides tunnel by tunnel."""

    __slots__ = ()
    name = "client of many"
    needs_decision = True

    def complain_about_tunnel(self, dst: bytes, allowed: Container[bytes]) -> Complaint | None:
        # One sentence for "does not exist" and "not yours", so that ids cannot be probed.
        return None if dst in allowed else Complaint(Refusal.TUNNEL, NO_PERMISSION)


class ServerPolicy(_ClientPolicy):
    """The server's own node (services/own_node.py): whoever it reaches into agents for was asked about before."""

    __slots__ = ()
    name = "this server's own node"

    def complain_about_tunnel(self, dst: bytes, allowed: Container[bytes]) -> Complaint | None:
        return None


def _complain_about_addresses(node: Node, own: tuple[IPv6Address, ...] | None) -> Complaint | None:
    # allowed_ips too: they are what receivers route by, so a foreign one would take another agent's packets.  Genuine
    # nodes have the same in both.
    complaint = _complain("addresses", node.addresses, own)
    if complaint is None and node.allowed_ips != node.addresses:
        return _complain("allowed_ips", node.allowed_ips, own)
    return complaint


def _complain(field: str, prefixes: Sequence[str], own: tuple[IPv6Address, ...] | None) -> Complaint | None:
    for text in prefixes:
        address = parse_single_address(text)
        if address is None:
            return Complaint(Refusal.NODE_ADDRESS, f"node {field} must be IPv6 addresses with /128, got {text[:80]!r}")
        if own is not None and address not in own:
            return Complaint(
                Refusal.NODE_ADDRESS, f"node {field} has {address}, which does not follow from the agent's id"
            )
    return None
