"""Replicas that link directly, over real sockets, with peers that note what they are told."""

import socket
from dataclasses import replace

import pytest
import trio

from derp.errors import ConnectError
from tailnet.bus.contract import Address
from tailnet.bus.links import Link
from tailnet.bus.static import StaticBus
from tailnet.coordinator.messages import Kind
from tailnet.errors import ListenError
from tailnet.replica.messages import ReplicaID, Tell
from tailnet.services import replicas as module
from tailnet.services.replicas import Replicas, ReplicaSettings
from tailnet.services.replicas_view import missing
from tests.support.memory_bus import Exchange, MemoryBus
from tests.support.relays import free_port
from tests.support.replicated import KEY, MAIN, ME, Place, meet, together
from tests.support.tailnet_driver import wait_for

HERE = ("127.0.0.1", 0)


async def two(nursery: trio.Nursery) -> tuple[Place, Place]:
    """The second one dials the first."""
    first = await nursery.start(Place(StaticBus([]), "first", HERE).run)
    second = await nursery.start(Place(StaticBus([first.address]), "second", None).run)
    await together(first, second)
    return first, second


async def test_peers_of_two_replicas_meet_and_part(nursery: trio.Nursery) -> None:
    first, second = await two(nursery)
    agent = first.agent(MAIN)
    client = second.client(ME, MAIN)
    first.node(agent, "a1")
    await client.hears(MAIN, Kind.NODE, "a1")
    second.node(client, "c1")
    await agent.hears(ME, Kind.NODE, "c1")
    second.leaves(client)
    await agent.hears(ME, Kind.DISCONNECTED)


async def test_a_link_that_is_cut_comes_back_unnoticed(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailnet.replica.pair.SILENCE_SECONDS", 60.0)  # a machine that is slow is no silence
    first, second = await two(nursery)
    agent, client = await meet(first, second)
    link = second.replicas.linked[first.replicas.id]
    link.scope.cancel()
    await link.ended.wait()
    first.node(agent, "a2")
    await client.hears(MAIN, Kind.NODE, "a2")
    assert client.kinds(MAIN) == [Kind.NODE, Kind.NODE]
    pair = second.replicas.cluster.pairs[first.replicas.id]
    assert pair.session_count >= 2


async def test_a_replica_that_is_gone_is_forgotten_and_its_peers_are_lost(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailnet.replica.pair.SILENCE_SECONDS", 2.0)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)
    first, second = await two(nursery)
    client = second.client(ME, MAIN)
    first.node(first.agent(MAIN), "a1")
    await client.hears(MAIN, Kind.NODE, "a1")
    first.scope.cancel()
    await client.hears(MAIN, Kind.LOST)
    await wait_for(lambda: not second.replicas.cluster.pairs)
    assert second.replicas.read().silences >= 1
    assert not client.ended


async def test_a_defect_costs_one_link_and_the_next_one_stands(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await two(nursery)
    broken = second.replicas.linked[first.replicas.id]

    def fail(other: ReplicaID, frames: object) -> None:
        monkeypatch.undo()
        raise AssertionError("planted")

    monkeypatch.setattr(second.replicas, "_hear", fail)
    await broken.ended.wait()
    await together(first, second)
    assert "please report this" in caplog.text


async def test_goodbyes_and_hints_are_heard(nursery: trio.Nursery) -> None:
    first, second = await two(nursery)
    first.replicas.change_rights()
    first.replicas.cluster.tell(Tell("of a later version", b""), first.host.now)
    await first.replicas.leave((), 10.0, 2.0)
    await wait_for(lambda: first.replicas.id in second.replicas.leaving)
    assert (first.rights_changes, second.rights_changes) == (1, 1)


async def test_who_could_not_be_dialled_and_dials_us_is_not_missing(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "127.0.0.1", free_port(socket.SOCK_STREAM)
    second = await nursery.start(Place(StaticBus([place]), "second", HERE).run)
    first = await nursery.start(Place(StaticBus([second.address]), "first", place).run)
    await together(first, second)
    await wait_for(lambda: first.replicas.found)  # it knows whom it dials
    dial = second.replicas._links.dial

    async def cannot_dial(address: Address) -> Link:
        raise ConnectError("planted")

    async def dial_later(address: Address) -> Link:
        await wait_for(lambda: first.replicas.dial_troubles)
        return await dial(address)

    monkeypatch.setattr(first.replicas._links, "dial", cannot_dial)
    monkeypatch.setattr(second.replicas._links, "dial", dial_later)
    for link in (*first.replicas.linked.values(), *second.replicas.linked.values()):
        link.scope.cancel()
    await wait_for(lambda: first.replicas.dial_troubles)
    await together(first, second)
    await wait_for(lambda: not first.replicas.dial_troubles)
    assert not missing(first.replicas)


async def test_an_own_address_in_the_list_is_no_replica(nursery: trio.Nursery) -> None:
    address = "127.0.0.1", free_port(socket.SOCK_STREAM)
    alone: Place = await nursery.start(Place(StaticBus([address]), "alone", address).run)
    # The dialler finds out whom it has dialled, and does not come again.
    await wait_for(lambda: alone.replicas.found.get(address) == alone.replicas.id)
    assert not alone.replicas.cluster.pairs


async def test_a_port_in_use_is_told_at_start_unless_a_predecessor_has_it(nursery: trio.Nursery) -> None:
    first, second = await two(nursery)
    settings = ReplicaSettings("again", (first.address,))
    with pytest.raises(ListenError, match="in use"):
        Replicas(first.host, KEY, StaticBus([]), settings).open()
    successor = Place(StaticBus([]), "successor", first.address)
    successor.replicas.settings = replace(settings, is_successor=True)
    await nursery.start(successor.run)
    assert not successor.replicas.listening
    first.scope.cancel()
    await together(second, successor)


async def test_a_successor_gets_the_port_while_the_links_of_before_stand(nursery: trio.Nursery) -> None:
    first, second = await two(nursery)
    link = second.replicas.linked[first.replicas.id]
    successor = Place(StaticBus([]), "successor", first.address)
    successor.replicas.settings = replace(successor.replicas.settings, is_successor=True)
    await nursery.start(successor.run)
    assert not successor.replicas.listening
    first.replicas.stop_listening()
    await wait_for(lambda: successor.replicas.listening)
    third = await nursery.start(Place(StaticBus([successor.address]), "third", None).run)
    await together(third, successor)
    assert second.replicas.linked[first.replicas.id] is link
    assert not link.ended.is_set()
    assert second.replicas.page().render()
    assert first.replicas.page().render()


async def test_requests_wait_until_the_others_are_met(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READY_SECONDS", 600.0)
    nobody = "127.0.0.1", free_port(socket.SOCK_STREAM)
    alone = await nursery.start(Place(StaticBus([nobody]), "alone", HERE).run)
    await wait_for(lambda: alone.replicas.problem() is None)  # nobody is there
    exchange = Exchange()
    exchange.lose = 1_000_000
    first, second = Place(MemoryBus(exchange), "first", None), Place(MemoryBus(exchange), "second", None)
    await nursery.start(first.run)
    await wait_for(lambda: first.replicas.problem() is None)  # discovery is empty
    await nursery.start(second.run)
    assert second.replicas.problem() == "this replica has not met the others yet"
    exchange.lose = 0
    await together(first, second)
    assert second.replicas.problem() is None


async def test_requests_wait_for_others_no_longer_than_that(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READY_SECONDS", 0.0)
    exchange = Exchange()
    exchange.lose = 1_000_000
    first = await nursery.start(Place(MemoryBus(exchange), "first", None).run)
    second = await nursery.start(Place(MemoryBus(exchange), "second", None).run)
    assert second.replicas.problem() is None
    assert not second.replicas.session_count
    assert first.replicas.id in second.replicas.records
