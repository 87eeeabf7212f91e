"""Clients of one tenant, and all of a relay, wait for what they may send together, and are told so."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from derp.admission.keyset import KeySet, sign_key_set
from derp.admission.ticket import sign_ticket
from derp.keys import NodePrivate
from derp.protocol.messages import Health, RecvPacket
from derp.relay.limits import ClientLimits, Limits, Rate, TenantLimits
from derp.transport.http import Request
from tests.derp.server.bare_relay import MESH_KEY, BareRelay, Peer
from tests.derp.server.control_plane import Answer, open_control_plane
from tests.derp.server.issuer import PRIVATE
from tests.derp.server.world import call, open_server, relay_config

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


def test_nobody_waits_for_limits_of_before(bare: BareRelay) -> None:
    one, receiver = bare.connect(), bare.connect()
    limit(bare, Limits(tenants={"a": TenantLimits(RATE)}), a=one)
    got = 0
    for _ in range(2):
        one.send_packets(receiver, *[bytes(1000)] * 90)
        got += received(bare, receiver)
    assert one.near.paused
    limit(bare, Limits(client=ClientLimits(Rate(500_000, 100_000))), a=one)
    for _ in range(2):
        one.send_packets(receiver, *[bytes(1000)] * 90)
        got += received(bare, receiver)
    assert one.near.paused, "by its own limit now"
    one.send_packets(receiver, *[bytes(1000)] * 90)
    for _ in range(60):
        bare.time += 0.01
        got += received(bare, receiver)
    assert got == 450_000, "who looked for those who waited before looks no more, and stops no other timer"


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


async def test_whose_a_client_is_the_file_says_then_who_let_it_in_and_then_who_knows_it(tmp_path: Path) -> None:
    privates = [NodePrivate.generate() for _ in range(5)]
    in_file, by_ticket, known, asked, nobody = keys = [private.public().raw for private in privates]
    now = time.time()
    key_set = KeySet(1, now, now + 3600, frozenset(keys[:3]), tenants=dict.fromkeys(keys[:3], "known"))
    (tmp_path / "set").write_bytes(sign_key_set(PRIVATE, key_set))

    def answer(request: Request) -> Answer:
        is_asked = asked.hex().encode() in request.body
        return 200, b'{"Allow":true,"Tenant":"asked"}' if is_asked else b'{"Allow":true}'

    async with open_control_plane(answer) as plane:
        config = relay_config(
            verify_client_url=plane.url,
            issuers=(PRIVATE.public(),),
            key_set=str(tmp_path / "set"),
            limits=Limits(tenant_by_key={in_file: "file"}),
        )
        async with open_server(config) as server:
            callers = []
            for private in privates:
                key = private.public().raw
                ticket = ("Derp-Ticket", sign_ticket(PRIVATE, key, now, now + 3600, "ticket"))
                shown = (ticket,) if key in (in_file, by_ticket) else ()
                callers.append(await call(server, private=private, headers=shown))
            whose = {client.key: client.tenant for client in server.relay.router.clients.values()}
            expected = {in_file: "file", by_ticket: "ticket", known: "known", asked: "asked", nobody: "default"}
            assert whose == expected
            server.relay.sessions.set_limits(Rate(), {}, Limits(tenant_by_key={nobody: "file"}))
            whose = {client.key: client.tenant for client in server.relay.router.clients.values()}
            assert whose == {**expected, in_file: "ticket", nobody: "file"}
            for caller in callers:
                await caller.aclose()


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


def test_waits_are_counted_by_tenant_and_by_whose_limit_it_was(bare: BareRelay) -> None:
    one, two, receiver = bare.connect(), bare.connect(), bare.connect()
    one.client.named_tenant, two.client.named_tenant = "a", "b"  # as whoever let them in said
    small, pauses = Rate(1000, 66_000), bare.sessions.limiter.pauses
    for limits, labels, whose in (
        (Limits(client=ClientLimits(small), tenants={"a": TenantLimits()}), ("a", "(others)"), "client"),
        (Limits(tenants=dict.fromkeys(("a", "default"), TenantLimits(small))), ("a", "(others)"), "tenant"),
        (Limits(small, tenants={"b": TenantLimits()}), ("(others)", "b"), "node"),
    ):
        for peer, label in zip((one, two), labels, strict=True):
            limit(bare, limits)
            peer.send_packets(receiver, *[bytes(1000)] * 140)
            received(bare, receiver)
            assert set(pauses) == {(label, whose)}
            limit(bare, Limits())
            run(bare, receiver, 10.0)
            pauses.clear()


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
