"""Our two cores against a genuine node: magicsock's disco and wireguard-go, over our relay and directly."""

from contextlib import suppress

import pytest
import trio

from tests.support.magic_peer import Nodes, open_nodes
from tests.support.peers import PATIENCE_SECONDS
from tests.support.relays import open_relay

pytestmark = pytest.mark.interop


async def go_direct(nodes: Nodes) -> None:
    """Until the genuine node's packets come by UDP."""
    await nodes.exchange(0)
    with trio.fail_after(PATIENCE_SECONDS):
        while not nodes.ways[-1]:
            await nodes.exchange(len(nodes.ways))


async def test_by_relay_first_and_then_directly() -> None:
    """Neither is told where the other is: call-me-maybe by the relay, pings and pongs do it."""
    async with open_relay("ours", tls=True) as relay, open_nodes(relay) as nodes:
        await go_direct(nodes)
        peer = nodes.paths.find(nodes.peer.public)
        assert peer is not None
        assert peer.best is not None
        assert peer.is_trusted(trio.current_time())
        assert await nodes.ask_peer() == str(nodes.endpoint)
        await nodes.exchange(1)


async def test_back_to_the_relay_when_the_path_is_cut() -> None:
    """No datagram passes any more and nobody says so: both nodes find out, the genuine one after 6.5 s."""
    async with open_relay("ours", tls=True) as relay, open_nodes(relay) as nodes:
        await go_direct(nodes)
        nodes.is_direct = False
        came_there = False
        with trio.fail_after(PATIENCE_SECONDS):
            while nodes.ways[-1] or not came_there:
                await nodes.send(b"ours")
                await nodes.peer_send(b"theirs")
                with trio.move_on_after(0.3):
                    await nodes.came.receive()
                with suppress(trio.WouldBlock):
                    nodes.peer_came.receive_nowait()
                    came_there = True
        assert await nodes.ask_peer() == "derp-900"


async def test_without_udp_the_relay_carries_everything() -> None:
    async with open_relay("ours", tls=True) as relay, open_nodes(relay, is_direct=False) as nodes:
        for number in range(20):
            await nodes.exchange(number)
        assert await nodes.ask_peer() == "derp-900"
        assert not any(nodes.ways)


async def test_the_genuine_node_speaks_first() -> None:
    async with open_relay("ours", tls=True) as relay, open_nodes(relay) as nodes:
        await nodes.peer_send(b"first")
        assert await nodes.next(nodes.came) == b"first"
        await nodes.exchange(1)
