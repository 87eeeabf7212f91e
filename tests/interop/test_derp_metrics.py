"""derper's names and what they count: two regions of three relays, a genuine one and ours, with the same command line
and the same traffic of the same genuine clients; then their pages are compared, name by name and number by number.
"""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from derp.protocol.stun import encode_request
from tests.interop.test_derp_mesh import settle
from tests.support.gobuild import RELEASE
from tests.support.peers import PATIENCE_SECONDS, Peer, Peers, open_peers
from tests.support.regions import MESH_KEY, NAME, Region, open_region
from tests.support.relay_command import HOST, RelayKind
from tests.support.varz import OperatorsPages, Scraped

pytestmark = pytest.mark.interop

DISCO = b"TS\xf0\x9f\x92\xac" + bytes(56)
NOBODY = bytes(range(32))
OTHER_RELAYS = 2
# Homes are counted as moved by clients that have been here for more than five seconds.
SETTLED_SECONDS = 7
FLAGS = (
    "--bootstrap-dns-names=127.0.0.1",
    # Addresses need no name server.  The second one has a rollout whose record cannot exist: it is answered to nobody.
    "--unpublished-bootstrap-dns-names=127.0.0.2,127.0.0.3/127.0.0.4",
)
# What a genuine page has and ours has not: by the beginning of the name, why.
NEWEST = RELEASE != "v1.102.5"
ABSENT = {
    "go_": "the Go runtime",
    **({"goamd64_": "what Go compiled for"} if NEWEST else {}),
    "goroutines": "the Go runtime",
    "memstats_": "the Go runtime's memory classes",
    "process_network_": "of the whole network namespace, not of this process",
    "process_virtual_memory_max_bytes": "a limit that nobody sets",
}
ABSENT_JSON = {"cmdline", "memstats", "go_version", "gauge_goroutines"} | (
    {"gauge_goamd64_capable", "gauge_goamd64_compiled"} if NEWEST else {"go_sync_mutex_wait_seconds"}
)
# Numbers that the same traffic need not make equal, and why.
NOT_COMPARED = {
    "derp_average_queue_duration_ms": "times",
    "derp_buffered_write_frames": "how packets meet in one write; ours is a sample",
    "derp_current_file_descriptors": "of another program",
    "derp_mesh_update_batch_size_bucket": "how announcements meet in one go; their sum is compared",
    "derp_mesh_update_batch_size_count": "the same",
    "derp_mesh_update_loop_count": "the same",
    "derp_memstats_sys0": "of another program",
    "derp_rate_limit_per_client_waited": "the genuine relay waits before a frame, ours after what was received at once",
    'derp_tcp_rtt{le="10ms': "times",
    'derp_tcp_rtt{le="20ms': "times",
    'derp_tcp_rtt{le="50ms': "times",
    'derp_tcp_rtt{le="error': "a client that leaves while its kernel is asked",
    "derp_unknown_frames": "the genuine relay never counts them",
    "node_boot_time_seconds": "the same machine, and no counter",
    "process_": "of another program",
    "uptime_sec": "times",
    "version": "of another program",
}


# What reading the pages moves as well.
ASKED = ("derper_tls_request_version", "tls_listener_accepted_connections")
MOVED = ("derp_rate_limit_per_client_waited", "derp_buffered_write_frames_count", "derp_mesh_update_loop_count_count")
# What this traffic does not move, or moves back.
STILL = {
    "bootstrap_dns_published_misses",
    "derp_clients_remote",
    "derp_current_notideal_connections",
    "derp_packet_forwarder_delete_other_value",
    "derp_rate_limit_per_client_burst_bytes",
    "derp_rate_limit_per_client_bytes_per_second",
    "derp_sclient_write_timeouts",
    'stun_addrfamily{family="ipv6"}',
    'stun_requests{disposition="read_error"}',
    'stun_requests{disposition="write_error"}',
    "tls_listener_rejected_connections",
} | ({"stun_no_local_addr"} if NEWEST else set())


@dataclass(slots=True)
class Witness:
    """One region under the test's traffic, and the pages of its first relay."""

    region: Region
    peers: Peers
    pages: OperatorsPages

    async def connect(self, name: str, at: int = 0, **options: Any) -> Peer:
        return await self.peers.connect(name, self.region.url(at), **options)

    async def wait_connections(self, count: int) -> None:
        """Until the first relay has so many clients, the other relays among them."""
        await self.pages.wait(lambda values: values["derp_current_connections"] == OTHER_RELAYS + count)


@asynccontextmanager
async def open_witness(kind: RelayKind, limits: Path) -> AsyncIterator[Witness]:
    """Three relays that know each other, without clients, and with their bootstrap names looked up.

    None dials itself: a genuine relay that does leaves that connection to Go's garbage collector, whenever that comes.
    """
    async with AsyncExitStack() as stack:
        # The genuine relay sends itself no packets, and its numbers are to be compared.
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("DERP_SELF_CHECK", "false")
        region = await stack.enter_async_context(
            open_region(kind, kind, kind, extra=(f"--rate-config={limits}", *FLAGS), itself=False)
        )
        peers = await stack.enter_async_context(open_peers(trusted=region.authority))
        pages = OperatorsPages(region.ports[0], NAME, region.authority)
        witness = Witness(region, peers, pages)
        scouts = [await witness.connect(f"scout{at}", at) for at in range(3)]
        await settle(*scouts)
        for scout in scouts:
            await scout.close()
        await pages.wait(lambda values: values["derp_current_connections"] == values["derp_watchers"] == OTHER_RELAYS)
        while "127.0.0.2" not in await pages.get("/bootstrap-dns?q=127.0.0.2"):
            pass
        yield witness


async def drive(witness: Witness) -> None:
    """The traffic.  It leaves clients there, so that gauges have something to show."""
    pages = witness.pages
    home = await witness.connect("home")
    settled_at = (await pages.scrape()).values["uptime_sec"] + SETTLED_SECONDS
    a, b = await witness.connect("a"), await witness.connect("b")
    await send_packets(a, b)
    await connect_twice(witness, a)
    await use_the_mesh(witness, a, b)
    await come_and_go(witness, a, b)
    await ask_stun(witness.region.stun_ports[0])
    for query in ("", "?q=127.0.0.1", "?q=127.0.0.2", "?q=127.0.0.3", "?q=other.test", "?q=other.test"):
        await pages.get(f"/bootstrap-dns{query}")
    await pages.wait(lambda values: values["uptime_sec"] >= settled_at)
    for preferred in (True, False, True):
        await home.note_preferred(preferred)
    await home.ping()
    await b.note_preferred(True)
    await b.ping()


async def send_packets(a: Peer, b: Peer) -> None:
    for size in (0, 1, 62, 1280, 65536):
        await a.send(b.key, bytes(size))
        assert await b.receive_packet() == (a.key, bytes(size))
    await b.send(a.key, DISCO)
    assert await a.receive_packet() == (b.key, DISCO)
    await a.send(NOBODY, b"not disco")
    await a.send(NOBODY, DISCO)
    assert (await a.receive())["event"] == "peer_gone"
    for _ in range(3):
        await a.ping()
    # more than the burst: the relay makes the sender wait
    result = await a.burst(b, count=20, size=60_000, window=8)
    assert (result["received"], result["corrupt"]) == (20, 0)


async def connect_twice(witness: Witness, a: Peer) -> None:
    twins = [await witness.connect(f"twin{number}", private_key=bytes(range(1, 33))) for number in range(3)]
    await a.send(twins[2].key, b"to the newest")
    assert await twins[2].receive_packet() == (a.key, b"to the newest")
    await twins[1].close()
    await witness.wait_connections(5)


async def use_the_mesh(witness: Witness, a: Peer, b: Peer) -> None:
    """Packets from and to other relays, a key that two of them have, and what only mesh peers may."""
    created = "derp_multiforwarder_created"
    before = (await witness.pages.scrape()).values
    private = bytes(range(2, 34))
    far = await witness.connect("far", 1, private_key=private)
    await witness.pages.wait(lambda values: values["derp_clients_remote"] > before["derp_clients_remote"])
    farther = await witness.connect("farther", 2, private_key=private)
    await witness.pages.wait(lambda values: values[created] > before[created])
    await a.send(far.key, b"to another relay")
    assert await far.receive_packet() == (a.key, b"to another relay")
    await far.send(a.key, b"from another relay")
    assert await a.receive_packet() == (far.key, b"from another relay")

    commander = await witness.connect("commander", mesh_key=MESH_KEY, watch=True)
    await commander.ping()
    await commander.forward(NOBODY, b.key, b"from nowhere")
    assert await b.receive_packet() == (NOBODY, b"from nowhere")
    await commander.forward(b.key, NOBODY, b"to nowhere")
    await commander.forward(b.key, NOBODY, DISCO)
    await gone(commander, NOBODY)
    victim = await witness.connect("victim")
    await commander.close_peer(victim.key)
    assert (await victim.receive())["event"] == "closed"
    await gone(commander, victim.key)
    for peer in (farther, far):
        await peer.close()
    await gone(a, far.key)


async def come_and_go(witness: Witness, a: Peer, b: Peer) -> None:
    c = await witness.connect("c")
    await c.send(b.key, b"farewell")
    assert await b.receive_packet() == (c.key, b"farewell")
    await c.close()
    await gone(b, c.key)
    async with open_peers(websocket=True, trusted=witness.region.authority) as over_websocket:
        guest = await over_websocket.connect("guest", witness.region.url(0).replace("https", "wss"))
        await guest.send(a.key, b"by websocket")
        assert await a.receive_packet() == (guest.key, b"by websocket")
        await guest.close()
        await gone(a, guest.key)


async def ask_stun(port: int) -> None:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, trio.fail_after(PATIENCE_SECONDS):
        await client.connect((HOST, port))
        for _ in range(2):
            await client.send(b"noise")
        for _ in range(3):
            await client.send(encode_request(bytes(12)))
            await client.recv(100)


async def gone(peer: Peer, key: bytes) -> None:
    while (await peer.receive("peer_gone"))["key"] != key.hex():
        pass


@dataclass(slots=True)
class Result:
    """What a relay's pages were before and after the traffic."""

    before: Scraped
    after: Scraped
    variables: dict[str, Any]
    asked: int

    def counted(self, name: str) -> float:
        """By how much it grew, less what reading it took.  Also gauges: genuine relays count their own key as a client
        of the other relays, ours do not."""
        grown = self.after.values[name] - self.before.values.get(name, 0.0)
        return grown - self.asked if name.startswith(ASKED) else grown


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[RelayKind, Result]:
    """Both regions under the same traffic, at the same time."""
    limits = tmp_path_factory.mktemp("limits") / "rates.json"
    limits.write_text(json.dumps({"PerClientRateLimitBytesPerSec": 4_000_000, "PerClientRateBurstBytes": 200_000}))
    found: dict[RelayKind, Result] = {}

    async def run(kind: RelayKind) -> None:
        async with open_witness(kind, limits) as witness:
            pages = witness.pages
            before = await pages.scrape()
            pages.asked = 0
            await drive(witness)
            after = await pages.scrape()
            found[kind] = Result(before, after, await pages.variables(), pages.asked - 1)

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "genuine")
            nursery.start_soon(run, "ours")

    trio.run(both)
    return found


def test_every_name_of_the_genuine_page_is_on_ours_with_its_type(results: dict[RelayKind, Result]) -> None:
    genuine, ours = results["genuine"].after, results["ours"].after
    missing = {name for name in genuine.values if name not in ours.values and not name.startswith("version{")}
    assert {name for name in missing if not name.startswith(tuple(ABSENT))} == set()
    assert [beginning for beginning in ABSENT if not any(name.startswith(beginning) for name in missing)] == []
    for name, kind in genuine.types.items():
        if not name.startswith(tuple(ABSENT)):
            assert ours.types[name] == kind, name


def test_every_variable_of_the_genuine_page_is_on_ours(results: dict[RelayKind, Result]) -> None:
    genuine, ours = results["genuine"].variables, results["ours"].variables
    assert set(genuine) - set(ours) == ABSENT_JSON
    for name in ("derp", "stun", "tls_listener", "derper_tls_request_version", "gauge_derper_tls_active_version"):
        assert set(genuine[name]) - set(ours[name]) == set(), name
        for key, value in genuine[name].items():
            if isinstance(value, dict):
                assert set(value) <= set(ours[name][key]), key
            else:
                assert isinstance(value, str) == isinstance(ours[name][key], str), key


def test_the_same_traffic_is_the_same_numbers(results: dict[RelayKind, Result]) -> None:
    genuine, ours = results["genuine"], results["ours"]
    except_for = (*ABSENT, *NOT_COMPARED)
    compared = [name for name in genuine.after.values if not name.startswith(except_for)]
    expected = {name: genuine.counted(name) for name in compared}
    assert {name: ours.counted(name) for name in compared} == expected
    # What was compared in vain is known: tests/derp/server/test_every_counter.py moves that in ours.
    still = {name for name, value in expected.items() if not value}
    assert {name for name in still if 'reason="' in name} == {
        f'derp_{what}_dropped{{kind="{kind}",reason="{reason}"}}'
        for what in ("packets", "bytes")
        for kind in ("disco", "other")
        for reason in ("dup_client", "gone_disconnected", "queue_head", "queue_tail", "write_error")
    }
    assert {name for name in still if 'reason="' not in name} == STILL


@pytest.mark.parametrize("kind", ["genuine", "ours"])
def test_what_is_not_compared_moves_all_the_same(results: dict[RelayKind, Result], kind: RelayKind) -> None:
    result = results[kind]
    for name in MOVED:
        assert result.counted(name) > 0, name
    batches = "derp_mesh_update_batch_size"
    assert result.after.values[f"{batches}_sum"] >= result.after.values[f"{batches}_count"] > 0
