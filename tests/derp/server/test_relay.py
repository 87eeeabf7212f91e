"""One relay: clocks in virtual time on real sockets, and rate limits, which hold back and lose nothing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from derp.close_reason import CloseReason
from derp.config import Rate, RelayConfig, load_config
from derp.keys import MeshKey, NodePrivate
from derp.protocol.frames import encode_frame
from derp.protocol.messages import (
    Health,
    KeepAlive,
    NotePreferred,
    PeerPresent,
    Ping,
    RecvPacket,
    Restarting,
    SendPacket,
)
from derp.relay.limits import NO_LIMITS
from derp.relay.mailbox import HOLD_SECONDS
from derp.relay.mesh import MeshPeerState, MeshRoute
from derp.server.door import FrontDoor
from derp.server.lobby import Lobby
from derp.server.relay import Relay
from derp.transport.links import Link
from derp.transport.reactor import Reactor
from tests.derp.server.bare_relay import KINDS, MESH_KEY, BareRelay, Peer
from tests.derp.server.test_server import UPGRADE
from tests.derp.server.world import DISCO, PATIENCE_SECONDS, call, open_bystanders, open_server, relay_config
from tests.support.wires import socket_pair

LEAVING = Health("this relay is about to stop or to be restarted: this machine connects anew by itself")


class TimedRelay(BareRelay):
    """The bare with a whole relay on it, whose clocks the test moves."""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        config = relay_config(private_key=self.private, mesh_key=MESH_KEY, **changes)
        self.lobby.configure(config)
        self.reactor.write_seconds = config.tcp_write_timeout_seconds
        self.relay = Relay(config, self.reactor, self.lobby)
        self.reactor.flushers.remove(self.sessions.flush)
        self.sessions, self.router = self.relay.sessions, self.relay.router

    def wait(self, seconds: float) -> None:
        """Move the clock, by a quarter of a second at a time."""
        for _ in range(math.ceil(seconds * 4)):
            self.time += 0.25
            self.reactor.serve_ready()


def keep_alives(peer: Peer) -> int:
    return sum(isinstance(message, KeepAlive) for message in peer.read())


def test_keep_alives_come_in_their_period_whatever_else_is_sent() -> None:
    bare = TimedRelay(keepalive_seconds=60.0, keepalive_jitter_seconds=5.0)
    one, other = bare.connect(), bare.connect()
    bare.wait(59)
    one.send_packets(other, b"traffic changes nothing")
    bare.serve()
    assert [keep_alives(peer) for peer in (one, other)] == [0, 0]
    bare.wait(7)
    assert [keep_alives(peer) for peer in (one, other)] == [1, 1]
    for _ in range(10):  # no client waits longer than it can stand, and none is woken for nothing
        bare.wait(66)
        assert keep_alives(one) in (1, 2)
    bare.end()


def test_by_default_an_idle_connection_survives_a_proxy_that_waits_60_seconds() -> None:
    bare = TimedRelay(tcp_write_timeout_seconds=0.0)
    clients = [bare.connect() for _ in range(20)]
    for _ in range(5):
        bare.wait(51)
        assert all(keep_alives(client) >= 1 for client in clients)
    bare.end()


def test_a_client_that_left_gets_no_keep_alive_and_is_forgotten() -> None:
    bare = TimedRelay(keepalive_seconds=5.0, keepalive_jitter_seconds=0.0)
    one = bare.connect()
    one.wire.close()
    bare.serve()
    bare.wait(20)
    assert not bare.router.clients
    bare.end()


def test_a_login_has_its_time_and_no_more() -> None:
    bare = TimedRelay(handshake_timeout_seconds=10.0)
    silent = bare.open()
    bare.wait(9.75)
    late = bare.open()
    assert len(bare.reactor.wires) == 2
    bare.wait(0.5)
    assert list(bare.reactor.wires) == [late.near]
    assert bare.lobby.closed_count[CloseReason.HANDSHAKE_TIMEOUT] == 1
    assert silent.near not in bare.lobby.waiting
    bare.end()


@pytest.mark.parametrize(("mesh", "seconds"), [(False, 2.0), (True, 30.0)])
def test_a_reader_that_takes_nothing_has_its_time_too(mesh: bool, seconds: float) -> None:
    bare = TimedRelay(tcp_write_timeout_seconds=2.0, mesh_write_timeout_seconds=30.0)
    stuck = bare.connect(mesh_key=MESH_KEY if mesh else None, buffer_bytes=8192)
    sender = bare.connect()
    for _ in range(10):
        sender.send_packets(stuck, *[bytes(8000)] * 4)
        bare.serve()
    assert stuck.near in bare.reactor.blocked
    bare.wait(seconds - 0.25)
    assert bare.router.counters.write_timeouts == 0
    bare.wait(0.75)
    assert bare.router.counters.write_timeouts == 1
    assert bare.lobby.closed_count[CloseReason.WRITE_TIMEOUT] == 1
    bare.end()


def test_a_write_timeout_of_zero_is_none() -> None:
    bare = TimedRelay(tcp_write_timeout_seconds=0.0)
    stuck, sender = bare.connect(buffer_bytes=8192), bare.connect()
    for _ in range(10):
        sender.send_packets(stuck, *[bytes(8000)] * 4)
        bare.serve()
    bare.wait(100)
    assert stuck.near in bare.reactor.blocked
    bare.end()


def test_everybody_hears_of_a_restart_and_the_relay_is_not_well_from_then_on() -> None:
    bare = TimedRelay()
    one, other = bare.connect(), bare.connect("tls")
    assert not bare.relay.is_draining
    bare.relay.announce_restart(1.5, 60.0)
    for peer in (one, other):
        assert peer.read() == [Restarting(1500, 60_000), LEAVING]
    assert bare.relay.is_draining
    bare.end()


def test_who_is_sent_to_other_relays_need_not_wait() -> None:
    bare = TimedRelay()
    one = bare.connect()
    bare.relay.siblings_stay = True
    bare.relay.announce_restart(2.0, 60.0)
    assert one.read() == [Restarting(1, 60_000), LEAVING]
    bare.end()


@pytest.mark.parametrize("for_good", [True, False])
def test_a_relay_that_meshes_with_one_that_leaves_hears_of_it(for_good: bool) -> None:
    bare = TimedRelay()
    if for_good:
        bare.relay.announce_restart(1.5, 60.0)
    else:
        bare.relay.tell_neighbours()
    late = bare.open(mesh_key=MESH_KEY)
    late.read()
    bare.serve()
    assert (Restarting(1500, 60_000) if for_good else Restarting(0, 0)) in late.read()
    bare.connect()  # which is told of its login alone
    bare.end()


def test_nobody_is_told_for_ever_of_a_relay_that_has_left_the_region() -> None:
    bare = TimedRelay()
    one, mesh = bare.connect(), bare.relay.mesh
    assert mesh is not None
    mesh.states["beta"] = MeshPeerState("beta")
    bare.relay._look()
    bare.wait(5)
    assert [str(each).count("cut off from beta") for each in one.read()] == [1]
    del mesh.states["beta"]
    bare.wait(5)
    assert one.read() == [Health("")]
    bare.end()


def test_who_is_sent_away_long_after_the_announcement_hears_it_again() -> None:
    bare = TimedRelay()
    one, other = bare.connect(), bare.connect()
    bare.relay.announce_restart(1.5, 60.0)
    for peer in (one, other):
        peer.read()
    bare.relay.close_clients(1)
    assert one.read() == []
    bare.time += 3.0
    bare.relay.close_clients(1)
    assert other.read() == [Restarting(1500, 60_000), LEAVING]
    bare.end()


def test_who_waits_for_what_comes_from_another_relay_that_leaves_is_sent_away_after_that() -> None:
    bare = TimedRelay()
    private = NodePrivate.generate()
    link = MeshRoute(bare.router, NodePrivate.generate().public().raw, bare.connect().near, 10)
    bare.router.mesh_links.append(link)
    link.handle_message(PeerPresent(private.public().raw))
    link.handle_message(Restarting(2000, 60_000))
    one = bare.connect(private=private)
    bare.relay.close_clients(10)
    one.read()
    assert not one.ended
    bare.wait(HOLD_SECONDS)
    bare.relay.close_clients(10)
    one.read()
    assert one.ended
    bare.end()


def test_a_client_that_does_not_hang_up_is_closed_after_a_moment() -> None:
    bare = TimedRelay()
    one, other = bare.connect(), bare.connect()
    assert bare.relay.close_clients(1) == 2  # the other, and one that was told
    assert bare.router.members.get(one.key) is None, "nobody reaches it"
    bare.time += 3.5
    bare.serve()
    assert one.near not in bare.reactor.wires
    assert bare.lobby.closed_count[CloseReason.DRAINED] == 1
    assert bare.relay.close_clients(1) == 1
    other.read()
    other.wire.close()
    bare.serve()
    assert bare.relay.close_clients(1) == 0
    bare.end()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_client_sends_until_it_hangs_up_is_relayed_and_nothing_is_answered(kind: str) -> None:
    bare = TimedRelay()
    one, other = bare.connect(kind), bare.connect()
    assert bare.relay.close_clients(1) == 2
    one.read()
    assert one.ended
    one.send(SendPacket(other.key, b"first"), Ping(b"8 bytes."), NotePreferred(True))
    one.write(encode_frame(0x70, b"of the future"))
    one.send(SendPacket(b"n" * 32, DISCO))  # anybody else would be told that it is not here
    one.send(SendPacket(other.key, b"second"))
    bare.serve()
    one.send(SendPacket(other.key, b"third"))
    bare.serve()
    assert other.read() == [RecvPacket(one.key, text) for text in (b"first", b"second", b"third")]
    assert one.near in bare.reactor.wires, "an answer would have failed, and ended it"
    assert bare.router.home_clients == 0
    one.wire.close()
    bare.serve()
    assert one.near not in bare.reactor.wires
    assert bare.lobby.closed_count[CloseReason.DRAINED] == 1
    bare.end()


def test_every_client_is_asked_for_its_round_trip_time_in_ten_seconds() -> None:
    bare = TimedRelay()
    for _ in range(3):
        bare.connect(tcp=True)
    bare.connect()  # a socket that has none
    before = sum(bare.router.counters.tcp_rtt)
    bare.wait(10)
    assert sum(bare.router.counters.tcp_rtt) - before >= 4
    assert bare.router.counters.tcp_rtt[0] >= 3  # loopback is near
    assert bare.router.counters.tcp_rtt[-1] >= 1
    bare.end()


def test_an_embedder_needs_no_server() -> None:
    """What a control plane does: its own reactor, its own sockets, our door."""
    reactor = Reactor(clock=lambda: 1.0)
    lobby = Lobby(reactor, relay_config())
    relay = Relay(relay_config(), reactor, lobby)
    near, far = socket_pair(None)
    link = Link(near, ("127.0.0.1", 1))
    FrontDoor(lobby, [relay.upgrades.route()]).open(link)
    reactor.add(link)
    far.send(UPGRADE)
    reactor.serve_ready()
    assert far.recv(1000).startswith(b"HTTP/1.1 101 ")
    reactor.close(link, CloseReason.STOPPED)
    far.close()


# --- rate limits, on a running relay


RATE = Rate(400_000, 1000)  # the burst is raised to the largest packet


async def test_a_rate_limit_holds_back_and_loses_nothing() -> None:
    async with open_server(relay_config(rate=RATE)) as server, open_bystanders(server) as bystanders:
        fast, target = await call(server), await call(server)
        packets = [number.to_bytes(4, "big") * 300 for number in range(250)]  # 300 kB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fast.send, target.key, *packets)
            await bystanders.go_on(3)
            with trio.fail_after(PATIENCE_SECONDS):
                for packet in packets:
                    assert await target.receive() == RecvPacket(fast.key, packet)
        assert server.relay.router.counters.rate_limited > 0
        assert sum(server.relay.router.counters.packets_dropped) == 0
        await fast.aclose()
        await target.aclose()


async def test_mesh_peers_and_keys_with_their_own_limit_are_exempt() -> None:
    mesh_key = MeshKey(b"m" * 32)
    async with open_server(relay_config(rate=Rate(1, 1), mesh_key=mesh_key)) as server:
        peer, target = await call(server, mesh_key=mesh_key), await call(server)
        server.relay.sessions.limiter.rate_by_key = {target.key: Rate(10**9, 10**9)}
        server.relay.sessions.set_limits(Rate(1, 1), server.relay.sessions.limiter.rate_by_key, NO_LIMITS)
        for source, other in ((peer, target), (target, peer)):
            await source.send(other.key, *[bytes(10_000)] * 20)
            for _ in range(20):
                assert await other.receive() == RecvPacket(source.key, bytes(10_000))
        assert server.relay.router.counters.rate_limited == 0
        await peer.aclose()
        await target.aclose()


async def test_limits_are_read_again_and_wake_those_who_wait(
    nursery: trio.Nursery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "rate.json"

    def write(**values: object) -> None:
        file.write_text(json.dumps(values))

    given = {"rate_config": Rate(1, 1)}
    config = relay_config(rate=Rate(1, 1), given=given)

    def reread() -> RelayConfig:
        read = load_config({"dev": "true", "rate_config": str(file)}, {}, is_running=True)
        return replace(config, rate=read.rate, notices=read.notices)

    async with open_server(config, reread) as server:
        fast, target = await call(server), await call(server)
        client = server.relay.sessions.router.members[fast.key].connections[0]
        nursery.start_soon(fast.send, target.key, *[bytes(10_000)] * 100, b"last")  # at this rate it takes days
        with trio.fail_after(PATIENCE_SECONDS):
            while not server.relay.router.counters.rate_limited:
                await trio.lowlevel.checkpoint()
        assert client.wire.paused
        held_at = client.packets_in
        await target.ping()
        await target.ping()
        assert client.packets_in == held_at < 101  # the rest waits in the kernels
        file.write_text("{")
        server.reload()
        assert "the settings stay as they were" in caplog.text
        assert server.relay.sessions.limiter.rate == Rate(1, 1)
        write(PerClientRateLimitBytesPerSec=10**9, PerClientRateBurstBytes=10**9)
        server.reload()
        assert server.relay.sessions.limiter.rate == Rate(10**9, 10**9)
        while await target.receive_a(RecvPacket) != RecvPacket(fast.key, b"last"):
            pass
        write(PerClientRateLimitBytesPerSecond=5)  # which is not its name
        server.reload()
        assert server.relay.sessions.limiter.rate == Rate()
        assert f"! {file}: sets no limit, as it has no PerClientRateLimitBytesPerSec" in caplog.text
        await fast.aclose()
        await target.aclose()
