"""The table of callers: what each may do."""

import pytest

from tailnet.coordinator.nodes import Complaint, Refusal
from tailnet.coordinator.policy import NO_PERMISSION, AgentPolicy, ClientPolicy, ManyAgentsPolicy, Policy, ServerPolicy
from tailnet.types import PeerID
from tests.tailnet.coordinator.playbook import make_node

AGENT = PeerID.parse("aaaaaaaa-aaaa-aaaa-aaaa-123456789abc")
OTHER = PeerID.parse("bbbbbbbb-bbbb-bbbb-bbbb-123456789abc")
TAILSCALE = "fd7a:115c:a1e0:aaaa:aaaa:1234:5678:9abc/128"
CODER = "fd60:627a:a42b:aaaa:aaaa:1234:5678:9abc/128"
LEGACY = "fd7a:115c:a1e0:49d6:b259:b7ac:b1b2:48f4/128"
FOREIGN = "fd7a:115c:a1e0:bbbb:bbbb:1234:5678:9abc/128"

AGENT_POLICY, CLIENT, MANY = AgentPolicy(AGENT), ClientPolicy(AGENT), ManyAgentsPolicy()
SERVER = ServerPolicy()


def tunnel(policy: Policy, dst: bytes, allowed: set[bytes]) -> str:
    complaint = policy.complain_about_tunnel(dst, allowed)
    assert complaint is None or complaint.reason is Refusal.TUNNEL
    return "yes" if complaint is None else complaint.text


def test_tunnels() -> None:
    everyone: set[bytes] = {AGENT, OTHER}
    other_agent = f'this connection reaches only agent "{AGENT}", not "{OTHER}"'
    table: list[tuple[Policy, bytes, set[bytes], str]] = [
        (AGENT_POLICY, AGENT, everyone, "agents cannot open tunnels"),
        (AGENT_POLICY, OTHER, everyone, "agents cannot open tunnels"),
        (CLIENT, AGENT, set(), "yes"),
        (CLIENT, OTHER, everyone, other_agent),
        (MANY, AGENT, {AGENT}, "yes"),
        (MANY, bytes(OTHER), everyone, "yes"),
        (MANY, OTHER, {AGENT}, NO_PERMISSION),
        (MANY, AGENT, set(), NO_PERMISSION),
        (SERVER, AGENT, set(), "yes"),
        (SERVER, OTHER, set(), "yes"),
    ]
    assert [tunnel(policy, dst, allowed) for policy, dst, allowed, _ in table] == [expected for *_, expected in table]


def test_tunnels_that_outlive_a_takeover() -> None:
    keeps = {
        policy.name: [policy.keeps_tunnel(dst) for dst in (AGENT, OTHER)] for policy in (AGENT_POLICY, CLIENT, MANY)
    }
    assert keeps == {"agent": [False, False], "client": [True, False], "client of many": [True, True]}


def test_ready_for_handshake_and_decisions() -> None:
    assert [policy.may_be_ready for policy in (AGENT_POLICY, CLIENT, MANY, SERVER)] == [True, *[False] * 3]
    assert [policy.needs_decision for policy in (AGENT_POLICY, CLIENT, MANY, SERVER)] == [False, False, True, False]


@pytest.mark.parametrize(
    "addresses",
    [(), (TAILSCALE,), (CODER,), (LEGACY,), (TAILSCALE, CODER), (TAILSCALE, LEGACY), (TAILSCALE.upper(),)],
)
def test_an_agent_may_claim_its_own_addresses(addresses: tuple[str, ...]) -> None:
    assert AGENT_POLICY.complain_about_addresses(make_node("n", addresses)) is None


@pytest.mark.parametrize("field", ["addresses", "allowed_ips"])
def test_an_agent_may_claim_no_other(field: str) -> None:
    complaint = AGENT_POLICY.complain_about_addresses(make_node("n", **{field: (TAILSCALE, FOREIGN)}))
    text = f"node {field} has {FOREIGN[:-4]}, which does not follow from the agent's id"
    assert complaint == Complaint(Refusal.NODE_ADDRESS, text)


@pytest.mark.parametrize("policy", [CLIENT, MANY])
def test_a_client_may_claim_any_single_address(policy: Policy) -> None:
    assert policy.complain_about_addresses(make_node("n", [FOREIGN, TAILSCALE])) is None


@pytest.mark.parametrize("policy", [AGENT_POLICY, CLIENT, MANY])
@pytest.mark.parametrize("field", ["addresses", "allowed_ips"])
@pytest.mark.parametrize("text", [TAILSCALE[:-4], TAILSCALE[:-3] + "64", "::/0", "0.0.0.0/0", "x" * 500])
def test_nobody_may_claim_a_network(policy: Policy, field: str, text: str) -> None:
    complaint = policy.complain_about_addresses(make_node("n", **{field: (text,)}))
    assert complaint is not None
    assert complaint.reason is Refusal.NODE_ADDRESS
    assert complaint.text == f"node {field} must be IPv6 addresses with /128, got {text[:80]!r}"
