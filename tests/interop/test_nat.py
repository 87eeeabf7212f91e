"""Which way two nodes find to each other through routers of several kinds, and what lives through their troubles.

Routers are the kernel's, in network namespaces (tests/support/nat_world.py).  One node is ours, the other ours or a
whole genuine one; a stream and a ping loop between them run all the time, and nothing of either may be lost.
"""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from derp.keys import NodePrivate
from tests.support import nat_world
from tests.support.gobuild import ROOT, WHOLENODE
from tests.support.nat_world import RELAY_PORT, STUN_PORT, Kind, World, open_world
from tests.support.peers import require
from tests.support.whole_node import WholeNode, node_program
from tests.support.wireguard_peer import HERE, THERE

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(bool(nat_world.missing()), reason=nat_world.missing() or "it can be done here"),
]

PATIENCE_SECONDS = 40.0
# A round of discovery, in which both sides hear of each other's addresses and try them, and a second round.
SETTLING_SECONDS: Final = 6.0
# When a path is cut nobody says so, and trust in it lasts 6.5 s.
SWITCH_SECONDS: Final = 7.0
DOWN_SECONDS: Final = 3.0
ECHO: Final = 7


@dataclass(slots=True)
class Pair:
    """Two nodes that have met, and a stream of the first to the second that began then."""

    world: World
    nodes: dict[str, WholeNode]

    async def way(self) -> str:
        """How the second is reached: "derp-900", or its address and port."""
        return str((await self.nodes["a"].ask("ping", "disco"))["text"])

    async def wait_way(self, is_direct: bool) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while (await self.nodes["a"].reach()).startswith("derp-") == is_direct:  # noqa: ASYNC110  # another process
                await trio.sleep(0.2)

    async def held(self) -> dict[str, Any]:
        """What came of the stream and the pings since the last time; that there is no trouble is asserted."""
        said: dict[str, Any] = json.loads((await self.nodes["a"].ask("held"))["text"])
        assert not said["trouble"], said
        return said


@asynccontextmanager
async def relay_in(world: World, folder: Path) -> AsyncIterator[None]:
    words = [sys.executable, "-m", "derp", "serve", f"--a=:{RELAY_PORT}", f"--c={folder / 'key'}", "--http-port=-1"]
    words += [f"--stun-port={STUN_PORT}", "--tls-self-signed", "--open"]
    output = (folder / "output").open("wb")
    with output:
        process = await trio.lowlevel.open_process(
            world.command("net", words), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT
        )
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            while process.poll() is None and "pins it" not in (folder / "output").read_text():  # noqa: ASYNC110
                await trio.sleep(0.05)  # another process tells nobody
        yield
    finally:
        ended = process.poll()
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()
        assert ended is None, (folder / "output").read_text()


@asynccontextmanager
async def joined(folder: Path, first: Kind, second: Kind, *, is_genuine: bool = False) -> AsyncIterator[Pair]:
    """Two nodes behind such routers, the second ours or genuine."""
    programs = {"a": [sys.executable, "-m", "tests.support.nat_node"]}
    programs["b"] = [str(require(WHOLENODE))] if is_genuine else programs["a"]
    keys = {place: NodePrivate.generate() for place in "ab"}
    addresses = {"a": IPv6Address(HERE), "b": IPv6Address(THERE)}
    with open_world(first, second) as world:
        async with relay_in(world, folder), trio.open_nursery() as nursery:
            nodes = {}
            for place, other in (("a", "b"), ("b", "a")):
                nodes[place] = await node_program(
                    nursery,
                    world.command(place, programs[place]),
                    keys[place],
                    keys[other].public().raw,
                    here=addresses[place],
                    there=addresses[other],
                    derp=world.relay_for(place),
                    port=RELAY_PORT,
                    stun=STUN_PORT,
                )
            pair = Pair(world, nodes)
            # As a coordinator does: each hears of the other's key and where that may be reached.
            told = {place: await node.endpoints() for place, node in nodes.items()}
            await nodes["b"].meet(nodes["a"].disco, told["a"])
            await nodes["a"].meet(nodes["b"].disco, told["b"])
            await nodes["a"].reach()
            await nodes["a"].ask("hold", ECHO)
            yield pair
            nursery.cancel_scope.cancel()


DIRECT, RELAY = True, False
OURS, GENUINE = False, True


@pytest.mark.parametrize(
    ("first", "second", "is_direct", "is_genuine"),
    [
        (Kind.OPEN, Kind.OPEN, DIRECT, OURS),
        (Kind.OPEN, Kind.EASY, DIRECT, OURS),
        (Kind.EASY, Kind.OPEN, DIRECT, GENUINE),
        (Kind.HARD, Kind.OPEN, DIRECT, OURS),
        (Kind.OPEN, Kind.HARD, DIRECT, GENUINE),
        (Kind.EASY, Kind.EASY, DIRECT, OURS),
        (Kind.EASY, Kind.EASY, DIRECT, GENUINE),
        (Kind.EASY, Kind.HARD, RELAY, OURS),
        (Kind.HARD, Kind.EASY, RELAY, GENUINE),
        (Kind.HARD, Kind.HARD, RELAY, OURS),
        (Kind.OPEN, Kind.NO_UDP, RELAY, OURS),
        (Kind.NO_UDP, Kind.OPEN, RELAY, GENUINE),
        (Kind.IPV6, Kind.IPV6, DIRECT, OURS),
        (Kind.IPV6, Kind.IPV6, DIRECT, GENUINE),
        (Kind.EASY, Kind.IPV6, RELAY, OURS),
    ],
)
async def test_the_way(tmp_path: Path, first: Kind, second: Kind, is_direct: bool, is_genuine: bool) -> None:
    async with joined(tmp_path, first, second, is_genuine=is_genuine) as pair:
        if is_direct:
            await pair.wait_way(True)
        else:
            # Not cut off: the answer to a question that was left would be taken for the next one's.
            until = trio.current_time() + SETTLING_SECONDS
            while trio.current_time() < until:
                assert await pair.way() == "derp-900"
                await trio.sleep(0.2)
        said = await pair.held()
        assert said["lost_pings"] == 0
        assert said["wait"] < SWITCH_SECONDS


@pytest.mark.parametrize(("second", "is_genuine"), [(Kind.HARD, OURS), (Kind.EASY, GENUINE)])
async def test_a_hard_nat_with_a_port_that_was_mapped_by_hand(tmp_path: Path, second: Kind, is_genuine: bool) -> None:
    """STUN never saw that port: the node names its own."""
    async with joined(tmp_path, Kind.HARD, second, is_genuine=is_genuine) as pair:
        named = (await pair.nodes["a"].endpoints()).split()
        (port,) = {int(each.rpartition(":")[2]) for each in named if each.startswith("10.")}
        assert (await pair.way()) == "derp-900"
        assert pair.world.map_port("a", port) in named
        await pair.wait_way(True)
        said = await pair.held()
        assert (said["wait"] < SWITCH_SECONDS, said["lost_pings"]) == (True, 0)


async def test_a_firewall_comes_and_goes(tmp_path: Path) -> None:
    """No datagram passes any more, and nobody says so; later all do again."""
    async with joined(tmp_path, Kind.OPEN, Kind.EASY) as pair:
        await pair.wait_way(True)
        await pair.held()
        pair.world.filter("b", Kind.NO_UDP)
        await pair.wait_way(False)
        assert (await pair.held())["wait"] < SWITCH_SECONDS
        pair.world.filter("b", Kind.EASY)
        await pair.wait_way(True)
        said = await pair.held()
        assert (said["wait"] < SWITCH_SECONDS, said["lost_pings"]) == (True, 0)


async def test_a_link_goes_down_and_up(tmp_path: Path) -> None:
    async with joined(tmp_path, Kind.EASY, Kind.OPEN) as pair:
        await pair.wait_way(True)
        pair.world.set_link("a", is_up=False)
        await trio.sleep(DOWN_SECONDS)
        pair.world.set_link("a", is_up=True)
        await pair.wait_way(True)
        assert (await pair.held())["wait"] < DOWN_SECONDS + SWITCH_SECONDS


async def test_an_address_changes(tmp_path: Path) -> None:
    async with joined(tmp_path, Kind.OPEN, Kind.EASY) as pair:
        await pair.wait_way(True)
        await pair.held()
        pair.world.move("b")
        with trio.fail_after(PATIENCE_SECONDS):
            while not (await pair.nodes["a"].reach()).startswith(pair.world.outside("b") + ":"):  # noqa: ASYNC110
                await trio.sleep(0.2)
        assert (await pair.held())["wait"] < SWITCH_SECONDS
