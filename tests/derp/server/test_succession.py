"""Two processes of one relay, here both in this one: who is at one reaches who is at the other, and moves over."""

import secrets
import socket

import pytest
import trio

from derp.close_reason import CloseReason
from derp.errors import DerpError
from derp.keys import NodePrivate
from derp.protocol.connection import ServerHandshake
from derp.protocol.messages import PeerPresent, Pong, RecvPacket, Restarting, ServerInfo, encode
from derp.server.handover import Inherited
from derp.server.relay import Relay
from derp.server.server import RelayServer
from derp.server.succession import Ends, Succession, open_pairs
from tests.derp.server.mesh_world import hears_nothing, knows, open_region, until
from tests.derp.server.world import Caller, call, open_server, relay_config


async def join(old: Relay, new: Relay) -> None:
    """As life.py does it in either process."""
    ours, theirs = open_pairs()
    old.succession, new.succession = Succession(old.sessions, ours, 100), Succession(new.sessions, theirs, 100)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.succession.join)
            nursery.start_soon(new.succession.join)


async def both_ways(one: Caller, other: Caller) -> None:
    for source, target in ((one, other), (other, one)):
        await source.send(target.key, b"one", b"two")
        for text in (b"one", b"two"):
            assert await target.receive_a(RecvPacket) == RecvPacket(source.key, text)


async def test_a_client_goes_over_and_its_packets_follow() -> None:
    private, mine = NodePrivate.generate(), NodePrivate.generate()  # a relay without a mesh key
    async with (
        open_server(relay_config(private_key=private)) as old,
        open_server(relay_config(private_key=private)) as new,
    ):
        a, b = await call(old, private=mine), await call(old)
        await join(old.relay, new.relay)
        assert {a.key, b.key} <= set(new.relay.router.routes), "who joined knows all at once"
        c = await call(new)
        await until(a, lambda: c.key in old.relay.router.routes)
        await both_ways(a, c)
        await both_ways(a, b)
        assert not old.relay.has_neighbours()
        old.relay.announce_restart(0.0, 60.0)
        assert old.relay.has_neighbours()
        old.relay.close_clients(1)
        await a.wait_closed()
        await a.send(c.key, b"to the end")
        assert await c.receive_a(RecvPacket) == RecvPacket(a.key, b"to the end")
        await c.send(a.key, b"from there")
        boxes = old.relay.router.mailboxes
        await until(c, lambda: boxes.held_bytes > 0)
        await a.aclose()
        again = await call(new, private=mine)
        assert await again.receive_a(RecvPacket) == RecvPacket(c.key, b"from there")
        await until(again, lambda: len(boxes) == 0)
        await b.receive_a(Restarting)
        await b.receive()  # that its user is told of it
        await both_ways(again, b)
        await both_ways(again, c)
        with trio.fail_after(60):
            await old.relay.leave_mesh()
        assert old.relay.succession is not None
        assert not old.relay.succession.is_up
        await b.aclose()
        for caller in (again, c):
            await caller.aclose()


async def test_another_process_that_ends_at_once() -> None:
    async with open_server() as server:
        ours, theirs = open_pairs()
        succession = Succession(server.relay.sessions, ours, 100)
        for sock in theirs:
            sock.close()
        with trio.fail_after(60), pytest.raises((trio.BrokenResourceError, DerpError)):
            await succession.join()
        assert not succession.is_up
        await succession.leave()
        caller = await call(server)
        await until(caller, lambda: len(server.reactor.wires) == 1)
        await caller.aclose()


async def test_nothing_is_left_of_a_process_with_many_clients_that_fails() -> None:
    """Packets for those who come back to another relay of the region would go to it for ever."""
    async with open_server() as server:
        ours, theirs = open_pairs()
        succession = server.relay.succession = Succession(server.relay.sessions, ours, 10_000)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(succession.join)
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs.serves))
                handshake = ServerHandshake(NodePrivate.generate(), random_bytes=secrets.token_bytes)
                await stream.send_all(b"".join(handshake.data_to_send()))
                while not handshake.receive_data(await stream.receive_some()):
                    pass
                handshake.accept(ServerInfo())
                await stream.send_all(b"".join(handshake.data_to_send()))
                keys = [number.to_bytes(32, "big") for number in range(1, 5001)]
                await stream.send_all(b"".join(encode(PeerPresent(key)) for key in keys) + encode(Pong(bytes(8))))
        assert succession.has(keys[-1])
        caller = await call(server)
        await stream.aclose()
        theirs.dials.close()
        await until(caller, lambda: not succession.is_up)
        assert set(server.relay.router.members) == {caller.key}
        await caller.aclose()


async def test_who_waits_no_longer_leaves_nothing_open() -> None:
    async with open_server() as server:
        ours, theirs = open_pairs()
        succession = Succession(server.relay.sessions, ours, 100)
        with trio.move_on_after(0) as scope:
            await succession.join()
        assert scope.cancelled_caught
        assert not succession.is_up
        for sock in theirs:
            sock.close()
        caller = await call(server)
        await until(caller, lambda: len(server.reactor.wires) == 1)
        await caller.aclose()


def test_each_end_is_joined_with_one_of_the_other_kind() -> None:
    ours, theirs = open_pairs()
    for one, other in ((ours.serves, theirs.dials), (ours.dials, theirs.serves)):
        one.send(b"hello")
        assert other.recv(10) == b"hello"
    assert isinstance(ours, Ends)
    for sock in (*ours, *theirs):
        assert sock.family is socket.AF_UNIX
        sock.close()


def test_the_other_process_inherits_its_ends() -> None:
    ours, theirs = open_pairs()
    inherited = Inherited(theirs.handed())
    assert Ends.inherited(inherited) == theirs
    assert Ends.inherited(inherited) is None, "each once"
    assert Ends.inherited(Inherited(ours.handed()[:1])) is None
    for sock in (*ours, *theirs):
        sock.close()


async def test_other_relays_dial_a_successor_as_soon_as_they_hear_of_it() -> None:
    async with open_region(2) as (alpha, beta):
        a, b = await alpha.call(), await beta.call()
        await knows(a, alpha, b)
        await knows(b, beta, a)
        (first,) = beta.mesh.sessions.values()
        for client in alpha.router.clients.values():
            if client.is_mesh_peer:
                alpha.router.send(client, encode(Restarting(0, 60_000)))
        alpha.server.relay.host.flush()
        await until(b, lambda: first not in beta.mesh.sessions.values() and len(beta.mesh.sessions) == 1)
        (second,) = beta.mesh.sessions.values()
        assert not first.ended_event.is_set(), "packets still go there, until it ends"
        await b.send(a.key, b"by the first")
        assert await a.receive_a(RecvPacket) == RecvPacket(b.key, b"by the first")
        # When all that the first one had is here, the key is the second one's alone.
        await until(b, lambda: beta.router.members[a.key].forwarders == (second.route,))
        beta.server.reactor.close(first.wire, CloseReason.CLOSED_BY_PEER)
        await b.send(a.key, b"by the second")
        assert await a.receive_a(RecvPacket) == RecvPacket(b.key, b"by the second")
        await hears_nothing(b)


def test_a_server_has_it_only_with_a_relay() -> None:
    server = RelayServer(relay_config(derp_enabled=False))
    assert server.own_relay() is None
