"""Relays of ours as one region: who reaches whom while clients and relays come and go."""

import itertools
import logging
import math
from functools import partial

import pytest
import trio

from derp.close_reason import CloseReason
from derp.config.relay import MeshPeer
from derp.keys import NodePrivate
from derp.protocol.frames import PeerGoneReason, PeerPresentFlags
from derp.protocol.messages import PeerGone, PeerPresent, Pong, RecvPacket, Restarting, encode
from derp.relay.counters import DropReason
from derp.server.mesh import retry_seconds
from tests.derp.server.mesh_world import (
    MESH_KEY,
    OTHER_KEY,
    Node,
    hears_nothing,
    knows,
    open_impostor,
    open_nodes,
    open_region,
    until,
)
from tests.derp.server.world import DISCO, HOST, Caller, closed, count_of, move_clock


async def both_ways(one: Caller, other: Caller, *packets: bytes) -> None:
    """Every packet arrives, in order, with nothing between."""
    for source, target in ((one, other), (other, one)):
        await source.send(target.key, *packets)
        for packet in packets:
            assert await target.receive() == RecvPacket(source.key, packet)


# --- packets


async def test_packets_of_every_size_cross_two_relays() -> None:
    async with open_region(2) as (alpha, beta):
        a, b = await alpha.call(), await beta.call()
        await knows(a, alpha, b)
        await knows(b, beta, a)
        await both_ways(a, b, *(bytes([size % 251]) * size for size in (0, 1, 61, 62, 1280, 65536, 3)), DISCO)
        out, back = alpha.router.counters, beta.router.counters
        assert out.packets_forwarded_out == back.packets_forwarded_in == 8
        assert out.bytes_forwarded_out == back.bytes_forwarded_in == 0 + 1 + 61 + 62 + 1280 + 65536 + 3 + 62


async def test_three_relays_are_one_region() -> None:
    async with open_region(3) as nodes:
        callers = [await node.call() for node in nodes]
        for node, caller in zip(nodes, callers, strict=True):
            await knows(caller, node, *callers)
        for one, other in itertools.combinations(callers, 2):
            await both_ways(one, other, *(bytes([number]) * 1280 for number in range(20)))


async def test_runs_for_many_destinations_are_cut_apart() -> None:
    async with open_region(2) as (alpha, beta):
        a, near = await alpha.call(), await alpha.call()
        b, c = await beta.call(), await beta.call()
        await knows(a, alpha, b, c)
        wanted: dict[bytes, list[bytes]] = {b.key: [], c.key: [], near.key: []}
        for number in range(300):  # in one write: runs of one to three for each, of changing sizes
            target = (b, b, c, near, b, c, near, near, near)[number % 9]
            packet = number.to_bytes(2, "big") * (1 + number % 7)
            wanted[target.key].append(packet)
            a.core.send_packet(target.key, packet)
        await a.flush()
        for target in (b, c, near):
            for packet in wanted[target.key]:
                assert await target.receive() == RecvPacket(a.key, packet)


# --- who is told what


async def test_receivers_learn_that_a_far_sender_left() -> None:
    async with open_region(2) as (alpha, beta):
        a, silent, b = await alpha.call(), await alpha.call(), await beta.call()
        await knows(b, beta, a, silent)
        await knows(a, alpha, b)
        await b.send(a.key, b"from afar")
        assert await a.receive() == RecvPacket(b.key, b"from afar")
        await silent.send(b.key, b"only sent")
        assert await b.receive() == RecvPacket(silent.key, b"only sent")
        await b.aclose()
        assert await a.receive() == PeerGone(b.key, PeerGoneReason.DISCONNECTED)
        # Who heard nothing from it is told nothing: the next thing it hears is something else.
        await a.send(silent.key, b"after")
        assert await silent.receive() == RecvPacket(a.key, b"after")


async def test_watchers_know_a_client_before_it_can_be_asked_for() -> None:
    async with open_nodes(alpha := Node("alpha.test")):
        watcher = await alpha.call(mesh_key=MESH_KEY)
        before = await alpha.call()
        watcher.core.send_watch_conns()
        await watcher.flush()
        present = [await watcher.receive() for _ in range(2)]
        flags = {p.key: p.flags for p in present if isinstance(p, PeerPresent)}
        assert flags == {watcher.key: PeerPresentFlags.MESH_PEER, before.key: PeerPresentFlags.REGULAR}
        for _ in range(10):
            fresh = await alpha.call()
            # A ping sent when the newcomer knew that it was in: the announcement was on its way before.
            watcher.core.send_ping(b"are you?")
            await watcher.flush()
            announced = await watcher.receive()
            assert isinstance(announced, PeerPresent)
            assert (announced.key, str(announced.address)) == (fresh.key, "127.0.0.1")
            assert announced.port == fresh.stream.transport_stream.socket.getsockname()[1]
            assert await watcher.receive() == Pong(b"are you?")


async def test_only_the_last_connection_of_a_key_is_gone() -> None:
    async with open_nodes(alpha := Node("alpha.test")):
        watcher = await alpha.call(mesh_key=MESH_KEY)
        watcher.core.send_watch_conns()
        await watcher.flush()
        assert isinstance(await watcher.receive(), PeerPresent)  # itself
        private = NodePrivate.generate()
        first, second = [await alpha.call(private=private) for _ in range(2)]
        assert [type(await watcher.receive()) for _ in range(2)] == [PeerPresent, PeerPresent]
        await first.aclose()
        await until(second, lambda: len(alpha.router.members[second.key].connections) == 1)
        await hears_nothing(watcher)
        await second.aclose()
        assert await watcher.receive() == PeerGone(second.key, PeerGoneReason.DISCONNECTED)


# --- loops


async def test_a_relay_does_not_mesh_with_itself() -> None:
    async with open_nodes(alpha := Node("alpha.test")):
        a = await alpha.call()
        with trio.fail_after(60):
            await alpha.mesh.run((alpha.peer, alpha.peer))  # it returns: nobody is left to keep connected
        assert alpha.mesh.sessions == {}
        assert set(alpha.router.clients.values()) == {alpha.router.members[a.key].active}


async def test_a_forwarded_packet_is_never_forwarded_again() -> None:
    # beta knows c behind gamma, but alpha has no business to send it there by way of beta.
    alpha, beta, gamma = Node("alpha.test"), Node("beta.test"), Node("gamma.test")
    async with open_nodes(alpha, beta, gamma):
        beta.join(gamma.peer)
        b, c = await beta.call(), await gamma.call()
        await knows(b, beta, c)
        other = await beta.call(mesh_key=MESH_KEY)
        other.core.send_forward_packet(b"s" * 32, c.key, b"around two corners")
        other.core.send_forward_packet(b"s" * 32, c.key, DISCO)
        other.core.send_forward_packet(b"s" * 32, b.key, b"here")
        await other.flush()
        assert await b.receive() == RecvPacket(b"s" * 32, b"here")
        assert await other.receive() == PeerGone(c.key, PeerGoneReason.NOT_HERE)
        assert beta.router.counters.dropped(DropReason.UNKNOWN_DEST_ON_FWD) == 2
        await b.send(c.key, b"directly")
        assert await c.receive() == RecvPacket(b.key, b"directly")


# --- one key in several places


async def test_the_first_relay_that_claims_a_key_has_it_and_a_client_here_wins() -> None:
    async with open_region(3) as (alpha, beta, gamma):
        a = await alpha.call()
        private = NodePrivate.generate()
        key = private.public().raw

        def claims() -> list[bytes]:
            return [route.key for route in alpha.router.members[key].forwarders] if key in alpha.router.members else []

        at_beta = await beta.call(private=private)
        await until(a, lambda: claims() == [beta.key])
        at_gamma = await gamma.call(private=private)
        await until(a, lambda: claims() == [beta.key, gamma.key])
        await a.send(key, b"to beta")
        assert await at_beta.receive() == RecvPacket(a.key, b"to beta")

        at_alpha = await alpha.call(private=private)
        await a.send(key, b"to alpha")
        assert await at_alpha.receive() == RecvPacket(a.key, b"to alpha")
        await at_alpha.aclose()
        await until(a, lambda: alpha.router.routes[key].is_forwarder)

        await at_beta.aclose()
        await until(a, lambda: claims() == [gamma.key])
        await a.send(key, b"to gamma")
        assert await at_gamma.receive() == RecvPacket(a.key, b"to gamma")
        await at_gamma.aclose()
        await until(a, lambda: claims() == [])
        counters = alpha.router.counters
        assert (counters.multiforwarder_created, counters.multiforwarder_deleted) == (1, 1)


async def test_a_client_that_moves_to_the_other_relay_is_reached_there_and_nobody_hears_it_left() -> None:
    async with open_region(2) as (alpha, beta):
        a = await alpha.call()
        private = NodePrivate.generate()
        old = await alpha.call(private=private)
        await old.send(a.key, b"hello")
        assert await a.receive() == RecvPacket(old.key, b"hello")
        new = await beta.call(private=private)
        await until(a, lambda: bool(alpha.router.members[old.key].forwarders))
        await old.aclose()
        await until(a, lambda: alpha.router.routes[old.key].is_forwarder)
        await a.send(old.key, b"where are you")
        assert await new.receive() == RecvPacket(a.key, b"where are you")
        await a.send(a.key, b"next")
        assert await a.receive() == RecvPacket(a.key, b"next")  # and no PeerGone before it


# --- breaks


async def test_after_a_break_both_know_again_who_is_where() -> None:
    async with open_region(2) as (alpha, beta):
        a, stays, leaves = [await node.call() for node in (alpha, beta, beta)]
        await knows(a, alpha, stays, leaves)
        await knows(stays, beta, a)
        for far in (stays, leaves):
            await far.send(a.key, b"hello")
            assert await a.receive() == RecvPacket(far.key, b"hello")
        alpha.server.reactor.close(alpha.mesh.sessions[beta.peer].wire, CloseReason.SOCKET_FAILED)
        gone = [await a.receive() for _ in range(2)]
        assert set(gone) == {PeerGone(far.key, PeerGoneReason.DISCONNECTED) for far in (stays, leaves)}
        assert set(alpha.router.members) >= {a.key}
        assert stays.key not in alpha.router.routes
        await leaves.aclose()
        comes = await beta.call()
        await knows(a, alpha, stays, comes)
        assert leaves.key not in alpha.router.routes
        await both_ways(a, stays, b"again")
        await knows(comes, beta, a)
        await both_ways(a, comes, b"news")


async def test_a_relay_is_replaced_under_the_same_name_and_key() -> None:
    alpha, beta = Node("alpha.test"), Node("beta.test")
    async with open_nodes(alpha, beta) as nursery:
        alpha.join(alpha.peer, beta.peer)
        beta.join(alpha.peer, beta.peer)
        a, b = await alpha.call(), await beta.call()
        await knows(a, alpha, b)
        await knows(b, beta, a)
        await b.send(a.key, b"before")
        assert await a.receive() == RecvPacket(b.key, b"before")
        await beta.stop()
        await b.wait_closed()
        assert await a.receive() == PeerGone(b.key, PeerGoneReason.DISCONNECTED)

        again = Node("beta.test", private_key=beta.config.private_key, listen=(("127.0.0.1", beta.peer.port),))
        assert again.peer == beta.peer
        await nursery.start(again.run)
        again.join(alpha.peer, again.peer)
        b = await again.call(private=b.core._private)
        await knows(a, alpha, b)
        await knows(b, again, a)
        await both_ways(a, b, b"after")


async def test_a_relay_that_starts_last_is_found() -> None:
    beta = Node("beta.test")  # only to know its port
    beta.server.close()
    alpha = Node("alpha.test")
    async with open_nodes(alpha) as nursery:
        alpha.join(beta.peer, beta.peer)  # listed twice by mistake
        late = Node("beta.test", listen=(("127.0.0.1", beta.peer.port),))
        await nursery.start(late.run)
        a, b = await alpha.call(), await late.call()
        await knows(a, alpha, b)
        await a.send(b.key, b"late")
        assert await b.receive() == RecvPacket(a.key, b"late")
        assert len(late.router.members[alpha.key].connections) == 1


# --- commands of mesh peers


async def test_a_mesh_peer_has_every_connection_of_a_key_closed() -> None:
    async with open_nodes(alpha := Node("alpha.test")):
        private = NodePrivate.generate()
        doomed = [await alpha.call(private=private) for _ in range(3)]
        bystander = await alpha.call()
        mesh = await alpha.call(mesh_key=MESH_KEY)
        mesh.core.send_close_peer(b"nobody".ljust(32))
        mesh.core.send_close_peer(doomed[0].key)
        await mesh.flush()
        for one in doomed:
            await one.wait_closed()
        assert count_of(alpha.server, CloseReason.CLOSED_BY_MESH) == 3
        await both_ways(bystander, mesh, b"both are still here")


# --- the key


async def test_with_another_mesh_key_a_relay_is_an_ordinary_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "derp")
    alpha, beta = Node("alpha.test", mesh_key=OTHER_KEY), Node("beta.test")
    async with open_nodes(alpha, beta):
        a, b = await alpha.call(), await beta.call()
        stranger = await beta.call(mesh_key=OTHER_KEY)
        await both_ways(stranger, b, b"an ordinary client")
        alpha.join(beta.peer)
        # asked for its clients, beta hangs up, again and again; alpha says once why that may be
        await until(b, lambda: count_of(beta.server, CloseReason.PROTOCOL_ERROR) >= 2)
        await until(a, lambda: "same mesh key" in caplog.text)
        assert caplog.text.count("does it have the same mesh key?") == 1
        assert "> mesh" not in caplog.text
        assert b.key not in alpha.router.routes
        await both_ways(stranger, b, b"still ordinary")


async def test_a_certificate_for_another_name_is_not_trusted(caplog: pytest.LogCaptureFixture) -> None:
    alpha, beta = Node("alpha.test"), Node("elsewhere.test")
    async with open_nodes(alpha, beta):
        a = await alpha.call()
        alpha.join(beta.peer)
        await until(a, lambda: "x mesh: elsewhere.test" in caplog.text)
        assert "not valid for 'elsewhere.test'" in caplog.text
        assert "this machine has to trust its certificate: SSL_CERT_FILE names" in caplog.text
        assert alpha.mesh.sessions == {}
        assert beta.router.clients == {}


@pytest.mark.parametrize(
    ("alert", "remedy"),
    [
        (b"\x15\x03\x03\x00\x02\x02\x70", "use the name that is its --hostname"),  # as ours refuses a name
        (b"\x15\x03\x03\x00\x02\x02\x50", "use the name that is its --hostname"),  # as the genuine relay does
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "relays mesh over TLS only: is the port right?"),
    ],
)
async def test_what_the_other_side_says_instead_of_tls_has_a_remedy(
    caplog: pytest.LogCaptureFixture, alert: bytes, remedy: str
) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(alert)
        await stream.receive_some()

    async with open_nodes(alpha := Node("alpha.test")), trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host=HOST))
        a = await alpha.call()
        alpha.join(MeshPeer("beta.test", listener.socket.getsockname()[1], HOST))
        await until(a, lambda: "x mesh: beta.test" in caplog.text)
        assert remedy in caplog.text
        nursery.cancel_scope.cancel()


async def test_a_genuine_relay_is_asked_nothing_when_its_clients_come_here() -> None:
    alpha, private = Node("alpha.test"), NodePrivate.generate()
    key, other = private.public().raw, b"k" * 32
    async with open_nodes(alpha), open_impostor() as host:  # it tells no depth of its queues, as genuine ones
        alpha.join(host.peer)
        far = await host.accept()
        a = await alpha.call()
        for message in (PeerPresent(key), Restarting(2000, 60_000), PeerPresent(other)):
            far.core.send(message)
        await far.write(b"".join(far.core.data_to_send()))
        await until(a, lambda: other in alpha.router.routes)
        await both_ways(a, await alpha.call(private=private), b"at once")
        await a.send(other, b"the first that it hears")
        assert (await far.receive_forwarded()).packet == b"the first that it hears"
        assert far.core.skipped_frames == 0


# --- a slow relay


async def test_a_relay_that_reads_nothing_costs_nobody_else_and_is_cut_off() -> None:
    alpha = Node(
        "alpha.test",
        mesh_write_timeout_seconds=0.5,
        tcp_write_timeout_seconds=0,
        queue_depth=64,
        queue_bytes=1 << 30,
    )
    async with open_nodes(alpha), open_impostor() as host:
        alpha.join(host.peer)
        far = await host.accept()
        a, b = await alpha.call(), await alpha.call()
        present = PeerPresent(b"k" * 32)
        far.core.send(present)
        await far.write(b"".join(far.core.data_to_send()))
        await until(a, lambda: present.key in alpha.router.routes)

        route = alpha.router.routes[present.key]
        counters = alpha.router.counters
        while not counters.dropped(DropReason.QUEUE_HEAD):
            await a.send(present.key, *(bytes(60_000) for _ in range(8)))
            await both_ways(a, b, b"nobody waits for it")
        assert route.queue is not None
        assert 64 < route.queue.packets <= 8 * 64  # it may hold more than a client's, and not much more
        assert counters.mesh_packets_dropped == sum(counters.packets_dropped)
        await knows_not_key(a, alpha, present.key)
        assert closed(alpha.server) == {"write_timeout": 1}
        assert counters.write_timeouts == 1
        assert counters.dropped(DropReason.WRITE_ERROR) > 0
        # it is dialled again: perhaps it was only its machine that stood still
        await (await host.accept()).write(b"")
        await both_ways(a, b, b"all the same")


async def test_what_a_slow_relay_could_not_take_reaches_it_later_in_order() -> None:
    alpha = Node("alpha.test", queue_depth=10_000, queue_bytes=64 << 20)
    async with open_nodes(alpha), open_impostor() as host:
        alpha.join(host.peer)
        far = await host.accept()
        a = await alpha.call()
        key = b"k" * 32
        far.core.send(PeerPresent(key))
        await far.write(b"".join(far.core.data_to_send()))
        await until(a, lambda: key in alpha.router.routes)
        route = alpha.router.routes[key]
        count = 0
        while route.queue is None or route.queue.packets < 20:
            await a.send(key, *((count + more).to_bytes(4, "big") * 10_000 for more in range(8)))
            await a.ping()
            count += 8
        for number in range(count):
            packet = await far.receive_forwarded()
            assert (packet.src, packet.dst) == (a.key, key)
            assert packet.packet == number.to_bytes(4, "big") * 10_000
        await until(a, lambda: route.queue is None)


async def knows_not_key(caller: Caller, node: Node, key: bytes) -> None:
    await until(caller, lambda: key not in node.router.routes)


async def test_a_relay_that_drains_stays_in_the_mesh_until_its_clients_have_left() -> None:
    async with open_region(2) as (alpha, beta):
        at_beta = await beta.call()
        await until(at_beta, lambda: beta.key in alpha.router.routes)  # beta came before a and b
        a, b = await alpha.call(), await alpha.call()
        await knows(at_beta, beta, a, b)
        assert alpha.server.relay.has_neighbours()
        alpha.server.relay.close_clients(1)
        await a.wait_closed()
        assert not beta.mesh.sessions[alpha.peer].ended_event.is_set()
        await at_beta.send(b.key, b"on its way out")
        assert await b.receive() == RecvPacket(at_beta.key, b"on its way out")


@pytest.mark.parametrize(
    ("failures", "since_lost", "seconds"),
    [
        (0, 0.0, 0.2),
        (1, 0.5, 0.25),
        (9, 4.9, 0.25),
        (3, 5.0, 1.0),
        (20, 29.0, 1.0),
        (20, 31.0, 5.0),
        (2, math.inf, 0.8),
    ],
)
def test_a_relay_that_restarts_is_asked_often(failures: int, since_lost: float, seconds: float) -> None:
    assert retry_seconds(failures, since_lost) == pytest.approx(seconds)


async def test_the_state_of_each_peer_is_known() -> None:
    async with open_nodes(alpha := Node("alpha.test"), beta := Node("beta.test")):
        alpha.join(alpha.peer, beta.peer)
        a, b = await alpha.call(), await beta.call()
        await knows(a, alpha, b)
        await until(a, lambda: alpha.mesh.states[alpha.peer].is_ourselves)
        state = alpha.mesh.states[beta.peer]
        assert (state.is_up, state.connects, state.trouble) == (True, 1, "")
        assert state.route is not None
        assert b.key in state.route.keys
        session = alpha.mesh.sessions[beta.peer]
        await beta.stop()
        await until(a, lambda: not state.is_up)
        await until(a, lambda: state.trouble != "")
        assert state.connects == 1
        assert session.reason == "closed_by_peer"  # why, and not twice


async def test_a_relay_that_fell_silent_is_given_up_and_dialled_again() -> None:
    async with open_nodes(alpha := Node("alpha.test")), open_impostor() as host:
        alpha.join(host.peer)
        first = await host.accept()
        a = await alpha.call()
        await until(a, lambda: host.peer in alpha.mesh.sessions)
        move_clock(alpha.server, 60)  # one keep-alive was missed at most
        await until(a, lambda: len(alpha.mesh.sessions) == 1)
        move_clock(alpha.server, 80)  # two, and the second one's time is long over
        await first.wait_closed()
        second = await host.accept()
        await second.write(encode(PeerPresent(b"k" * 32)))
        await until(a, lambda: b"k" * 32 in alpha.router.routes)
