"""A real Redis: records with leases, its troubles, and what others put there; test_conformance.py has the rest."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from coredis import Redis

from tailnet.bus import redis as module
from tailnet.bus.contract import Record
from tailnet.bus.redis import RedisBus
from tailnet.config.redis_url import redis_place
from tailnet.replica.messages import ReplicaID
from tests.support.memory_bus import Seen
from tests.support.redis import PASSWORD, RedisServer
from tests.test_house import ROOT

A, B = (Record(ReplicaID(letter * 8), letter.decode(), None, "0", 0.0) for letter in (b"A", b"B"))


async def test_records_come_and_go_and_others_keys_are_left_alone(redis: RedisServer, nursery: trio.Nursery) -> None:
    async with Redis.from_url(redis.url) as client:
        await client.set("tn:other:r:x", b"theirs")
        await client.sadd("tn:mine:rs", ["6262626262626262"])  # of one that died: its record has ended
        await client.sadd("tn:mine:rs", ["7878787878787878"])
        await client.set("tn:mine:r:7878787878787878", b"no record")
        await client.sadd("tn:mine:rs", [b"\xff\xfe", "x"])
        first, second = Seen(), Seen()
        scope = trio.CancelScope()

        async def run_second() -> None:
            with scope:
                await RedisBus(redis.place, "mine").run(B, second)

        nursery.start_soon(RedisBus(redis.place, "mine").run, A, first)
        nursery.start_soon(run_second)
        await first.wait(lambda: set(first.records) == {A.replica, B.replica})
        assert first.records[B.replica] == B
        lease = await client.pttl(f"tn:mine:r:{A.replica.hex()}")
        assert lease <= 6000
        assert lease != -1, "without an end"
        scope.cancel()
        await first.wait(lambda: set(first.records) == {A.replica})
        assert await client.get("tn:other:r:x") == b"theirs"


async def test_what_is_no_record_is_told_once_in_a_while(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(Seen):
        looks = 0

        def see_records(self, records: Mapping[ReplicaID, Record]) -> None:
            self.looks += 1

    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    async with Redis.from_url(redis.url) as client:
        await client.sadd("tn:odd:rs", ["7878787878787878"])
        await client.set("tn:odd:r:7878787878787878", b"no record")
    seen = Counting()
    nursery.start_soon(RedisBus(redis.place, "odd").run, A, seen)
    await seen.wait(lambda: seen.looks >= 3)
    assert caplog.text.count("a record that no replica wrote") == 1


async def test_the_rules_of_the_manual_are_enough(redis: RedisServer, nursery: trio.Nursery) -> None:
    text = (ROOT / "docs" / "replicas.md").read_text()
    rules = re.findall(r"`([^`]*resetkeys[^`]*)`, and `(\+select)` for a DB that is not 0", text)[0]
    async with Redis.from_url(redis.url) as client:
        words = " ".join(rules).replace("<cluster>", "ours").split()
        await client.acl_setuser("replica", "on", f">{PASSWORD}", *words)
    url = redis.url.replace("default:", "replica:").removesuffix("/0") + "/2"
    seen, heard = Seen(), Seen()
    one, other = RedisBus(redis_place(url), "ours"), RedisBus(redis_place(url), "ours")
    scope = trio.CancelScope()

    async def run_other() -> None:
        with scope:
            await other.run(B, heard)

    nursery.start_soon(one.run, A, seen)
    nursery.start_soon(run_other)
    await seen.wait(lambda: seen.carrier and heard.carrier and len(seen.records) == 2)
    assert await one.send(B.replica, [b"frame"])
    await heard.wait(lambda: heard.frames)
    scope.cancel()
    await seen.wait(lambda: set(seen.records) == {A.replica})
    async with Redis.from_url(redis.url) as client:
        assert not await client.acl_log()


async def test_frames_arrive_in_order_and_garbage_does_not(redis: RedisServer, nursery: trio.Nursery) -> None:
    one, other = RedisBus(redis.place, "frames"), RedisBus(redis.place, "frames")
    seen, heard = Seen(), Seen()
    nursery.start_soon(one.run, A, seen)
    nursery.start_soon(other.run, B, heard)
    await seen.wait(lambda: seen.carrier and heard.carrier)
    frames = [b"", b"one", bytes(65536), b"two"]
    async with Redis.from_url(redis.url) as client:
        channel = f"tn:frames:c:{B.replica.hex()}"
        for garbage in (b"", b"short", A.replica + b"\x00\x00\x00\x05abc", A.replica + b"\xff\xff\xff\xff"):
            await client.publish(channel, garbage)
        assert await one.send(B.replica, frames)
        await heard.wait(lambda: len(heard.frames) >= len(frames))
    assert heard.frames == [(A.replica, frame) for frame in frames]


async def test_a_server_that_refuses_is_told_without_its_password(redis: RedisServer, nursery: trio.Nursery) -> None:
    bus, seen = RedisBus(redis_place(redis.url.replace(PASSWORD, "wrong-" + PASSWORD)), "x"), Seen()
    nursery.start_soon(bus.run, A, seen)
    await seen.wait(lambda: "not connected" not in bus.trouble)
    assert PASSWORD not in bus.trouble
    assert seen.carrier is False
    assert not await bus.send(B.replica, [b"frame"])
    assert bus.lost_count == 1


async def test_a_defect_is_told_once_in_a_while_and_ends_nothing(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Seen):
        failures = 0

        def see_records(self, records: Mapping[ReplicaID, Record]) -> None:
            self.failures += 1
            raise ValueError("planted")

    monkeypatch.setattr(module, "RETRY_SECONDS", (0.01, 0.02))
    bus, seen = RedisBus(redis.place, "x"), Failing()
    nursery.start_soon(bus.run, A, seen)
    await seen.wait(lambda: seen.failures >= 3 and "planted" in bus.trouble)
    assert caplog.text.count("please report this") == 1


async def test_a_paused_server_is_noticed_by_our_own_beat(redis: RedisServer, nursery: trio.Nursery) -> None:
    bus, seen = RedisBus(redis.place, "paused"), Seen()
    nursery.start_soon(bus.run, A, seen)
    await seen.wait(lambda: seen.carrier)
    redis.pause()
    try:
        await seen.wait(lambda: not seen.carrier)
        assert bus.trouble
    finally:
        redis.go_on()
    await seen.wait(lambda: seen.carrier and not bus.trouble)


async def test_nobody_there(tmp_path: Path, nursery: trio.Nursery) -> None:
    bus, seen = RedisBus(redis_place(f"redis://127.0.0.1:{RedisServer(tmp_path).port}"), "x"), Seen()
    nursery.start_soon(bus.run, A, seen)
    await seen.wait(lambda: "127.0.0.1" in bus.trouble)
    assert seen.carrier is False


async def test_a_connection_that_has_just_ended_costs_frames_and_no_more(redis: RedisServer) -> None:
    bus, seen = RedisBus(redis.place, "ended"), Seen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus.run, A, seen)
        await seen.wait(lambda: seen.carrier)
        client = bus._client
        nursery.cancel_scope.cancel()
    bus._client = client  # as in the moment before it is taken away
    assert not await bus.send(B.replica, [b"frame"])
    assert bus.lost_count == 1
