"""Whoever loses a right while inside loses the sockets, tunnels and streams that went with it, and others hear so."""

import math
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from derp.protocol.websocket import CloseCode
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer
from tailnet.services import rights
from tailnet.store.rows import Right, Role
from tailnet.store.store import Store
from tailnet.tokens import parse_user_token
from tests.support.administration import grant
from tests.support.seeds import NOW, agent_token, fill, make_id, peer_id, seed_document, user_token
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
    MANY_DOOR,
    TAILNET,
    Coordination,
    Peer,
    client_door,
    open_peer,
    open_websocket,
    wait_for,
)
from tests.support.text_sockets import open_text_socket

MAIN, GPU = peer_id("main"), peer_id("gpu")
ALICE = user_token("alice")
DISCONNECTED = tailnet.CoordinateResponse.PeerUpdate.DISCONNECTED
REVOKED = "authorization withdrawn"
Changed = Callable[[Store], object]


def seeded(change: Callable[[Any], object]) -> Changed:
    """An import of the small world with a difference."""

    def do(store: Store) -> None:
        document = seed_document()
        change(document)
        fill(store, document)

    return do


def expire(store: Store, in_days: int = -1) -> None:
    token = parse_user_token(ALICE)
    store.callers.delete_user_token(token.id)
    store.callers.add_user_token(make_id("alice"), token.id, token.secret_digest, NOW, NOW + timedelta(days=in_days))


# What takes all rights of alice, or of the agent `main`, away.
OF_ALICE: dict[str, Changed] = {
    "inactive": lambda store: store.callers.update_user(make_id("alice"), NOW, active=False),
    "signed out": lambda store: store.callers.delete_user_token(parse_user_token(ALICE).id),
    "another secret": seeded(lambda all_of_it: all_of_it["users"][0].update(token=f"{ALICE[:-1]}z")),
    "expired": expire,
}
OF_MAIN: dict[str, Changed] = {
    "deleted": lambda store: store.callers.delete_agent(MAIN),
    "its workspace deleted": lambda store: store.callers.delete_workspace(make_id("dev")),
    "another token": seeded(lambda all_of_it: all_of_it["agents"][0].update(token=str(make_id("another token")))),
}


async def change(server: CoordinatorServer, how: Changed) -> None:
    await server.store.run(how, server.store)


async def change_and_see(server: CoordinatorServer, how: Changed) -> None:
    """Until the server has noticed."""
    await server.callers.user(ALICE)  # so that it has looked before
    generation = server.callers.changes.count
    await change(server, how)
    await server.callers.changes.wait(generation)


async def meet(mine: Coordination, agent_peer: Peer, theirs: Coordination, client: Peer) -> bytes:
    """An agent `main` and a client of it come to know each other; the client's id."""
    await mine.update(agent_peer.node(MAIN))
    await theirs.update(client.node(peer_id("somebody")))
    await theirs.tunnel(MAIN)
    await theirs.next_node()
    return (await mine.next_node())[0]


@pytest.mark.parametrize("door", [client_door(MAIN), MANY_DOOR], ids=["of one", "of many"])
@pytest.mark.parametrize("how", OF_ALICE)
async def test_a_user_who_may_no_more(server: CoordinatorServer, door: str, how: str) -> None:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, door, ALICE) as client,
    ):
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        maps = await client.stream(TAILNET + "StreamDERPMaps", tailnet.StreamDERPMapsRequest())
        await maps.receive(tailnet.DERPMap)
        ident = await meet(mine, agent_peer, theirs, client)
        await change(server, OF_ALICE[how])
        assert await client.wait_closed() == CloseCode.POLICY_VIOLATION
        assert client.websocket.close_text.startswith(REVOKED)
        assert await theirs.error_text() == f"authorization: {REVOKED}"
        update = await mine.next()
        assert (update.id, update.kind, update.reason) == (ident, DISCONNECTED, REVOKED)
        await wait_for(lambda: server.reading().statistics.tunnels == 0)
        await agent_peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
        reading = server.reading()
        assert (reading.revoked_connections, reading.channels) == (1, 1)
        assert reading.statistics.departures[REVOKED] == 1


async def test_other_streams_of_such_a_user_end_too(server: CoordinatorServer) -> None:
    old = f"/api/v2/workspaceagents/{make_id('main')}/coordinate"
    async with (
        open_websocket(server, "/api/v2/derp-map", ALICE) as maps,
        open_websocket(server, old, ALICE) as old_client,
        open_websocket(server, "/api/v2/derp-map", user_token("bob")) as others,
    ):
        assert await maps.read()
        assert await others.read()
        await change(server, OF_ALICE["inactive"])
        await maps.read_to_end()
        assert maps.close_code == CloseCode.POLICY_VIOLATION
        assert await old_client.read_to_end() == b""
        assert (old_client.close_code, old_client.close_text) == (CloseCode.POLICY_VIOLATION, REVOKED)
        server.maps.steer(avoid=[999])
        assert await others.read()


@pytest.mark.parametrize("how", OF_MAIN)
async def test_an_agent_that_may_no_more(server: CoordinatorServer, how: str) -> None:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, MANY_DOOR, ALICE) as many,
        open_peer(server, client_door(MAIN), ALICE) as one,
    ):
        mine, theirs = await agent_peer.coordinate(), await many.coordinate()
        await meet(mine, agent_peer, theirs, many)
        await change(server, OF_MAIN[how])
        assert await agent_peer.wait_closed() == CloseCode.POLICY_VIOLATION
        update = await theirs.next()
        assert (update.id, update.kind, update.reason) == (MAIN, DISCONNECTED, REVOKED)
        await many.call(TAILNET + "PostTelemetry", tailnet.TelemetryRequest(), tailnet.TelemetryResponse)
        if how == "another token":
            # It is here again, and who waits for it is told; the client of it alone has never been sent away.
            async with open_peer(server, AGENT_DOOR, str(make_id("another token"))) as again:
                node = await (await again.coordinate()).update(again.node(MAIN))
                assert await theirs.next_node() == (MAIN, node)
            assert not one.closed.is_set()
        else:
            assert await one.wait_closed() == CloseCode.POLICY_VIOLATION
            await wait_for(lambda: server.reading().statistics.tunnels == 0)
            assert not server.coordinator.statistics().absent_peers


async def test_a_sub_agent_that_its_parent_deletes(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as parent:
        created = await parent.call(
            AGENT + "CreateSubAgent", agent.CreateSubAgentRequest(name="nested"), agent.CreateSubAgentResponse
        )
        async with open_peer(server, AGENT_DOOR, str(UUID(bytes=created.agent.auth_token))) as nested:
            await nested.coordinate()
            await parent.call(
                AGENT + "DeleteSubAgent",
                agent.DeleteSubAgentRequest(id=created.agent.id),
                agent.DeleteSubAgentResponse,
            )
            assert await nested.wait_closed() == CloseCode.POLICY_VIOLATION
        await parent.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)


async def test_an_agent_that_is_somebody_elses_now(server: CoordinatorServer) -> None:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, MANY_DOOR, ALICE) as many,
        open_peer(server, client_door(MAIN), ALICE) as one,
    ):
        mine, theirs = await agent_peer.coordinate(), await many.coordinate()
        ident = await meet(mine, agent_peer, theirs, many)

        def give(document: Any) -> None:
            for each in document["agents"][:2]:  # both of the one workspace
                each["owner_id"] = str(make_id("bob"))

        await change(server, seeded(give))
        assert await one.wait_closed() == CloseCode.POLICY_VIOLATION
        update = await mine.next()
        assert (update.id, update.kind, update.reason) == (ident, DISCONNECTED, REVOKED)
        update = await theirs.next()
        assert (update.id, update.kind, update.reason) == (MAIN, DISCONNECTED, REVOKED)
        assert server.reading().revoked_tunnels == 1
        assert not many.closed.is_set()
        manifest = await agent_peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
        assert manifest.owner_username == "bob"  # its connection goes on, and knows whose it is


@pytest.mark.parametrize("door", [client_door(MAIN), MANY_DOOR], ids=["of one", "of many"])
async def test_a_grant_that_is_taken_away(server: CoordinatorServer, door: str) -> None:
    def to_bob(*rights: Right) -> Changed:
        return lambda store: grant(store, "dev", "bob", *rights)

    await change_and_see(server, to_bob(Right.SSH, Right.UPDATE))
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, door, user_token("bob")) as client,
        open_text_socket(server, f"/api/v2/workspaceagents/{MAIN}/logs?follow", user_token("bob")) as logs,
    ):
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        ident = await meet(mine, agent_peer, theirs, client)
        await change(server, to_bob(Right.UPDATE))
        update = await mine.next()
        assert (update.id, update.kind, update.reason) == (ident, DISCONNECTED, REVOKED)
        if door == MANY_DOOR:  # its other tunnels would stay
            update = await theirs.next()
            assert (update.id, update.kind, update.reason) == (MAIN, DISCONNECTED, REVOKED)
        else:
            assert await client.wait_closed() == CloseCode.POLICY_VIOLATION
        assert await logs.read() == []
        await change(server, to_bob())  # he could still look
        assert await logs.end() == (CloseCode.POLICY_VIOLATION, REVOKED)


async def test_an_auditor_looks_and_does_not_enter(server: CoordinatorServer) -> None:
    logs = f"/api/v2/workspaceagents/{MAIN}/logs?follow"
    await change_and_see(server, lambda store: store.callers.update_user(make_id("bob"), NOW, role=Role.AUDITOR))
    async with open_text_socket(server, logs, user_token("bob")) as followed:
        assert await followed.read() == []
        async with open_peer(server, MANY_DOOR, user_token("bob")) as client:
            theirs = await client.coordinate()
            await theirs.tunnel(MAIN)
            assert "permission" in await theirs.error_text()
        await change(server, lambda store: store.callers.update_user(make_id("bob"), NOW, role=Role.USER))
        assert await followed.end() == (CloseCode.POLICY_VIOLATION, REVOKED)


async def test_whoever_lost_nothing_notices_nothing(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "MAX_ASKED", 2)
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, MANY_DOOR, ALICE) as many,
        open_peer(server, client_door(GPU), ALICE) as one,
        open_peer(server, MANY_DOOR, user_token("bob")) as bob,
    ):
        mine, theirs = await agent_peer.coordinate(), await many.coordinate()
        await meet(mine, agent_peer, theirs, many)
        await one.coordinate()
        await change(server, lambda store: store.callers.update_user(make_id("bob"), NOW, active=False))
        await bob.wait_closed()
        await server.rights.look()
        node = await mine.update(agent_peer.node(MAIN, preferred_derp=7))
        assert await theirs.next_node() == (MAIN, node)
        assert server.reading().channels == 3
        assert server.reading().revoked_connections == 1


async def test_a_store_that_cannot_be_read_takes_no_rights_away(server: CoordinatorServer) -> None:
    async with open_peer(server, MANY_DOOR, ALICE) as many:
        with server.store.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE counters RENAME TO lost")
        server.callers.store._recent.clear()
        server.callers.store._checked_at = -1e9
        await server.rights.look()
        await many.call(TAILNET + "PostTelemetry", tailnet.TelemetryRequest(), tailnet.TelemetryResponse)
        with server.store.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE lost RENAME TO counters")


async def test_an_expired_token_is_seen_without_any_change(server: CoordinatorServer) -> None:
    generation = server.callers.changes.count
    await change(server, lambda store: expire(store, in_days=1000))
    await server.callers.changes.wait(generation)
    async with open_peer(server, MANY_DOOR, ALICE) as many:
        await server.rights.look()
        assert not many.closed.is_set()
        server.callers.store._clock = lambda: NOW + timedelta(days=1001)
        await server.rights.look()
        assert await many.wait_closed() == CloseCode.POLICY_VIOLATION


async def test_nobody_is_asked_about_whom_a_change_was_not_about(
    serve: Callable[..., Awaitable[CoordinatorServer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "EXPIRY_SECONDS", math.inf)  # when all are asked about anyway
    monkeypatch.setattr(rights, "CHECK_SECONDS", 0.0)  # no second look, which is at those of some changes together
    server = await serve()
    asked: list[object] = []
    real = server.callers.standing

    async def standing(some: Mapping[Any, Any]) -> Any:
        asked.extend(some)
        return await real(some)

    monkeypatch.setattr(server.callers, "standing", standing)
    credential = parse_user_token(ALICE)
    async with open_peer(server, MANY_DOOR, ALICE) as client, open_peer(server, MANY_DOOR, user_token("bob")) as bob:
        theirs = await client.coordinate()
        # Both are looked at when they have come in, and that all callers were read at the start was a change of all.
        await wait_for(lambda: [each.caller.ask_again_at for each in server.channels.open] == [math.inf] * 2)
        asked.clear()
        await change(server, lambda store: store.callers.update_user(make_id("bob"), NOW, active=False))
        assert await bob.wait_closed() == CloseCode.POLICY_VIOLATION
        assert credential not in asked
        # An agent that she reaches is a matter of hers.
        await theirs.tunnel(MAIN)
        await wait_for(lambda: server.reading().statistics.tunnels == 1)
        await change(server, lambda store: store.callers.delete_agent(MAIN))
        await wait_for(lambda: server.reading().revoked_tunnels == 1)
        assert credential in asked
