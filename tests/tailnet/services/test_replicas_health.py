"""What /health says of other replicas: the situation of every code, with replicas that are really there."""

import socket
import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from tailnet.bus.contract import Record
from tailnet.bus.static import StaticBus
from tailnet.health.codes import Code, Severity
from tailnet.health.judge import MAP_SECONDS, judge
from tailnet.replica.codec import encode_frame, encode_message
from tailnet.replica.messages import Hello, ReplicaID
from tailnet.replica.proof import NONCE_BYTES
from tailnet.services.replicas_view import look
from tests.support.memory_bus import Exchange, MemoryBus
from tests.support.relays import free_port
from tests.support.replicated import KEY, Place, together
from tests.support.tailnet_driver import wait_for

HERE = ("127.0.0.1", 0)
WARNING, ERROR = Severity.WARNING, Severity.ERROR
StartPlace = Callable[[str], Awaitable[Place]]


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


@pytest.fixture
def start(nursery: trio.Nursery, exchange: Exchange) -> StartPlace:
    """A replica whom only the bus carries to."""

    async def start(name: str) -> Place:
        place: Place = await nursery.start(Place(MemoryBus(exchange), name, None).run)
        return place

    return start


def found(place: Place, seconds: float = 0.0) -> dict[Code, tuple[Severity, str]]:
    """What is found so many seconds from now, if nothing changes until then."""
    now = place.host.tick()
    look(place.replicas, now)
    return {each.code: (each.severity, each.what) for each in judge(look(place.replicas, now + seconds))}


async def test_two_that_are_well(start: StartPlace) -> None:
    first, second = await start("first"), await start("second")
    await together(first, second)
    assert found(first) == found(second) == {}


async def test_nobody_is_where_the_settings_name_one(nursery: trio.Nursery) -> None:
    nobody = "127.0.0.1", free_port(socket.SOCK_STREAM)
    alone = await nursery.start(Place(StaticBus([nobody]), "alone", None).run)
    await wait_for(lambda: alone.replicas.dial_troubles)
    assert found(alone) == {}, "it may be starting"
    severity, what = found(alone, 7.0)[Code.REPLICA_UNREACHABLE]
    assert severity is WARNING
    assert what.startswith("no replica is found at {}:{} for 7 s: connect to".format(*nobody))


async def test_a_replica_that_discovery_knows_and_nothing_leads_to(nursery: trio.Nursery, exchange: Exchange) -> None:
    first, second = (Place(MemoryBus(exchange), name, None) for name in ("first", "second"))
    ids = first.replicas.id, second.replicas.id
    exchange.cut |= {ids, ids[::-1]}
    await nursery.start(first.run)
    await nursery.start(second.run)
    assert found(first) == {}
    severity, what = found(first, 7.0)[Code.REPLICA_UNREACHABLE]
    assert severity is ERROR
    name = first.replicas.name_of(second.replicas.id)
    assert what == (
        f"no session with replica {name} for 7 s; from here to there: it takes no links, so only the bus carries; "
        "from there to here: nothing has come yet, and this one takes no links"
    )


async def test_a_way_in_one_direction(
    nursery: trio.Nursery, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailnet.health.judge.APART_SECONDS", 1.5)  # a replica greets each second
    first, second = (Place(MemoryBus(exchange), name, None) for name in ("first", "second"))
    exchange.cut.add((first.replicas.id, second.replicas.id))
    await nursery.start(first.run)
    await nursery.start(second.run)
    await wait_for(lambda: Code.REPLICA_ONE_WAY in found(first))
    severity, what = found(first)[Code.REPLICA_ONE_WAY]
    assert severity is ERROR
    assert f"replica {first.replicas.name_of(second.replicas.id)} is heard, and has not answered" in what
    # The other one hears nothing, but what the record of the first says.
    await wait_for(lambda: Code.REPLICA_ONE_WAY in found(second))
    severity, what = found(second)[Code.REPLICA_ONE_WAY]
    assert severity is ERROR
    assert f"replica {second.replicas.name_of(first.replicas.id)} hears this one, and nothing has come" in what
    exchange.cut.clear()
    await together(first, second)
    assert found(first) == found(second) == {}


async def test_a_clock_that_is_an_hour_off(start: StartPlace, exchange: Exchange, nursery: trio.Nursery) -> None:
    first, wrong = await start("first"), Place(MemoryBus(exchange), "wrong", None)
    wrong.replicas.cluster.wall_clock = lambda: time.time() - 3600.0
    await nursery.start(wrong.run)
    await wait_for(lambda: Code.REPLICA_CLOCK in found(first))
    severity, what = found(first)[Code.REPLICA_CLOCK]
    assert severity is WARNING
    assert f"replica {first.replicas.name_of(wrong.replicas.id)} is 3600." in what
    assert what.endswith("s behind this one's")
    await wait_for(lambda: Code.REPLICA_CLOCK in found(wrong))
    assert found(wrong)[Code.REPLICA_CLOCK][1].endswith("s ahead of this one's")
    assert not first.replicas.cluster.time.jump_count, "who owns a peer does not hang on it"


async def test_two_maps(start: StartPlace) -> None:
    first, second = await start("first"), await start("second")
    first.replicas.cluster.map_digest = second.replicas.cluster.map_digest = b"one"
    await together(first, second)
    second.replicas.cluster.map_digest = b"another"
    await wait_for(lambda: Code.REPLICA_MAP in found(first, MAP_SECONDS))
    assert found(first) == {}, "it may be about to read the new one"
    severity, what = found(first, MAP_SECONDS)[Code.REPLICA_MAP]
    assert severity is WARNING
    assert "second" in what


async def test_discovery_that_is_away(start: StartPlace) -> None:
    first = await start("first")
    first.replicas.bus.trouble = "connect to redis.example:6379: nothing listens there"
    assert found(first)[Code.DISCOVERY_AWAY] == (
        ERROR,
        "the bus (memory): connect to redis.example:6379: nothing listens there",
    )
    second = await start("second")
    await together(first, second)
    assert {code: severity for code, (severity, _) in found(first).items()} == {Code.DISCOVERY_AWAY: WARNING}


async def test_a_replica_that_is_deaf(start: StartPlace, exchange: Exchange) -> None:
    first, second = await start("first"), await start("second")
    await together(first, second)
    exchange.pause()
    severity, what = found(first)[Code.REPLICA_DEAF]
    assert severity is ERROR
    assert what.endswith(f"nothing is heard of {first.replicas.name_of(second.replicas.id)}")
    exchange.go_on()
    assert found(first) == {}


async def test_a_release_that_speaks_another_version(start: StartPlace, exchange: Exchange) -> None:
    first, newer = await start("first"), ReplicaID(b"newer   ")
    nonce, echo = b"n" * NONCE_BYTES, b""
    hello = Hello(7, 8, KEY.cluster, newer, "newer", 0, 0, 0, nonce, echo)
    exchange.records[newer] = Record(newer, "newer", None, "9.0", 0.0)
    exchange.tell()
    frame = KEY.greeting_key(newer).seal(encode_frame(0, [encode_message(hello)]))
    exchange.carry(newer, first.replicas.id, [frame])
    severity, what = found(first)[Code.REPLICA_VERSION]
    assert severity is ERROR
    assert "newer speaks versions 7 to 8 of the replicas' protocol, and this one 1; it is release 9.0" in what
