"""Regions that are full look farther in the map that peers get: asked over sockets, decided in a time of our own."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime

import pytest
import trio

from derp.client.dial import DialOptions
from derp.map import DERPMap, DERPNode
from derp.netcheck.load import QUIET_SECONDS, STEP_FACTOR
from derp.relay.load import LoadReading
from tailnet.config import CoordinatorConfig
from tailnet.errors import StoreError
from tailnet.server.embedded import embedded_region
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.region_load import RegionLoads
from tests.support.inprocess import map_of, node_of, open_relay_here
from tests.support.seeds import NOW

START = 1_000_000.0
EMBEDDED = embedded_region(CoordinatorConfig(access_url="http://127.0.0.1:3000"), [])


class Shelf:
    """Where several servers keep what they decided."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.is_broken = False

    async def keep(self, source: str, text: str) -> None:
        if self.is_broken:
            raise StoreError("the disk is full")
        self.texts[source] = text

    async def kept(self, source: str) -> tuple[str, datetime] | None:
        if self.is_broken:
            raise StoreError("the disk is gone")
        return (self.texts[source], NOW) if source in self.texts else None


class Fixed:
    """A source with one map."""

    name = "a map"
    poll_seconds = 3600.0

    def __init__(self, derp_map: DERPMap) -> None:
        self._text = json.dumps(derp_map.to_json()).encode()

    async def open(self, stack: AsyncExitStack) -> None:
        """Nothing to open."""

    async def read(self, *, force: bool = False) -> bytes | None:
        return self._text


class World:
    """A coordinator's maps, and what steers them by load."""

    def __init__(self, maps: DerpMaps, followed: tuple[int, ...], shelf: Shelf | None) -> None:
        self.now = START
        self.own: LoadReading | None = None
        self.maps = maps
        self.loads = RegionLoads(
            maps,
            followed,
            keeper=shelf,
            options=DialOptions(environment=None),
            read_own=lambda: self.own,
            clock=lambda: self.now,
        )

    async def look(self, seconds: float) -> None:
        """Looks every 15 s."""
        with trio.fail_after(60):
            for _ in range(int(seconds / 15)):
                self.now += 15
                await self.loads.look()

    @property
    def scores(self) -> dict[int, float]:
        params = self.maps.current.map.home_params
        return dict(params.region_score) if params is not None else {}


@asynccontextmanager
async def open_world(derp_map: DERPMap, *followed: int, shelf: Shelf | None = None) -> AsyncIterator[World]:
    """Region 999 is our own; `derp_map` has the others."""
    maps = DerpMaps([Fixed(derp_map)], EMBEDDED)
    async with trio.open_nursery() as nursery:
        await nursery.start(maps.serve)
        yield World(maps, followed, shelf)
        nursery.cancel_scope.cancel()


ELSEWHERE = map_of(DERPNode("5a", 5, "relay.example"))


async def test_our_own_relay_is_read_without_a_request_and_rises_and_falls(caplog: pytest.LogCaptureFixture) -> None:
    async with open_world(DERPMap(), 999) as world:
        world.own = LoadReading(loop_share=0.95)
        await world.look(120)
        assert world.scores == {}, "there is no other region"
    async with open_world(ELSEWHERE, 999) as world:
        world.own = LoadReading(loop_share=0.95)
        version = world.maps.current.version
        with caplog.at_level(logging.WARNING, "tailnet.derpmaps"):
            await world.look(90)
        assert world.scores == {999: STEP_FACTOR}
        assert world.maps.current.version == version + 1
        assert "Region 999 looks 1.2 times as far by its load: 95% of its limit (loop)" in caplog.text
        world.own = LoadReading(loop_share=0.1)
        await world.look(QUIET_SECONDS + 60)
        assert world.scores == {}


async def test_relays_elsewhere_are_asked_and_one_that_is_gone_keeps_its_score() -> None:
    async with (
        open_relay_here(tls=False, max_connections=1) as full,
        open_relay_here(tls=False) as empty,
        open_world(map_of(node_of(full, 901), node_of(empty, 902)), 901, 902) as world,
    ):
        for _ in range(6):
            with trio.fail_after(60):
                while full.lobby.connection_count:  # noqa: ASYNC110  # of the look before: there is room for one
                    await trio.sleep(0.01)
            await world.look(15)
        assert world.scores == {901: STEP_FACTOR}
        full.pages.configure(home="", debug_allow=())
        await world.look(10 * 60)
        assert world.scores == {901: STEP_FACTOR}
        assert "so its score stays: node 901a: " in world.loads.explain(901)[2]
        assert world.loads.factors() == {"901": STEP_FACTOR, "902": 1.0}
        assert world.loads.explain(901)[0].endswith("1 by settings and maps, 1.2 by its load.")


async def test_a_restart_and_another_server_of_the_store_go_by_the_same_decision() -> None:
    shelf = Shelf()
    async with open_world(ELSEWHERE, 999, shelf=shelf) as first, open_world(ELSEWHERE, 999, shelf=shelf) as second:
        first.own, second.own = LoadReading(loop_share=1.0), LoadReading(loop_share=0.1)
        await first.look(90)
        await second.look(90)
        assert first.scores == second.scores == {999: STEP_FACTOR}
    async with open_world(ELSEWHERE, 999, shelf=shelf) as restarted:
        await restarted.loads.recall()
        assert restarted.scores == {999: STEP_FACTOR}, "before anybody is told a map"
        restarted.now, restarted.own = first.now, LoadReading(loop_share=0.1)
        await restarted.look(QUIET_SECONDS - 300)
        assert restarted.scores == {999: STEP_FACTOR}, "the hour goes on"


async def test_a_store_that_is_away_or_has_nonsense_costs_a_line_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shelf = Shelf()
    shelf.texts["the load of regions"] = "{}"
    async with open_world(ELSEWHERE, 999, shelf=shelf) as world:
        world.own = LoadReading(loop_share=1.0)
        await world.loads.recall()
        shelf.is_broken = True
        await world.look(90)
        assert world.scores == {999: STEP_FACTOR}
        shelf.is_broken = False
        await world.look(15)
        assert '"level": 1' in shelf.texts["the load of regions"], "it is kept as soon as it can be"
    assert "what was decided before cannot be used: is not as it was saved" in caplog.text
    assert caplog.text.count("what was decided before cannot be used: the disk is gone") < 3, "not in each round"
    assert "cannot be kept for the next start: the disk is full" in caplog.text


async def test_regions_are_named_and_taken_back_while_serving() -> None:
    async with open_world(ELSEWHERE) as world:
        world.own = LoadReading(memory_share=1.0)
        await world.look(120)
        assert world.scores == {}
        assert len(world.loads.explain(999)) == 2
        world.loads.follow((999,))
        await world.look(90)
        assert world.scores == {999: STEP_FACTOR}
        world.loads.follow(())
        await world.look(15)
        assert world.scores == {}
