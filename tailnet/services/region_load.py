"""Regions that are full look farther in the map that peers get (layer L3).

Every 15 s each relay of the regions that the settings name is asked how near its limits it is, our own without a
request; derp/netcheck/load.py decides, derp_maps.py publishes.  What was decided lies in the store, so that neither a
restart nor another server of the same store moves anybody twice.
"""

import json
import logging
import time
from collections.abc import Callable, Collection
from typing import Final

import trio

from derp.client.dial import DialOptions
from derp.client.load import note_loads
from derp.log import fields
from derp.netcheck.load import LoadScores
from derp.netcheck.steering import score_in
from derp.relay.load import LoadReading
from derp.text import error_text
from tailnet.errors import StoreError
from tailnet.services.derp_maps import DerpMaps, MapKeeper

_log = logging.getLogger("tailnet.derpmaps")

# Clients look every 20 to 30 s, and a decision takes a minute: more often would find nothing new.
POLL_SECONDS: Final = 15.0
# Beside the maps of sources, whose names are paths and URLs.
_KEPT_AS: Final = "the load of regions"


class RegionLoads:
    """`recall` before the map is served, then `run` as a task.  Without regions it does nothing."""

    def __init__(
        self,
        maps: DerpMaps,
        region_ids: Collection[int] = (),
        *,
        keeper: MapKeeper | None = None,
        options: DialOptions | None = None,
        read_own: Callable[[], LoadReading | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`read_own`: of our own relay; None: there is none.  `clock`: one that goes on over restarts."""
        self._maps = maps
        self._region_ids = tuple(region_ids)
        self._keeper = keeper
        self._options = options or DialOptions()
        self._read_own = read_own
        self._clock = clock
        self._kept = self._told = ""
        self._is_unkept = False
        self._factors: dict[int, float] = {}
        self._scores = LoadScores(clock())
        self._scores.follow(maps.current.map, self._region_ids)

    def follow(self, region_ids: Collection[int]) -> None:
        """Go by the load of these regions from the next look on."""
        self._region_ids = tuple(region_ids)

    async def recall(self) -> None:
        """Take over what was decided before, or by another server since."""
        if not self._region_ids:
            return
        try:
            kept = await self._keeper.kept(_KEPT_AS) if self._keeper is not None else None
            if kept is None or kept[0] == self._kept:
                return
            self._kept = kept[0]
            if self._scores.join(LoadScores.restore(json.loads(kept[0]), self._clock())):
                self._steer()
        except (StoreError, ValueError) as error:
            self._tell(f"what was decided before cannot be used: {error_text(error)}")

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await trio.sleep(POLL_SECONDS)
            await self.look()

    async def look(self) -> None:
        """One round: ask, decide, publish."""
        await self.recall()
        scores, derp_map = self._scores, self._maps.current.map
        scores.follow(derp_map, self._region_ids)
        followed = [region for region_id in self._region_ids if (region := derp_map.regions.get(region_id)) is not None]
        own = self._read_own()
        for region in followed:
            if region.embedded_relay and own is not None:
                limit, share = own.highest
                scores.note(region.region_id, share, limit, self._clock())
        others = [region for region in followed if not (region.embedded_relay and own is not None)]
        await note_loads(scores, others, self._options, self._clock)
        changed = scores.handle_timeout(self._clock())
        for region_id in changed:
            sentence = scores.explain_one(region_id, self._clock())
            _log.warning("= %s", sentence, extra=fields(event="region_score", region=region_id))
        self._steer()
        self._is_unkept = self._is_unkept or bool(changed)
        if self._is_unkept:
            await self._keep()

    def _steer(self) -> None:
        factors = self._scores.factors
        if factors != self._factors:
            self._factors = factors
            self._maps.steer(factors=factors)

    async def _keep(self) -> None:
        if self._keeper is None:
            return
        text = json.dumps(self._scores.save())
        try:
            await self._keeper.keep(_KEPT_AS, text)
            self._kept, self._told, self._is_unkept = text, "", False
        except StoreError as error:
            self._tell(f"what was decided cannot be kept for the next start: {error}")

    def _tell(self, trouble: str) -> None:
        """Once, and not in each round."""
        if trouble != self._told:
            self._told = trouble
            _log.warning("! the load of regions: %s", trouble)

    # --- for people, and for metrics

    def factors(self) -> dict[str, float]:
        """How many times as far each region looks by its load."""
        factors = self._scores.factors
        return {str(region_id): factors.get(region_id, 1.0) for region_id in self._region_ids}

    def explain(self, region_id: int) -> list[str]:
        """How far a region looks to clients, and why."""
        derp_map = self._maps.current.map
        region = derp_map.regions.get(region_id)
        if region is None:
            there = ", ".join(map(str, derp_map.region_ids())) or "none"
            return [f"The DERP map has no region {region_id}; it has {there}."]
        score, factor = score_in(derp_map, region_id), self._scores.factors.get(region_id, 1.0)
        lines = [
            f"Region {region_id} ({region.region_code}) has the score {score:g}: clients multiply what they measure of "
            f"it with that; {score / factor:g} by settings and maps, {factor:g} by its load.",
            "They leave their home only for a region that looks 10 ms and a third nearer then.",
        ]
        if region.no_measure_no_home:
            lines.append("It is drained: no client keeps it as its home, or makes it one.")
        own = self._scores.explain_one(region_id, self._clock())
        return [*lines, *([own] if own else []), *self._scores.explain_rest(self._clock())]
