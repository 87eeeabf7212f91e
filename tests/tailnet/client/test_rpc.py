"""One RPC connection from the dialling side, against a real coordinator and against servers that misbehave."""

from functools import partial

import pytest
import trio
from google.protobuf.empty_pb2 import Empty

from derp.errors import ConfigError, ConnectError, TransportError
from derp.transport.websocket import WebSocketStream
from tailnet.client import rpc as rpc_module
from tailnet.client.coordination import AGENT_DOOR, client_door
from tailnet.client.rpc import MAX_UNREAD, RpcClient, open_rpc_client
from tailnet.errors import CODE_UNIMPLEMENTED, RpcError
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.proto.services import AGENT, TAILNET
from tailnet.rpc.connection import ConnectionEvent, ServerConnection
from tailnet.rpc.yamux import SessionLimits
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token

MAIN = peer_id("main")
MANIFEST = "/coder.agent.v2.Agent/GetManifest"
MAPS = "/coder.tailnet.v2.Tailnet/StreamDERPMaps"


def url_of(server: CoordinatorServer) -> str:
    return f"http://{server.listening[0].host}:{server.listening[0].port}"


async def test_a_call_and_a_stream_on_one_connection(server: CoordinatorServer) -> None:
    with trio.fail_after(30):
        async with open_rpc_client(url_of(server), AGENT_DOOR, agent_token("main")) as client:
            maps = await client.open(MAPS, tailnet.StreamDERPMapsRequest(), tailnet.DERPMap)
            manifest = await client.call(MANIFEST, agent.GetManifestRequest(), agent.Manifest)
            assert manifest.agent_id == MAIN
            assert 999 in (await maps.receive()).regions


async def test_many_tasks_share_a_connection(server: CoordinatorServer) -> None:
    got: list[bytes] = []

    async def ask(client: RpcClient) -> None:
        got.append((await client.call(MANIFEST, agent.GetManifestRequest(), agent.Manifest)).agent_id)

    with trio.fail_after(30):
        address = url_of(server), AGENT_DOOR, agent_token("main")
        async with open_rpc_client(*address) as client, trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask, client)
    assert got == [MAIN] * 50


async def test_an_rpc_that_the_door_does_not_serve(server: CoordinatorServer) -> None:
    with trio.fail_after(30):
        async with open_rpc_client(url_of(server), client_door(MAIN), user_token("alice")) as client:
            with pytest.raises(RpcError) as caught:
                await client.call(MANIFEST, agent.GetManifestRequest(), agent.Manifest)
    assert caught.value.code == CODE_UNIMPLEMENTED


async def test_a_wrong_token_is_refused_and_not_shown(server: CoordinatorServer) -> None:
    with trio.fail_after(30), pytest.raises(ConnectError, match="401") as caught:
        async with open_rpc_client(url_of(server), AGENT_DOOR, "no-such-token"):
            raise AssertionError
    assert "no-such-token" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "tailnet.example.org", "ftp://x", "ws://x", "http://u:p@x"])
async def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError):
        async with open_rpc_client(url, AGENT_DOOR, "t"):
            raise AssertionError


async def test_nobody_listens() -> None:
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with trio.fail_after(30), pytest.raises(TransportError, match="nothing listens"):
            async with open_rpc_client(f"http://127.0.0.1:{port}", AGENT_DOOR, "t"):
                raise AssertionError


class Scripted:
    """A server's end in the test's hands: it reads calls and answers what the test says."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = WebSocketStream(stream, is_client=False)
        self.core = ServerConnection({**TAILNET, **AGENT}, now=0.0, limits=SessionLimits(ping_seconds=None))

    async def next_call(self) -> int:
        """The id of the next call whose request has come."""
        while True:
            for kind, call_id, _ in self.core.receive_data(await self.stream.receive_some()):
                if kind is ConnectionEvent.MESSAGE:
                    return call_id

    async def flush(self) -> None:
        await self.stream.send_all(b"".join(self.core.data_to_send()))


async def test_whoever_hangs_up_ends_the_calls_in_hand(nursery: trio.Nursery) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server, client = Scripted(theirs), RpcClient(WebSocketStream(ours))
    nursery.start_soon(client.run)
    with trio.fail_after(30):
        call = await client.open(MAPS, tailnet.StreamDERPMapsRequest(), tailnet.DERPMap)
        await server.next_call()
        await server.stream.aclose()
        with pytest.raises(RpcError, match="closed the connection"):
            await call.receive()
        with pytest.raises(TransportError, match="closed the connection"):
            await client.call(MANIFEST, agent.GetManifestRequest(), agent.Manifest)


async def test_a_server_that_breaks_the_protocol(nursery: trio.Nursery) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server, client = Scripted(theirs), RpcClient(WebSocketStream(ours))
    nursery.start_soon(client.run)
    with trio.fail_after(30):
        call = await client.open(MAPS, tailnet.StreamDERPMapsRequest(), tailnet.DERPMap)
        await server.next_call()
        await server.stream.send_all(b"\xff" * 12)
        with pytest.raises(RpcError, match="version"):
            await call.receive()


async def test_an_answer_that_is_no_message(nursery: trio.Nursery) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server, client = Scripted(theirs), RpcClient(WebSocketStream(ours))
    nursery.start_soon(client.run)
    with trio.fail_after(30):
        call = await client.open(MAPS, tailnet.StreamDERPMapsRequest(), tailnet.DERPMap)
        server.core.send_message(await server.next_call(), b"\xff\xff")
        await server.flush()
        with pytest.raises(RpcError, match="no DERPMap"):
            await call.receive()


async def test_a_server_that_does_not_answer(nursery: trio.Nursery) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    client = RpcClient(WebSocketStream(ours))
    nursery.start_soon(client.run)
    nursery.start_soon(Scripted(theirs).next_call)
    with trio.fail_after(30), pytest.raises(TransportError, match=r"0\.05 s"):
        await client.call(MANIFEST, agent.GetManifestRequest(), agent.Manifest, timeout_seconds=0.05)


async def test_answers_that_nobody_reads_end_their_call_alone(nursery: trio.Nursery) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server, client = Scripted(theirs), RpcClient(WebSocketStream(ours))
    nursery.start_soon(client.run)
    message = tailnet.DERPMap().SerializeToString()
    with trio.fail_after(30):
        unread = await client.open(MAPS, tailnet.StreamDERPMapsRequest(), tailnet.DERPMap)
        call_id = await server.next_call()
        for _ in range(MAX_UNREAD + 1):
            assert server.core.send_message(call_id, message)
        await server.flush()
        nursery.start_soon(partial(_answer_empty, server))
        await client.call(MANIFEST, agent.GetManifestRequest(), Empty)
        for _ in range(MAX_UNREAD):
            await unread.receive()
        with pytest.raises(RpcError, match="not read"):
            await unread.receive()


async def _answer_empty(server: Scripted) -> None:
    server.core.reply(await server.next_call(), b"")
    await server.flush()


async def test_a_silent_server_is_given_up(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server, client = Scripted(theirs), RpcClient(WebSocketStream(ours))
    nursery.start_soon(client.run)
    with trio.fail_after(3 * rpc_module._LIMITS.pong_seconds):
        call = await client.open(MAPS, tailnet.StreamDERPMapsRequest(), tailnet.DERPMap)
        await server.next_call()
        with pytest.raises(RpcError):
            await call.receive()
