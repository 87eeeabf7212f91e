"""The map service: last good maps stay, changes reach everybody, restarts remember, and the log says what happened."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from derp.map import DERPMap
from tailnet.config import CoordinatorConfig
from tailnet.coordinator.policy import ManyAgentsPolicy
from tailnet.errors import ConfigError, RpcError
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2
from tailnet.server.embedded import embedded_region
from tailnet.services.derp_maps import FIRST_LOAD_SECONDS, DerpMaps, PublishedMap, StoreMapKeeper
from tailnet.services.feed import DropReason
from tailnet.services.map_sources import FILE_POLL_SECONDS, FileSource, MapSource, UrlSource
from tailnet.services.tailnet_rpc import Caller
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.maps import map_text
from tests.support.seeds import NOW
from tests.support.sites import Site, answer
from tests.support.tailnet_driver import wait_for as wait_until

EMBEDDED = embedded_region(CoordinatorConfig(access_url="http://127.0.0.1:3000"), [])
# Files are looked at so often here that nobody waits for them.
QUICK = 0.01


@asynccontextmanager
async def running(*sources: MapSource, keeper: StoreMapKeeper | None = None) -> AsyncIterator[DerpMaps]:
    maps = DerpMaps(sources, EMBEDDED, keeper=keeper, clock=lambda: NOW)
    async with trio.open_nursery() as nursery:
        await nursery.start(maps.serve)
        with trio.fail_after(20):
            yield maps
        nursery.cancel_scope.cancel()


async def wait_for(maps: DerpMaps, ids: list[int]) -> PublishedMap:
    with maps.feed.follow() as follower:
        async for events in follower:
            if events[-1].value.map.region_ids() == ids:
                return events[-1].value
    raise AssertionError("the feed ended")


async def wait_changed(maps: DerpMaps, version: int) -> PublishedMap:
    """The current map as soon as its version is another one."""
    with maps.feed.follow() as follower:
        async for events in follower:
            if events[-1].value.version != version:
                return events[-1].value
    raise AssertionError("the feed ended")


def ids(maps: DerpMaps) -> list[int]:
    return maps.current.map.region_ids()


async def test_the_embedded_relay_alone() -> None:
    async with running() as maps:
        assert ids(maps) == [999]
        assert maps.current.warnings == ()


async def test_every_form_of_a_version_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(map_text(1, HomeParams={"RegionScore": {"1": 1.5}}))
    async with running(FileSource(path)) as maps:
        current = maps.current
        assert current.map.region_ids() == [1, 999]
        assert DERPMap.parse(current.json) == current.map
        assert current.json.endswith(b"}\n")
        assert convert.derp_map(tailnet_pb2.DERPMap.FromString(current.message)) == current.map


async def test_a_changed_file_is_published(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(map_text(1))
    async with running(FileSource(path, QUICK)) as maps:
        first = maps.current
        path.write_bytes(map_text(1, 2))
        second = await wait_changed(maps, first.version)
        assert second.map.region_ids() == [1, 2, 999]
        assert second.version > first.version
        path.write_bytes(b'{"Regions": {"999": null, "1": null}}')
        await wait_for(maps, [])
        assert "the DERP map has no relay" in maps.current.warnings[0]


class Memory:
    """A source without a file, so that virtual time cannot run away while a thread reads."""

    name = "memory"

    def __init__(self, text: bytes, poll_seconds: float) -> None:
        self.text = text
        self.poll_seconds = poll_seconds

    async def open(self, stack: object) -> None:
        pass

    async def read(self, *, force: bool = False) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self.text


async def test_at_the_pace_of_files_a_change_takes_less_than_a_second(autojump_clock: MockClock) -> None:
    source = Memory(map_text(1), FILE_POLL_SECONDS)
    async with running(source) as maps:
        source.text = map_text(2)
        before = trio.current_time()
        await wait_for(maps, [2, 999])
        # A file caught half-written costs one look more, hence the factor.
        assert 2 * (trio.current_time() - before) < 1.0


async def test_a_text_that_means_the_same_is_no_new_version(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(map_text(1))
    async with running(FileSource(path, QUICK)) as maps:
        version = maps.current.version
        path.write_bytes(json.dumps(json.loads(map_text(1)), indent=4).encode())
        path.write_bytes(map_text(1) + b"\n\n")
        path.write_bytes(map_text(1, 2))
        assert (await wait_changed(maps, version)).map.region_ids() == [1, 2, 999]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b'{"Regions": {"1": {"RegionID": 1}}}', "Regions.1.Nodes"),
        (b'{"Regions": {', "line 1, column 14"),
        (None, "No such file"),
    ],
)
async def test_the_last_good_map_stays(
    tmp_path: Path, broken: bytes | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(map_text(1))
    async with running(FileSource(path, QUICK)) as maps:
        before = maps.current
        [status] = maps.statuses
        if broken is None:
            path.unlink()
        else:
            path.write_bytes(broken)
        await wait_until(lambda: not status.ok)
        assert reason in status.reason
        assert maps.current is before
        assert "its last good map stays" in caplog.text
        failures = status.failures
        path.write_bytes(map_text(1, 2))
        await wait_for(maps, [1, 2, 999])
        assert (status.ok, status.reason) == (True, "")
        assert "is good again" in caplog.text
    # Said once, however often it was looked at.
    assert caplog.text.count("last good map stays") == 1 <= failures


async def test_a_file_caught_half_written_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(map_text(1))
    source = FileSource(path)

    class HalfWritten:
        """The file, seen once in the middle of being written."""

        name = source.name
        poll_seconds = QUICK
        open = source.open
        reads = 0

        async def read(self, *, force: bool = False) -> bytes | None:
            text = await source.read(force=force)
            self.reads += text is not None
            return text[:20] if text is not None and self.reads == 2 else text

    # A FileSource in name, so that it is treated as one.
    half = type("HalfWrittenFile", (HalfWritten, FileSource), {"__init__": lambda self: None})()
    async with running(half) as maps:
        path.write_bytes(map_text(1, 2))
        await wait_for(maps, [1, 2, 999])
        assert maps.statuses[0].failures == 0
    assert "errors" not in caplog.text


async def test_a_wrong_file_at_the_first_start_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(b'{"Regions": {"1": {}}}')
    with pytest.raises(ConfigError, match=r"derp_map: .*map.json: has errors: Regions.1.RegionID"):
        await DerpMaps([FileSource(path)]).serve()


async def test_a_missing_file_at_the_first_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"derp_map: .*map.json: cannot be read: No such file"):
        await DerpMaps([FileSource(tmp_path / "map.json")]).serve()


async def kept(store: Store, source: str) -> None:
    """Wait until the store has a map of that source: it is written once clients may come."""
    await wait_until(lambda: store.keys.kept_map(source))


async def test_what_the_store_has_is_not_written_again(tmp_path: Path, store: Store) -> None:
    """A start must not need a store that takes writes."""
    path = tmp_path / "map.json"
    path.write_bytes(map_text(1))
    keeper = StoreMapKeeper(store, lambda: NOW)
    await keeper.keep(str(path), map_text(1).decode())
    written = store.database.writer.changes
    async with running(FileSource(path, QUICK), keeper=keeper) as maps:
        assert ids(maps) == [1, 999]
        with trio.move_on_after(10 * QUICK):
            await trio.sleep_forever()
        assert store.database.writer.changes == written
        path.write_bytes(map_text(2))
        await wait_for(maps, [2, 999])
        await wait_until(lambda: store.keys.kept_map(str(path)) == (map_text(2).decode(), NOW))
    assert store.database.writer.changes == written + 1


async def test_a_restart_remembers_a_file_that_broke(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(map_text(1))
    keeper = StoreMapKeeper(store, lambda: NOW)
    async with running(FileSource(path), keeper=keeper):
        await kept(store, str(path))
    path.write_bytes(b"half a m")
    async with running(FileSource(path, QUICK), keeper=keeper) as maps:
        assert ids(maps) == [1, 999]
        [status] = maps.statuses
        assert not status.ok
        assert status.good_since == NOW
        path.write_bytes(map_text(2))
        await wait_for(maps, [2, 999])


@pytest.fixture
async def site(nursery: trio.Nursery) -> Site:
    made = Site()
    await nursery.start(made.serve)
    made.respond = lambda head: answer(map_text(1))
    return made


async def test_a_url(site: Site) -> None:
    async with running(UrlSource(site.url, QUICK)) as maps:
        assert ids(maps) == [1, 999]
        site.respond = lambda head: answer(map_text(2))
        await wait_for(maps, [2, 999])


async def test_a_url_that_is_down_at_the_first_start(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.respond = lambda head: answer(b"", status="503 Busy")
    async with running(UrlSource(site.url, QUICK)) as maps:
        assert ids(maps) == [999]
        assert "answers 503 Busy; there is no map of it" in caplog.text
        site.respond = lambda head: answer(map_text(1))
        await wait_for(maps, [1, 999])


async def test_a_url_that_is_down_at_a_restart(site: Site, store: Store) -> None:
    keeper = StoreMapKeeper(store, lambda: NOW)
    async with running(UrlSource(site.url, QUICK), keeper=keeper):
        await kept(store, site.url)
    site.respond = lambda head: b""
    async with running(UrlSource(site.url, QUICK), keeper=keeper) as maps:
        assert ids(maps) == [1, 999]


async def test_a_restart_does_not_wait_for_a_url(store: Store, autojump_clock: MockClock) -> None:
    keeper = StoreMapKeeper(store, lambda: NOW)
    await keeper.keep("slow", map_text(1).decode())

    class Slow:
        name = "slow"
        poll_seconds = 1.0

        async def open(self, stack: object) -> None:
            pass

        async def read(self, *, force: bool = False) -> bytes | None:
            await trio.sleep_forever()
            raise AssertionError

    async with running(Slow(), keeper=keeper) as maps:
        assert trio.current_time() - autojump_clock.current_time() < 1
        assert ids(maps) == [1, 999]


async def test_the_first_start_waits_for_a_url_but_not_for_ever(autojump_clock: MockClock) -> None:
    class Slow:
        name = "slow"
        poll_seconds = 1.0
        answer_in = 5.0

        async def open(self, stack: object) -> None:
            pass

        async def read(self, *, force: bool = False) -> bytes | None:
            await trio.sleep(self.answer_in)
            return map_text(1)

    async with running(Slow()) as maps:
        assert ids(maps) == [1, 999]
    slow = Slow()
    slow.answer_in = FIRST_LOAD_SECONDS + 1
    async with running(slow) as maps:
        assert ids(maps) == [999]
        await wait_for(maps, [1, 999])


async def test_a_bad_map_of_a_url_is_not_called_good_by_a_304(site: Site) -> None:
    async with running(UrlSource(site.url, QUICK)) as maps:
        [status] = maps.statuses

        def broken(head: str) -> bytes:
            if "if-none-match" in head.lower():
                return answer(b"", status="304 Not Modified")
            return answer(b"{broken", 'ETag: "x"')

        site.respond = broken
        await wait_until(lambda: not status.ok)
        asked = len(site.heads)
        await wait_until(lambda: len(site.heads) >= asked + 3)
        assert not status.ok
        assert ids(maps) == [1, 999]


async def test_a_file_has_the_last_word(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(b'{"Regions": {"1": null}}')
    async with running(FileSource(path), UrlSource(site.url)) as maps:
        assert ids(maps) == [999]


async def test_reload_reads_at_once() -> None:
    # At this pace nothing would be seen in time.
    one, two = Memory(map_text(5), 3600), Memory(map_text(6), 3600)
    async with running(one, two) as maps:
        await wait_all_tasks_blocked()
        one.text, two.text = map_text(7), map_text(8)
        await wait_all_tasks_blocked()
        assert ids(maps) == [5, 6, 999]
        maps.reload_nowait()
        await wait_for(maps, [7, 8, 999])


async def test_a_reload_during_a_read_is_not_lost() -> None:
    class Slow(Memory):
        asked = 0

        async def read(self, *, force: bool = False) -> bytes | None:
            text = self.text
            self.asked += 1
            if self.asked == 2:
                # The operator writes the new map and sends SIGHUP while the old one is on its way.
                self.text = map_text(6)
                maps.reload_nowait()
            await trio.lowlevel.checkpoint()
            return text

    # Made here: the second read may come before anybody is told that it runs.
    maps = DerpMaps([Slow(map_text(5), 3600)], EMBEDDED)
    async with trio.open_nursery() as nursery:
        await nursery.start(maps.serve)
        with trio.fail_after(20):
            await wait_for(maps, [6, 999])
        nursery.cancel_scope.cancel()


async def test_steering(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(map_text(1))
    async with running(FileSource(path)) as maps:
        version = maps.current.version
        maps.steer(scores={1: 2.0})
        assert maps.current.map.home_params is not None
        assert maps.current.map.home_params.region_score == {1: 2.0}
        maps.steer(avoid=[1])
        assert maps.current.map.regions[1].no_measure_no_home
        assert maps.current.map.home_params.region_score == {1: 2.0}
        maps.steer(scores={}, avoid=[])
        assert maps.current.map.home_params is None
        assert maps.current.version == version + 3


async def test_no_relay_at_all_is_told_loudly(caplog: pytest.LogCaptureFixture) -> None:
    maps = DerpMaps()
    async with trio.open_nursery() as nursery:
        await nursery.start(maps.serve)
        nursery.cancel_scope.cancel()
    [record] = [record for record in caplog.records if "no relay" in record.getMessage()]
    assert record.levelno >= logging.WARNING


async def test_many_readers_all_see_the_newest(tmp_path: Path) -> None:
    maps = DerpMaps([], EMBEDDED)
    seen: list[int] = []

    async def read() -> None:
        seen.append((await wait_changed(maps, 0)).version)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(read)
        await wait_all_tasks_blocked()
        maps.steer(scores={999: 2.0})
        maps.steer(scores={999: 3.0})
    # Two changes at once: who was waiting gets the second one only.
    assert seen == [2] * 100


async def test_a_stream_gets_each_map_until_its_client_does_not_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tailnet")
    maps = DerpMaps([], EMBEDDED)
    caller = Caller(PeerID(bytes(16)), ManyAgentsPolicy(), "alice")
    sent: list[bytes] = []
    refuses = False

    def send(payload: bytes) -> bool:
        sent.append(payload)
        return not refuses

    async def follow() -> None:
        with pytest.raises(RpcError, match="does not read its DERP maps"):
            await maps.stream(caller, None, send)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        assert sent == [maps.current.message]
        refuses = True
        maps.steer(scores={999: 2.0})
    assert sent[1:] == [maps.current.message]
    assert maps.feed.counts.dropped == {DropReason.SLOW: 1}
    dropped = [each.getMessage() for each in caplog.records if "no more DERP maps" in each.getMessage()]
    assert dropped == ["! alice is told of no more DERP maps: this client does not read its DERP maps"]
