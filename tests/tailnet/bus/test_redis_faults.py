"""A Redis that refuses, in each of its ways: sessions stay, what is wrong is said in words, and all heals by itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailnet.bus import redis as module
from tailnet.bus.redis import RedisBus
from tailnet.config.redis_url import Login
from tailnet.coordinator.messages import Kind
from tailnet.health.codes import Code
from tests.support.memory_bus import Seen
from tests.support.redis import HOST, PASSWORD, RedisServer, running
from tests.support.replicated import MAIN, Place, Told, met, together, well
from tests.support.tailnet_driver import wait_for
from tests.tailnet.bus.conftest import or_missing
from tests.tailnet.bus.test_redis import A
from tests.tailnet.services.test_replicas_health import found

pytestmark = pytest.mark.usefixtures("brisk", "patient")
# How a server is made to refuse, by its own commands, what is said then, and what ends it.
Fault = tuple[tuple[str, ...], str, tuple[str, ...]]
FAULTS: dict[str, Fault] = {
    "made a replica": (("replicaof", HOST, "1"), "it is a replica, which takes no writes", ("replicaof", "no", "one")),
    "another password": (
        ("config", "set", "requirepass", "another"),
        "it does not take this name and password",
        ("config", "set", "requirepass", PASSWORD),
    ),
    "a right less": (
        ("acl", "setuser", "default", "-sadd"),
        "its user lacks a right that docs/replicas.md lists",
        ("acl", "setuser", "default", "+sadd"),
    ),
    "no such channel": (
        ("acl", "setuser", "default", "resetchannels"),
        "its user lacks a right that docs/replicas.md lists",
        ("acl", "setuser", "default", "allchannels"),
    ),
    "no subscriptions": (
        ("acl", "setuser", "default", "-subscribe"),
        "it does not confirm a subscription: may its user subscribe?",
        ("acl", "setuser", "default", "+subscribe"),
    ),
}


@asynccontextmanager
async def met_by(server: RedisServer) -> AsyncIterator[tuple[Place, Place, Told, Told]]:
    """Two replicas that only this server connects, and two peers of theirs who know each other."""
    first, second = (Place(RedisBus(server.place, "faults"), name, None) for name in ("first", "second"))
    async with met(first, second) as (agent, client):
        yield first, second, agent, client


async def says(place: Place, words: str) -> None:
    """As `tailnet replicas` and /debug/replicas show it."""
    await wait_for(lambda: words in place.replicas.bus.trouble)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_server_that_refuses(fault: str, redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    begin, words, end = FAULTS[fault]
    async with met_by(redis) as (first, second, agent, client):
        assert redis.ask(*begin) == "OK"
        redis.ask("client", "kill", "type", "pubsub")
        redis.ask("client", "kill", "type", "normal")
        try:
            await says(first, words)
            assert words in caplog.text
            first.node(agent, "a2")
        finally:
            assert redis.ask(*end) == "OK"
        await client.hears(MAIN, Kind.NODE, "a2")
        await well(first, second)


# What makes a server take no records and carry on, what is said then, and what ends it.
NO_RECORDS: dict[str, Fault] = {
    "full": (
        ("config", "set", "maxmemory", "1mb"),
        "it is full, so replicas cannot renew their records: raise its maxmemory",
        ("config", "set", "maxmemory", "0"),
    ),
    "no replicas of its own": (
        ("config", "set", "min-replicas-to-write", "1"),
        "it has fewer replicas of its own than its min-replicas-to-write",
        ("config", "set", "min-replicas-to-write", "0"),
    ),
    "no disk": (("config", "set", "save", "3600 1"), "it cannot write to its disk", ("config", "set", "save", "")),
}


@pytest.mark.parametrize("fault", NO_RECORDS)
async def test_a_server_takes_no_records_and_carries(
    fault: str, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 2.0)
    begin, words, end = NO_RECORDS[fault]
    async with met_by(redis) as (first, second, agent, client):
        assert redis.ask(*begin) == "OK"
        try:
            if fault == "no disk":
                with redis.no_room_for_its_file():
                    redis.ask("bgsave")
                    await wait_for(lambda: "rdb_last_bgsave_status:err" in redis.ask("info", "persistence"))
            await says(first, words)
            first.node(agent, "a2")
            await client.hears(MAIN, Kind.NODE, "a2")
            await wait_for(lambda: not first.replicas.records)
            first.node(agent, "a3")
            await client.hears(MAIN, Kind.NODE, "a3")
            redis.ask("client", "kill", "type", "pubsub")
            first.node(agent, "a4")
            await client.hears(MAIN, Kind.NODE, "a4")
        finally:
            assert redis.ask(*end) == "OK"
        await well(first, second)


async def test_a_server_that_carries_and_refuses_records_is_never_well(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tailnet.replicas")
    begin, words, end = FAULTS["a right less"]
    seen = Counting()
    bus = RedisBus(redis.place, "refused")
    nursery.start_soon(bus.run, A, seen)
    await wait_for(lambda: not bus.trouble)
    assert redis.ask(*begin) == "OK"
    try:
        await wait_for(lambda: words in bus.trouble)
        caplog.clear()
        before = seen.ends
        await wait_for(lambda: seen.ends >= before + 3)
        assert "is well" not in caplog.text
    finally:
        assert redis.ask(*end) == "OK"
    await wait_for(lambda: "is well" in caplog.text and not bus.trouble)


class Counting(Seen):
    """How many connections to the bus ended."""

    ends = 0

    def see_carrier(self, is_well: bool) -> None:
        super().see_carrier(is_well)
        self.ends += not is_well


async def test_a_server_that_is_emptied(redis: RedisServer) -> None:
    async with met_by(redis) as (first, second, agent, client):
        assert redis.ask("flushall") == "OK"
        first.node(agent, "a2")
        await client.hears(MAIN, Kind.NODE, "a2")
        await well(first, second)
        assert first.replicas.session_count == 1


async def test_a_server_that_is_stopped_and_goes_on(redis: RedisServer) -> None:
    async with met_by(redis) as (first, second, agent, client):
        redis.pause()
        try:
            await says(first, "no answer for 2 s")
            first.node(agent, "a2")
        finally:
            redis.go_on()
        await client.hears(MAIN, Kind.NODE, "a2")
        await well(first, second)


async def test_a_server_that_loads_its_data(tmp_path: Path, nursery: trio.Nursery) -> None:
    server = RedisServer(tmp_path, "--rdbcompression", "no")
    fill = "for i = 1, 500 do redis.call('set', 'key' .. i, string.rep('x', 4096)) end return 'OK'"
    with or_missing(), running(server):
        assert server.ask("eval", fill, 0) == server.ask("save") == "OK"
        server.kill()
        # 200 ms for each key until somebody says otherwise; in between it answers.
        server.start("--key-load-delay", "200000", "--loading-process-events-interval-bytes", "1024")
        bus, seen = RedisBus(server.place, "loading"), Seen()
        nursery.start_soon(bus.run, A, seen)
        await wait_for(lambda: "it is still loading its data" in bus.trouble)
        assert server.ask("config", "set", "key-load-delay", "0") == "OK"
        await wait_for(lambda: seen.carrier and not bus.trouble)


async def test_one_who_may_not_publish_to_the_other_is_known_at_both_ends(
    redis: RedisServer, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own beats come back, and nothing that it says arrives: the other one is heard, and does not know it."""
    monkeypatch.setattr("tailnet.health.judge.APART_SECONDS", 1.5)  # a replica greets each second
    login = Login("muted", PASSWORD)
    muted = Place(RedisBus(replace(redis.place, login=login), "faults"), "muted", None)
    other = Place(RedisBus(redis.place, "faults"), "other", None)
    own_channel = f"&tn:faults:c:{muted.replicas.id}"
    assert (
        redis.ask("acl", "setuser", "muted", "on", f">{PASSWORD}", "~*", "+@all", "resetchannels", own_channel) == "OK"
    )
    for place in (muted, other):
        await nursery.start(place.run)
    await wait_for(lambda: Code.REPLICA_ONE_WAY in found(muted) and Code.REPLICA_ONE_WAY in found(other))
    assert "is heard, and has not answered" in found(muted)[Code.REPLICA_ONE_WAY][1]
    assert "hears this one, and nothing has come" in found(other)[Code.REPLICA_ONE_WAY][1]
    assert redis.ask("acl", "setuser", "muted", "allchannels") == "OK"
    await together(muted, other)
