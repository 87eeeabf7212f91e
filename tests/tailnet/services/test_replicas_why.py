"""Why two peers at different replicas do not meet, as one replica finds out from the others."""

import msgpack
import pytest
import trio

from tailnet.replica.messages import ReplicaID
from tailnet.services import replicas_why
from tailnet.services.replicas_why import MAX_WAITING, WhyElsewhere
from tests.support.memory_bus import Exchange, MemoryBus
from tests.support.replicated import MAIN, ME, Place, meet, together
from tests.support.seeds import peer_id

NOBODY = peer_id("nobody")


def place(exchange: Exchange, name: str) -> tuple[Place, WhyElsewhere]:
    made = Place(MemoryBus(exchange), name, None)
    why = WhyElsewhere(made.replicas)
    made.replicas.shared[why.topic] = why
    return made, why


async def three(nursery: trio.Nursery) -> list[tuple[Place, WhyElsewhere]]:
    exchange = Exchange()
    made = [place(exchange, name) for name in ("first", "second", "third")]
    for each, _ in made:
        await nursery.start(each.run)
    await together(*(each for each, _ in made))
    return made


async def test_who_asks_a_third_hears_from_both(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_why, "ASK_SECONDS", 60.0)
    (first, _), (second, _), (third, why) = await three(nursery)
    await meet(first, second)
    lines = await why.ask({"from": str(ME), "to": str(MAIN)})
    names = third.replicas.name_of(first.replicas.id), third.replicas.name_of(second.replicas.id)
    assert lines[:3] == [
        "What replicas know:",
        f"{ME} is connected at {names[1]}.",
        f"{MAIN} is connected at {names[0]}.",
    ]
    epoch = first.replicas.coordinator.peers[MAIN].epoch
    assert f"{names[0]}: {MAIN} is here; its connection has the epoch {epoch}, and sent 1 nodes." in lines
    there = f"{names[1]}: {MAIN} is at replica {second.replicas.name_of(first.replicas.id)}, as far as is known here; "
    [known] = [line for line in lines if line.startswith(there)]
    assert f"its connection has the epoch {epoch}, and sent 1 nodes; session " in known
    assert any(line.startswith(f"{names[1]}: So {ME} has been told {MAIN}'s node of") for line in lines)
    # Whoever has one of them says what it knows of the other by itself, too.
    here = await first.replicas.shared["why"].ask({"key": str(MAIN)})  # type: ignore[attr-defined]  # it is ours
    assert here[1:3] == [
        f"Here: {MAIN} is here; its connection has the epoch {epoch}, and sent 1 nodes.",
        f"{MAIN} is connected at this replica.",
    ]


async def test_who_is_nowhere_and_who_cannot_be_asked(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_why, "ASK_SECONDS", 60.0)
    _, (second, _), (third, why) = await three(nursery)
    lines = await why.ask({"key": str(NOBODY)})
    assert lines == ["What replicas know:", f"{NOBODY} is connected to none of the 3 replicas that could be asked."]
    third.replicas.cluster.link_closed(second.replicas.id, third.host.tick())
    lines = await why.ask({"key": str(NOBODY)})
    assert lines[1] == f"{NOBODY} is connected to none of the 2 replicas that could be asked."
    name = third.replicas.name_of(second.replicas.id)
    assert lines[-1] == (
        f"{name} cannot be asked: there is no session with it: it takes no links, so only the bus carries."
    )


async def test_who_does_not_answer_is_named(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_why, "ASK_SECONDS", 0.2)
    _, (second, _), (third, why) = await three(nursery)
    del second.replicas.shared["why"]  # as of a release that does not know the question
    lines = await why.ask({"key": str(MAIN)})
    assert lines[-1] == f"{third.replicas.name_of(second.replicas.id)} has not answered within 0.2 s."


async def test_nothing_is_asked_without_an_id(nursery: trio.Nursery) -> None:
    _, why = place(Exchange(), "alone")
    assert await why.ask({"key": "nodekey:abcd", "region": "3"}) == []
    assert (await why.ask({"key": str(MAIN)}))[1:] == [
        f"{MAIN} is connected to none of the 1 replicas that could be asked."
    ]


async def test_questions_have_a_bound() -> None:
    _, why = place(Exchange(), "busy")
    other = ReplicaID(b"another ")
    for number in range(MAX_WAITING + 5):
        why.hear(other, msgpack.packb([0, number, [bytes(MAIN)]]))
    assert why._waiting.statistics().current_buffer_used == MAX_WAITING
