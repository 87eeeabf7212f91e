"""What a coordinator is told of connections: nothing unless asked to, and no addresses."""

import pytest
import trio
import trio.testing

from derp.transport.websocket import WebSocketStream
from tailnet.client.rpc import RpcClient
from tailnet.client.telemetry import MAX_WAITING, Telemetry, describe_endpoint
from tailnet.errors import RpcError, Unimplemented
from tailnet.node.membership import open_agent, open_client
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.rpc.connection import ConnectionEvent
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.tailnet_driver import wait_for
from tests.tailnet.client.test_rpc import Scripted, url_of

MAIN = peer_id("main")
PATIENCE_SECONDS = 60
KEY, PEER = b"k" * 32, b"p" * 32


@pytest.mark.parametrize("name", ["", "notebook"])
async def test_a_coordinator_is_told_only_of_those_who_want_that(server: CoordinatorServer, name: str) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_agent(url_of(server), agent_token("main"), MAIN):
            async with open_client(url_of(server), user_token("alice"), MAIN, telemetry=name) as client:
                await client.ping()
                if name:  # it answered, and did so directly
                    await wait_for(lambda: server.service.telemetry_events == 2)
            assert server.service.telemetry_events == (3 if name else 0)
            assert server.service.telemetry_unreadable == 0


async def test_what_is_told(nursery: trio.Nursery) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        server, client = await a_connection(nursery)
        telemetry = Telemetry("n" * 100, KEY)
        telemetry.disconnected()  # of what was never connected nothing is told
        telemetry.connected(PEER, 7, 0.25)
        telemetry.direct("192.0.2.9", 41641, 0.5)
        telemetry.disconnected()
        nursery.start_soon(telemetry.post, client)
        call_id, payload = await next_request(server)
        server.core.reply(call_id, tailnet.TelemetryResponse().SerializeToString())
        await server.flush()
        await telemetry.wait_posted()
    first, second, third = tailnet.TelemetryRequest.FromString(payload).events
    assert (first.application, first.home_derp, first.derp_latency.nanos) == ("n" * 64, 7, 250_000_000)
    assert first.node_id_self == int.from_bytes(b"k" * 7, "big") != first.node_id_remote
    assert (second.p2p_endpoint.port, second.p2p_latency.nanos) == (41641, 500_000_000)
    assert (first.status, second.status, third.status) == (0, 0, 1)
    assert b"192.0.2.9" not in payload
    assert bytes((192, 0, 2, 9)) not in payload


@pytest.mark.parametrize(("error", "goes_on"), [(Unimplemented(), False), (RpcError("not now"), True)])
async def test_a_coordinator_that_takes_none(nursery: trio.Nursery, error: RpcError, goes_on: bool) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        server, client = await a_connection(nursery)
        telemetry = Telemetry("notebook", KEY)
        telemetry.connected(PEER, 7, None)
        nursery.start_soon(telemetry.post, client)
        call_id, _ = await next_request(server)
        server.core.send_error(call_id, error)
        await server.flush()
        await telemetry.wait_posted()
        assert telemetry.is_on == goes_on
        telemetry.connected(PEER, 7, None)
        assert len(telemetry._waiting) == goes_on


async def test_what_waits_is_bounded() -> None:
    telemetry = Telemetry("notebook", KEY)
    for number in range(MAX_WAITING + 5):
        telemetry.connected(PEER, number, None)
    assert [event.home_derp for event in telemetry._waiting] == list(range(5, MAX_WAITING + 5))


@pytest.mark.parametrize(
    ("host", "version", "kind"),
    [("8.8.8.8", 4, 0), ("10.0.0.1", 4, 1), ("fe80::1", 6, 2), ("127.0.0.1", 4, 3), ("2606:4700::1", 6, 0)],
)
def test_kinds_of_addresses(host: str, version: int, kind: int) -> None:
    described = describe_endpoint(host, 5)
    assert (described.fields.version, getattr(described.fields, "class")) == (version, kind)
    assert len(described.hash) == 64


async def a_connection(nursery: trio.Nursery) -> tuple[Scripted, RpcClient]:
    ours, theirs = trio.testing.memory_stream_pair()
    server, client = Scripted(theirs), RpcClient(WebSocketStream(ours))
    nursery.start_soon(client.run)
    return server, client


async def next_request(server: Scripted) -> tuple[int, bytes]:
    """The next call, with what it asks."""
    while True:
        for kind, call_id, value in server.core.receive_data(await server.stream.receive_some()):
            if kind is ConnectionEvent.MESSAGE:
                return call_id, bytes(value)
