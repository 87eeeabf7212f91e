"""The webhook of a running server: what agents do reaches a receiver, also over a restart of either."""

import json
from dataclasses import replace
from typing import Any

import trio

from tailnet.config import WebhookTarget
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.server.server import CoordinatorServer
from tailnet.store.rows import Role
from tests.support.receivers import Receiver, answer
from tests.support.seeds import NOW, agent_token, defined_document, fill, make_id, user_token
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, Peer, open_connection, open_peer, read_answer
from tests.tailnet.conftest import Serve

SECRETS = (b"s" * 32,)
EDITOR = make_id("editor of main")


def told(receiver: Receiver) -> list[str]:
    return [json.loads(message.body)["type"] for message in receiver.messages]


async def report(peer: Peer) -> None:
    """Everything that the control plane is told of."""
    for state in (agent.Lifecycle.STARTING, agent.Lifecycle.START_ERROR, agent.Lifecycle.READY):
        request = agent.UpdateLifecycleRequest(lifecycle=agent.Lifecycle(state=state))
        await peer.call(AGENT + "UpdateLifecycle", request, agent.Lifecycle)
    stats = agent.UpdateStatsRequest(stats=agent.Stats(connection_count=2, rx_bytes=7))
    await peer.call(AGENT + "UpdateStats", stats, agent.UpdateStatsResponse)
    update = agent.BatchUpdateAppHealthRequest.HealthUpdate(id=EDITOR.bytes, health=agent.AppHealth.HEALTHY)
    healths = agent.BatchUpdateAppHealthRequest(updates=[update])
    await peer.call(AGENT + "BatchUpdateAppHealths", healths, agent.BatchUpdateAppHealthResponse)


async def test_what_an_agent_does_is_told_and_kept(serve: Serve, nursery: trio.Nursery) -> None:
    receiver = Receiver()
    await nursery.start(receiver.serve)
    server = await serve(webhook=WebhookTarget(receiver.url, SECRETS))
    await server.store.run(fill, server.store, defined_document())
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        await report(peer)
    with trio.fail_after(60):
        await receiver.wait_messages(6)
    expected = {"connected", "disconnected", "start_failed", "ready", "stats", "app_health"}
    assert set(told(receiver)) == {f"agent.{name}" for name in expected}
    assert len(set(told(receiver))) == len(told(receiver)) == 6
    assert told(receiver)[0] == "agent.connected"
    await server.store.run(lambda: server.store.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN))
    events = await poll(server)
    assert {event["id"] for event in events} == {message.headers["webhook-id"] for message in receiver.messages}
    reading = server.reading()
    assert (reading.webhook_tries["taken"], reading.webhook_waiting, reading.webhook_gone) == (6, 0, False)


async def poll(server: CoordinatorServer) -> list[Any]:
    async with open_connection(server) as stream:
        head = ["GET /api/v2/admin/events HTTP/1.1", "Host: x", f"Coder-Session-Token: {user_token('alice')}"]
        await stream.send_all(("\r\n".join(head) + "\r\n\r\n").encode())
        response = await read_answer(stream)
    assert response.status == 200, response.body
    events: list[Any] = response.json()["events"]
    return events


async def test_what_waits_survives_a_restart(filled_url: str, serve: Serve, nursery: trio.Nursery) -> None:
    receiver = Receiver(respond=lambda message: answer(500))
    await nursery.start(receiver.serve)
    settings: dict[str, Any] = {"webhook": WebhookTarget(receiver.url, SECRETS)}
    server = await serve(**settings)
    async with open_peer(server, AGENT_DOOR, agent_token("main")):
        with trio.fail_after(60):
            await receiver.wait_messages(1)
    await server.drain()
    first = receiver.messages[0].headers["webhook-id"]
    receiver.messages.clear()
    receiver.respond = lambda message: answer(200)
    await serve(**settings)
    with trio.fail_after(60):
        await receiver.wait_messages(2)
    assert receiver.messages[0].headers["webhook-id"] == first
    assert told(receiver) == ["agent.connected", "agent.disconnected"]


async def test_settings_that_are_read_again(serve: Serve, nursery: trio.Nursery) -> None:
    receiver = Receiver()
    await nursery.start(receiver.serve)
    found: list[Any] = []

    def reread() -> Any:
        return found[0]

    server = await serve(reread)
    async with open_peer(server, AGENT_DOOR, agent_token("main")):
        assert not server.events.is_on
    given = {"webhook_url": receiver.url, "webhook_secret_file": "x"}
    found.append(
        replace(server.config, webhook=WebhookTarget(receiver.url, SECRETS), given={**server.config.given, **given})
    )
    server.reload()
    assert server.events.is_on
    async with open_peer(server, AGENT_DOOR, agent_token("main")):
        with trio.fail_after(60):
            await receiver.wait_messages(1)
    assert told(receiver)[0] == "agent.connected"
