"""The service's way with calls that wait, and with those that are wrong."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, MANY_DOOR, TAILNET, client_door, open_peer, wait_for

MAIN = peer_id("main")

# --- calls that wait


Unary = Callable[[Any, Any], Awaitable[Any]]


def replace_unary(server: CoordinatorServer, name: str, answer: Unary) -> None:
    table = dict(server.service._unary)
    table[AGENT + name] = answer
    server.service._unary = table


async def test_a_defect_in_a_call_is_its_callers_alone_and_logged(
    server: CoordinatorServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(caller: Any, request: Any) -> Any:
        raise KeyError("a defect")

    replace_unary(server, "GetManifest", broken)
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        call = await peer.stream(AGENT + "GetManifest", agent.GetManifestRequest())
        assert "internal error" in str(await call.wait_ended())
        assert "KeyError" in caplog.text
        assert "defect" not in str(call.error)
        await peer.call(AGENT + "GetServiceBanner", agent.GetServiceBannerRequest(), agent.ServiceBanner)


@pytest.mark.parametrize("how", ["cancel", "hang up"])
async def test_a_call_that_lost_its_caller_is_cancelled(server: CoordinatorServer, how: str) -> None:
    began, cancelled = trio.Event(), trio.Event()

    async def slow(caller: Any, request: Any) -> Any:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    replace_unary(server, "GetManifest", slow)
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        call = await peer.stream(AGENT + "GetManifest", agent.GetManifestRequest())
        await began.wait()
        if how == "cancel":
            await call.cancel()
            with trio.fail_after(60):
                await cancelled.wait()
            await peer.call(AGENT + "GetServiceBanner", agent.GetServiceBannerRequest(), agent.ServiceBanner)
            assert not any(channel.calls for channel in server.channels.open)  # type: ignore[attr-defined]
    with trio.fail_after(60):
        await cancelled.wait()


async def test_a_second_request_of_a_unary_call_is_no_harm(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        call = await peer.open(AGENT + "GetManifest")
        request = agent.GetManifestRequest().SerializeToString()
        for _ in range(3):
            peer.connection.send_message(call.id, request)
        await peer.flush()
        assert (await call.receive(agent.Manifest)).agent_id == MAIN
        await call.wait_ended()
        assert call.waiting() == 0


async def test_while_a_tunnel_is_decided_nothing_is_read_and_the_refused_are_asked_about_once(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    decided = trio.Event()

    def decide(caller: Any, agent_id: bytes) -> Awaitable[bool]:
        async def wait() -> bool:
            await decided.wait()
            return False

        asked.append(agent_id)
        return wait()

    monkeypatch.setattr(server.service, "_authorise", decide)
    async with open_peer(server, MANY_DOOR, user_token("alice")) as client:
        call = await client.coordinate()
        for _ in range(3):
            request = tailnet.CoordinateRequest(add_tunnel={"id": MAIN})
            client.connection.send_message(call.id, request.SerializeToString())
        await client.flush()
        await wait_for(lambda: asked)
        [channel] = server.channels.open
        assert channel.wire.paused  # type: ignore[attr-defined]
        decided.set()
        assert "you do not have permission" in await call.error_text()
        assert await call.wait_ended() is None
        assert not channel.wire.paused  # type: ignore[attr-defined]
        assert asked == [MAIN]


@pytest.mark.parametrize("how", ["one request", "two requests", "no goodbye"])
async def test_a_goodbye_behind_a_tunnel_that_is_being_decided_is_one(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, MANY_DOOR, user_token("alice")) as client,
    ):
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        await mine.update(agent_peer.node(MAIN))
        await theirs.update(client.node(peer_id("client")))
        await theirs.tunnel(MAIN)
        await mine.next_node()

        async def never() -> bool:
            await trio.sleep_forever()
            return False

        monkeypatch.setattr(server.service, "_authorise", lambda caller, agent_id: never())
        goodbye = {"disconnect": {}} if how == "one request" else {}
        requests = [tailnet.CoordinateRequest(add_tunnel={"id": peer_id("gpu")}, **goodbye)]
        if how == "two requests":
            requests.append(tailnet.CoordinateRequest(disconnect={}))
        for each in requests:
            client.connection.send_message(theirs.id, each.SerializeToString())
        client.connection.close(theirs.id)
        await client.flush()
        kinds = tailnet.CoordinateResponse.PeerUpdate.Kind
        assert (await mine.next()).kind == (kinds.LOST if how == "no goodbye" else kinds.DISCONNECTED)


async def test_a_map_stream_that_nobody_reads_is_ended(server: CoordinatorServer) -> None:
    async with open_peer(server, client_door(MAIN), user_token("alice")) as client:
        call = await client.stream(TAILNET + "StreamDERPMaps", tailnet.StreamDERPMapsRequest())
        await call.receive(tailnet.DERPMap)
        # Its window is used up, as of a client that does not read; the next map finds no place.
        [channel] = server.channels.open
        session = channel.connection.session  # type: ignore[attr-defined]
        assert session.send_data(call.id, [bytes(300 * 1024)])
        while session.send_data(call.id, [bytes(1024 * 1024)]):
            pass
        server.maps.steer(avoid=[999])
        await wait_for(lambda: not channel.calls)  # type: ignore[attr-defined]
