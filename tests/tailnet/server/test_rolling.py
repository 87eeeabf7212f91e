"""Replicas that are replaced one after the other: peers go to the others, and nobody is told that one was lost."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import trio

from tailnet.coordinator import arrivals
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.replica import core
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT_DOOR,
    GOING_AWAY,
    MANY_DOOR,
    TAILNET,
    Coordination,
    Ended,
    Peer,
    client_door,
    open_peer,
    wait_for,
)
from tests.tailnet.server.test_replicated import Places, linked, places, replicas_of

__all__ = ["places"]  # a fixture

Kind = tailnet.CoordinateResponse.PeerUpdate.Kind
MAIN = peer_id("main")
ALICE = user_token("alice")


class Moving:
    """A peer that dials anew when its connection ends, as stock peers do, and notes what it is told of others."""

    def __init__(
        self, place: Callable[[], CoordinatorServer], door: str, token: str, peer_id: bytes = b"", wants: bytes = b""
    ) -> None:
        """`place`: who takes newcomers now.  `peer_id`: of an agent; clients ask for theirs.  `wants`: an agent."""
        self.told: list[tuple[bytes, int]] = []
        self.places: list[CoordinatorServer] = []
        self.closed_with: list[int | None] = []
        self.peer_id = peer_id
        self._place, self._door, self._token, self._wants = place, door, token, wants

    async def run(self, *, task_status: trio.TaskStatus["Moving"] = trio.TASK_STATUS_IGNORED) -> None:
        door = self._door
        while True:
            server = self._place()
            async with open_peer(server, door, self._token) as peer:
                if not self._is_agent:
                    door = f"{self._door}&resume_token={await self._resume_token(peer)}"
                call = await peer.coordinate()
                await call.update(peer.node(self.peer_id))
                if self._wants:
                    await call.tunnel(self._wants)
                self.places.append(server)
                task_status.started(self)
                task_status = trio.TASK_STATUS_IGNORED
                await self._listen(call)
                self.closed_with.append(await peer.wait_closed())

    @property
    def _is_agent(self) -> bool:
        return self._door == AGENT_DOOR

    async def _resume_token(self, peer: Peer) -> str:
        answer = await peer.call(
            TAILNET + "RefreshResumeToken", tailnet.RefreshResumeTokenRequest(), tailnet.RefreshResumeTokenResponse
        )
        assert self.peer_id in (b"", answer.peer_id)
        self.peer_id = answer.peer_id
        return answer.token

    async def _listen(self, call: Coordination) -> None:
        with suppress(Ended):
            while True:
                with suppress(trio.TooSlowError):  # others may take long, and there is nothing to tell meanwhile
                    update = await call.next()
                    self.told.append((update.id, update.kind))

    def kinds(self, other: "Moving") -> list[int]:
        return [kind for ident, kind in self.told if ident == other.peer_id]


@pytest.mark.stores("postgresql")
async def test_peers_of_one_that_leaves_meet_again_elsewhere_and_nobody_is_lost(
    places: Places, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may take longer to dial again; whoever does not come at all is told of no second time below.
    monkeypatch.setattr(core, "DOUBT_SECONDS", 600.0)
    one, other = await places.start(0), await places.start(1)
    await linked(one, other)
    there = [one]
    stays = Moving(lambda: other, MANY_DOOR, ALICE, wants=MAIN)
    agent = Moving(lambda: there[0], AGENT_DOOR, agent_token("main"), MAIN)
    client = Moving(lambda: there[0], MANY_DOOR, ALICE, wants=MAIN)
    for peer in (agent, client, stays):
        await nursery.start(peer.run)
    await wait_for(lambda: client.told and stays.told and len(agent.told) == 2)
    there[0] = other
    await one.drain()
    await wait_for(lambda: len(agent.places) == len(client.places) == 2)
    # Behind whatever was told of the move, in each one's order.
    await wait_for(lambda: len(agent.kinds(client)) >= 2 and client.kinds(agent)[1:])
    assert {kind for peer in (agent, client, stays) for _, kind in peer.told} == {Kind.NODE}
    assert agent.closed_with == client.closed_with == [GOING_AWAY]
    assert stays.closed_with == []


async def test_who_comes_before_balancers_notice_is_let_in(places: Places, nursery: trio.Nursery) -> None:
    one, other = await places.start(0, replica_notice_seconds=1000.0), await places.start(1)
    await linked(one, other)
    nursery.start_soon(one.drain)
    await wait_for(lambda: one.not_ready())
    async with open_peer(one, AGENT_DOOR, agent_token("main")) as agent:
        sent = await (await agent.coordinate()).update(agent.node(MAIN))
        async with open_peer(other, client_door(MAIN), ALICE) as client:
            theirs = await client.coordinate()
            await theirs.tunnel(MAIN)
            assert await theirs.next_node() == (MAIN, sent)
    assert replicas_of(one).id not in replicas_of(other).leaving
    assert not one.drained.is_set()


async def test_two_that_fight_for_one_id_at_two_replicas_are_known_to_both(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "HOLD_SECONDS", 0.01)
    one, other = await places.start(0), await places.start(1)
    await linked(one, other)
    async with (
        open_peer(one, AGENT_DOOR, agent_token("main")) as first,
        open_peer(other, AGENT_DOOR, agent_token("main")) as second,
        open_peer(one, AGENT_DOOR, agent_token("main")) as third,
    ):
        for peer in (first, second, third):
            call = await peer.coordinate()
            await call.update(peer.node(MAIN))
            await wait_for(lambda: one.coordinator.node_of(MAIN) or other.coordinator.node_of(MAIN))
        await wait_for(lambda: len(one.entrance.fights.current(0.0)) == len(other.entrance.fights.current(0.0)) == 1)
        for server in (one, other):
            [fight] = server.entrance.fights.current(0.0)
            assert (fight.peer_id, fight.count, len(fight.addresses)) == (MAIN, 2, 2)


async def test_where_nobody_else_is_there_all_are_told_at_once(places: Places) -> None:
    one = await places.start(0)
    async with (
        open_peer(one, AGENT_DOOR, agent_token("main")) as agent,
        open_peer(one, client_door(MAIN), ALICE) as client,
    ):
        mine, theirs = await agent.coordinate(), await client.coordinate()
        await theirs.tunnel(MAIN)
        await mine.update(agent.node(MAIN))
        await theirs.next_node()
        await one.drain()
        assert (await theirs.next()).kind == Kind.LOST
        assert await agent.wait_closed() == await client.wait_closed() == GOING_AWAY
