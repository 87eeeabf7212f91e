"""The engine at relays: what waits for one, another region's, and what is lost."""

import socket
from collections.abc import Mapping

import pytest
import trio
import trio.testing

from derp.keys import NodePrivate
from derp.map import DERPRegion
from tailnet.errors import LocalProtocolError
from tailnet.node.core import PeerNode
from tailnet.node.engine import open_engine
from tests.support.inprocess import map_of, node_of, open_relay_here

ADDRESSES = [bytes.fromhex("fd7a115ca1e0") + bytes(9) + bytes((number,)) for number in (1, 2)]
HERE, THERE = 901, 902


async def test_a_peer_at_another_region_is_reached_there() -> None:
    """Its relay is dialled for the first packet, which waits meanwhile."""
    one_key, other_key = NodePrivate.generate(), NodePrivate.generate()
    with trio.fail_after(60):
        async with (
            open_relay_here(tls=False, stun_enabled=False) as here,
            open_relay_here(tls=False, stun_enabled=False) as there,
        ):
            regions: Mapping[int, DERPRegion] = map_of(node_of(here, HERE), node_of(there, THERE)).regions
            async with (
                open_engine(one_key, [ADDRESSES[0]], regions, HERE, is_direct=False) as one,
                open_engine(other_key, [ADDRESSES[1]], regions, THERE, is_direct=False) as other,
            ):
                await one.relays.wait_connected(HERE)
                await other.relays.wait_connected(THERE)
                now = trio.current_time()
                other.core.configure(PeerNode(one_key.public().raw, (ADDRESSES[0],), None, (), HERE), now)
                one.core.configure(PeerNode(other_key.public().raw, (ADDRESSES[1],), None, (), THERE), now)
                assert await one.ping(ADDRESSES[1], timeout_seconds=30) > 0
                assert one.lost_datagrams == 0
                # The answer came where the first packet was heard: the other node has not dialled ours.
                assert len(here.relay.router.members) == 1
                assert len(there.relay.router.members) == 2


async def test_a_region_that_nobody_knows_takes_nothing() -> None:
    key = NodePrivate.generate()
    with trio.fail_after(60):
        async with open_engine(NodePrivate.generate(), [ADDRESSES[0]], {}, None, is_direct=False) as engine:
            engine.core.configure(PeerNode(key.public().raw, (ADDRESSES[1],), None, (), HERE), trio.current_time())
            with pytest.raises(trio.TooSlowError):
                await engine.ping(ADDRESSES[1], timeout_seconds=0.1)
            assert engine.lost_datagrams == 1, "the map has no such region"
            with pytest.raises(LocalProtocolError):
                await engine.disco_ping(b"x" * 32)


async def test_it_may_end_while_datagrams_come() -> None:
    """Its sockets outlive the tasks that wait for them.  Which task is first is chance: hence the rounds."""
    with trio.fail_after(60), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(30):
            async with open_engine(NodePrivate.generate(), [ADDRESSES[0]], {}, None) as engine:
                await trio.testing.wait_all_tasks_blocked()
                sender.sendto(b"anything", next(each for each in engine.local_endpoints if each.host == "127.0.0.1"))
                await trio.lowlevel.checkpoint()
            assert all(each.fileno() == -1 for each in engine.sockets.all)
