"""The coordinator whole, over real sockets: agents boot, peers meet, maps flow, and one port serves it all."""

import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from derp.client.client import DialOptions, open_derp_client
from derp.config import TlsConfig
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from tailnet.auth.callers import at_once
from tailnet.errors import CODE_UNIMPLEMENTED, RpcError
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.proto.services import AGENT as AGENT_RPCS
from tailnet.rpc.yamux import SessionLimits
from tailnet.server.server import CoordinatorServer
from tailnet.store.rows import AgentRow, LifecycleState
from tailnet.store.store import Store
from tests.support.certificates import issue
from tests.support.maps import map_text
from tests.support.seeds import AgentSpec, agent_token, fill, make_id, peer_id, seed_document, user_token
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
    GOING_AWAY,
    MANY_DOOR,
    TAILNET,
    Coordination,
    Ended,
    Peer,
    RefusedUpgrade,
    client_door,
    open_connection,
    open_peer,
    open_websocket,
    read_answer,
    upgrade_request,
    upgraded,
    wait_for,
)

pytestmark = pytest.mark.stores

Serve = Callable[..., Awaitable[CoordinatorServer]]
Kind = tailnet.CoordinateResponse.PeerUpdate.Kind
MAIN, GPU, WEB = peer_id("main"), peer_id("gpu"), peer_id("web")
ALICE = user_token("alice")


def agent_row(server: CoordinatorServer, name: str = "main") -> AgentRow:
    row = server.store.callers.get_agent(peer_id(name))
    assert row is not None
    return row


async def settle(peer: Peer) -> None:
    """Wait until the server has served everything that this peer sent so far."""
    peer.pongs = trio.Event()
    peer.connection.ping(1)
    await peer.flush()
    with trio.fail_after(60):
        await peer.pongs.wait()


async def meet(server: CoordinatorServer, agent_peer: Peer, client: Peer) -> tuple[Coordination, Coordination, bytes]:
    """An agent and a client that know each other's node; gives both calls and the client's id."""
    mine, theirs = await agent_peer.coordinate(), await client.coordinate()
    sent = await mine.update(agent_peer.node(MAIN))
    await theirs.tunnel(MAIN)
    assert await theirs.next_node() == (MAIN, sent)
    said = await theirs.update(client.node(GPU))
    client_id, node = await mine.next_node()
    assert node == said
    return mine, theirs, client_id


# --- agents


def boot_requests() -> dict[str, tuple[Any, Any]]:
    """What an agent asks and tells while it starts, and after."""
    now = Timestamp()
    now.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    return {
        "GetManifest": (agent.GetManifestRequest(), agent.Manifest),
        "GetServiceBanner": (agent.GetServiceBannerRequest(), agent.ServiceBanner),
        "GetAnnouncementBanners": (agent.GetAnnouncementBannersRequest(), agent.GetAnnouncementBannersResponse),
        "UpdateStats": (agent.UpdateStatsRequest(), agent.UpdateStatsResponse),
        "UpdateLifecycle": (
            agent.UpdateLifecycleRequest(lifecycle={"state": agent.Lifecycle.READY, "changed_at": now}),
            agent.Lifecycle,
        ),
        "UpdateStartup": (agent.UpdateStartupRequest(startup={"version": "v2.20.0"}), agent.Startup),
        "BatchUpdateAppHealths": (agent.BatchUpdateAppHealthRequest(), agent.BatchUpdateAppHealthResponse),
        "BatchUpdateMetadata": (
            agent.BatchUpdateMetadataRequest(metadata=[{"key": "cpu", "result": {"value": "3 %"}}]),
            agent.BatchUpdateMetadataResponse,
        ),
        "BatchCreateLogs": (agent.BatchCreateLogsRequest(logs=[{"output": "hello"}]), agent.BatchCreateLogsResponse),
        "ScriptCompleted": (
            agent.WorkspaceAgentScriptCompletedRequest(),
            agent.WorkspaceAgentScriptCompletedResponse,
        ),
        "GetResourcesMonitoringConfiguration": (
            agent.GetResourcesMonitoringConfigurationRequest(),
            agent.GetResourcesMonitoringConfigurationResponse,
        ),
        "PushResourcesMonitoringUsage": (
            agent.PushResourcesMonitoringUsageRequest(),
            agent.PushResourcesMonitoringUsageResponse,
        ),
        "ReportConnection": (agent.ReportConnectionRequest(), Empty),
        "CreateSubAgent": (agent.CreateSubAgentRequest(name="dev"), agent.CreateSubAgentResponse),
        "ListSubAgents": (agent.ListSubAgentsRequest(), agent.ListSubAgentsResponse),
        "ReportBoundaryLogs": (agent.ReportBoundaryLogsRequest(), agent.ReportBoundaryLogsResponse),
    }


async def test_an_agent_boots_with_all_its_calls_at_once(server: CoordinatorServer) -> None:
    requests = boot_requests()
    answers: dict[str, Any] = {}
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:

        async def ask(name: str) -> None:
            request, response = requests[name]
            answers[name] = await peer.call(AGENT + name, request, response)

        async with trio.open_nursery() as nursery:
            for name in requests:
                nursery.start_soon(ask, name)
        assert answers.keys() == requests.keys()
        # Those with an answer of their own are in services/test_agent_rpc.py; together they are all there are.
        others = {"DeleteSubAgent", "UpdateAppStatus", "PushContextState"}
        assert {path.rpartition("/")[2] for path in AGENT_RPCS} == requests.keys() | others
        manifest = answers["GetManifest"]
        assert (manifest.agent_id, manifest.workspace_id) == (MAIN, make_id("dev").bytes)
        assert manifest.derp_map.HasField("home_params")
        assert answers["UpdateStats"].report_interval.seconds == 300
        await server.outbox.flush()
        assert server.store.reports.list_logs(MAIN)[0].output == "hello"
    assert agent_row(server).lifecycle_state is LifecycleState.READY


@pytest.mark.parametrize(("query", "version"), [("?version=2.11", "2.11"), ("", "2.0")])
async def test_the_version_that_was_dialled_is_shown(server: CoordinatorServer, query: str, version: str) -> None:
    async with open_peer(server, AGENT_DOOR.partition("?")[0] + query, agent_token("main")) as peer:
        request = agent.UpdateStartupRequest(startup={"version": "v2.20.0", "subsystems": [2, 1]})
        assert await peer.call(AGENT + "UpdateStartup", request, agent.Startup) == request.startup
        await server.outbox.flush()
        async with open_connection(server) as stream:
            head = f"GET /api/v2/workspaceagents/{MAIN} HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {ALICE}\r\n\r\n"
            await stream.send_all(head.encode())
            body = (await read_answer(stream)).json()
    assert (body["api_version"], body["version"], body["subsystems"]) == (version, "v2.20.0", ["envbox", "envbuilder"])


async def test_an_unknown_rpc_is_code_12_and_the_connection_lives(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        with pytest.raises(RpcError) as caught:
            await peer.call(AGENT + "FromTheFuture", agent.GetManifestRequest(), agent.Manifest)
        assert caught.value.code == CODE_UNIMPLEMENTED
        await peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
    async with open_peer(server, client_door(MAIN), ALICE) as client:
        with pytest.raises(RpcError) as caught:
            await client.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
        assert caught.value.code == CODE_UNIMPLEMENTED


async def test_the_store_knows_when_agents_came_and_left(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("main")):
        first = await wait_for(lambda: agent_row(server) if agent_row(server).first_connected_at else None)
        assert first.disconnected_at is None
        assert server.reading().agents_connected == 1
    row = await wait_for(lambda: agent_row(server) if agent_row(server).disconnected_at else None)
    assert row.disconnected_at is not None
    assert row.last_connected_at is not None
    assert row.first_connected_at is not None
    assert row.disconnected_at == row.last_connected_at > row.first_connected_at
    assert row.first_connected_at == first.first_connected_at


async def test_an_agent_that_was_here_for_a_moment_has_been_here(server: CoordinatorServer) -> None:
    async with open_websocket(server, AGENT_DOOR, agent_token("main")):
        pass
    row = await wait_for(lambda: agent_row(server) if agent_row(server).disconnected_at else None)
    assert row.first_connected_at is not None


async def test_other_roles_leave_the_status_alone(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR + "&role=sidecar", agent_token("main")) as peer:
        await peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
        assert server.reading().agents_connected == 0
        # One that does drive its status is written in the same breath, so that this one had its chance.
        async with open_peer(server, AGENT_DOOR, agent_token("web")):
            await wait_for(lambda: agent_row(server, "web").first_connected_at)
    assert agent_row(server).first_connected_at is None


# --- meeting


async def test_nodes_travel_both_ways_and_updates_follow(server: CoordinatorServer) -> None:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, client_door(MAIN), ALICE) as client,
    ):
        mine, theirs, client_id = await meet(server, agent_peer, client)
        moved = await mine.update(agent_peer.node(MAIN, preferred_derp=5, endpoints=["192.0.2.1:41641"]))
        assert await theirs.next_node() == (MAIN, moved)
        await mine.request(ready_for_handshake=[{"id": client_id}])
        ready = await theirs.next()
        assert (ready.id, ready.kind, ready.HasField("node")) == (MAIN, Kind.READY_FOR_HANDSHAKE, False)
        # The same node again says nothing: what arrives next is the one after it.
        await mine.update(moved)
        last = await mine.update(agent_peer.node(MAIN, preferred_derp=6))
        assert await theirs.next_node() == (MAIN, last)


async def test_disconnect_is_graceful_and_ends_the_stream(server: CoordinatorServer) -> None:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, client_door(MAIN), ALICE) as client,
    ):
        mine, theirs, client_id = await meet(server, agent_peer, client)
        await theirs.request(disconnect={})
        assert await theirs.wait_ended() is None
        gone = await mine.next()
        assert (gone.id, gone.kind, gone.reason) == (client_id, Kind.DISCONNECTED, "graceful disconnect")


async def test_a_lost_peer_is_lost_and_a_returning_one_is_told_again(server: CoordinatorServer) -> None:
    async with open_peer(server, client_door(MAIN), ALICE) as client:
        async with open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer:
            _, theirs, _ = await meet(server, agent_peer, client)
        lost = await theirs.next()
        assert (lost.id, lost.kind) == (MAIN, Kind.LOST)
        async with open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer:
            again = await (await agent_peer.coordinate()).update(agent_peer.node(MAIN))
            assert await theirs.next_node() == (MAIN, again)


@pytest.mark.parametrize("how", ["cancel", "close_send"])
async def test_a_stream_that_ends_is_a_peer_that_left(server: CoordinatorServer, how: str) -> None:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, client_door(MAIN), ALICE) as client,
    ):
        mine, theirs, _ = await meet(server, agent_peer, client)
        await getattr(mine, how)()
        assert (await theirs.next()).kind == Kind.LOST
        # The connection lives on, and so may the next stream.
        again = await (await agent_peer.coordinate()).update(agent_peer.node(MAIN, preferred_derp=2))
        assert await theirs.next_node() == (MAIN, again)


async def test_the_same_agent_twice_ends_the_older_and_loses_nothing(server: CoordinatorServer) -> None:
    async with (
        open_peer(server, client_door(MAIN), ALICE) as client,
        open_peer(server, AGENT_DOOR, agent_token("main")) as older,
        open_peer(server, AGENT_DOOR, agent_token("main")) as newer,
    ):
        before, theirs, client_id = await meet(server, older, client)
        after = await newer.coordinate()
        assert (await after.next()).id == client_id
        assert await before.error_text() == "peer ID overwritten by new connection"
        assert await before.wait_ended() is None
        sent = await after.update(newer.node(MAIN))
        assert await theirs.next_node() == (MAIN, sent)  # and no LOST before it
        assert server.reading().statistics.overtaken == 1


async def test_one_connection_coordinates_once(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        first, second = await peer.coordinate(), await peer.coordinate()
        assert "coordinates already" in str(await second.wait_ended())
        assert not first.ended.is_set()


async def test_refused_requests_say_why_and_end_the_peer(server: CoordinatorServer) -> None:
    async with open_peer(server, client_door(MAIN), ALICE) as client:
        call = await client.coordinate()
        await call.tunnel(GPU)
        assert (await call.error_text()).startswith("authorization: ")
        assert await call.wait_ended() is None
        call = await client.coordinate()
        await call.send_bytes(b"\xff\xff\xff")
        assert await call.error_text() == "malformed request: not a CoordinateRequest"
        assert await call.wait_ended() is None
    assert server.reading().statistics.refusals


async def test_a_client_of_many_is_judged_by_the_store_in_the_order_it_asked(server: CoordinatorServer) -> None:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as main,
        open_peer(server, AGENT_DOOR, agent_token("gpu")) as gpu,
        open_peer(server, MANY_DOOR, ALICE) as client,
    ):
        await (await main.coordinate()).update(main.node(MAIN))
        await (await gpu.coordinate()).update(gpu.node(GPU))
        await settle(main)
        await settle(gpu)
        call = await client.coordinate()
        # Nothing of it is in memory any more, so each tunnel has to wait; all in one write.
        server.callers.store._recent.clear()
        requests = [{"add_tunnel": {"id": each}} for each in (MAIN, GPU)]
        requests += [{"remove_tunnel": {"id": MAIN}}, {"add_tunnel": {"id": MAIN}}]
        for each in requests:
            client.connection.send_message(call.id, tailnet.CoordinateRequest(**each).SerializeToString())
        await client.flush()
        seen = [(update.id, update.kind) for update in [await call.next() for _ in requests]]
        assert seen == [(MAIN, Kind.NODE), (GPU, Kind.NODE), (MAIN, Kind.DISCONNECTED), (MAIN, Kind.NODE)]
        server.callers.store._recent.clear()
        await call.tunnel(WEB)
        expected = "authorization: workspace agent not found or you do not have permission"
        assert await call.error_text() == expected
        assert await call.wait_ended() is None


async def test_an_agent_in_memory_is_no_more_anybodys_than_one_in_the_store(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("web")), open_peer(server, MANY_DOOR, ALICE) as client:
        call = await client.coordinate()
        assert at_once(server.callers, server.callers.store.find_agent(WEB)) is not None
        await call.tunnel(WEB)
        assert "you do not have permission" in await call.error_text()


async def test_a_refused_client_of_many_is_not_served_further(server: CoordinatorServer) -> None:
    async with open_peer(server, MANY_DOOR, ALICE) as client:
        call = await client.coordinate()
        for each in (WEB, MAIN, GPU):
            request = tailnet.CoordinateRequest(add_tunnel={"id": each})
            client.connection.send_message(call.id, request.SerializeToString())
        await client.flush()
        assert await call.error_text()
        assert await call.wait_ended() is None
        assert server.reading().statistics.tunnels == 0
        await client.coordinate()
        await settle(client)  # the connection is read again
        assert server.reading().statistics.connected_peers == 1


# --- the other streams


async def test_resume_tokens_survive_a_restart(serve: Serve) -> None:
    server = await serve()
    request, kind = tailnet.RefreshResumeTokenRequest(), tailnet.RefreshResumeTokenResponse
    async with open_peer(server, client_door(MAIN), ALICE) as client:
        issued = await client.call(TAILNET + "RefreshResumeToken", request, kind)
    assert (issued.refresh_in.seconds, len(issued.peer_id)) == (12 * 3600, 16)
    await server.drain()
    server = await serve()
    async with open_peer(server, client_door(MAIN, f"version=2.0&resume_token={issued.token}"), ALICE) as client:
        again = await client.call(TAILNET + "RefreshResumeToken", request, kind)
        assert again.peer_id == issued.peer_id
    forged = issued.token[:-4] + ("AAAA" if issued.token[-4:] != "AAAA" else "BBBB")
    with pytest.raises(RefusedUpgrade) as caught:
        async with open_peer(server, client_door(MAIN, f"version=2.0&resume_token={forged}"), ALICE):
            pass
    assert caught.value.answer.status == 401
    assert caught.value.answer.json()["validations"] == [{"field": "resume_token", "detail": "Invalid resume token"}]


async def test_an_agent_gets_no_resume_token(server: CoordinatorServer) -> None:
    """With one, a client could take its id and announce whatever addresses it likes under it."""
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer:
        with pytest.raises(RpcError) as caught:
            await agent_peer.call(
                TAILNET + "RefreshResumeToken",
                tailnet.RefreshResumeTokenRequest(),
                tailnet.RefreshResumeTokenResponse,
            )
        assert caught.value.code == 12
        await agent_peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)


@pytest.mark.parametrize("way", ["another user", "another door"])
async def test_a_resume_token_is_of_use_to_its_user_at_its_door_alone(server: CoordinatorServer, way: str) -> None:
    request, kind = tailnet.RefreshResumeTokenRequest(), tailnet.RefreshResumeTokenResponse
    async with open_peer(server, MANY_DOOR, ALICE) as client:
        issued = await client.call(TAILNET + "RefreshResumeToken", request, kind)
    query = f"version=2.3&resume_token={issued.token}"
    door = client_door(MAIN, query) if way == "another door" else f"/api/v2/tailnet?{query}"
    with pytest.raises(RefusedUpgrade) as caught:
        async with open_peer(server, door, ALICE if way == "another door" else user_token("bob")):
            pass
    assert caught.value.answer.json()["validations"][0]["field"] == "resume_token"
    async with open_peer(server, f"/api/v2/tailnet?{query}", ALICE) as client:
        assert (await client.call(TAILNET + "RefreshResumeToken", request, kind)).peer_id == issued.peer_id


async def test_derp_maps_come_first_and_on_every_change(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_bytes(map_text(1))
    server = await serve(derp_map=(file,))
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        call = await peer.stream(TAILNET + "StreamDERPMaps", tailnet.StreamDERPMapsRequest())
        first = await call.receive(tailnet.DERPMap)
        assert first.HasField("home_params")
        assert set(first.regions) == {1, 999}
        file.write_bytes(map_text(1, 2))
        with trio.fail_after(5):  # it is within one second on an idle machine
            assert set((await call.receive(tailnet.DERPMap)).regions) == {1, 2, 999}
        await call.cancel()
        server.maps.steer(avoid=[2])
        await settle(peer)
        assert call.waiting() == 0


async def test_workspace_updates_are_whole_at_first_and_then_differences(
    server: CoordinatorServer, filled_url: str
) -> None:
    owner = tailnet.WorkspaceUpdatesRequest(workspace_owner_id=make_id("alice").bytes)
    async with (
        open_peer(server, MANY_DOOR, ALICE) as client,
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
    ):
        call = await client.stream(TAILNET + "WorkspaceUpdates", owner)
        whole = await call.receive(tailnet.WorkspaceUpdate)
        assert {each.id for each in whole.upserted_agents} == {MAIN, GPU}
        assert [each.name for each in whole.upserted_workspaces] == ["dev"]
        created = await agent_peer.call(
            AGENT + "CreateSubAgent", agent.CreateSubAgentRequest(name="nested"), agent.CreateSubAgentResponse
        )
        update = await call.receive(tailnet.WorkspaceUpdate)
        assert [(each.id, each.name) for each in update.upserted_agents] == [(created.agent.id, "nested")]
        assert not update.upserted_workspaces
        await agent_peer.call(
            AGENT + "DeleteSubAgent",
            agent.DeleteSubAgentRequest(id=created.agent.id),
            agent.DeleteSubAgentResponse,
        )
        update = await call.receive(tailnet.WorkspaceUpdate)
        assert [each.id for each in update.deleted_agents] == [created.agent.id]
        other = Store.open(filled_url)  # as another process would
        fill(other, seed_document((AgentSpec("late", "dev", "alice"),)))
        other.close()
        update = await call.receive(tailnet.WorkspaceUpdate)
        assert [each.name for each in update.upserted_agents] == ["late"]


async def test_a_sub_agent_may_come_in_with_the_token_it_was_given(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as parent:
        created = await parent.call(
            AGENT + "CreateSubAgent", agent.CreateSubAgentRequest(name="nested"), agent.CreateSubAgentResponse
        )
        token = str(UUID(bytes=created.agent.auth_token))
        async with open_peer(server, AGENT_DOOR, token) as nested:
            manifest = await nested.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
            assert (manifest.agent_id, manifest.parent_id) == (created.agent.id, MAIN)


async def test_workspaces_of_others_are_refused(server: CoordinatorServer) -> None:
    async with open_peer(server, MANY_DOOR, ALICE) as client:
        for owner in (make_id("bob").bytes, b"short"):
            call = await client.stream(
                TAILNET + "WorkspaceUpdates", tailnet.WorkspaceUpdatesRequest(workspace_owner_id=owner)
            )
            assert isinstance(await call.wait_ended(), RpcError)


async def test_telemetry_is_taken_whatever_it_is(server: CoordinatorServer) -> None:
    async with open_peer(server, client_door(MAIN), ALICE) as client:
        events = tailnet.TelemetryRequest(events=[{}, {}])
        await client.call(TAILNET + "PostTelemetry", events, tailnet.TelemetryResponse)
        call = await client.open(TAILNET + "PostTelemetry")
        await call.send_bytes(b"\xff\xfe garbage")
        await call.receive(tailnet.TelemetryResponse)
        assert server.service.telemetry_unreadable == 1
        assert server.reading().telemetry_events == 2


# --- one port


async def test_packets_flow_through_the_relay_of_the_same_port(server: CoordinatorServer) -> None:
    place = server.listening[0]
    url = f"http://{place.host}:{place.port}/derp"
    a, b = NodePrivate.generate(), NodePrivate.generate()
    async with open_derp_client(url, a) as first, open_derp_client(url, b) as second:
        await first.send(b.public().raw, b"through the relay")
        with trio.fail_after(60):
            assert await second.receive() == RecvPacket(a.public().raw, b"through the relay")
    async with open_connection(server) as stream:
        await stream.send_all(b"GET /derp/latency-check HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await read_answer(stream)).status == 200


async def test_api_requests_share_a_connection_with_everything_else(server: CoordinatorServer) -> None:
    """As behind a proxy that keeps its connections: pages of the relay, of the API, then an RPC socket."""
    async with open_connection(server) as stream:
        await stream.send_all(b"GET /derp/latency-check HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await read_answer(stream)).status == 200
        two = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /api/v2/nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await stream.send_all(two)
        first = await read_answer(stream)
        assert (first.status, first.body) == (200, b"OK\n")
        second = await read_answer(stream, first.rest)
        assert (second.status, second.json()) == (404, {"message": "Route not found."})
        await stream.send_all(b"GET /derp/latency")
        async with open_connection(server) as other:  # by its answer the server has read the half above
            await other.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await read_answer(other)
        await stream.send_all(b"-check HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await read_answer(stream)).status == 200
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await read_answer(stream)).body == b"OK\n"
        await stream.send_all(upgrade_request(client_door(MAIN), ALICE))
        websocket = await upgraded(stream)
        await websocket.write(bytes.fromhex("000200010000000000000007"))
        assert await websocket.read() == bytes.fromhex("000200020000000000000007")
    await wait_for(lambda: not server.reading().channels)


async def test_everything_under_tls(serve: Serve, tmp_path: Path) -> None:
    issued = issue("127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(issued.pem)
    (tmp_path / "key.pem").write_bytes(issued.key_pem)
    (tmp_path / "key.pem").chmod(0o600)
    server = await serve(tls=TlsConfig(tmp_path / "cert.pem", tmp_path / "key.pem"))
    context = ssl.create_default_context(cadata=issued.pem.decode())
    assert server.listening[0].kind == "tailnet+tls"
    async with open_connection(server, context) as stream:
        request = f"GET /api/v2/workspaceagents/{make_id('main')}/connection HTTP/1.1\r\nHost: localhost\r\n"
        await stream.send_all(f"{request}Coder-Session-Token: {ALICE}\r\n\r\n".encode())
        answer = await read_answer(stream)
        assert answer.status == 200
        assert answer.json()["derp_map"]["Regions"]["999"]["Nodes"][0]["DERPPort"] == server.listening[0].port
        await stream.send_all(upgrade_request(client_door(MAIN), ALICE))
        await upgraded(stream)
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main"), context=context) as agent_peer,
        open_peer(server, client_door(MAIN), ALICE, context=context) as client,
    ):
        await meet(server, agent_peer, client)
    url = f"https://127.0.0.1:{server.listening[0].port}/derp"
    async with open_derp_client(url, NodePrivate.generate(), options=DialOptions(context=context)) as relay_client:
        assert await relay_client.ping() > 0


@pytest.mark.parametrize(
    ("target", "token", "status", "body"),
    [
        (
            client_door(MAIN, "version=2.99"),
            ALICE,
            400,
            {
                "message": "Unknown or unsupported API version",
                "validations": [
                    {
                        "field": "version",
                        "detail": "server is at version 2.11, behind requested minor version 2.99",
                    }
                ],
            },
        ),
        (
            client_door(WEB),
            ALICE,
            404,
            {"message": "Agent doesn't exist with that id, or you do not have access to it."},
        ),
        (
            AGENT_DOOR,
            "",
            401,
            {"message": 'Cookie "coder_session_token" must be provided.'},
        ),
    ],
)
async def test_refused_upgrades_are_exact(
    server: CoordinatorServer, target: str, token: str, status: int, body: dict[str, Any]
) -> None:
    with pytest.raises(RefusedUpgrade) as caught:
        async with open_websocket(server, target, token):
            pass
    answer = caught.value.answer
    assert (answer.status, answer.json()) == (status, body)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.headers["connection"] == "close"
    assert server.reading().entrance.refused == 1


async def test_a_channel_outlives_the_deadline_of_the_door(serve: Serve) -> None:
    server = await serve()
    config = server.relay.config
    object.__setattr__(config, "handshake_timeout_seconds", 0.5)
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer, open_connection(server) as silent:
        with pytest.raises(EOFError):
            await read_answer(silent)  # ended by that deadline, which the channel's passed before it
        await settle(peer)


async def test_a_silent_peer_is_ended_and_one_that_answers_is_not(serve: Serve) -> None:
    server = await serve(agent_ping_seconds=0.3, agent_inactive_seconds=0.6)
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as lively,
        open_websocket(server, AGENT_DOOR, agent_token("gpu")) as silent,
    ):
        await silent.read_to_end()
        assert silent.close_code == GOING_AWAY
        assert "no answer to a ping" in silent.close_text
        await settle(lively)
        assert server.reading().channels == 1


async def test_metrics_move_with_what_happens(server: CoordinatorServer) -> None:
    async def scrape() -> dict[str, float]:
        async with open_connection(server) as stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            text = (await read_answer(stream)).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("tailnet_")]
        return {name: float(value) for name, _, value in lines}

    before = await scrape()
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, client_door(MAIN), ALICE) as client,
    ):
        await meet(server, agent_peer, client)
        after = await scrape()
    changed = {name for name in after if after[name] != before[name] and not name.endswith("_created")}
    assert {
        "tailnet_peers",
        "tailnet_tunnels",
        "tailnet_channels",
        "tailnet_agents_connected",
        "tailnet_connects_total",
        "tailnet_requests_total",
        "tailnet_node_updates_total",
        "tailnet_deliveries_total",
    } <= changed
    assert after["tailnet_peers"] == 2


async def test_debug_tells_who_is_here(server: CoordinatorServer) -> None:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, client_door(MAIN), ALICE) as client,
    ):
        _, _, client_id = await meet(server, agent_peer, client)
        async with open_connection(server) as stream:
            target = f"/debug/tailnet?format=json&a={MAIN}&b={type(MAIN)(client_id)}"
            await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            page = (await read_answer(stream)).json()
        assert str(MAIN) in {each["peer_id"] for each in page["peers"]}
        assert "has been told" in page["explanation"][-2]


async def test_the_sessions_own_pings_are_answered(server: CoordinatorServer) -> None:
    limits = SessionLimits(ping_seconds=30.0, pong_seconds=10.0)
    async with open_peer(server, AGENT_DOOR, agent_token("main"), limits=limits) as peer:
        await settle(peer)
        with pytest.raises(Ended):
            await (await peer.open(AGENT + "Nothing")).receive(tailnet.DERPMap)
