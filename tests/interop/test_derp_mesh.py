"""One region of ours and of genuine relays: meshed both ways, probed, and replaced node by node under traffic."""

import base64
import itertools
import json
import os
import subprocess
from dataclasses import dataclass, field, replace

import pytest
import trio

from derp.map import DERPMap
from tests.support.gobuild import DERPPROBE
from tests.support.netchecks import compare
from tests.support.peers import PATIENCE_SECONDS, Peer, PeerError, Peers, open_peers, require
from tests.support.regions import MESH_KEY, NAME, Region, open_region
from tests.support.relay_command import HOST, RelayKind

pytestmark = pytest.mark.interop

# The genuine relay holds 32 packets for a client, and as many for another relay.
WINDOW = 24
MIXTURES: list[tuple[RelayKind, ...]] = [
    ("genuine", "genuine"),
    ("ours", "genuine"),
    ("genuine", "ours"),
    ("ours", "ours"),
]


async def find(source: Peer, target: Peer) -> None:
    """Send until it arrives: a relay that has just started is told of the others' clients when they have dialled."""
    with trio.fail_after(PATIENCE_SECONDS):
        for attempt in itertools.count():
            hello = b"are you there %d" % attempt
            try:
                await source.send(target.key, hello)
            except PeerError:  # its own relay is not back yet
                await trio.sleep(0.1)
            with trio.move_on_after(0.1):
                while True:
                    event = await target.receive("packet")
                    if bytes.fromhex(event["src"]) == source.key:
                        return


async def settle(*peers: Peer) -> None:
    """Until everybody reaches everybody; nothing is left in their queues."""
    for source, target in itertools.permutations(peers, 2):
        await find(source, target)
    for peer in peers:
        with trio.move_on_after(0.2):
            while True:
                await peer.receive()


async def connect(program: Peers, region: Region, number: int, *, reconnect: bool = False) -> Peer:
    return await program.connect(f"at{number}", region.url(number), reconnect=reconnect)


@pytest.mark.parametrize("kinds", MIXTURES, ids="-".join)
async def test_two_relays_are_one_region(kinds: tuple[RelayKind, ...]) -> None:
    async with open_region(*kinds) as region, open_peers(trusted=region.authority) as program:
        a, b = [await connect(program, region, number) for number in range(2)]
        await settle(a, b)
        for one, other in ((a, b), (b, a)):
            for size in (0, 1, 62, 1280, 65536):
                packet = bytes((7 * i + size) % 251 for i in range(size))
                await one.send(other.key, packet)
                assert await other.receive_packet() == (one.key, packet)
            result = await one.burst(other, count=3000, size=1280, window=WINDOW)
            del result["id"], result["ok"]
            assert result == {"sent": 3000, "received": 3000, "reordered": 0, "corrupt": 0}
        await b.close()
        gone = await a.receive()
        assert (gone["event"], gone["key"], gone["reason"]) == ("peer_gone", b.key.hex(), 0)


@pytest.mark.parametrize("kinds", MIXTURES, ids="-".join)
async def test_a_mesh_peer_sees_and_commands(kinds: tuple[RelayKind, ...]) -> None:
    async with open_region(*kinds) as region, open_peers(trusted=region.authority) as program:
        a, b = [await connect(program, region, number) for number in range(2)]
        await settle(a, b)
        watcher = await program.connect("watcher", region.url(0), mesh_key=MESH_KEY, watch=True)
        # the clients of this relay, the other relay among them, and nobody of the other's
        seen: dict[str, int] = {}
        while not {a.key.hex(), watcher.key.hex()} <= seen.keys():
            event = await watcher.receive("peer_present")
            seen[event["key"]] = event["flags"]
        assert seen.pop(a.key.hex()) == 1
        assert seen.pop(watcher.key.hex()) == 2
        assert set(seen.values()) <= {2}
        assert b.key.hex() not in seen
        await watcher.forward(b.key, a.key, b"forwarded")
        assert await a.receive_packet() == (b.key, b"forwarded")
        await watcher.forward(a.key, b.key, b"not here, and never sent on")
        await watcher.close_peer(a.key)
        assert (await a.receive("closed"))["event"] == "closed"
        assert (await watcher.receive("peer_gone"))["key"] == a.key.hex()


async def test_three_of_ours_while_nodes_come_and_go() -> None:
    async with open_region("ours", "ours", "ours") as region, open_peers(trusted=region.authority) as program:
        peers = [await connect(program, region, number, reconnect=True) for number in range(3)]
        await settle(*peers)
        for number in (1, 2, 0):
            one, other = [peer for place, peer in enumerate(peers) if place != number]
            await region.stop(number)
            for source, target in ((one, other), (other, one)):  # the rest of the region is untouched
                result = await source.burst(target, count=500, size=1280, window=WINDOW)
                assert (result["received"], result["reordered"], result["corrupt"]) == (500, 0, 0)
            await region.start(number, "ours")
            await settle(*peers)
        for source, target in itertools.permutations(peers, 2):
            result = await source.burst(target, count=500, size=1280, window=WINDOW)
            assert (result["received"], result["reordered"], result["corrupt"]) == (500, 0, 0)


# --- the genuine prober


def derp_map(region: Region) -> dict[str, object]:
    nodes = [
        {
            "Name": f"900{'abc'[number]}",
            "RegionID": 900,
            "HostName": NAME,
            "IPv4": HOST,
            "DERPPort": relay.port,
            "STUNPort": relay.stun_port,
        }
        for number, relay in sorted(region.relays.items())
    ]
    return {"Regions": {"900": {"RegionID": 900, "RegionCode": "test", "RegionName": "Test", "Nodes": nodes}}}


@pytest.mark.parametrize("kinds", MIXTURES, ids="-".join)
async def test_the_genuine_prober_finds_every_class_good(kinds: tuple[RelayKind, ...]) -> None:
    async with open_region(*kinds) as region:
        async with open_peers(trusted=region.authority) as program:
            await settle(*[await connect(program, region, number) for number in range(2)])
        path = region.folders[0] / "map.json"
        path.write_text(json.dumps(derp_map(region)))
        command = [str(require(DERPPROBE)), "-once", "-spread=false", f"-derp-map=file://{path}"]
        command += ["-bw-interval=1s", "-bw-probe-size-bytes=2000000"]
        with trio.fail_after(2 * PATIENCE_SECONDS):
            done = await trio.run_process(
                command,
                env=os.environ | {"SSL_CERT_FILE": str(region.authority)},
                check=False,
                capture_stderr=True,
                stdin=subprocess.DEVNULL,
            )
        said = done.stderr.decode()
        assert done.returncode == 0, said
        good = {line.partition("good: ")[2].rsplit(":", 1)[0] for line in said.splitlines() if "good: " in line}
        pairs = [f"{source}/{target}" for source, target in itertools.product(("900a", "900b"), repeat=2)]
        assert good == {
            "derpmap-probe",
            *(f"derp/test/{node}/{kind}" for node in ("900a", "900b") for kind in ("tls", "udp")),
            *(f"derp/test/{pair}/{kind}" for pair in pairs for kind in ("mesh", "bw")),
        }


@pytest.mark.parametrize("kinds", MIXTURES, ids="-".join)
async def test_the_genuine_netcheck_is_content_with_each_node(kinds: tuple[RelayKind, ...]) -> None:
    """Each node alone by STUN, and by HTTPS where the map names no STUN: the genuine library, and ours beside it."""
    async with open_region(*kinds) as region:
        async with open_peers(trusted=region.authority) as program:
            await settle(*[await connect(program, region, number) for number in range(2)])
        whole = DERPMap.parse(derp_map(region))
        # a map has no place for a root of one's own
        nodes = [replace(node, insecure_for_tests=True) for node in whole.regions[900].nodes]
        for chosen in (nodes, nodes[:1], nodes[1:], [replace(node, stun_port=-1) for node in nodes[1:]]):
            (report,) = await compare(DERPMap({900: replace(whole.regions[900], nodes=tuple(chosen))}))
            assert report.preferred == 900
            assert report.udp == (chosen[0].stun_port != -1)
            assert set(report.region_seconds) == {900}


# --- replacing a region

PACE_SECONDS = 0.01


@dataclass
class Stream:
    """Numbered packets from one client to another, one every PACE_SECONDS, whatever happens in between."""

    source: Peer
    target: Peer
    sent_at: list[float] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    arrived: set[int] = field(default_factory=set)
    news: trio.Event = field(default_factory=trio.Event)

    async def send_forever(self) -> None:
        while True:
            number = len(self.sent_at)
            self.sent_at.append(trio.current_time())
            try:
                await self.source.send(self.target.key, b"numbered %d" % number)
            except PeerError:  # its relay is down
                self.refused.add(number)
            await trio.sleep(PACE_SECONDS)

    async def receive_forever(self) -> None:
        while True:
            event = await self.target.receive("packet")
            word, _, number = _data(event).rpartition(b" ")
            if word == b"numbered":
                assert int(number) not in self.arrived, "a packet came twice"
                self.arrived.add(int(number))
                self.news.set()
                self.news = trio.Event()

    async def wait_flowing(self) -> None:
        """Until a packet arrives that is sent from now on."""
        first = len(self.sent_at)
        with trio.fail_after(PATIENCE_SECONDS):
            while not self.arrived or max(self.arrived) < first:
                await self.news.wait()

    def lost(self, start: int, stop: int) -> list[int]:
        return [number for number in range(start, stop) if number not in self.arrived]


def _data(event: dict[str, str]) -> bytes:
    return base64.b64decode(event["data"])


@dataclass
class Replacement:
    """What happened to one stream while one node was replaced; times in seconds after SIGTERM."""

    what: str
    stream: str
    sent: int
    lost: list[int]
    refused: int
    down_seconds: float
    first_lost_seconds: float
    last_lost_seconds: float

    def row(self) -> str:
        window = f"{self.first_lost_seconds:6.2f} to {self.last_lost_seconds:6.2f}" if self.lost else "      none      "
        return (
            f"{self.what:18}{self.stream:8}{self.sent:6}{len(self.lost):6}{self.refused:9}"
            f"{self.down_seconds:9.2f}  {window}"
        )


async def replace_node(region: Region, number: int, streams: dict[str, Stream]) -> list[Replacement]:
    """Put ours in the place of a genuine relay; return what each stream lost until all flow again."""
    begin = {name: len(stream.sent_at) for name, stream in streams.items()}
    stopped_at = trio.current_time()
    await region.stop(number)
    await region.start(number, "ours")
    down_seconds = trio.current_time() - stopped_at
    for stream in streams.values():
        await stream.wait_flowing()
    # once more, so that whatever was still under way has arrived
    for stream in streams.values():
        await stream.wait_flowing()
    found = []
    for name, stream in streams.items():
        stop = max(stream.arrived) + 1
        # a packet on its way when the signal came belongs to the window too
        start = max(begin[name] - 1, 0)
        lost = stream.lost(start, stop)
        times = [stream.sent_at[each] - stopped_at for each in lost] or [0.0]
        refused = len(stream.refused & set(lost))
        found.append(
            Replacement(f"node {number} by ours", name, stop - start, lost, refused, down_seconds, times[0], times[-1])
        )
    return found


async def test_a_genuine_region_is_replaced_node_by_node(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_region("genuine", "genuine") as region, open_peers(trusted=region.authority) as program:
        keys = [(folder / "derper.key").read_bytes() for folder in region.folders]
        a, b = [await connect(program, region, number, reconnect=True) for number in range(2)]
        await settle(a, b)
        streams = {"a to b": Stream(a, b), "b to a": Stream(b, a)}
        rows: list[Replacement] = []
        async with trio.open_nursery() as nursery:
            for stream in streams.values():
                nursery.start_soon(stream.send_forever)
                nursery.start_soon(stream.receive_forever)
            for stream in streams.values():
                await stream.wait_flowing()
            for number in range(2):
                rows += await replace_node(region, number, streams)
            for stream in streams.values():
                await stream.wait_flowing()
            nursery.cancel_scope.cancel()
        with capsys.disabled():
            print("\nreplaced          stream    sent  lost  refused  down (s)  lost between (s after SIGTERM)")
            for row in rows:
                print(row.row())
        for name, stream in streams.items():
            known = [number for row in rows if row.stream == name for number in row.lost]
            # Nothing is lost before, between and after the two replacements...
            assert stream.lost(0, max(stream.arrived) + 1) == known
            for row in rows:
                if row.stream == name and row.lost:
                    # ...and within each it is one gap: from the moment the node went until the stream flows again.
                    assert row.lost == list(range(row.lost[0], row.lost[-1] + 1)), row
        # Clients and relays know the region as the same: the keys are those of before.
        assert [(folder / "derper.key").read_bytes() for folder in region.folders] == keys
        await settle(a, b)
        for source, target in ((a, b), (b, a)):
            result = await source.burst(target, count=1000, size=1280, window=WINDOW)
            assert (result["received"], result["reordered"], result["corrupt"]) == (1000, 0, 0)
