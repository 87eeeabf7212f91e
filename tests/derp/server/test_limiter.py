"""Clients of one tenant, and all of a relay, wait for what they may send together, and are told so."""

from collections.abc import Iterator

import pytest

from derp.protocol.messages import Health, RecvPacket
from derp.relay.limits import ClientLimits, Limits, Rate, TenantLimits
from tests.derp.server.bare_relay import MESH_KEY, BareRelay, Peer

RATE = Rate(1_000_000, 100_000)


@pytest.fixture
def bare() -> Iterator[BareRelay]:
    relay = BareRelay()
    yield relay
    relay.end()


def limit(bare: BareRelay, limits: Limits, rate: Rate = Rate(), **by_name: Peer) -> None:  # noqa: B008  # is frozen
    """Set limits, under which the peers have the tenants they are called by."""
    by_key = {peer.key: name for name, peer in by_name.items()}
    merged = Limits(limits.node, limits.client, limits.tenants, {**limits.tenant_by_key, **by_key})
    bare.sessions.set_limits(rate, {}, merged)


def received(bare: BareRelay, receiver: Peer) -> int:
    messages = bare.serve_reading(receiver)[receiver]
    return sum(len(message.packet) for message in messages if isinstance(message, RecvPacket))


def run(bare: BareRelay, receiver: Peer, seconds: float) -> int:
    """Let time pass from deadline to deadline; how many bytes came."""
    end, count = bare.time + seconds, received(bare, receiver)
    shares = bare.sessions.limiter.shares
    while (at := min(shares.next_timeout() or end, bare.sessions.limiter.throttled.next_timeout() or end)) < end:
        bare.time = max(at, bare.time)
        bare.reactor.serve_ready()
        count += received(bare, receiver)
    bare.time = end
    return count


def test_the_clients_of_a_tenant_share_its_rate(bare: BareRelay) -> None:
    one, two, other, receiver = (bare.connect() for _ in range(4))
    limit(bare, Limits(tenants={"a": TenantLimits(RATE)}, tenant_by_key={one.key: "a", two.key: "a"}))
    got = 0
    for packets in (60, 90):  # what is there is received in one go, and only then is it too much
        for peer in (one, two, other):
            peer.send_packets(receiver, *[bytes(1000)] * packets)
        got += received(bare, receiver)
    assert got < 450_000
    assert other.client.packets_in == 150, "nothing limits the other one"
    got += run(bare, receiver, 1.0)
    assert got == 450_000, "nothing is lost"


def test_a_full_relay_is_shared_by_weight(bare: BareRelay) -> None:
    light, heavy, receiver = bare.connect(), bare.connect(), bare.connect()
    tenants = {"light": TenantLimits(), "heavy": TenantLimits(weight=3)}
    limit(bare, Limits(Rate(200_000, 66_000), tenants=tenants), light=light, heavy=heavy)
    written = {light: 0, heavy: 0}
    for _ in range(80):
        for peer in written:
            if written[peer] - peer.client.bytes_in < 60_000:  # as much as the kernel holds in any case
                peer.send_packets(receiver, *[bytes(1000)] * 60)
                written[peer] += 60_000
        run(bare, receiver, 0.1)
    sent = {name: peer.client.bytes_in for name, peer in (("light", light), ("heavy", heavy))}
    assert sum(sent.values()) == pytest.approx(200_000 * 8.0, rel=0.1)
    assert sent["light"] >= 0.95 * sum(sent.values()) / 4
    assert sent["heavy"] >= 0.95 * sum(sent.values()) * 3 / 4


def test_those_who_wait_are_told_which_limit_it_is(bare: BareRelay) -> None:
    one, two, receiver = bare.connect(), bare.connect(), bare.connect()
    limits = Limits(Rate(100_000, 66_000), ClientLimits(Rate(packets_per_second=10)), {"a": TenantLimits(RATE)})
    for given, words in (
        (limits, "this relay lets this machine send 10 packets a second; it sends more, which waits"),
        (Limits(tenants={"a": TenantLimits(RATE)}), "the machines of a together send 1,000,000 bytes a second"),
        (Limits(Rate(100_000, 66_000)), "all machines together send 100,000 bytes a second"),
    ):
        limit(bare, given, a=one)
        one.send_packets(receiver, *[bytes(1000)] * 150)
        bare.serve()
        bare.time += 5.0
        bare.reactor.serve_ready()
        bare.serve()
        texts = [message.text for message in one.read() if isinstance(message, Health)]
        assert any(words in text for text in texts), texts
        limit(bare, Limits())
        run(bare, receiver, 10.0)
    assert not any(isinstance(message, Health) for message in two.read())


def test_who_is_over_its_own_limit_waits_for_its_tenant_too(bare: BareRelay) -> None:
    one, two, receiver = bare.connect(), bare.connect(), bare.connect()
    slow = {"a": TenantLimits(Rate(10_000, 66_000), client=ClientLimits(Rate(1_000_000, 66_000)))}
    limit(bare, Limits(tenants=slow, tenant_by_key={one.key: "a", two.key: "a"}))
    got = 0
    for _ in range(2):
        for peer in (one, two):
            peer.send_packets(receiver, *[bytes(1000)] * 70)
        got += run(bare, receiver, 2.5)
    assert got < 280_000, "each alone would have been through within the second"
    assert len(bare.sessions.limiter.shares) == 2
    limit(bare, Limits())
    assert got + run(bare, receiver, 1.0) == 280_000, "new limits hold for those who waited for the old ones"


def test_a_mesh_peer_is_exempt_and_who_leaves_is_forgotten(bare: BareRelay) -> None:
    mesh, one, receiver = bare.connect(mesh_key=MESH_KEY), bare.connect(), bare.connect()
    limit(bare, Limits(Rate(1000, 66_000)))
    for peer in (mesh, one):
        peer.send_packets(receiver, *[bytes(1000)] * 140)
    received(bare, receiver)
    assert mesh.client.packets_in == 140
    assert [sender.client for sender in bare.sessions.limiter.shares._waiting] == [one.client]
    one.wire.close()
    run(bare, receiver, 1000.0)
    assert len(bare.sessions.limiter.shares) == 0
