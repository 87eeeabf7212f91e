"""A node's connections to relays: what waits, what is kept, what ends, and what another map does."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from derp.client.reconnect import Connected, Disconnected, Heard
from derp.keys import NodePrivate
from derp.map import DERPMap, DERPNode
from tailnet.node.relays import IDLE_SECONDS, MAX_WAITING, Relays
from tests.support.inprocess import map_of, node_of, open_relay_here, port_of
from tests.support.tailnet_driver import wait_for

HERE, THERE = 901, 902
SOMEBODY = NodePrivate.generate().public().raw


class Ear:
    """What was heard of connections, by region."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, type]] = []

    def __call__(self, region: int, batch: Sequence[Heard]) -> None:
        self.heard += [(region, type(each)) for each in batch if isinstance(each, Connected | Disconnected)]


@asynccontextmanager
async def open_relays(derp_map: DERPMap) -> AsyncIterator[tuple[Relays, Ear]]:
    async with trio.open_nursery() as nursery:
        ear = Ear()
        yield Relays(NodePrivate.generate(), derp_map.regions, nursery, None, ear), ear
        nursery.cancel_scope.cancel()


async def test_what_waits_is_bounded_and_a_region_that_nobody_knows_takes_nothing() -> None:
    async with (
        open_relay_here(tls=False, stun_enabled=False) as here,
        open_relays(map_of(node_of(here, HERE))) as (
            relays,
            _,
        ),
    ):
        assert relays.send(THERE, SOMEBODY, [b"data"] * 3) == 3
        lost = [relays.send(HERE, SOMEBODY, [b"data"] * size) for size in (1, MAX_WAITING - 2, 6)]
        assert lost == [0, 0, 5]
        with trio.fail_after(30):
            await relays.wait_connected(HERE)
        assert relays.last_heard(HERE) is not None


async def test_a_relay_with_quic_by_the_map_is_reached_by_it() -> None:
    async with open_relay_here(quic=True, stun_enabled=False) as here:
        derp_map = map_of(node_of(here, HERE, quic_port=port_of(here)))
        async with open_relays(derp_map) as (relays, _):
            relays.set_home(HERE)
            with trio.fail_after(60):
                await relays.wait_connected(HERE)
            assert here.ports.quic is not None
            assert here.ports.quic.totals()["accepted"] == 1


async def test_the_home_is_kept_and_another_region_s_connection_ends_when_it_is_idle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The relays do not answer: of a connection that is not there nothing else is to be seen."""
    silent = trio.socket.socket()
    async with open_silent(silent) as derp_map, open_relays(derp_map) as (relays, ear):
        relays.set_home(HERE)
        relays.send(THERE, SOMEBODY, [b"data"])
        await trio.sleep(IDLE_SECONDS / 2)
        relays.send(THERE, SOMEBODY, [b"data"])
        await trio.sleep(IDLE_SECONDS - 1)
        assert relays.down_since(THERE) is not None, "it was used since"
        await trio.sleep(2)
        assert relays.down_since(THERE) is None
        await trio.sleep(10 * IDLE_SECONDS)
        assert relays.down_since(HERE) == 0.0
        assert (THERE, Disconnected) in ear.heard
        assert (HERE, Disconnected) not in ear.heard


@asynccontextmanager
async def open_silent(sock: trio.socket.SocketType) -> AsyncIterator[DERPMap]:
    with sock:
        await sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        nodes = [
            DERPNode(f"{region}a", region, "127.0.0.1", ipv4="127.0.0.1", derp_port=port, stun_port=-1)
            for region in (HERE, THERE)
        ]
        yield map_of(*nodes)


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "elsewhere"])
async def test_a_region_that_the_map_has_no_more_is_left(gone: bool) -> None:
    async with (
        open_relay_here(tls=False, stun_enabled=False) as here,
        open_relay_here(tls=False, stun_enabled=False) as other,
        open_relays(map_of(node_of(here, HERE))) as (relays, ear),
    ):
        with trio.fail_after(30):
            relays.set_home(HERE)
            await relays.wait_connected(HERE)
            relays.set_map(relays.regions)
            assert relays.last_heard(HERE) is not None, "the map is the same"
            relays.set_map({} if gone else map_of(node_of(other, HERE)).regions)
            assert relays.last_heard(HERE) is None
            assert ear.heard == [(HERE, Connected), (HERE, Disconnected)]
            if not gone:
                await relays.wait_connected(HERE)
                assert len(other.relay.router.members) == 1


async def test_the_relay_hears_which_one_is_home() -> None:
    async with (
        open_relay_here(tls=False, stun_enabled=False) as here,
        open_relay_here(tls=False, stun_enabled=False) as there,
        open_relays(map_of(node_of(here, HERE), node_of(there, THERE))) as (relays, _),
    ):
        with trio.fail_after(30):
            relays.set_home(HERE)
            await relays.wait_connected(HERE)
            relays.set_home(THERE)
            await relays.wait_connected(THERE)
            await wait_for(lambda: (here.relay.router.home_clients, there.relay.router.home_clients) == (0, 1))
