"""Clients that go from one process to another with their sockets: nothing lost, twice or out of order."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
import trio

from derp.client.client import Identity, reach
from derp.client.dial import DialOptions
from derp.close_reason import CloseReason
from derp.keys import NodePrivate
from derp.protocol.messages import Health, PeerGone, RecvPacket, Restarting, SendPacket, encode
from derp.relay.clients import Client, Member
from derp.relay.usage import Usage
from derp.server.ledger import LedgerFile
from derp.server.moving import move_clients, open_channel, receive_clients
from derp.server.server import RelayServer
from tests.derp.server.mesh_world import until
from tests.derp.server.test_succession import join
from tests.derp.server.world import (
    HOST,
    PATIENCE_SECONDS,
    SELF_SIGNED,
    Bystanders,
    Caller,
    Carrier,
    call,
    open_server,
    relay_config,
)
from tests.support.command import ENVIRONMENT
from tests.support.regions import Successor
from tests.support.relays import free_port, stop_process

OWN = replace(SELF_SIGNED, own_records=True)
KINDS = ("plain", "tls", "websocket", "websocket over tls")


@asynccontextmanager
async def two(kind: str = "plain", **changes: object) -> AsyncIterator[tuple[RelayServer, RelayServer]]:
    """A relay and the one that takes its place, both in this process."""
    config = relay_config(**({"tls": OWN} if "tls" in kind else {}), **changes)
    async with open_server(config) as old, open_server(config) as new:
        yield old, new


def carrier(kind: str) -> Carrier:
    return "websocket" if "websocket" in kind else "plain"


async def move(old: RelayServer, new: RelayServer, *nonsense: bytes, one_by_one: bool | None = None) -> tuple[int, int]:
    """How many went, and how many came.  `nonsense` goes first, each with a socket that nobody else has.  One by one if
    the two are meshed, unless said otherwise."""
    came: list[int] = []
    ours, (theirs,) = open_channel()
    assert ours is not None
    for message in nonsense:
        with socket.socket() as sock:
            socket.send_fds(ours, [message], [sock.fileno()])

    async def receive() -> None:
        keeper = new.tls.records if new.tls is not None else None
        predecessor = new.relay.succession
        came.append(await receive_clients(new.relay.sessions, keeper, theirs.sock, predecessor=predecessor))

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            if one_by_one is None:
                one_by_one = old.relay.succession is not None
            went = await move_clients(old.relay.sessions, ours, one_by_one=one_by_one)
    return went, came[0]


def client_of(server: RelayServer, caller: Caller) -> Client:
    (client,) = server.relay.router.members[caller.key].connections
    return client


@pytest.mark.parametrize("kind", KINDS)
async def test_clients_go_on_as_if_nothing_had_been(kind: str) -> None:
    async with two(kind) as (old, new):
        pair = Bystanders(await call(old, carrier(kind)), await call(old, carrier(kind)))
        await pair.go_on(3)
        assert await move(old, new) == (2, 2)
        assert not old.relay.router.clients
        assert not old.reactor.wires
        await pair.go_on(3)  # it sees to it that nothing else is heard
        assert len(new.relay.router.clients) == 2
        assert await move(new, old) == (2, 2), "and back: what has moved can move"
        await pair.go_on(3)
        await pair.aclose()


@pytest.mark.parametrize("kind", ["plain", "tls"])
async def test_many_talk_in_order_while_a_few_at_a_time_are_on_their_way(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("derp.server.session.HOLD_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr("derp.server.moving._ARRIVAL_SECONDS", PATIENCE_SECONDS)
    count, packets = 24, 40
    async with two(kind, private_key=NodePrivate.generate()) as (old, new):
        await join(old.relay, new.relay)
        callers = [await call(old) for _ in range(count)]
        await until(callers[0], lambda: all(caller.key in new.relay.router.routes for caller in callers))
        underway: list[int] = []
        new.relay.sessions.on_adopt.append(lambda _: underway.append(len(old.relay.router.mailboxes)))
        moved = trio.Event()

        async def talk(caller: Caller, to: Caller) -> None:
            for number in range(packets):
                if number == packets - 10:
                    await moved.wait()
                await caller.send(to.key, bytes([number]))

        async def listen(caller: Caller, source: Caller) -> None:
            for number in range(packets):
                assert await caller.receive() == RecvPacket(source.key, bytes([number]))

        async with trio.open_nursery() as nursery:
            for number, caller in enumerate(callers):
                nursery.start_soon(talk, caller, callers[number - 1])
                nursery.start_soon(listen, callers[number - 1], caller)
            assert await move(old, new) == (count, count)
            moved.set()
        assert len(underway) == count
        assert max(underway) <= 16
        for caller in callers:
            await caller.aclose()


@pytest.mark.parametrize(("mailbox", "arrival"), [(0.05, PATIENCE_SECONDS), (PATIENCE_SECONDS, 0.05)])
async def test_clients_whose_arrival_nobody_hears_of_hold_up_the_others_for_a_while_only(
    mailbox: float, arrival: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until what came for them has waited long enough, or until it is clear that nobody tells."""
    monkeypatch.setattr("derp.relay.mailbox.MAILBOX_SECONDS", mailbox)
    monkeypatch.setattr("derp.server.moving._ARRIVAL_SECONDS", arrival)
    async with two() as (old, new):
        callers = [await call(old) for _ in range(20)]
        assert await move(old, new, one_by_one=True) == (20, 20)
        for caller in callers:
            await caller.ping()
            await caller.aclose()


async def test_what_a_client_sent_before_it_went_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derp.server.session.HOLD_SECONDS", PATIENCE_SECONDS)
    async with two(private_key=NodePrivate.generate()) as (old, new):
        await join(old.relay, new.relay)
        bystander, other = await call(new), await call(old)
        await until(other, lambda: other.key in new.relay.router.routes)
        assert await move(old, new) == (1, 1)
        one = await call(old)
        await until(one, lambda: one.key in new.relay.router.routes)
        assert new.relay.succession is not None
        from_old = new.relay.succession._served
        new.reactor.pause(from_old)
        await one.send(other.key, b"before")
        await one.ping()
        assert await move(old, new) == (1, 1)
        await one.send(other.key, b"after")
        for _ in range(3):
            await bystander.ping()
        new.reactor.resume(from_old)
        for packet in (b"before", b"after"):
            assert await other.receive_a(RecvPacket) == RecvPacket(one.key, packet)
        for caller in (bystander, one, other):
            await caller.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_packet_that_has_come_in_part(kind: str) -> None:
    async with two(kind) as (old, new):
        one, other = await call(old, carrier(kind)), await call(old, carrier(kind))
        one.core.send_packet(other.key, b"a packet in two parts" * 50)
        packet = b"".join(one.core.data_to_send())
        await one.write(packet[:500])
        while len(client_of(old, one).wire.kept) < 500:  # a busy host asks the kernel for less at a time
            await trio.lowlevel.checkpoint()
        assert await move(old, new) == (2, 2)
        await one.write(packet[500:])
        assert await other.receive_a(RecvPacket) == RecvPacket(one.key, b"a packet in two parts" * 50)
        for caller in (one, other):
            await caller.aclose()


async def test_a_record_that_has_come_in_part() -> None:
    async with two("tls") as (old, new):
        one, other = await call(old), await call(old)
        one.core.send_packet(other.key, b"x" * 1000)
        one.stream._ssl_object.write(b"".join(one.core.data_to_send()))
        record, below = one.stream._outgoing.read(), one.stream.transport_stream
        await below.send_all(record[:300])
        while not client_of(old, one).wire._begun:
            await trio.lowlevel.checkpoint()
        assert await move(old, new) == (2, 2)
        await below.send_all(record[300:])
        assert await other.receive_a(RecvPacket) == RecvPacket(one.key, b"x" * 1000)
        for caller in (one, other):
            await caller.aclose()


async def test_what_a_limit_held_back_is_served_by_the_other_process() -> None:
    async with two(private_key=NodePrivate.generate()) as (old, new):
        await join(old.relay, new.relay)
        one, other = await call(old), await call(old)
        await until(one, lambda: one.key in new.relay.router.routes and other.key in new.relay.router.routes)
        wire = client_of(old, one).wire
        old.reactor.pause(wire)
        wire.kept = encode(SendPacket(other.key, b"held back"))
        assert await move(old, new) == (2, 2)
        assert await other.receive_a(RecvPacket) == RecvPacket(one.key, b"held back")
        for caller in (one, other):
            await caller.aclose()


async def test_the_ledger_has_what_was_carried_before_and_after_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    async with two(ledger=path) as (old, new):
        one, slow = await call(old), await call(old)
        client = client_of(old, slow)
        client.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        count = 0
        while client.queue is None or not client.queue.packets:
            await one.send(slow.key, bytes(1000))
            await one.ping()
            count += 1
        assert await move(old, new) == (2, 2)
        await one.send(slow.key, bytes(1000))
        for _ in range(count + 1):
            await slow.receive_a(RecvPacket)
        for caller in (one, slow):
            await caller.aclose()
    found = {key: usage for _, _, key, usage in LedgerFile(path).read()}
    packets, size = count + 1, (count + 1) * 1000
    assert found == {one.key: Usage(packets, size), slow.key: Usage(packets_out=packets, bytes_out=size)}


@pytest.mark.parametrize("kind", ["plain", "tls"])
async def test_what_a_full_socket_has_not_taken_goes_along(kind: str) -> None:
    async with two(kind) as (old, new):
        one, slow = await call(old), await call(old)
        client = client_of(old, slow)
        client.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        count = 0
        while client.queue is None or not client.queue.packets:
            await one.send(slow.key, count.to_bytes(4, "big") * 300)
            await one.ping()
            count += 1
        for _ in range(10):
            await one.send(slow.key, count.to_bytes(4, "big") * 300)
            count += 1
        await one.ping()
        assert await move(old, new) == (2, 2)
        await one.send(slow.key, count.to_bytes(4, "big") * 300)
        for number in range(count + 1):
            assert await slow.receive_a(RecvPacket) == RecvPacket(one.key, number.to_bytes(4, "big") * 300)
        assert not any(old.relay.router.counters.packets_dropped)
        for caller in (one, slow):
            await caller.aclose()


async def test_what_is_known_of_a_client_goes_along() -> None:
    async with two() as (old, new):
        one, other = await call(old), await call(old)
        one.core.send_note_preferred(True)
        await one.flush()
        await one.send(other.key, b"hello")
        await one.ping()
        before = client_of(old, one)
        before.named_tenant = before.tenant = "acme"
        kept = ("address", "port", "can_ack_pings", "packets_in", "bytes_in", "tenant")
        told = {name: getattr(before, name) for name in kept}
        assert old.relay.router.home_clients == 1
        assert await move(old, new) == (2, 2)
        after = client_of(new, one)
        assert {name: getattr(after, name) for name in told} == told
        assert (old.relay.router.home_clients, new.relay.router.home_clients) == (0, 1)
        assert new.relay.router.counters.home_moves_in == 0
        # Whoever got packets of a key hears that it has gone, also of those that it got before.
        assert await other.receive_a(RecvPacket) == RecvPacket(one.key, b"hello")
        await one.aclose()
        gone = await other.receive()
        assert isinstance(gone, PeerGone)
        assert gone.key == one.key
        await other.aclose()


async def test_who_is_with_openssl_stays_and_is_drained() -> None:
    config = relay_config(tls=SELF_SIGNED)
    async with open_server(config) as old, open_server(config) as new:
        caller = await call(old)
        assert await move(old, new) == (0, 0)
        await caller.ping()
        await caller.aclose()


async def test_a_websocket_in_the_middle_of_a_message_stays() -> None:
    async with two("websocket") as (old, new):
        one, other = await call(old, "websocket"), await call(old, "websocket")
        client_of(old, one).wire.codec.receive_into(memoryview(b"\x82\xfe"), bytearray(10), 0)  # the start of a head
        assert await move(old, new) == (1, 1)
        for caller in (one, other):
            await caller.aclose()


async def test_when_the_other_process_ends_clients_stay() -> None:
    async with two() as (old, _):
        pair = Bystanders(await call(old), await call(old))
        ours, (theirs,) = open_channel()
        assert ours is not None
        theirs.sock.close()
        third = await call(old)
        assert await move_clients(old.relay.sessions, ours) == 0
        await third.wait_closed() if client_lost(old, third) else await third.ping()
        left = [caller for caller in (pair.one, pair.other, third) if not client_lost(old, caller)]
        assert len(left) == 2, "the one that was on its way is closed: nobody can say how far it came"
        for caller in left:
            await caller.ping()
        for caller in (pair.one, pair.other, third):
            await caller.aclose()


async def test_what_is_not_understood_is_closed_and_counted_and_the_others_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two() as (old, new):
        pair = Bystanders(await call(old), await call(old))
        nonsense = [b"\xc1", *map(msgpack.packb, (None, [1], {}, {"caller": ["", 1], "tls": [1]}))]
        assert await move(old, new, *nonsense) == (2, 2)
        assert caplog.text.count("is not understood") == len(nonsense)
        assert new.lobby.closed_count[CloseReason.INTERNAL_ERROR] == len(nonsense)
        await pair.go_on(3)
        await pair.aclose()


async def test_who_came_is_read_though_the_other_process_gives_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with two() as (old, new):
        one = await call(old)
        ours, (theirs,) = open_channel()
        assert ours is not None
        with ours:
            at_first, (nobody,) = open_channel()
            assert at_first is not None
            with nobody.sock:
                assert await move_clients(old.relay.sessions, at_first) == 1
                message, fds, _, _ = socket.recv_fds(nobody.sock, 1 << 18, 1)
            socket.send_fds(ours, [message], fds)
            os.close(fds[0])
            monkeypatch.setattr("derp.server.moving._STUCK_SECONDS", 0.1)
            with trio.fail_after(PATIENCE_SECONDS):
                assert await receive_clients(new.relay.sessions, None, theirs.sock) == 1
        assert "gives no more clients" in caplog.text
        await one.ping()
        await one.aclose()


def client_lost(server: RelayServer, caller: Caller) -> bool:
    member = server.relay.router.members.get(caller.key)
    return member is None or not member.connections


async def test_who_is_sent_away_meanwhile_does_not_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (old, new):
        callers = [await call(old) for _ in range(3)]
        sessions = old.relay.sessions
        note, last = sessions.advisor.note_departure, client_of(old, callers[2])

        def note_and_revoke(client: Client, member: Member | None) -> None:
            note(client, member)
            if last.member is not None:  # between the first client and the second
                sessions.guests.send_away(last, "revoked", "revoked")

        monkeypatch.setattr(sessions.advisor, "note_departure", note_and_revoke)
        assert await move(old, new) == (2, 2)
        for caller in callers[:2]:
            await caller.ping()
        for caller in callers:
            await caller.aclose()


async def test_clients_that_leave_while_they_move_are_seen_to_leave() -> None:
    async with two() as (old, new):
        one, other = await call(old), await call(old)
        await one.send(other.key, b"last words")
        await one.ping()
        await one.aclose()
        went, came = await move(old, new)
        assert went == came
        assert await other.receive_a(RecvPacket) == RecvPacket(one.key, b"last words")
        await other.send(one.key, b"x" * 10)
        await other.ping()
        with trio.fail_after(PATIENCE_SECONDS):
            while one.key in new.relay.router.members:
                await trio.lowlevel.checkpoint()
        await other.aclose()


@pytest.mark.parametrize("flags", [(), ("--tls-self-signed", f"--hostname={HOST}", "--tls-records=own")])
async def test_a_process_is_replaced_under_clients_that_talk(flags: tuple[str, ...], tmp_path: Path) -> None:
    port = free_port(socket.SOCK_STREAM)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(PATIENCE_SECONDS)
    command = [sys.executable, "-m", "derp", "serve", f"--listen={HOST}:{port}", "--stun=false", *flags]
    command += [f"--key-file={tmp_path}/key", "--http-port=-1"]
    environment = ENVIRONMENT | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    process = await trio.lowlevel.open_process(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    successor: Successor | None = None
    url = f"{'https' if flags else 'http'}://{HOST}:{port}/derp"
    try:
        with manager, trio.fail_after(3 * PATIENCE_SECONDS):
            assert await trio.to_thread.run_sync(manager.recv, 100) == b"READY=1"
            callers = []
            for _ in range(2):
                private = NodePrivate.generate()
                options = DialOptions(insecure_for_tests=True, environment=None)
                reached = await reach(url, Identity(private), options, "", PATIENCE_SECONDS)
                callers.append(Caller(reached.dialled.stream, reached.core, private))
            one, other = callers
            await one.ping()
            await other.ping()
            process.send_signal(signal.SIGUSR2)
            count, ended = 0, trio.Event()

            async def wait_ended() -> None:
                await process.wait()
                ended.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_ended)
                after = 0
                while after < 20:  # some before, some meanwhile, these when the old process has gone
                    after += ended.is_set()
                    count += 1
                    packet = count.to_bytes(4, "big") * 100
                    await one.send(other.key, packet)
                    while not isinstance(heard := await other.receive(), RecvPacket):
                        assert not isinstance(heard, Restarting | Health | PeerGone), "it was told of it"
                    assert heard == RecvPacket(one.key, packet)
            heard_by_systemd = b""
            while b"MAINPID=" not in heard_by_systemd:
                heard_by_systemd = await trio.to_thread.run_sync(manager.recv, 100)
            successor = Successor(int(heard_by_systemd.split(b"=")[1]))
            assert process.returncode == 0
            for caller in callers:
                await caller.aclose()
    finally:
        with trio.CancelScope(shield=True):
            await stop_process(process)
            assert successor is None or await stop_process(successor)
