"""Sentinels, clusters and TLS: real ones, and what replicas and their peers notice when the server moves."""

import trio

from tailnet.bus.redis import RedisBus
from tailnet.config.redis_url import RedisPlace
from tailnet.coordinator.messages import Kind
from tests.support.redis import SERVICE, RedisCluster, Sentineled
from tests.support.replicated import MAIN, Place, Told, meet, together
from tests.support.tailnet_driver import wait_for


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
    assert Kind.LOST not in client.kinds(MAIN)
    assert not agent.ended
    assert not client.ended


async def well(*places: Place) -> None:
    await wait_for(lambda: all(not each.replicas.bus.trouble and len(each.replicas.records) == 2 for each in places))


async def test_a_primary_is_killed_and_sentinels_name_another(
    sentineled: Sentineled, nursery: trio.Nursery, patient: None
) -> None:
    first, second = await two(nursery, sentineled.place)
    agent, client = await meet(first, second)
    before = sentineled.primary()
    before.kill()
    await wait_for(lambda: sentineled.primary() is not before)
    await crosses(first, agent, client, "a2")
    await well(first, second)
    sentineled.start_again(before)


async def test_a_primary_hands_over_by_order_of_a_sentinel(
    sentineled: Sentineled, nursery: trio.Nursery, patient: None
) -> None:
    first, second = await two(nursery, sentineled.place)
    agent, client = await meet(first, second)
    before = sentineled.primary()
    await wait_for(lambda: sentineled.sentinel.ask("sentinel", "failover", SERVICE) == "OK")
    await wait_for(lambda: sentineled.primary() is not before)
    await crosses(first, agent, client, "a2")
    await well(first, second)


async def test_a_node_of_a_cluster_hands_over(cluster: RedisCluster, nursery: trio.Nursery, patient: None) -> None:
    first, second = await two(nursery, cluster.place)
    agent, client = await meet(first, second)
    before = cluster.primary()
    assert before is not None
    await wait_for(lambda: cluster.spare().ask("cluster", "failover") == "OK")
    await wait_for(lambda: cluster.primary() not in (before, None))
    await crosses(first, agent, client, "a2")
    await well(first, second)
    await wait_for(before.is_replica)


async def test_a_node_of_a_cluster_is_killed(cluster: RedisCluster, nursery: trio.Nursery, patient: None) -> None:
    first, second = await two(nursery, cluster.place)
    agent, client = await meet(first, second)
    before = cluster.primary()
    assert before is not None
    before.kill()
    await wait_for(lambda: cluster.primary() not in (before, None))
    await crosses(first, agent, client, "a2")
    await well(first, second)
    before.start()
