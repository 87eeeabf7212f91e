"""Genuine tailscaleds whose home is one of our relays, and the same with the genuine relay in its place.

Everything between the nodes goes over the relay: direct paths are switched off (tests/support/tailscaled.py).
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio

from derp.keys import NodePrivate
from tests.support.peers import PATIENCE_SECONDS, PeerError, open_peers
from tests.support.regions import NAME, Region, open_region
from tests.support.relay_command import HOST, RelayKind
from tests.support.relays import open_relay
from tests.support.tailnets import open_tailnet
from tests.support.tailscaled import RELAYED, Tailscaled
from tests.support.varz import OperatorsPages

pytestmark = pytest.mark.interop

CODE, OTHER_CODE = CODES = ("fra", "ams")
NUMBER = 900
KINDS: tuple[RelayKind, ...] = ("ours", "genuine")
# More than the queues of every relay and socket on the way hold.
ECHOED_BYTES = 2 << 20
# A node takes a region that it heard from in the last eight seconds for one that is there, whatever STUN says.
UNHEARD_SECONDS = 9


def map_node(letter: str, port: int, stun_port: int, *, number: int = NUMBER, **more: Any) -> dict[str, Any]:
    where = {"HostName": NAME, "IPv4": HOST, "IPv6": "none", "DERPPort": port, "STUNPort": stun_port}
    return {"Name": f"{number}{letter}", "RegionID": number} | where | more


def map_region(*nodes: dict[str, Any], code: str = CODE) -> dict[str, Any]:
    return {"RegionID": nodes[0]["RegionID"], "RegionCode": code, "RegionName": code, "Nodes": list(nodes)}


def derp_map(*regions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"OmitDefaultRegions": True, "Regions": {str(each["RegionID"]): each for each in regions}} | more


def map_of(region: Region) -> dict[str, Any]:
    """All relays as the nodes of one region, the first of them the one that every node wants."""
    ports = zip("ab", region.ports, region.stun_ports, strict=False)
    return derp_map(map_region(*(map_node(*each) for each in ports)))


def pages_of(region: Region, number: int) -> OperatorsPages:
    return OperatorsPages(region.ports[number], NAME, region.authority)


def trusting(region: Region) -> dict[str, str]:
    return RELAYED | {"SSL_CERT_FILE": str(region.authority)}


def is_home(status: dict[str, Any]) -> bool:
    """Whether it is connected, has the region as its home, and knows that its one peer has."""
    peers = (status["Peer"] or {}).values()
    return status["BackendState"] == "Running" and [each["Relay"] for each in (status["Self"], *peers)] == [CODE] * 2


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for part in stream:
            await stream.send_all(part)


@dataclass(slots=True)
class Pair:
    """Two nodes of one tailnet, and a TCP connection from the first through the second to an echo beside it."""

    a: Tailscaled
    b: Tailscaled
    address: str
    stream: trio.SocketStream

    async def echoes(self, sent: bytes) -> bool:
        """Whether the connection that was there from the beginning still brings back what it is given."""
        received = bytearray()
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.stream.send_all, sent)
                while len(received) < len(sent):
                    part = await self.stream.receive_some()
                    assert part, self.a.output()
                    received += part
        return received == sent

    async def check_direct_paths(self) -> None:
        """There are none: neither node has an address for the other but the relay."""
        for node in (self.a, self.b):
            (peer,) = (await node.status())["Peer"].values()
            assert (peer["CurAddr"], peer["PeerRelay"], peer["Relay"]) == ("", "", CODE)

    async def ping(self) -> dict[str, Any]:
        """From the first to the second, over the relay."""
        with trio.fail_after(PATIENCE_SECONDS):
            return await self.a.ping(self.address, "disco")


@asynccontextmanager
async def connected(a: Tailscaled, b: Tailscaled) -> AsyncIterator[Pair]:
    """Once both are at home."""
    await a.wait_status(is_home)
    status = await b.wait_status(is_home)
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, echo, 0, host=HOST))
        address = status["Self"]["TailscaleIPs"][0]
        # Before that the tunnel's first packet could be lost, and for a second one WireGuard takes its time.
        await a.wait_answer(address)
        with trio.fail_after(PATIENCE_SECONDS):
            stream = await a.dial(address, listeners[0].socket.getsockname()[1])
        async with stream:
            yield Pair(a, b, address, stream)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_pair(derp_map: dict[str, Any], environment: dict[str, str]) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        tailnet = await stack.enter_async_context(open_tailnet())
        await tailnet.set_map(derp_map)
        a, b = [await stack.enter_async_context(tailnet.open_node(environment)) for _ in range(2)]
        for node in (a, b):
            await tailnet.up(node)
        yield await stack.enter_async_context(connected(a, b))


@asynccontextmanager
async def timed(pair: Pair, what: str) -> AsyncIterator[None]:
    """Pings go on meanwhile; prints how long none was answered, and ends when they are again."""
    answers: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.a.ping_forever, pair.address, answers)
        await pair.a.wait_status(lambda _: bool(answers))
        yield
        done = trio.current_time()
        await pair.a.wait_status(lambda _: answers[-1] > done)
        nursery.cancel_scope.cancel()
    longest = max(later - earlier for earlier, later in pairwise(answers))
    print(f"{what}: {1000 * longest:.0f} ms without an answer to a ping")


@pytest.mark.parametrize("kind", KINDS)
async def test_two_nodes_meet_over_a_relay_that_the_map_pins(kind: RelayKind) -> None:
    async with open_relay(kind, tls=True, stun=True) as relay:
        node = map_node("a", relay.port, relay.stun_port, HostName=HOST, CertName=relay.pin)
        assert relay.certificate is not None
        pages = OperatorsPages(relay.port, HOST, relay.certificate)
        async with open_pair(derp_map(map_region(node)), RELAYED) as pair:
            page = await pages.wait(lambda values: values["derp_current_home_connections"] == 2)
            assert page.values["derp_clients_local"] == 2
            assert page.values['stun_requests{disposition="success"}'] >= 2
            answer = await pair.ping()
            assert (answer["Err"], answer["DERPRegionCode"], answer["DERPRegionID"]) == ("", CODE, NUMBER)
            assert (answer["Endpoint"], answer["PeerRelay"]) == ("", "")
            for inside in ("TSMP", "ICMP"):  # these two answer from within the tunnel
                with trio.fail_after(PATIENCE_SECONDS):
                    assert (await pair.a.ping(pair.address, inside))["Err"] == ""
            assert await pair.echoes(bytes(range(256)) * (ECHOED_BYTES // 256))
            await pair.check_direct_paths()
            after = (await pages.scrape()).values
            # There and back, and in the tunnel's own packets.
            assert after["derp_bytes_received"] - page.values["derp_bytes_received"] > 2 * ECHOED_BYTES
            assert after["derp_bytes_sent"] - page.values["derp_bytes_sent"] > 2 * ECHOED_BYTES


@pytest.mark.parametrize("kind", KINDS)
async def test_a_relay_is_restarted_under_them(kind: RelayKind) -> None:
    async with open_region(kind) as region, open_pair(map_of(region), trusting(region)) as pair:
        assert await pair.echoes(b"before")
        async with timed(pair, f"{kind}, restarted"):
            await region.stop(0)
            await region.start(0, kind)
            assert await pair.echoes(b"after")
        await pages_of(region, 0).wait(lambda values: values["derp_current_home_connections"] == 2)
        await pair.check_direct_paths()


@pytest.mark.parametrize("kind", KINDS)
async def test_one_of_two_meshed_relays_is_stopped(kind: RelayKind) -> None:
    async with AsyncExitStack() as stack:
        region = await stack.enter_async_context(open_region(kind, kind))
        tailnet = await stack.enter_async_context(open_tailnet())
        await tailnet.set_map(map_of(region))
        a, b = [await stack.enter_async_context(tailnet.open_node(trusting(region))) for _ in range(2)]
        # A node takes the first of the region that accepts, and stays there when a better one comes.
        await region.stop(0)
        await tailnet.up(b)
        second = pages_of(region, 1)
        await second.wait(lambda values: values["derp_current_notideal_connections"] == 1)
        await region.start(0, kind)
        first = pages_of(region, 0)
        await second.wait(lambda values: values["derp_current_connections"] == 2)
        # The genuine relay counts itself for a while.
        await first.wait(lambda values: values["derp_watchers"] == 1 and values["derp_clients_remote"] >= 1)
        await tailnet.up(a)
        pair = await stack.enter_async_context(connected(a, b))
        assert (await pair.ping())["DERPRegionCode"] == CODE
        assert await pair.echoes(b"over the mesh")
        for pages in (first, second):
            page = await pages.wait(lambda values: values["derp_current_home_connections"] == 1)
            assert min(page.values[f"derp_packets_forwarded_{way}"] for way in ("in", "out")) > 0
        async with timed(pair, f"{kind}, one of two stopped"):
            await region.stop(0)
            assert await pair.echoes(b"without the first")
        page = await second.wait(lambda values: values["derp_current_home_connections"] == 2)
        assert page.values["derp_current_notideal_connections"] == 2
        await pair.check_direct_paths()


async def home_after_silence(kind: RelayKind) -> str:
    """Where a node has its home when its relay was stopped, and the other region answered its next netcheck."""
    async with (
        open_region(kind, kind) as region,
        open_tailnet() as tailnet,
        tailnet.open_node(trusting(region)) as node,
    ):
        nodes = [map_node("a", region.ports[at], region.stun_ports[at], number=NUMBER + at) for at in range(2)]
        wanted = {"RegionScore": {str(NUMBER): 0.01}}
        await tailnet.set_map(derp_map(map_region(nodes[0]), map_region(nodes[1], code=OTHER_CODE), HomeParams=wanted))
        await tailnet.up(node)
        await node.wait_status(lambda status: status["Self"]["Relay"] == CODE)
        page = await pages_of(region, 0).wait(lambda values: values["derp_current_home_connections"] == 1)
        silent_until = page.values["uptime_sec"] + UNHEARD_SECONDS
        await pages_of(region, 0).wait(lambda values: values["uptime_sec"] >= silent_until)
        before = len(node.output())
        await region.stop(0)
        await node.wait_status(lambda _: "netcheck: [v1] report:" in node.output()[before:])
        await region.start(0, kind)
        with trio.move_on_after(PATIENCE_SECONDS):
            while True:
                for at in range(2):
                    page = await pages_of(region, at).scrape()
                    if page.values["derp_current_home_connections"] == 1:
                        return CODES[at]
        raise AssertionError(node.output()[before:])


async def test_a_relay_hands_over_to_a_new_process_under_them() -> None:
    """The same without a closed door; and once more by the process that took over."""
    async with open_region("ours") as region, open_pair(map_of(region), trusting(region)) as pair:
        assert await pair.echoes(b"before")
        first = region.relays[0].pid
        async with timed(pair, "ours, handed over"):
            second = await region.hand_over(0)
            assert await pair.echoes(b"after")
        await pages_of(region, 0).wait(lambda values: values["derp_current_home_connections"] == 2)
        async with timed(pair, "ours, handed over again"):
            third = await region.hand_over(0)
            assert await pair.echoes(b"at last")
        await pages_of(region, 0).wait(lambda values: values["derp_current_home_connections"] == 2)
        assert len({first, second, third}) == 3
        await pair.check_direct_paths()


async def test_a_home_that_says_it_restarts_stays_the_home() -> None:
    homes: dict[RelayKind, str] = {}

    async def note(kind: RelayKind) -> None:
        homes[kind] = await home_after_silence(kind)

    async with trio.open_nursery() as nursery:
        for kind in KINDS:
            nursery.start_soon(note, kind)
    assert homes == {"ours": CODE, "genuine": OTHER_CODE}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_tailscaled_beside_the_relay_admits_both_and_no_stranger(kind: RelayKind) -> None:
    async with AsyncExitStack() as stack:
        tailnet = await stack.enter_async_context(open_tailnet())
        a, b = [await stack.enter_async_context(tailnet.open_node(RELAYED)) for _ in range(2)]
        flags = ("--verify-clients", f"--socket={a.socket}")
        relay = await stack.enter_async_context(open_relay(kind, tls=True, stun=True, extra=flags))
        peers = await stack.enter_async_context(open_peers())
        node = map_node("a", relay.port, relay.stun_port, HostName=HOST, CertName=relay.pin)
        await tailnet.set_map(derp_map(map_region(node)))
        for each in (a, b):
            await tailnet.up(each)
        pair = await stack.enter_async_context(connected(a, b))
        assert await pair.echoes(b"admitted")
        await pair.check_direct_paths()
        with pytest.raises(PeerError):
            await peers.connect("stranger", relay.node, private_key=NodePrivate.generate().raw)
