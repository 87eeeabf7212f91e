"""Our WireGuard core over UDP against the genuine device that tailscale.com's nodes embed."""

import pytest

from tailnet.wireguard.counters import Drop
from tailnet.wireguard.device import SessionBegun
from tests.support.wireguard_peer import Tunnel, open_tunnel

pytestmark = pytest.mark.interop

SIZES = (0, 1, 8, 39, 500, 1232, 1233, 1240)


async def both_ways(tunnel: Tunnel) -> None:
    """Packets of every size and padding, in a batch and one by one."""
    bodies = [bytes(size) for size in SIZES]
    await tunnel.send(*bodies)
    for body in bodies:
        assert await tunnel.next(tunnel.peer_came) == body
    for body in bodies:
        await tunnel.peer_send(body)
        assert await tunnel.next(tunnel.came) == body


def nothing_was_wrong(tunnel: Tunnel, *but: Drop) -> None:
    drops = tunnel.device.counters.drops
    assert {reason for reason, count in drops.items() if count} <= {*but}


@pytest.mark.parametrize("preshared", [bytes(32), b"k" * 32], ids=["plain", "psk"])
async def test_we_begin(preshared: bytes) -> None:
    async with open_tunnel(preshared) as tunnel:
        await both_ways(tunnel)
        assert tunnel.device.take_events() == [SessionBegun(tunnel.peer, True)]
        nothing_was_wrong(tunnel)


async def test_the_genuine_device_begins() -> None:
    async with open_tunnel() as tunnel:
        await tunnel.peer_send(b"first")
        assert await tunnel.next(tunnel.came) == b"first"
        await both_ways(tunnel)
        assert tunnel.device.take_events() == [SessionBegun(tunnel.peer, False)]
        nothing_was_wrong(tunnel)


async def test_new_keys_again_and_again_under_traffic() -> None:
    """Nobody can move the genuine device's clock, so we ask for new keys each time instead of after 120 s."""
    async with open_tunnel() as tunnel:
        for change in range(8):
            before, number = tunnel.peer.current, 0
            while tunnel.peer.current is before:  # the genuine device refuses one within 20 ms of the last
                number += 1
                await tunnel.initiate()
                body = b"%d %d" % (change, number)
                await tunnel.send(body)
                await tunnel.peer_send(body)
                assert await tunnel.next(tunnel.peer_came) == body
                assert await tunnel.next(tunnel.came) == body
        assert tunnel.device.take_events() == [SessionBegun(tunnel.peer, True)] * 8
        assert len(tunnel.peer.old) == 3
        nothing_was_wrong(tunnel, Drop.UNEXPECTED_RESPONSE)  # to an initiation in whose place there was the next


async def test_both_begin_at_once() -> None:
    """The genuine device takes our initiation and forgets its own; ours keeps both."""
    async with open_tunnel() as tunnel:
        await tunnel.peer_send(b"theirs")
        await tunnel.send(b"ours")
        assert await tunnel.next(tunnel.peer_came) == b"ours"
        assert await tunnel.next(tunnel.came) == b"theirs"


async def test_a_genuine_device_under_load_asks_us_for_a_cookie() -> None:
    """Our retry, 5 s later, has the cookie and is answered."""
    async with open_tunnel() as tunnel:
        await tunnel.load_peer(60)
        await tunnel.send(b"first")
        assert await tunnel.next(tunnel.peer_came) == b"first"
        counters = tunnel.device.counters
        assert (counters.initiations_sent, counters.cookie_replies_received, counters.responses_received) == (2, 1, 1)
        await both_ways(tunnel)


async def test_under_load_we_ask_the_genuine_device_for_a_cookie() -> None:
    """Its retry, 5 s later, has the cookie and is answered."""
    async with open_tunnel() as tunnel:
        tunnel.device._admission._loaded_until = float("inf")
        await tunnel.peer_send(b"first")
        assert await tunnel.next(tunnel.came) == b"first"
        counters = tunnel.device.counters
        assert counters.drops[Drop.UNDER_LOAD] == counters.cookie_replies_sent == 1
        assert counters.responses_sent == 1
        await both_ways(tunnel)
