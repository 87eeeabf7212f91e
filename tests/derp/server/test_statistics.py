"""Every counter that exists moves: a table of what somebody does, and which numbers of the real pages that changes."""

import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
import trio

from derp.close_reason import CloseReason
from derp.config import Rate, RelayConfig
from derp.keys import MeshKey, NodePrivate
from derp.protocol.frames import PeerGoneReason
from derp.protocol.messages import (
    ClosePeer,
    ForwardPacket,
    NotePreferred,
    PeerGone,
    Pong,
    RecvPacket,
    WatchConns,
    encode,
)
from derp.protocol.stun import encode_request
from derp.relay.limits import NO_LIMITS
from derp.server.server import RelayServer
from tests.derp.server.test_door import last_get
from tests.derp.server.test_server import UPGRADE, client_info, frame
from tests.derp.server.test_varz import samples
from tests.derp.server.world import (
    DISCO,
    HOST,
    PATIENCE_SECONDS,
    SELF_SIGNED,
    Caller,
    ask,
    call,
    dial,
    drained,
    move_clock,
    open_server,
    relay_config,
)

MESH = MeshKey(b"m" * 32)
Action: TypeAlias = Callable[[RelayServer, Caller, Caller], Awaitable[None]]
Moves: TypeAlias = dict[str, float | None]
"""Name on /metrics: by how much it grows at least; None: it only has to grow."""


async def a_packet(server: RelayServer, one: Caller, other: Caller) -> None:
    await one.send(other.key, b"12345")
    assert await other.receive() == RecvPacket(one.key, b"12345")


async def a_disco_packet(server: RelayServer, one: Caller, other: Caller) -> None:
    await one.send(other.key, DISCO)
    await other.receive()


async def packets_to_nobody(server: RelayServer, one: Caller, other: Caller) -> None:
    await one.send(bytes(32), b"12345")
    await one.send(bytes(32), DISCO)
    assert await one.receive() == PeerGone(bytes(32), PeerGoneReason.NOT_HERE)


async def somebody_leaves(server: RelayServer, one: Caller, other: Caller) -> None:
    await a_packet(server, one, other)
    await one.aclose()
    assert await other.receive() == PeerGone(one.key, PeerGoneReason.DISCONNECTED)


async def a_ping(server: RelayServer, one: Caller, other: Caller) -> None:
    await one.ping()


async def an_unknown_frame(server: RelayServer, one: Caller, other: Caller) -> None:
    await one.write(frame(0x66))
    await one.ping()


async def homes_move(server: RelayServer, one: Caller, other: Caller) -> None:
    for client in server.relay.router.clients.values():
        client.connected_at -= 6.0  # one that was settled
    await one.write(encode(NotePreferred(True)) + encode(NotePreferred(False)))
    await one.ping()


async def a_second_connection(server: RelayServer, one: Caller, other: Caller) -> None:
    private = NodePrivate.generate()
    for caller in [await call(server, private=private) for _ in range(2)]:
        await caller.aclose()


async def a_slow_reader_that_wakes(server: RelayServer, one: Caller, other: Caller) -> None:
    router = server.relay.router
    while not (queue := router.routes[other.key].queue) or not queue.dropped:
        await one.send(other.key, *[bytes(30_000)] * 20)
        await one.ping()
    while router.routes[other.key].queue is not None:
        await other.receive()


async def a_slow_reader_that_does_not(server: RelayServer, one: Caller, other: Caller) -> None:
    while other.key in server.relay.router.routes:
        await one.send(other.key, *[bytes(30_000)] * 20)
        await one.ping()


async def forwards_of_another_relay(server: RelayServer, one: Caller, other: Caller) -> None:
    relay = await call(server, mesh_key=MESH)
    await relay.write(encode(ForwardPacket(b"s" * 32, one.key, b"123")))
    assert await one.receive() == RecvPacket(b"s" * 32, b"123")
    await relay.write(encode(ForwardPacket(b"s" * 32, b"n" * 32, b"123")) + encode(WatchConns()))
    await relay.ping()
    assert server.statistics().watchers == 1
    await relay.write(encode(ClosePeer(one.key)))
    await one.wait_closed()
    await relay.aclose()


async def a_wrong_request(server: RelayServer, one: Caller, other: Caller) -> None:
    await ask(server, b"nonsense\r\n\r\n")


async def a_websocket(server: RelayServer, one: Caller, other: Caller) -> None:
    await (await call(server, "websocket")).aclose()


async def stun(server: RelayServer, one: Caller, other: Caller) -> None:
    for host, family in ((HOST, socket.AF_INET), ("::1", socket.AF_INET6)):
        port = next(one.port for one in server.listening if one.kind == "stun" and one.host == host)
        with trio.socket.socket(family, socket.SOCK_DGRAM) as client:
            await client.sendto(b"noise", (host, port))
            await client.sendto(encode_request(bytes(12)), (host, port))
            await client.recv(100)


async def bootstrap(server: RelayServer, one: Caller, other: Caller) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while server.relay.bootstrap.totals()["published_hits"] == 0:  # a thread of the resolver's looks it up
            await ask(server, last_get(b"/bootstrap-dns?q=localhost"))
    for query in (b"", b"?q=elsewhere.test", b"?q=ip6-localhost", b"?q=no.such.name.invalid"):
        await ask(server, last_get(b"/bootstrap-dns" + query))


async def a_flood(server: RelayServer, one: Caller, other: Caller) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await one.write(frame(0x07, b"\1") * 40_000)
    await one.wait_closed()


async def a_limit_of_rates(server: RelayServer, one: Caller, other: Caller) -> None:
    server.relay.sessions.set_limits(Rate(10_000_000, 1), {}, NO_LIMITS)
    await one.send(other.key, *[bytes(60_000)] * 8)
    for _ in range(8):
        await other.receive()
    server.relay.sessions.set_limits(Rate(), {}, NO_LIMITS)


async def a_drain(server: RelayServer, one: Caller, other: Caller) -> None:
    server.relay.close_clients(2)
    for caller in (one, other):
        await caller.wait_closed()
        await caller.aclose()
    while server.relay.close_clients(0):  # noqa: ASYNC110  # until the relay has seen that they hung up
        await trio.sleep(0.01)


async def too_many_of_one_key(server: RelayServer, one: Caller, other: Caller) -> None:
    private = NodePrivate.generate()
    for caller in [await call(server, private=private) for _ in range(66)]:
        await caller.aclose()


async def a_denied_key(server: RelayServer, one: Caller, other: Caller) -> None:
    await ask(server, UPGRADE + client_info(DENIED, server.relay.public_key.raw))


async def a_tick(server: RelayServer, one: Caller, other: Caller) -> None:
    counts = server.relay.router.counters.tcp_rtt
    before = counts[0]
    with trio.fail_after(PATIENCE_SECONDS):
        while counts[0] == before:  # on a machine that is busy loopback may be far at first
            move_clock(server, 0.5)
            await one.ping()


async def a_reset(server: RelayServer, one: Caller, other: Caller) -> None:
    stream = await dial(server)
    await stream.send_all(UPGRADE)
    await stream.receive_some(10)
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    await stream.aclose()
    await one.ping()


async def a_late_login(server: RelayServer, one: Caller, other: Caller) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        stream = await dial(server)
        await one.ping()
        move_clock(server, 60.0)
        await one.ping()
        await drained(stream)
        await stream.aclose()


async def a_page(server: RelayServer, one: Caller, other: Caller) -> None:
    await ask(server, last_get(b"/"))


DENIED = NodePrivate.generate()
TABLE: dict[Action, Moves] = {
    a_packet: {
        "derp_packets_received{other}": 1, "derp_bytes_received": 5, "derp_packets_sent": 1, "derp_bytes_sent": 5,
    },
    a_disco_packet: {"derp_packets_received{disco}": 1},
    packets_to_nobody: {
        "derp_packets_dropped{other}{unknown_dest}": 1, "derp_packets_dropped{disco}{unknown_dest}": 1,
        "derp_bytes_dropped{other}{unknown_dest}": 5, "derp_bytes_dropped{disco}{unknown_dest}": 62,
        "derp_peer_gone{not_here}": 1,
    },
    somebody_leaves: {"derp_peer_gone{disconnected}": 1, "derp_closed{closed_by_peer}": 1},
    a_ping: {"derp_pings_received": 1, "derp_pongs_sent": 1},
    an_unknown_frame: {"derp_unknown_frames": 1},
    homes_move: {"derp_home_moves_in": 1, "derp_home_moves_out": 1},
    a_second_connection: {"derp_duplicate_connections": 1, "derp_accepts": 2},
    a_slow_reader_that_wakes: {
        "derp_queue_seconds": None, "derp_queued_packets_sent": None, "derp_packets_dropped{other}{queue_head}": None,
        "derp_bytes_dropped{other}{queue_head}": None,
    },
    a_slow_reader_that_does_not: {
        "derp_write_timeouts": 1, "derp_closed{write_timeout}": 1,
        "derp_packets_dropped{other}{gone_disconnected}": None, "derp_bytes_dropped{other}{gone_disconnected}": None,
    },
    forwards_of_another_relay: {
        "derp_packets_forwarded_in": 2, "derp_packets_dropped{other}{unknown_dest_on_fwd}": 1,
        "derp_bytes_dropped{other}{unknown_dest_on_fwd}": 3, "derp_closed{closed_by_mesh}": 1,
    },
    a_wrong_request: {"derp_requests_refused": 1, "derp_closed{protocol_error}": 1},
    a_websocket: {"derp_websocket_accepts": 1, "derp_accepts": 1},
    stun: {
        "derp_stun_requests{success}": 2, "derp_stun_requests{not_stun}": 2, "derp_stun_address_family{ipv4}": 1,
        "derp_stun_address_family{ipv6}": 1,
    },
    bootstrap: {
        "derp_bootstrap_dns{requests}": 5, "derp_bootstrap_dns{published_hits}": 1,
        "derp_bootstrap_dns{unpublished_misses}": 3,
    },
    a_flood: {"derp_closed{flood}": 1},
    a_limit_of_rates: {"derp_rate_limited": None},
    a_drain: {"derp_closed{drained}": 2},
    too_many_of_one_key: {"derp_closed{too_many}": 2},
    a_denied_key: {"derp_closed{not_admitted}": 1},
    a_tick: {"derp_tcp_rtt_seconds_bucket{0.01}": 1, "derp_tcp_rtt_seconds_count": 1},
    a_reset: {"derp_closed{socket_failed}": 1},
    a_late_login: {"derp_closed{handshake_timeout}": 1},
    a_page: {"derp_closed{http_done}": 1},
}  # fmt: skip
# The same number under derper's name.
DERPER_NAMES = {
    "derp_packets_received{other}": "derp_packets_received_kind{other}",
    "derp_packets_received{disco}": "derp_packets_received_kind{disco}",
    "derp_packets_dropped{other}{unknown_dest}": "derp_packets_dropped{unknown_dest}{other}",
    "derp_pings_received": "derp_got_ping",
    "derp_pongs_sent": "derp_sent_pong",
    "derp_peer_gone{not_here}": "derp_peer_gone_not_here_frames",
    "derp_peer_gone{disconnected}": "derp_peer_gone_disconnected_frames",
    "derp_duplicate_connections": "derp_total_dup_client_conns",
    "derp_write_timeouts": "derp_sclient_write_timeouts",
    "derp_rate_limited": "derp_rate_limit_per_client_waited",
    "derp_stun_requests{success}": "stun_requests{success}",
    "derp_stun_address_family{ipv6}": "stun_addrfamily{ipv6}",
    "derp_bootstrap_dns{requests}": "bootstrap_dns_requests",
    "derp_tcp_rtt_seconds_bucket{0.01}": "derp_tcp_rtt{10ms}",
} | {
    name: name
    for name in (
        "derp_bytes_received", "derp_packets_sent", "derp_bytes_sent", "derp_accepts", "derp_unknown_frames",
        "derp_home_moves_in", "derp_home_moves_out", "derp_packets_forwarded_in", "derp_websocket_accepts",
    )
}  # fmt: skip


async def page(server: RelayServer, path: bytes) -> dict[str, float]:
    answer = await ask(server, last_get(path))
    return samples(answer.partition(b"\r\n\r\n")[2].decode())


def table_config() -> RelayConfig:
    """The relay that the actions of the table are made for."""
    return relay_config(
        listen=((HOST, 0), ("::1", 0)),
        stun_enabled=True,
        stun_port=0,
        mesh_key=MESH,
        deny_keys=frozenset({DENIED.public().raw}),
        tcp_write_timeout_seconds=0.3,
        bootstrap_dns_names=("localhost",),
        unpublished_bootstrap_dns_names=(("no.such.name.invalid", ""),),
    )


@pytest.mark.parametrize("action", TABLE, ids=lambda action: action.__name__)
async def test_what_somebody_does_moves_its_counters_on_both_pages(action: Action) -> None:
    async with open_server(table_config()) as server:
        one, other = await call(server), await call(server)
        before, derper_before = await page(server, b"/metrics"), await page(server, b"/debug/varz")
        await action(server, one, other)
        after, derper_after = await page(server, b"/metrics"), await page(server, b"/debug/varz")
        for name, least in TABLE[action].items():
            pairs = [(before[name], after[name])]
            if name in DERPER_NAMES:
                pairs.append((derper_before[DERPER_NAMES[name]], derper_after[DERPER_NAMES[name]]))
            for earlier, later in pairs:
                assert later > earlier, name
                assert least is None or later - earlier >= least, name
        await one.aclose()
        await other.aclose()


async def test_limits_on_connections_and_tls_are_counted() -> None:
    async with open_server(relay_config(max_connections=2, debug_allow=())) as server:
        callers = [await call(server) for _ in range(2)]
        assert await ask(server, b"") == b""
        assert server.statistics().rejected == {"rate": 0, "connections": 1}
        for caller in callers:
            await caller.aclose()


async def test_tls_is_counted_by_request_and_by_what_is_open() -> None:
    """As the genuine relay does: an upgrade is a request and stays open, and a page is open while it is made."""
    async with open_server(relay_config(tls=SELF_SIGNED)) as server:
        caller = await call(server, "tls")
        await ask(server, last_get(b"/"), tls=True)
        answer = await ask(server, last_get(b"/debug/varz"), tls=True)
        values = samples(answer.partition(b"\r\n\r\n")[2].decode())
        assert (values["derper_tls_request_version{1.3}"], values["derper_tls_active_version{1.3}"]) == (3, 2)
        assert (values["derp_accepts"], values["tls_listener_accepted_connections"]) == (1, 3)
        assert server.statistics().tls_active == {"TLSv1.3": 1}
        await caller.aclose()


async def test_a_plain_relay_counts_no_tls() -> None:
    async with open_server(relay_config(max_connections=1, debug_allow=())) as server:
        caller = await call(server)
        assert await ask(server, b"") == b""
        reading = server.statistics()
        assert (reading.accepted, reading.accepts, sum(reading.rejected.values())) == (1, 1, 1)
        assert (reading.tls_accepted, reading.tls_rejected, reading.tls_requests, reading.tls_active) == (0, 0, {}, {})
        await caller.aclose()


async def test_gauges_say_what_is_now() -> None:
    async with open_server(relay_config(mesh_key=MESH)) as server:
        private = NodePrivate.generate()
        first = await call(server, private=private)
        second = await call(server, private=private, headers=(("Ideal-Node", "900b"),))
        relay = await call(server, mesh_key=MESH)
        await first.write(encode(NotePreferred(True)))
        await first.ping()
        await relay.write(encode(WatchConns()))
        relay.core.send_ping(b"12345678")
        await relay.flush()
        await relay.receive_a(Pong)
        reading = server.statistics()
        assert (reading.clients_local, reading.connections, reading.home_connections) == (2, 3, 1)
        assert (reading.duplicate_keys, reading.duplicate_connections) == (1, 2)
        assert (reading.not_ideal_connections, reading.watchers, reading.clients_remote) == (1, 1, 0)
        for caller in (first, second):
            await caller.aclose()
        await relay.ping()
        await relay.ping()
        reading = server.statistics()
        assert (reading.clients_local, reading.connections, reading.home_connections) == (1, 1, 0)
        assert (reading.duplicate_keys, reading.duplicate_connections, reading.not_ideal_connections) == (0, 0, 0)
        assert reading.closed[CloseReason.CLOSED_BY_PEER.value] == 2
        await relay.aclose()
