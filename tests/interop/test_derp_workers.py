"""Genuine clients of relays with several workers: they see one relay, also while a worker dies or all are replaced."""

import base64
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from tests.interop.test_derp_rolling import wait_meshed
from tests.support.gobuild import DERPROLLING
from tests.support.peers import PATIENCE_SECONDS, Node, Peer, PeerError, Peers, open_peers, require
from tests.support.processes import children
from tests.support.regions import NAME, Region, open_region
from tests.support.rolling import roll

pytestmark = pytest.mark.interop

WORKERS = 2
# All of a node on one of its two workers: once in 128 runs, and then the test is only weaker.
CLIENTS = 8


class Crowd:
    """Clients, and what each has heard: (who, what it said), and whose end."""

    def __init__(self, peers: dict[int, list[Peer]]) -> None:
        self.by_node = peers
        self.all = [peer for each in peers.values() for peer in each]
        self.heard: dict[bytes, set[tuple[bytes, bytes]]] = {peer.key: set() for peer in self.all}
        self.gone: dict[bytes, set[bytes]] = {peer.key: set() for peer in self.all}

    async def listen(self, peer: Peer) -> None:
        while True:
            event = await peer.receive("packet", "peer_gone")
            if event["event"] == "packet":
                self.heard[peer.key].add((bytes.fromhex(event["src"]), base64.b64decode(event["data"])))
            else:
                self.gone[peer.key].add(bytes.fromhex(event["key"]))

    async def everybody_reaches_everybody(self, word: bytes) -> None:
        """What is lost while somebody is away is sent again."""
        with trio.fail_after(PATIENCE_SECONDS):
            while missing := [
                (source, target)
                for target in self.all
                for source in self.all
                if (source.key, word) not in self.heard[target.key]
            ]:
                for source, target in missing:
                    with suppress(PeerError):  # it is on its way back
                        await source.send(target.key, word)
                await trio.sleep(0.1)


@asynccontextmanager
async def open_crowd(region: Region) -> AsyncIterator[Crowd]:
    async with open_peers(trusted=region.authority) as peers, trio.open_nursery() as nursery:
        crowd = Crowd({node: await connect(peers, region, node) for node in range(len(region.ports))})
        for peer in crowd.all:
            nursery.start_soon(crowd.listen, peer)
        yield crowd
        nursery.cancel_scope.cancel()


async def connect(peers: Peers, region: Region, node: int) -> list[Peer]:
    where = Node(NAME, region.ports[node])
    return [await peers.connect(f"{node}-{number}", where, reconnect=True) for number in range(CLIENTS)]


async def test_a_region_of_two_nodes_with_workers_is_one_to_genuine_clients() -> None:
    async with open_region("ours", "ours", extra=(f"--workers={WORKERS}",)) as region:
        await wait_meshed(region, 2 * WORKERS)  # each worker with the other node
        async with open_crowd(region) as crowd:
            await crowd.everybody_reaches_everybody(b"hello")

            leaver = crowd.by_node[0].pop()
            crowd.all.remove(leaver)
            await leaver.close()
            with trio.fail_after(PATIENCE_SECONDS):
                while not all(leaver.key in crowd.gone[peer.key] for peer in crowd.all):  # noqa: ASYNC110
                    await trio.sleep(0.02)

            pid = region.relays[0].pid
            victim, *_ = children(pid)
            os.kill(victim, signal.SIGKILL)
            await crowd.everybody_reaches_everybody(b"again")
            await region.relays[0].says("serves in the place of worker")
            assert victim not in children(pid)
            await crowd.everybody_reaches_everybody(b"and with the new one")


async def test_genuine_clients_go_to_new_workers_with_their_connections() -> None:
    async def replace(number: int) -> None:
        pid = region.relays[number].pid
        old = set(children(pid))
        assert len(old) == WORKERS
        os.kill(pid, signal.SIGUSR2)
        with trio.fail_after(PATIENCE_SECONDS):
            while old & set(children(pid)):  # noqa: ASYNC110  # processes of another process
                await trio.sleep(0.02)

    async with open_region("ours", extra=(f"--workers={WORKERS}", "--tls-records=own")) as region:
        with trio.fail_after(3 * PATIENCE_SECONDS):
            found = await roll(require(DERPROLLING), region.ports, replace, clients=50, period="200ms")
    seen = {name: found[name] for name in ("connects", "lost", "refused", "twice", "gone")}
    assert seen == {"connects": 50, "lost": 0, "refused": 0, "twice": 0, "gone": 0}
