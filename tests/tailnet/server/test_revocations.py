"""Who loses a right by a change at one replica is sent away at the others, which share its store."""

from collections.abc import Awaitable, Callable

import pytest

from derp.protocol.websocket import CloseCode
from tailnet.config.coordinator import BusPlace
from tailnet.server.server import CoordinatorServer
from tests.support.administration import BOB, patch
from tests.support.seeds import agent_token, make_id, user_token
from tests.support.tailnet_driver import AGENT_DOOR, MANY_DOOR, open_peer
from tests.tailnet.server.test_replicated import linked


@pytest.mark.stores("postgresql")
async def test_a_change_at_one_replica_ends_sessions_at_the_other(
    serve: Callable[..., Awaitable[CoordinatorServer]],
) -> None:
    shared: dict[str, object] = {"bus": BusPlace("store"), "replica_listen": (("127.0.0.1", 0),)}
    one, other = await serve(**shared), await serve(**shared)
    await linked(one, other)
    work = one.administration.administration
    async with (
        open_peer(other, MANY_DOOR, user_token("alice")) as alice,
        open_peer(other, MANY_DOOR, user_token("bob")) as bob,
        open_peer(other, AGENT_DOOR, agent_token("main")) as agent,
    ):
        for peer in (alice, bob, agent):
            await peer.coordinate()
        await one.store.run(lambda: patch(work, "user", BOB, active=False))
        work.changed()
        assert await bob.wait_closed() == CloseCode.POLICY_VIOLATION
        await one.store.run(lambda: one.store.callers.delete_workspace(make_id("dev")))
        assert await agent.wait_closed() == CloseCode.POLICY_VIOLATION
        assert other.reading().revoked_connections == 2
        assert len(other.channels.open) == 1, "alice has done nothing"
