"""What operators see of replicas."""

import json
import logging
import socket

import pytest
import trio

from tailnet import __version__
from tailnet.bus.contract import Address
from tailnet.bus.links import Link
from tailnet.bus.static import StaticBus
from tailnet.coordinator.explain import explain_peer
from tailnet.coordinator.messages import Kind
from tailnet.replica.proof import ClusterKey
from tailnet.services.replicas_view import describe, missing, read
from tests.support.relays import free_port
from tests.support.replicated import MAIN, ME, Place, together
from tests.support.tailnet_driver import wait_for

HERE = ("127.0.0.1", 0)


async def test_two_that_are_well_and_what_crosses(nursery: trio.Nursery) -> None:
    first = await nursery.start(Place(StaticBus([]), "first", HERE).run)
    second = await nursery.start(Place(StaticBus([first.address]), "second", None).run)
    await together(first, second)
    client = second.client(ME, MAIN)
    first.node(first.agent(MAIN), "a1")
    await client.hears(MAIN, Kind.NODE, "a1")
    page = json.loads(second.replicas.page().render())
    assert page.keys() == describe(second.replicas, second.host.now).keys()
    assert (page["name"], page["bus"], page["listens"]) == ("second", {"kind": "static", "trouble": ""}, [])
    assert (page["peers"], page["remote_peers"], page["absent_peers"]) == (1, 1, 0)
    assert page["missing"] == page["findings"] == []
    [other] = page["replicas"]
    assert page["places"] == {"{}:{}".format(*first.address): other["name"]}
    assert other["name"].startswith("first (")
    assert (other["state"], other["way"], other["sessions"]) == ("session", "to {}:{}".format(*first.address), 1)
    assert other["version"] == page["version"] == __version__, "as it says itself, where no record does"
    assert describe(first.replicas, first.host.now)["replicas"][0]["way"] == "from 127.0.0.1"
    why = explain_peer(second.replicas.coordinator, MAIN, second.host.now)
    assert why[0] == f"{MAIN} is connected to another replica, which says why it knows whom."
    numbers = read(second.replicas)
    assert numbers.links == {"session": 1, "greeting": 0, "silent": 0, "refused": 0}
    assert (numbers.missing, numbers.sessions, numbers.remote_peers, numbers.bus_trouble) == (0, 1, 1, False)
    assert numbers.messages["node", "received"] >= 1
    assert read(first.replicas).messages["node", "sent"] == numbers.messages["node", "received"]


async def test_who_is_missing_is_named_with_the_reason(nursery: trio.Nursery) -> None:
    nobody = "127.0.0.1", free_port(socket.SOCK_STREAM)
    stranger = await nursery.start(Place(StaticBus([]), "stranger", HERE, ClusterKey("other", bytes(32))).run)
    alone = await nursery.start(Place(StaticBus([nobody, stranger.address]), "alone", None).run)
    await wait_for(lambda: len(missing(alone.replicas)) == 2)
    said = "\n".join(missing(alone.replicas))
    assert "{}:{}: connect to".format(*nobody) in said
    assert "it has another cluster's key or name" in said
    assert describe(alone.replicas, alone.host.now)["replicas"] == []
    assert read(alone.replicas).missing == 2
    await wait_for(lambda: stranger.replicas.refused_links)


async def test_who_is_silent_and_forgotten_is_missing_where_it_was(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailnet.replica.pair.SILENCE_SECONDS", 2.0)
    monkeypatch.setattr("tailnet.services.replicas.RENEW_SECONDS", 0.1)
    first = await nursery.start(Place(StaticBus([]), "first", HERE).run)
    place = first.address
    second = await nursery.start(Place(StaticBus([place]), "second", None).run)
    await together(first, second)

    async def dial_in_vain(address: Address) -> Link:
        """As where a process is stopped, and its kernel takes connections."""
        return await trio.sleep_forever()

    monkeypatch.setattr(second.replicas._links, "dial", dial_in_vain)
    first.scope.cancel()
    await wait_for(lambda: not second.replicas.cluster.pairs)
    assert missing(second.replicas) == ["{}:{}: who was there is silent".format(*place)]


async def test_one_replica_at_two_addresses_is_there_once(nursery: trio.Nursery) -> None:
    first = await nursery.start(Place(StaticBus([]), "first", ("0.0.0.0", 0)).run)  # loopback has many
    places = [(host, first.address[1]) for host in ("127.0.0.1", "127.0.0.2")]
    second = await nursery.start(Place(StaticBus(places), "second", None).run)
    await together(first, second)
    await wait_for(lambda: len(second.replicas.found) == 2)
    assert missing(second.replicas) == []


async def test_who_leaves_is_not_missing_and_not_silent(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tailnet.replicas")
    monkeypatch.setattr("tailnet.replica.pair.SILENCE_SECONDS", 60.0)  # until then it is known
    first = await nursery.start(Place(StaticBus([]), "first", HERE).run)
    second = await nursery.start(Place(StaticBus([first.address]), "second", None).run)
    await together(first, second)
    await first.replicas.leave((), 5.0, 0.0)
    await wait_for(lambda: first.replicas.id in second.replicas.leaving)
    first.scope.cancel()
    await wait_for(lambda: read(second.replicas).links["silent"] == 1)
    assert not [each for each in missing(second.replicas) if "replica first" in each]
    assert describe(second.replicas, second.host.now)["replicas"][0]["leaving"] is True
    assert {end: count for end, count in read(second.replicas).ends.items() if count} == {"left": 1}
    cluster = second.replicas.cluster
    while cluster.pairs[first.replicas.id].is_present:
        due = cluster.next_timeout()
        assert due is not None
        second.replicas._handle_timeout(due)
    assert read(second.replicas).silences == 0
    assert [each.levelname for each in caplog.records if "has left" in each.message] == ["INFO", "INFO"]
    assert "is silent" not in caplog.text
