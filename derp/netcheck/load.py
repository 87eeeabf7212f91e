"""Regions at their limit look farther, so that clients who have another one as near go there.  Layer L1: `now` is an
argument, of a clock that goes on over restarts.

Readings come in by `note`; `handle_timeout` decides; `factors` go onto the map's RegionScore (steering.py).  The rule
that keeps everybody from moving twice in an hour: regions that are full together rise together, one step in three
minutes as long as they stay full; then nothing rises or falls for an hour.  Next hop: client/load.py reads.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from derp.map import DERPMap

# A region is full from the first on, has room for clients of others below the second, and its score falls below the
# third: clients who left for a region a third nearer come back only for one, so a step down alone fills nothing.
FULL: Final = 0.9
ROOM: Final = 0.75
EASY: Final = 0.6
# In steps of a half a crowd that lives in one place left as one, and came back as one: 304 moves of 200 clients in ten
# hours, where steps of a fifth need 50 (tests/derp/netcheck/test_load.py).
STEP_FACTOR: Final = 1.2
# 1.2 ** 9 is 5: a client that has 20 ms goes as far as 69 ms, and never to one across an ocean.
MAX_LEVEL: Final = 9
# Readings are smoothed over a minute, so one that jumps to and fro counts as its mean; the first has to stand so long.
SMOOTH_SECONDS: Final = 60.0
# Stock clients look every 20 to 30 s; after three minutes the smoothed load says what they made of a step.
STEP_SECONDS: Final = 180.0
# Under one move per client and hour; clients go by their best latency of five minutes, so they follow that late.
QUIET_SECONDS: Final = 3600.0 + 360.0
# How often it is decided.  Faster than readings come would only be busy.
_DECIDE_SECONDS: Final = 15.0
# A share of a limit is a few times it at the most; what is above is nonsense, and counts as this.
_MAX_LOAD: Final = 10.0
_MAX_TEXT: Final = 300


@dataclass(slots=True)
class _Region:
    """What is known of one.  Times are None until there was a reading."""

    level: int = 0
    load: float = 0.0  # smoothed
    because: str = ""  # the limit that is nearest
    first_at: float | None = None
    read_at: float | None = None
    silent: str = ""  # of some of its relays, why they did not say anything when others did
    away: str = ""  # why the last attempt to read it failed; empty: it did not

    @property
    def factor(self) -> float:
        return round(STEP_FACTOR**self.level, 6)


class LoadScores:
    """Call `follow` with each new map, `note` or `note_away` after each attempt to read a region, and `handle_timeout`
    when it is due.  Never raises."""

    def __init__(self, now: float) -> None:
        self._regions: dict[int, _Region] = {}
        self._places: frozenset[int] = frozenset()
        """Of those, where clients can be at home."""
        self._has_others = False
        self._rising: frozenset[int] = frozenset()
        self._changed_at = -math.inf
        self._next = now + _DECIDE_SECONDS

    def follow(self, derp_map: DERPMap, region_ids: Collection[int]) -> None:
        """The map of clients, and the regions of it whose load counts.  One that is drained, or leaves the map for a
        while, keeps its score."""
        homes = {
            region_id
            for region_id, region in derp_map.regions.items()
            if not region.no_measure_no_home and any(not node.stun_only for node in region.nodes)
        }
        self._regions = {each: self._regions.get(each) or _Region() for each in sorted(region_ids)}
        self._places = frozenset(homes & self._regions.keys())
        self._has_others = bool(homes - self._regions.keys())
        self._rising &= self._places

    def note(self, region_id: int, load: float, because: str, now: float, silent: str = "") -> None:
        """What a region's relays said: the share of the limit that is nearest, and which it is; `silent`: why some of
        them did not say it."""
        region = self._regions.get(region_id)
        if region is None:
            return
        load = min(max(load, 0.0), _MAX_LOAD) if math.isfinite(load) else _MAX_LOAD
        if region.read_at is None or region.first_at is None:
            region.load, region.first_at = load, now
        else:
            weight = 1 - math.exp(-max(now - region.read_at, 0.0) / SMOOTH_SECONDS)
            region.load += (load - region.load) * weight
        region.read_at, region.because = now, because[:_MAX_TEXT]
        region.silent, region.away = silent[:_MAX_TEXT], ""

    def note_away(self, region_id: int, why: str) -> None:
        """No relay of a region said anything: what was known of it stays."""
        if region_id in self._regions:
            self._regions[region_id].away = why[:_MAX_TEXT] or "no answer"

    def join(self, other: "LoadScores") -> bool:
        """Take over what another server of the same map decided, if that was later than what we did: whether it was."""
        if other._changed_at <= self._changed_at:
            return False
        # Also those that the map of now does not have: at a start it is not whole.  The next `follow` sorts them out.
        self._changed_at, self._rising = other._changed_at, other._rising & self._regions.keys()
        for region_id, region in other._regions.items():
            if region_id in self._regions:
                self._regions[region_id].level = region.level
        return True

    @property
    def factors(self) -> dict[int, float]:
        """How many times as far regions shall look, those that are above 1."""
        return {region_id: region.factor for region_id, region in self._regions.items() if region.level}

    # --- deciding

    def next_timeout(self) -> float:
        """When to call `handle_timeout`."""
        return self._next

    def handle_timeout(self, now: float) -> list[int]:
        """The regions whose factor is another one from now on."""
        if self._next - now > _DECIDE_SECONDS:
            self._note_put_back(now)
        if now < self._next:
            return []
        self._next = now + _DECIDE_SECONDS
        if self._rising:
            if now < self._changed_at + STEP_SECONDS:
                return []
            # Who is not full any more stands still from now on: a client that came from it must not find it farther.
            self._rising = frozenset(each for each in self._rising if self._may_rise(each, now))
        elif now >= self._changed_at + QUIET_SECONDS:
            self._rising = frozenset(each for each in self._places if self._may_rise(each, now))
            return self._change(self._rising, [each for each in self._places if self._may_fall(each, now)], now)
        return self._change(self._rising, (), now)

    def _note_put_back(self, now: float) -> None:
        """The clock was put back: nothing waits for longer than it would have."""
        self._next, self._changed_at = now, min(self._changed_at, now)
        for region in self._regions.values():
            if region.first_at is not None:
                region.first_at = min(region.first_at, now)

    def _change(self, up: Iterable[int], down: Iterable[int], now: float) -> list[int]:
        for region_id in up:
            self._regions[region_id].level += 1
        for region_id in down:
            self._regions[region_id].level -= 1
        changed = sorted((*up, *down))
        if changed:
            self._changed_at = now
        return changed

    def _may_rise(self, region_id: int, now: float) -> bool:
        region = self._regions[region_id]
        return region.level < MAX_LEVEL and region.load >= FULL and self._is_sure(region, now) and self._has_room()

    def _may_fall(self, region_id: int, now: float) -> bool:
        region = self._regions[region_id]
        return region.level > 0 and region.load <= EASY and self._is_sure(region, now)

    def _is_sure(self, region: _Region, now: float) -> bool:
        """Whether its load is known, and not by one reading alone."""
        return not region.away and region.first_at is not None and now >= region.first_at + SMOOTH_SECONDS

    def _has_room(self) -> bool:
        """Whether there is anywhere to go.  A region that nobody has read yet may be as empty as it may be full."""
        regions = [self._regions[each] for each in self._places]
        return self._has_others or any(region.read_at is None or region.load < ROOM for region in regions)

    # --- for people, and for the next start

    def explain(self, now: float) -> list[str]:
        """A sentence for each region, and what has to wait."""
        return [*(self.explain_one(region_id, now) for region_id in self._regions), *self.explain_rest(now)]

    def explain_rest(self, now: float) -> list[str]:
        """What all regions wait for."""
        lines = []
        waits = self._changed_at + QUIET_SECONDS - now
        if not self._rising and waits > 0:
            lines.append(
                f"No score changes by load for another {math.ceil(waits / 60)} min: whoever moved at the last change "
                "would move twice in an hour."
            )
        if any(self._regions[each].load >= FULL for each in self._places) and not self._has_room():
            lines.append("No region has room for the clients of another: scores stay as they are.")
        return lines

    def explain_one(self, region_id: int, now: float) -> str:
        """A sentence about one; empty: its load does not count."""
        region = self._regions.get(region_id)
        if region is None:
            return ""
        far = f"looks {region.factor:g} times as far by its load" if region.level else "looks as far as the map says"
        if region.read_at is None:
            known = "its load is not known yet"
        else:
            known = f"{region.load:.0%} of its limit ({region.because}), read {max(now - region.read_at, 0):.0f} s ago"
        stays = f"; its relays do not say more, so its score stays: {region.away}" if region.away else ""
        silent = f"; not all of its relays say it: {region.silent}" if region.silent and not region.away else ""
        rising = "; it rises as long as it is full" if region_id in self._rising else ""
        return f"Region {region_id} {far}: {known}{silent}{rising}{stays}."

    def save(self) -> dict[str, Any]:
        """All that is to be known again after a restart, for JSON."""
        return {
            "changed_at": self._changed_at if math.isfinite(self._changed_at) else None,
            "rising": sorted(self._rising),
            "regions": {
                str(region_id): {
                    "level": region.level,
                    "load": round(region.load, 4),
                    "because": region.because,
                    "first_at": region.first_at,
                    "read_at": region.read_at,
                }
                for region_id, region in self._regions.items()
            },
        }

    @classmethod
    def restore(cls, saved: Mapping[str, Any], now: float) -> Self:
        """As `save` had it.  A clock that was put back since makes nothing wait for longer than an hour.

        ValueError: that was not saved by us.
        """
        scores = cls(now)
        scores._next = now
        try:
            changed_at = saved["changed_at"]
            scores._changed_at = -math.inf if changed_at is None else min(float(changed_at), now)
            for region_id, told in saved["regions"].items():
                scores._regions[int(region_id)] = _Region(
                    min(max(int(told["level"]), 0), MAX_LEVEL),
                    min(max(float(told["load"]), 0.0), _MAX_LOAD),
                    str(told["because"])[:_MAX_TEXT],
                    first_at=None if told["first_at"] is None else min(float(told["first_at"]), now),
                    read_at=None if told["read_at"] is None else min(float(told["read_at"]), now),
                )
            scores._rising = frozenset(map(int, saved["rising"])) & scores._regions.keys()
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
            raise ValueError("is not as it was saved") from None
        return scores
