"""Every counter that exists moves: each row of both pages of real relays is changed by something that somebody does.

Which action moves which row, and by how much, is in test_statistics.py, whose actions are used here too.  A new counter
fails the test below until somebody moves it; a row that cannot move has to say why in CONSTANT.
"""

import contextlib
import io
import logging
import socket
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from derp import log
from derp.close_reason import CloseReason
from derp.config import Rate, TlsConfig
from derp.keys import MeshKey, NodePrivate
from derp.protocol.messages import ForwardPacket, NotePreferred, PeerGone, PeerPresent, RecvPacket, WatchConns, encode
from derp.protocol.stun import encode_request
from derp.relay.clients import Client
from derp.relay.counters import DropReason, PacketKind
from derp.relay.limits import NO_LIMITS, ClientLimits, Limits, Quota, TenantLimits
from derp.relay.turns import Turns
from derp.server import ledger
from derp.server.advisor import health_frame
from derp.server.server import RelayServer
from tests.derp.server.control_plane import NO, YES, open_control_plane
from tests.derp.server.mesh_world import Node, open_impostor, open_nodes, until
from tests.derp.server.test_door import last_get
from tests.derp.server.test_keysets import until as until_so
from tests.derp.server.test_server import UPGRADE, client_info
from tests.derp.server.test_statistics import MESH, TABLE, table_config
from tests.derp.server.world import (
    DISCO,
    HOST,
    PATIENCE_SECONDS,
    SELF_SIGNED,
    ask,
    call,
    count_of,
    dial,
    drained,
    move_clock,
    open_server,
    port_of,
    relay_config,
)
from tests.derp.transport.test_tls_refusals import distrusting, too_old, without_checks

PAGES = ("/metrics", "/debug/varz")
# What never moves, by the beginning of its name without the page, and why.
CONSTANT = {
    "process_": "of the process, as the library behind the page counts it",
    "python_": "of the interpreter, as the library behind the page counts it",
    "version": "of the program",
    "node_boot_time_seconds": "of the machine",
    "uptime_sec": "the time, in whole seconds: test_varz.py",
    "derp_memstats_sys0": "the process's memory at its highest",
    "derp_certificate_expires_timestamp_seconds": "a date: test_certificates.py",
    "derp_health_texts": "by what is the matter: test_advisor.py",
    "derp_queued_bytes_limit": "of the machine, or a setting",
    "derp_reactor_in_trios_place": "of the loop: tests/derp/transport/test_trioloop.py",
    "derp_build_info": "of the program",
    "derp_tcp_rtt_errors": "the kernel tells of every TCP socket: test_relay.py has one that is none",
    "derp_packets_dropped{dup_client}": "a label that panels name: there is always an active connection here",
    "derp_bytes_dropped{dup_client}": "the same",
}
# Labels whose values are rows of their own; others are buckets, or the names of other relays.
CLOSED_LISTS = {"answer", "disposition", "family", "kind", "limit", "outcome", "reason", "version"}
LOUD = bytes(60_000)
LOUD_DISCO = DISCO + LOUD


class Rows:
    """The rows of both pages, and which of them moved."""

    def __init__(self) -> None:
        self.all: set[str] = set()
        self.moved: set[str] = set()
        self._first: dict[str, float] = {}

    def begin(self, server: RelayServer) -> None:
        self._first = read(server)
        self.all |= self._first.keys()

    def look(self, server: RelayServer) -> None:
        now = read(server)
        self.all |= now.keys()
        self.moved |= {name for name, value in now.items() if value != self._first.get(name, 0.0)}


def read(server: RelayServer) -> dict[str, float]:
    """Each row of each page with its labels; what differs in other labels alone is one row."""
    rows: dict[str, float] = {}
    for path in PAGES:
        page = server.pages.pages[path].render().decode()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                bare = sample.name.removesuffix("_total") if family.type == "counter" else sample.name
                name = f"{path} {bare}" + "".join(
                    f"{{{text}}}" for key, text in sample.labels.items() if key in CLOSED_LISTS
                )
                rows[name] = rows.get(name, 0.0) + sample.value
    return rows


async def the_table(rows: Rows) -> None:
    for action in TABLE:
        async with open_server(table_config()) as server:
            one, other = await call(server), await call(server)
            rows.begin(server)
            await action(server, one, other)
            rows.look(server)
            await one.aclose()
            await other.aclose()


async def gauges(rows: Rows) -> None:
    async with open_server(relay_config(mesh_key=MESH)) as server:
        rows.begin(server)
        private = NodePrivate.generate()
        callers = [await call(server, private=private) for _ in range(2)]
        callers.append(await call(server, headers=(("Ideal-Node", "900b"),)))
        callers.append(await call(server, mesh_key=MeshKey(b"x" * 32)))  # not ours
        watcher = await call(server, mesh_key=MESH)
        await watcher.write(encode(WatchConns()))
        await watcher.receive_a(PeerPresent)
        callers += [await call(server), watcher]  # which the watcher is told of, in a batch of one
        await callers[0].write(encode(NotePreferred(True)))
        move_clock(server, 0.5)  # the next flush is sampled
        await callers[0].ping()
        await callers[0].ping()
        # one key has a limit of its own, and everybody else another
        server.relay.sessions.set_limits(Rate(1 << 40, 1 << 40), {callers[0].key: Rate(1_000_000, 1)}, NO_LIMITS)
        await callers[0].send(callers[0].key, LOUD, LOUD, LOUD)
        await callers[0].ping()
        rows.look(server)
        assert server.statistics().counters.rate_limited > 0
        for caller in callers:
            await caller.aclose()


async def tls_and_limits(rows: Rows) -> None:
    rates = {"accept_connection_limit": 0.001, "accept_connection_burst": 4}
    config = relay_config(tls=SELF_SIGNED, max_connections=3, debug_allow=(), **rates)
    async with open_server(config) as server:
        rows.begin(server)
        callers = [await call(server, "tls") for _ in range(2)]
        async with await dial(server) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")  # to where TLS is spoken
            await drained(stream)
        callers.append(await call(server, "tls"))
        assert await ask(server, b"") == b""  # too many
        await callers.pop().aclose()
        while server.statistics().rejected["rate"] == 0:
            await ask(server, b"")
        rows.look(server)
        for caller in callers:
            await caller.aclose()


def say_hello(port: int, client: ssl.SSLContext, name: str | None) -> None:
    with socket.create_connection((HOST, port)) as plain, contextlib.suppress(OSError):
        client.wrap_socket(plain, server_hostname=name).recv(1)


async def hellos(rows: Rows) -> None:
    """Each kind of hello that comes to nothing; what each is: transport/test_tls_refusals.py."""
    tls = TlsConfig(self_signed=True, hostname="relay.example", require_sni=True)
    async with open_server(relay_config(tls=tls)) as server:
        rows.begin(server)
        for client, name in (
            (distrusting(), "relay.example"),
            (without_checks(), "other.example"),
            (without_checks(), None),
            (too_old(), "relay.example"),
        ):
            # In a thread: trio's own stream sends no alert to say why it goes.
            await trio.to_thread.run_sync(say_hello, port_of(server), client, name)
        for no_tls in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 70_000):
            await ask(server, no_tls)
        rows.look(server)


async def slow_readers(rows: Rows) -> None:
    config = relay_config(queue_bytes=40_000, tcp_write_timeout_seconds=0)
    async with open_server(config) as server:
        rows.begin(server)
        one, slow = await call(server), await call(server)
        dropped = server.relay.router.counters.packets_dropped
        for packet, reason, kind in (
            (LOUD, DropReason.QUEUE_TAIL, PacketKind.OTHER),
            (LOUD_DISCO[:60_000], DropReason.QUEUE_TAIL, PacketKind.DISCO),
            (bytes(1000), DropReason.QUEUE_HEAD, PacketKind.OTHER),
            (DISCO, DropReason.QUEUE_HEAD, PacketKind.DISCO),
        ):
            while not dropped[reason * 2 + kind]:
                await one.send(slow.key, *[packet] * 20)
                await one.ping()
        rows.look(server)
        for _ in range(2):  # the second does not fit any more
            server.relay.router.send(server.relay.router.clients[2], health_frame("x" * 40_000))
        await slow.aclose()
        await until(one, lambda: slow.key not in server.relay.router.routes)
        rows.look(server)
        await one.aclose()


async def a_reader_that_stalled(rows: Rows) -> None:
    async with open_server(relay_config(tcp_write_timeout_seconds=0)) as server:
        rows.begin(server)
        one, two, slow = await call(server), await call(server), await call(server)
        client = server.relay.router.members[slow.key].connections[0]
        for packet in (LOUD_DISCO[:20_000], LOUD[:20_000]):
            while client.queue is None or client.queue.packets < 20:
                for sender in (one, two):
                    await sender.send(slow.key, *[packet] * 20)
                    await sender.ping()
            move_clock(server, 1.0)
            before = client.queue.dropped
            while client.queue is not None and client.queue.dropped == before:
                await slow.receive_a(RecvPacket)
        rows.look(server)
        for each in (slow, one, two):
            await each.aclose()


async def crowded_admission(rows: Rows) -> None:
    async with open_control_plane(lambda request: YES) as plane:
        plane.gate = trio.Event()
        async with open_server(relay_config(verify_client_url=plane.url)) as server:
            rows.begin(server)
            verifier = server.relay.verifier
            assert verifier is not None
            verifier._turns = Turns(1, at_once=1)
            login = UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw)
            asked, waiting = await dial(server), await dial(server)
            await asked.send_all(login)
            await plane.asked.wait()
            await waiting.send_all(UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw))
            while not verifier._turns:
                await trio.lowlevel.checkpoint()
            await ask(server, UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw))
            await waiting.receive_some()
            await waiting.aclose()
            plane.gate.set()
            while not verifier.left_count:
                await trio.lowlevel.checkpoint()
            rows.look(server)
            await asked.aclose()


async def full_queues(rows: Rows) -> None:
    config = relay_config(queue_total_bytes=5_000, tcp_write_timeout_seconds=0)
    async with open_server(config) as server:
        rows.begin(server)
        one, slow = await call(server), await call(server)
        dropped = server.relay.router.counters.packets_dropped
        client = server.relay.router.members[slow.key].connections[0]
        while client.queue is None:
            await one.send(slow.key, *[LOUD] * 20)
            await one.ping()
        for packet, kind in ((DISCO, PacketKind.DISCO), (bytes(1000), PacketKind.OTHER)):
            while not dropped[DropReason.QUEUES_FULL * 2 + kind]:
                await one.send(slow.key, *[packet] * 20)
                await one.ping()
        rows.look(server)
        await slow.aclose()
        await one.aclose()


async def a_slow_watcher(rows: Rows) -> None:
    async with open_server(relay_config(mesh_key=MESH, mesh_write_timeout_seconds=0)) as server:
        rows.begin(server)
        one, watcher = await call(server), await call(server, mesh_key=MESH)
        await watcher.write(encode(WatchConns()) + encode(ForwardPacket(one.key, bytes(32), DISCO)))
        await until(one, lambda: count_watchers(server) == 1)
        client = next(iter(server.relay.router.watchers))
        while count_of(server, CloseReason.TOO_SLOW) == 0:
            server.relay.router.send(client, health_frame("x" * 1_000_000))
            await one.ping()
        rows.look(server)
        await one.aclose()
        await watcher.aclose()


def count_watchers(server: RelayServer) -> int:
    return len(server.relay.router.watchers)


async def other_relays(rows: Rows) -> None:
    shared, lost = b"k" * 32, b"l" * 32
    alpha = Node("alpha.test", mesh_write_timeout_seconds=0, queue_bytes=1 << 20)
    async with open_nodes(alpha), open_impostor() as first, open_impostor() as second:
        server, counters = alpha.server, alpha.router.counters
        rows.begin(server)
        alpha.join(first.peer)
        near = await first.accept()
        await near.write(encode(PeerPresent(shared)) + encode(PeerPresent(lost)))
        a = await alpha.call()
        await until(a, lambda: lost in alpha.router.routes)
        alpha.join(second.peer)
        far = await second.accept()
        await far.write(encode(PeerPresent(shared)))
        await until(a, lambda: counters.multiforwarder_created == 1)
        await far.write(encode(PeerGone(lost)))  # which it never announced
        await far.write(encode(PeerGone(shared)))
        await until(a, lambda: counters.multiforwarder_deleted == 1)
        rows.look(server)
        while (route := alpha.router.routes[shared]).queue is None:
            await a.send(shared, *[LOUD] * 8)
            await a.ping()
        await a.send(shared, LOUD, DISCO)
        await a.ping()
        assert route.queue is not None
        rows.look(server)
        await trio.aclose_forcefully(near.stream)
        await until(a, lambda: shared not in alpha.router.routes)
        move_clock(server, 140.0)  # in which the other relay says nothing
        await until(a, lambda: count_of(server, CloseReason.SILENT) == 1)
        rows.look(server)


async def stun_in_trouble(rows: Rows) -> None:
    async with open_server(relay_config(stun_enabled=True, stun_port=0, listen=(("::", 0),))) as server:
        rows.begin(server)
        one = await call(server)
        responder = server.ports.stun[0]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            responder._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 0)
            client.sendto(encode_request(bytes(12)), (HOST, port_of(server, "stun")))
            await until(one, lambda: responder.no_local_address_count > 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            # who asks and is gone when the answer comes: with this option the kernel tells the socket that sent it
            responder._sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            client.sendto(encode_request(bytes(12)), (HOST, port_of(server, "stun")))
        await until(one, lambda: responder.read_error_count > 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            server.is_draining = True
            client.sendto(encode_request(bytes(12)), (HOST, port_of(server, "stun")))
            await until(one, lambda: responder.silent_count > 0)
            server.is_draining = False
            with contextlib.suppress(OSError):
                responder._sock.shutdown(socket.SHUT_WR)  # it says that it failed, and works
            client.sendto(encode_request(bytes(12)), (HOST, port_of(server, "stun")))
            await until(one, lambda: responder.write_error_count > 0)
        rows.look(server)
        await one.aclose()


IP_RECVERR = 11  # not in Python's socket module


async def an_unread_log(rows: Rows) -> None:
    async with open_server() as server:
        rows.begin(server)
        handler = log._Lines(io.StringIO(), logging.Formatter())
        handler.writer.add(bytes(log.MAX_HELD_BYTES + 1))  # more than a reader that is too slow may owe
        logging.getLogger().addHandler(handler)
        try:
            rows.look(server)
        finally:
            logging.getLogger().removeHandler(handler)


async def a_ledger_that_is_no_file(rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "WRITE_SECONDS", 0.01)
        path = Path(folder) / "ledger"
        async with open_server(relay_config(ledger=path)) as server:
            rows.begin(server)
            one = await call(server)
            path.unlink()
            path.mkdir()
            await one.send(one.key, b"x")
            await until(one, lambda: server.statistics().ledger_write_failures > 0)
            rows.look(server)
            path.rmdir()
            await one.aclose()


async def limits_and_quotas(rows: Rows) -> None:
    """Each limit makes somebody wait, and each quota is acted on."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "WRITE_SECONDS", 0.01)
        async with open_server(relay_config(ledger=Path(folder) / "ledger")) as server:
            rows.begin(server)
            relay, slow = server.relay, Rate(1_000_000, 1)
            for limits in (
                Limits(client=ClientLimits(slow), tenants={"a": TenantLimits(weight=2.0)}),
                Limits(tenants={"default": TenantLimits(slow)}),
                Limits(slow),
            ):
                relay.sessions.set_limits(Rate(), {}, limits)
                one = await call(server)
                await one.send(one.key, LOUD, LOUD, LOUD)
                await one.ping()
                rows.look(server)
                await one.aclose()
        # Another ledger: of what the first one knows quotas are used up before anybody is told.
        async with open_server(relay_config(ledger=Path(folder) / "of quotas")) as server:
            rows.begin(server)
            relay, small = server.relay, Quota(bytes_per_day=150_000, floor=Rate(1_000_000))
            assert relay.quotas is not None
            acts = relay.quotas.acts
            for tenants, client, act in (
                ({"default": TenantLimits(quota=small)}, ClientLimits(), "slowed"),
                ({"a": TenantLimits()}, ClientLimits(quota=small), "slowed"),
                ({"a": TenantLimits()}, ClientLimits(quota=replace(small, refuses=True)), "refused"),
            ):
                limits = Limits(client=client, tenants=tenants)
                relay.sessions.set_limits(Rate(), {}, limits)
                relay.quotas.configure(limits)
                one = await call(server)
                told, acted = acts["told"], acts[act]
                await one.send(one.key, LOUD, LOUD[:5_000])
                await until_so(lambda: acts["told"] > told)  # noqa: B023  # it is called in this round
                await one.send(one.key, LOUD)
                await until_so(lambda: acts[act] > acted)  # noqa: B023
                rows.look(server)
                await one.aclose()


async def names(rows: Rows) -> None:
    config = relay_config(
        unpublished_bootstrap_dns_names=(("127.0.0.2", ""), ("127.0.0.3", "127.0.0.4")),
        bootstrap_dns_names=("127.0.0.1", "no..name"),
    )
    async with open_server(config) as server:
        rows.begin(server)
        with trio.fail_after(PATIENCE_SECONDS):
            for name in (b"127.0.0.1", b"127.0.0.2", b"127.0.0.3", b"no..name", b"elsewhere.test"):
                while server.relay.bootstrap.totals()["unpublished_percent_misses"] == 0:
                    await ask(server, last_get(b"/bootstrap-dns?q=127.0.0.3"))
                await ask(server, last_get(b"/bootstrap-dns?q=" + name))
        rows.look(server)


async def admission(rows: Rows) -> None:
    answers = [YES, NO, (500, b"")]
    async with open_control_plane(lambda request: answers.pop(0)) as plane:
        config = relay_config(verify_client_url=plane.url)
        async with open_server(config) as server:
            rows.begin(server)
            await (await call(server)).aclose()
            for _ in range(2):
                await ask(server, UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw))
            rows.look(server)
    async with open_server(config) as server:  # nobody listens there any more
        rows.begin(server)
        await ask(server, UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw))
        rows.look(server)


async def a_defect_and_the_end(rows: Rows) -> None:
    def broken(client: Client) -> None:
        raise ZeroDivisionError("an embedder's mistake")

    async with open_server() as server:
        rows.begin(server)
        one = await call(server)
        server.relay.sessions.on_register.append(broken)
        await ask(server, UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw))
        server.relay.sessions.on_register.remove(broken)
        await one.ping()
    rows.look(server)  # the page of a relay that has stopped
    await one.aclose()


EVERYTHING: tuple[Callable[[Rows], Awaitable[None]], ...] = (
    the_table,
    gauges,
    tls_and_limits,
    hellos,
    slow_readers,
    a_reader_that_stalled,
    crowded_admission,
    full_queues,
    a_slow_watcher,
    other_relays,
    stun_in_trouble,
    an_unread_log,
    a_ledger_that_is_no_file,
    limits_and_quotas,
    names,
    admission,
    a_defect_and_the_end,
)


@pytest.mark.usefixtures("refused_briefly")
async def test_every_row_of_both_pages_is_moved_by_something() -> None:
    rows = Rows()
    for scenario in EVERYTHING:
        with trio.fail_after(6 * PATIENCE_SECONDS):
            await scenario(rows)
    left = {row for row in rows.all - rows.moved if not row.partition(" ")[2].startswith(tuple(CONSTANT))}
    assert left == set()
    # the closed lists are on the page in full, so this covers them as well
    for reason in CloseReason:
        assert f"/metrics derp_closed{{{reason.value}}}" in rows.moved
    for drop in DropReason:
        for kind in PacketKind:
            assert f"/debug/varz derp_packets_dropped{{{drop.name.lower()}}}{{{kind.name.lower()}}}" in rows.moved
