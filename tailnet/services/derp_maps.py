"""The DERP map that agents and clients get: loaded, judged, merged, published (layer L3).

When a source fails, or its map has errors, its last good map stays in use, also over a restart: nobody loses a relay
because an operator was editing a file or a URL was down.  map_sources.py reads, map_layers.py merges.  Readers take
`current` or follow `feed`: connection.py, api/derp_map.py, and agents and clients through the StreamDERPMaps RPC.
"""

import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import trio

from derp.map import DERPMap, DERPRegion
from derp.netcheck.steering import pushed_away
from tailnet.errors import ConfigError, RpcError, StoreError
from tailnet.go_json import go_json
from tailnet.proto import convert
from tailnet.services.feed import Feed, FollowerDropped, newest_only
from tailnet.services.map_layers import MapLayer, MapRefused, merge_findings, merge_layers, read_layer
from tailnet.services.map_sources import FileSource, MapSource, SourceFailed
from tailnet.services.tailnet_rpc import Caller
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.derpmaps")

# How long a start waits for a URL of which the store has no map.  With a map from before it does not wait at all.
FIRST_LOAD_SECONDS: Final = 10.0
# Sentences about one map that go to the log; the debug page has them all.
MAX_LOGGED: Final = 10


class MapKeeper(Protocol):
    """Where the last good map of each source survives a restart."""

    async def keep(self, source: str, text: str) -> None: ...

    async def kept(self, source: str) -> tuple[str, datetime] | None: ...


class StoreMapKeeper:
    """Keeps maps in the store."""

    def __init__(self, store: Store, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._clock = clock

    async def keep(self, source: str, text: str) -> None:
        """Raises StoreError."""
        await self._store.run(self._store.keys.keep_map, source, text, self._clock())

    async def kept(self, source: str) -> tuple[str, datetime] | None:
        """Raises StoreError."""
        return await self._store.run(self._store.keys.kept_map, source)


@dataclass(frozen=True, slots=True, eq=False)
class PublishedMap:
    """One version of the map, encoded once for everybody."""

    version: int
    map: DERPMap
    message: bytes  # a coder.tailnet.v2.DERPMap
    json: bytes  # one value and a newline, in Go's names
    warnings: tuple[str, ...]
    unsteered: DERPMap
    """The same before regions were made to look farther by their load."""


@dataclass(slots=True)
class SourceStatus:
    """How a source is doing, for the debug page and for metrics."""

    name: str
    ok: bool = False
    reason: str = "not read yet"
    good_since: datetime | None = None  # when the map that is in use was read
    failures: int = 0


class DerpMaps:
    """The map service: `await nursery.start(maps.serve)` once.  `current` is there from the beginning."""

    def __init__(
        self,
        sources: Sequence[MapSource] = (),
        embedded: DERPRegion | None = None,
        *,
        scores: Mapping[int, float] | None = None,
        avoid: Collection[int] = (),
        keeper: MapKeeper | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._sources = [_FollowedSource(source) for source in sources]
        self._embedded = MapLayer("the embedded relay", {} if embedded is None else {embedded.region_id: embedded})
        self._settings = MapLayer("settings", scores=dict(scores or {}))
        self._avoid = frozenset(avoid)
        self._factors: Mapping[int, float] = {}
        self._keeper = keeper
        self._clock = clock
        self._kick = trio.Event()
        self.feed: Feed[PublishedMap] = Feed(key=newest_only)
        merged = merge_layers([self._embedded, self._settings], avoid=self._avoid)
        self._publish(0, merged, merged)

    @property
    def current(self) -> PublishedMap:
        """The map of this moment."""
        newest = self.feed.newest
        assert newest is not None, "the first one is published by the constructor"
        return newest.value

    @property
    def statuses(self) -> list[SourceStatus]:
        return [followed.status for followed in self._sources]

    def findings(self) -> list[str]:
        """What is probably not meant: in the text of each source that is in use, then in the whole."""
        whole = self.current.warnings
        texts = [
            f"{layer.name}: {finding}"
            for layer in (followed.layer for followed in self._sources)
            if layer is not None
            for finding in layer.warnings
            if str(finding) not in whole
        ]
        return [*texts, *whole]

    async def stream(self, caller: Caller, request: Any, send: Callable[[bytes], bool]) -> None:
        """Serve one StreamDERPMaps call until its client ends it: the current map at once, then each newer one."""
        try:
            with self.feed.follow() as follower:
                async for events in follower:
                    if not send(events[-1].value.message):
                        raise follower.too_slow("this client does not read its DERP maps")
        except FollowerDropped as dropped:
            _log.info("! %s is told of no more DERP maps: %s", caller.name, dropped)
            raise RpcError(str(dropped)) from None

    def reload_nowait(self) -> None:
        """Read every source again, now, changed or not: for SIGHUP."""
        self._kick.set()
        self._kick = trio.Event()

    def steer(
        self,
        *,
        scores: Mapping[int, float] | None = None,
        avoid: Collection[int] | None = None,
        factors: Mapping[int, float] | None = None,
    ) -> None:
        """Set scores, regions to avoid, or how many times as far regions look by their load, while serving; None leaves
        what is."""
        if factors is not None:
            self._factors = dict(factors)
        if scores is not None:
            self._settings = MapLayer("settings", scores=dict(scores))
        if avoid is not None:
            self._avoid = frozenset(avoid)
        self._merge()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load every source, then follow them until cancelled.

        Raises ConfigError, before it has started, when a file is wrong and there is no good map of it from before.
        """
        async with AsyncExitStack() as stack:
            for followed in self._sources:
                await followed.source.open(stack)
            async with trio.open_nursery() as nursery:
                for followed in self._sources:
                    nursery.start_soon(self._load_first, followed)
            for followed in self._sources:
                if followed.layer is None and isinstance(followed.source, FileSource):
                    raise ConfigError(f"derp_map: {followed.status.name}: {followed.status.reason}")
            self._merge(at_start=True)
            async with trio.open_nursery() as nursery:
                for followed in self._sources:
                    nursery.start_soon(self._follow, followed)
                task_status.started()

    async def _load_first(self, followed: "_FollowedSource") -> None:
        await self._recall(followed)
        if followed.layer is not None and not isinstance(followed.source, FileSource):
            return  # a URL that is slow or down must not hold up a restart; `_follow` asks it at once
        with trio.move_on_after(FIRST_LOAD_SECONDS):
            await self._read(followed, force=True, patient=False)

    async def _recall(self, followed: "_FollowedSource") -> None:
        if self._keeper is None:
            return
        try:
            kept = await self._keeper.kept(followed.status.name)
            if kept is not None:
                text = kept[0].encode()
                followed.layer = read_layer(text, followed.status.name)
                followed.good = followed.kept = text
                followed.status.good_since = kept[1]
        except (StoreError, MapRefused) as error:
            _log.warning("! DERP map of %s kept from before cannot be used: %s", followed.status.name, error)

    async def _follow(self, followed: "_FollowedSource") -> None:
        force = followed.layer is None or not followed.status.ok
        while True:
            # Taken before the read, so that a reload that comes while it runs is not lost.
            kick = self._kick
            if await self._read(followed, force=force):
                self._merge()
            # Not before anybody is served: a store that takes no writes may need ten seconds to say so.
            await self._keep(followed)
            # Servers that were started together must not ask a URL together for ever.
            with trio.move_on_after(followed.source.poll_seconds * random.uniform(0.9, 1.0)):
                await kick.wait()
            force = kick.is_set()

    async def _read(self, followed: "_FollowedSource", *, force: bool, patient: bool = True) -> bool:
        """Read a source; True if its layer is a new one."""
        status = followed.status
        try:
            text = await followed.source.read(force=force or followed.suspect is not None)
            if text is None:
                # The text is the same, so what we said of it still holds; only a read may have failed in between.
                if followed.text_is_good:
                    self._recovered(followed)
                return False
            followed.text_is_good = False
            layer = read_layer(text, status.name)
        except SourceFailed as error:
            followed.suspect = None
            self._failed(followed, str(error))
            return False
        except MapRefused as error:
            # We may have caught a file half-written: it is judged only if the next look finds the same text.
            if patient and isinstance(followed.source, FileSource) and text != followed.suspect and not force:
                followed.suspect = text
                return False
            followed.suspect = None
            self._failed(followed, f"has errors: {error}")
            return False
        followed.suspect = None
        followed.text_is_good = True
        self._recovered(followed)
        status.good_since = self._clock()
        changed = followed.layer != layer
        followed.layer, followed.good = layer, text
        return changed

    async def _keep(self, followed: "_FollowedSource") -> None:
        text = followed.good
        if self._keeper is None or text is None or text == followed.kept:
            return
        try:
            await self._keeper.keep(followed.status.name, text.decode())
            followed.kept = text
        except StoreError as error:
            _log.warning("! DERP map of %s cannot be kept for the next start: %s", followed.status.name, error)

    def _failed(self, followed: "_FollowedSource", reason: str) -> None:
        status = followed.status
        status.failures += 1
        if status.ok or status.reason != reason:
            left = "its last good map stays" if followed.layer is not None else "there is no map of it"
            _log.error("! DERP map %s %s; %s", status.name, reason, left)
        status.ok, status.reason = False, reason

    def _recovered(self, followed: "_FollowedSource") -> None:
        status = followed.status
        if not status.ok and status.failures:
            _log.warning("= DERP map %s is good again", status.name)
        status.ok, status.reason = True, ""

    def _merge(self, *, at_start: bool = False) -> None:
        layers = [self._embedded]
        # URLs first, so that an operator's own file has the last word.
        followed = sorted(self._sources, key=lambda each: isinstance(each.source, FileSource))
        layers += [each.layer for each in followed if each.layer is not None]
        layers.append(self._settings)
        unsteered = merge_layers(layers, avoid=self._avoid)
        merged = pushed_away(unsteered, self._factors)
        warnings = tuple(merge_findings(layers, merged))
        if merged != self.current.map:
            self._publish(self.current.version + 1, merged, unsteered, warnings)
            ids = ", ".join(map(str, merged.region_ids())) or "none"
            _log.info("= DERP map version %d: regions %s", self.current.version, ids)
        elif at_start:
            self._publish(self.current.version, merged, unsteered, warnings)
        else:
            return
        for warning in warnings[:MAX_LOGGED]:
            _log.warning("! DERP map: %s", warning)

    def _publish(self, version: int, merged: DERPMap, unsteered: DERPMap, warnings: tuple[str, ...] = ()) -> None:
        message = convert.derp_map_message(merged).SerializeToString()
        self.feed.publish(PublishedMap(version, merged, message, go_json(merged.to_json()), warnings, unsteered))


class _FollowedSource:
    """A source, its last good layer, and what is known of the text that it gave last."""

    def __init__(self, source: MapSource) -> None:
        self.source = source
        self.layer: MapLayer | None = None
        self.text_is_good = False
        self.suspect: bytes | None = None  # a text that was wrong at the last look
        self.good: bytes | None = None  # the text of its layer
        self.kept: bytes | None = None  # the text that the store has
        self.status = SourceStatus(source.name)
