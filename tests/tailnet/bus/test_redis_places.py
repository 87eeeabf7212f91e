"""Sentinels, clusters and TLS: real ones, and what replicas and their peers notice when the server moves."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailnet.bus.redis import RedisBus
from tailnet.config.redis_url import Login, RedisPlace, redis_place
from tailnet.coordinator.messages import Kind
from tailnet.errors import ConfigError
from tests.support.certificates import issue
from tests.support.memory_bus import Seen
from tests.support.redis import HOST, PASSWORD, SERVICE, RedisCluster, RedisServer, Sentineled, running
from tests.support.replicated import MAIN, Place, Told, meet, stayed, together, well
from tests.support.tailnet_driver import PATIENCE_SECONDS, wait_for
from tests.tailnet.bus.conftest import or_missing
from tests.tailnet.bus.test_redis import A, B
from tests.test_house import ROOT

pytestmark = pytest.mark.usefixtures("brisk", "patient")

ON_ITS_WAY = "the slot of our keys is on its way to another node"


async def two(nursery: trio.Nursery, where: RedisPlace) -> tuple[Place, Place]:
    """Replicas whom only that Redis connects."""
    places = [Place(RedisBus(where, "moving"), name, None) for name in ("first", "second")]
    for place in places:
        await nursery.start(place.run)
    await together(*places)
    return places[0], places[1]


async def crosses(first: Place, agent: Told, client: Told, node: str) -> None:
    """An update arrives, and nobody was told bad news meanwhile."""
    first.node(agent, node)
    await client.hears(MAIN, Kind.NODE, node)
    assert stayed(agent, client)


async def hands_over(order: Callable[[], str], before: RedisServer, primary: Callable[[], RedisServer | None]) -> None:
    """Order it until another one is the primary: it is given 3 or 5 s, and nobody hears when it came to nothing."""
    with trio.fail_after(PATIENCE_SECONDS):
        while primary() in (before, None):
            await wait_for(lambda: primary() is not before or order() == "OK")
            with trio.move_on_after(10.0):
                await wait_for(lambda: primary() not in (before, None))


async def test_a_primary_is_killed_and_sentinels_name_another(sentineled: Sentineled, nursery: trio.Nursery) -> None:
    await a_primary_is_killed(sentineled, nursery)


async def a_primary_is_killed(sentineled: Sentineled, nursery: trio.Nursery) -> None:
    first, second = await two(nursery, sentineled.place)
    agent, client = await meet(first, second)
    before = sentineled.primary()
    before.kill()
    await wait_for(lambda: sentineled.primary() is not before)
    await crosses(first, agent, client, "a2")
    await well(first, second)
    sentineled.start_again(before)


async def test_a_primary_hands_over_by_order_of_a_sentinel(sentineled: Sentineled, nursery: trio.Nursery) -> None:
    first, second = await two(nursery, sentineled.place)
    agent, client = await meet(first, second)
    before = sentineled.primary()
    await hands_over(lambda: sentineled.sentinel.ask("sentinel", "failover", SERVICE), before, sentineled.primary)
    await crosses(first, agent, client, "a2")
    await well(first, second)


async def test_a_node_of_a_cluster_hands_over(redis_cluster: RedisCluster, nursery: trio.Nursery) -> None:
    first, second = await two(nursery, redis_cluster.place)
    agent, client = await meet(first, second)
    before = redis_cluster.primary()
    assert before is not None
    await hands_over(lambda: redis_cluster.spare().ask("cluster", "failover"), before, redis_cluster.primary)
    await crosses(first, agent, client, "a2")
    await well(first, second)
    await wait_for(before.is_replica)


async def test_a_node_of_a_cluster_is_killed(redis_cluster: RedisCluster, nursery: trio.Nursery) -> None:
    await a_node_is_killed(redis_cluster, nursery)


async def a_node_is_killed(redis_cluster: RedisCluster, nursery: trio.Nursery) -> None:
    first, second = await two(nursery, redis_cluster.place)
    agent, client = await meet(first, second)
    before = redis_cluster.primary()
    assert before is not None
    before.kill()
    await wait_for(lambda: redis_cluster.primary() not in (before, None))
    await crosses(first, agent, client, "a2")
    await well(first, second)
    before.start()


async def test_the_slot_of_all_keys_goes_to_another_node(redis_cluster: RedisCluster, nursery: trio.Nursery) -> None:
    first, second = await two(nursery, redis_cluster.place)
    agent, client = await meet(first, second)
    here = redis_cluster.primary()
    assert here is not None
    there, slot = redis_cluster.nodes[1], here.ask("cluster", "keyslot", "{tn:moving}:rs")
    for number, way in enumerate(((here, there), (there, here))):
        redis_cluster.begin_move(slot, *way)
        redis_cluster.move_keys(slot, *way)
        await wait_for(lambda: all(ON_ITS_WAY in each.replicas.bus.trouble for each in (first, second)))
        await crosses(first, agent, client, f"under way {number}")
        assert len(first.replicas.records) == len(second.replicas.records) == 2
        # Who comes while that lasts is not found, and says why.
        late = RedisBus(redis_cluster.place, "moving")
        async with trio.open_nursery() as beside:
            beside.start_soon(late.run, A, Seen())
            await wait_for(lambda: ON_ITS_WAY in late.trouble)  # noqa: B023  # called in place
            beside.cancel_scope.cancel()
        redis_cluster.move_keys(slot, *way)
        redis_cluster.end_move(slot, *way)
        await crosses(first, agent, client, f"moved {number}")
        await well(first, second)


def rules(cluster: str) -> dict[str, list[str]]:
    """What the manual lists for the user of a server, of a cluster's nodes and of sentinels."""
    text = (ROOT / "docs" / "replicas.md").read_text()
    found = [each.replace("<cluster>", cluster).split() for each in re.findall(r"`([^`]*resetkeys[^`]*)`", text)]
    return dict(zip(("server", "cluster", "sentinel"), found, strict=True))


async def works(place: RedisPlace) -> None:
    """Two replicas see each other there, and one's frame reaches the other."""
    one, other, seen, heard = RedisBus(place, "ours"), RedisBus(place, "ours"), Seen(), Seen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run, A, seen)
        nursery.start_soon(other.run, B, heard)
        await seen.wait(lambda: seen.carrier and heard.carrier and len(seen.records) == 2)
        assert await one.send(B.replica, [b"frame"])
        await heard.wait(lambda: heard.frames)
        nursery.cancel_scope.cancel()


async def test_the_rules_of_the_manual_are_enough_in_a_cluster(redis_cluster: RedisCluster) -> None:
    for node in redis_cluster.nodes:
        node.ask("acl", "log", "reset")
        assert node.ask("acl", "setuser", "replica", "on", f">{PASSWORD}", *rules("ours")["cluster"]) == "OK"
    await works(replace(redis_cluster.place, login=Login("replica", PASSWORD)))
    assert [node.ask("acl", "log") for node in redis_cluster.nodes] == [""] * 4


async def test_the_rules_of_the_manual_are_enough_at_sentinels(sentineled: Sentineled) -> None:
    for server, whose in ((sentineled.sentinel, "sentinel"), *((each, "server") for each in sentineled.servers)):
        server.ask("acl", "log", "reset")
        words = [*rules("ours")[whose], *(["+select"] if whose == "server" else [])]
        assert server.ask("acl", "setuser", "replica", "on", f">{PASSWORD}", *words) == "OK"
    login = Login("replica", PASSWORD)
    await works(replace(sentineled.place, login=login, sentinel_login=login))
    assert [each.ask("acl", "log") for each in (sentineled.sentinel, sentineled.primary())] == ["", ""]


async def test_an_address_of_another_kind_is_said(
    redis: RedisServer, sentineled: Sentineled, redis_cluster: RedisCluster, nursery: trio.Nursery
) -> None:
    sentinels = sentineled.place
    for place, says in (
        (redis_cluster.nodes[1].place, "redis+cluster finds it"),
        (sentineled.sentinel.place, "it is a sentinel: use redis+sentinel"),
        (
            replace(sentinels, addresses=((HOST, redis.port),)),
            "it is no sentinel",
        ),
        (replace(sentinels, service="another"), "it knows no primary called another"),
        (replace(sentinels, sentinel_login=Login()), "it asks for a password"),
        (replace(redis.place, db=99), "it has no such DB"),
    ):
        bus = RedisBus(place, "moving")
        nursery.start_soon(bus.run, A, Seen())
        await wait_for(lambda: says in bus.trouble)  # noqa: B023  # called in place


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As RedisServer takes them."""
    folder, authority = tmp_path_factory.mktemp("certificates"), issue(common_name="ours", is_authority=True)
    (folder / "ca.pem").write_bytes(authority.pem)
    for name, issued in (("server", issue("redis.invalid", HOST, issuer=authority)), ("own", issue(issuer=authority))):
        (folder / f"{name}.pem").write_bytes(issued.pem)
        (folder / f"{name}.key").write_bytes(issued.key_pem)
    return folder


@pytest.fixture(scope="module")
def encrypted(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder = tmp_path_factory.mktemp("encrypted")
    with or_missing(), running(RedisServer(folder, certificates=certificates)) as server:
        yield server


async def test_over_tls_by_an_authority_of_our_own(encrypted: RedisServer, nursery: trio.Nursery) -> None:
    first, second = await two(nursery, encrypted.place)
    agent, client = await meet(first, second)
    await crosses(first, agent, client, "a2")


async def test_over_tls_a_primary_is_killed_and_sentinels_name_another(
    certificates: Path, tmp_path: Path, nursery: trio.Nursery
) -> None:
    with or_missing(), running(Sentineled(tmp_path, certificates)) as servers:
        await a_primary_is_killed(servers, nursery)


async def test_over_tls_a_node_of_a_cluster_is_killed(
    certificates: Path, tmp_path: Path, nursery: trio.Nursery
) -> None:
    with or_missing(), running(RedisCluster(tmp_path, certificates)) as cluster:
        await a_node_is_killed(cluster, nursery)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("another authority", "ssl_ca_certs names an authority of your own"),
        ("the system's authorities", "ssl_ca_certs names an authority of your own"),
        ("no certificate", "a certificate of ours"),
        ("no TLS", "it may want TLS (rediss)"),
        ("another name", "its certificate is for another name"),
    ],
)
async def test_what_is_wrong_with_tls_is_said(
    what: str, says: str, encrypted: RedisServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    (tmp_path / "other.pem").write_bytes(issue(common_name="another", is_authority=True).pem)
    place = encrypted.place
    changed = {
        "another authority": replace(place, ca_file=tmp_path / "other.pem"),
        "the system's authorities": replace(place, ca_file=None),
        "no certificate": replace(place, certificate_file=None, key_file=None),
        "no TLS": replace(place, is_tls=False),
        "another name": replace(place, addresses=(("localhost", encrypted.port),)),
    }
    bus, seen = RedisBus(changed[what], "x"), Seen()
    nursery.start_soon(bus.run, A, seen)
    await seen.wait(lambda: says in bus.trouble)
    assert seen.carrier is False


async def test_files_that_are_no_certificates_are_told_at_the_start(tmp_path: Path) -> None:
    place = redis_place("rediss://redis.example")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match=r"ssl_ca_certs: .*missing: holds no certificates: No such file"):
        RedisBus(replace(place, ca_file=tmp_path / "missing"), "x")
    with pytest.raises(ConfigError, match=r"ssl_ca_certs: .*text: holds no certificates"):
        RedisBus(replace(place, ca_file=tmp_path / "text"), "x")
    with pytest.raises(ConfigError, match=r"ssl_certfile: .* are no certificate with its key"):
        RedisBus(replace(place, certificate_file=tmp_path / "text", key_file=tmp_path / "text"), "x")
