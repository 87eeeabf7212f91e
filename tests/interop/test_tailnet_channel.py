"""The client side of our RPC channel against a server on the genuine yamux and dRPC, over TCP."""

import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from subprocess import PIPE

import pytest
import trio
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message

from tailnet.errors import CODE_UNIMPLEMENTED, RpcError
from tailnet.proto.generated import agent_pb2 as agentpb
from tailnet.proto.generated import tailnet_pb2 as pb
from tailnet.rpc.connection import ClientConnection, ConnectionEvent
from tests.support.gobuild import TAILNET_RPC_SERVER
from tests.support.peers import PATIENCE_SECONDS, require
from tests.support.tailnet_peers import AGENT, TAILNET, TailnetPeers

pytestmark = pytest.mark.interop


@dataclass(slots=True)
class Channel:
    """Our client core on a TCP stream; gives (event, value) for one call after another."""

    stream: trio.SocketStream
    connection: ClientConnection = field(default_factory=lambda: ClientConnection(now=0.0))
    others: list[tuple[ConnectionEvent, int, object]] = field(default_factory=list)
    closed: bool = False

    async def flush(self) -> None:
        while self.connection.has_output:
            for piece in self.connection.data_to_send():
                with suppress(trio.BrokenResourceError):  # told by the next receive
                    await self.stream.send_all(piece)

    async def event(self, call_id: int) -> tuple[ConnectionEvent, object]:
        """The next event of a call; those of others wait their turn."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                for index, (kind, ident, value) in enumerate(self.others):
                    if ident == call_id:
                        del self.others[index]
                        return kind, value
                await self.flush()
                data = b""
                if not self.closed:
                    with suppress(trio.BrokenResourceError):  # a server that closes with bytes unread resets
                        data = await self.stream.receive_some(65536)
                self.closed = not data
                self.others += self.connection.receive_data(data) if data else self.connection.receive_eof()
                await self.flush()

    async def message(self, call_id: int) -> bytes:
        kind, value = await self.event(call_id)
        assert kind is ConnectionEvent.MESSAGE, (kind, value)
        assert isinstance(value, bytes)
        return value

    async def ended(self, call_id: int) -> object:
        """The value of the ENDED event, which must be next but for the server's half close."""
        kind, value = await self.event(call_id)
        if kind is ConnectionEvent.HALF_CLOSED:
            kind, value = await self.event(call_id)
        assert kind is ConnectionEvent.ENDED, (kind, value)
        return value

    async def unary(self, path: str, request: Message) -> bytes:
        """Call, take the answer, be done as a genuine client is."""
        call_id = self.connection.call(path, request.SerializeToString())
        answer = await self.message(call_id)
        self.connection.close(call_id)
        await self.flush()
        return answer

    async def fails(self, path: str, request: Message) -> RpcError:
        error = await self.ended(self.connection.call(path, request.SerializeToString()))
        assert isinstance(error, RpcError)
        return error


@asynccontextmanager
async def open_channel() -> AsyncIterator[Channel]:
    process = await trio.lowlevel.open_process([str(require(TAILNET_RPC_SERVER))], stdout=PIPE)
    assert process.stdout is not None
    try:
        printed = b""
        with trio.fail_after(PATIENCE_SECONDS):
            while not (found := re.search(rb"listening on 127\.0\.0\.1:(\d+)\n", printed)):
                printed += await process.stdout.receive_some(4096)
            stream = await trio.open_tcp_stream("127.0.0.1", int(found.group(1)))
        async with stream:
            yield Channel(stream)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


@pytest.fixture
async def channel() -> AsyncIterator[Channel]:
    async with open_channel() as opened:
        yield opened


async def token(channel: Channel) -> str:
    answer = await channel.unary(TAILNET + "RefreshResumeToken", pb.RefreshResumeTokenRequest())
    return pb.RefreshResumeTokenResponse.FromString(answer).token


async def test_unary_calls_one_after_the_other(channel: Channel) -> None:
    for _ in range(300):  # beyond the backlog of 256 streams, should any be left open
        assert await token(channel) == "T"


async def test_unary_calls_side_by_side(channel: Channel) -> None:
    calls = [channel.connection.call(TAILNET + "RefreshResumeToken", b"") for _ in range(200)]
    for call_id in reversed(calls):
        assert pb.RefreshResumeTokenResponse.FromString(await channel.message(call_id)).token == "T"
        channel.connection.close(call_id)


async def test_errors_keep_code_and_text(channel: Channel) -> None:
    error = await channel.fails(TAILNET + "PostTelemetry", pb.TelemetryRequest(events=[pb.TelemetryEvent()] * 3))
    assert (error.code, error.text) == (1003, "3 events")
    assert await token(channel) == "T"


async def test_unknown_rpcs(channel: Channel) -> None:
    for path in (AGENT + "NoSuch", AGENT + "GetServiceBanner"):  # not in the table; in it, and not implemented
        error = await channel.fails(path, agentpb.GetServiceBannerRequest())
        assert error.code == CODE_UNIMPLEMENTED


async def test_empty_messages(channel: Channel) -> None:
    assert await channel.unary(AGENT + "UpdateLifecycle", agentpb.UpdateLifecycleRequest()) == b""


async def test_bidirectional_call_ends_when_the_server_says(channel: Channel) -> None:
    connection = channel.connection
    call_id = connection.open_call(TAILNET + "Coordinate")
    for size in (0, 1, 65_535, 65_536, 65_537, 300_000):
        node = pb.Node(short_description="n" * size)
        request = pb.CoordinateRequest(update_self=pb.CoordinateRequest.UpdateSelf(node=node))
        assert connection.send_message(call_id, request.SerializeToString())
        answer = pb.CoordinateResponse.FromString(await channel.message(call_id))
        assert answer.peer_updates[0].node == node
    tunnel = pb.CoordinateRequest(add_tunnel=pb.CoordinateRequest.Tunnel(id=bytes(16)))
    connection.send_message(call_id, tunnel.SerializeToString())
    assert pb.CoordinateResponse.FromString(await channel.message(call_id)).error == "hi"
    disconnect = pb.CoordinateRequest(disconnect=pb.CoordinateRequest.Disconnect())
    connection.send_message(call_id, disconnect.SerializeToString())
    assert await channel.ended(call_id) is None
    assert await token(channel) == "T"


async def test_server_stream(channel: Channel) -> None:
    call_id = channel.connection.call(TAILNET + "StreamDERPMaps", b"")
    counts = [len(pb.DERPMap.FromString(await channel.message(call_id)).regions) for _ in range(3)]
    assert counts == [0, 1, 20_000]
    assert await channel.ended(call_id) is None


async def test_server_stream_that_fails_later(channel: Channel) -> None:
    call_id = channel.connection.call(TAILNET + "WorkspaceUpdates", b"")
    assert await channel.message(call_id) == b""
    error = await channel.ended(call_id)
    assert isinstance(error, RpcError)
    assert (error.code, error.text) == (7, "no more")


async def test_large_answers_and_requests_pass_the_windows(channel: Channel) -> None:
    for _ in range(3):  # 9 MiB in all: the window is given back
        manifest = agentpb.Manifest.FromString(await channel.unary(AGENT + "GetManifest", agentpb.GetManifestRequest()))
        assert manifest.directory == "d" * (3 << 20)
        logs = agentpb.BatchCreateLogsRequest(logs=[agentpb.Log(output="x" * 1000)] * 3000)
        answer = await channel.unary(AGENT + "BatchCreateLogs", logs)
        assert agentpb.BatchCreateLogsResponse.FromString(answer).log_limit_exceeded


async def test_a_cancelled_call_is_cancelled_there_too(channel: Channel) -> None:
    waiting = [channel.connection.call(AGENT + "CreateSubAgent", b"") for _ in range(5)]
    assert await token(channel) == "T"
    for call_id in waiting:
        channel.connection.cancel(call_id)
    with trio.fail_after(PATIENCE_SECONDS):
        while True:  # the server learns of it on its own time
            answer = await channel.unary(AGENT + "ListSubAgents", agentpb.ListSubAgentsRequest())
            if len(agentpb.ListSubAgentsResponse.FromString(answer).agents) == len(waiting):
                break


async def test_pings(channel: Channel) -> None:
    channel.connection.ping(0xABCD)
    assert await channel.event(0) == (ConnectionEvent.PONG, 0xABCD)


async def test_go_away_is_told_and_calls_in_hand_go_on(channel: Channel) -> None:
    call_id = channel.connection.open_call(TAILNET + "Coordinate")
    await channel.unary(AGENT + "UpdateAppStatus", agentpb.UpdateAppStatusRequest())
    kind, _ = await channel.event(0)
    assert kind is ConnectionEvent.GO_AWAY
    tunnel = pb.CoordinateRequest(add_tunnel=pb.CoordinateRequest.Tunnel(id=bytes(16)))
    channel.connection.send_message(call_id, tunnel.SerializeToString())
    assert pb.CoordinateResponse.FromString(await channel.message(call_id)).error == "hi"


async def test_the_end_of_the_session_ends_its_calls(channel: Channel) -> None:
    waiting = channel.connection.open_call(TAILNET + "Coordinate")
    request = agentpb.DeleteSubAgentRequest()
    ending = channel.connection.call(AGENT + "DeleteSubAgent", request.SerializeToString())
    await channel.flush()
    assert isinstance(await channel.ended(waiting), RpcError)
    assert isinstance(await channel.ended(ending), RpcError)


def bare(file: FileDescriptorProto) -> FileDescriptorProto:
    """Without what one generator writes down and the other derives."""
    file.ClearField("options")
    waiting = list(file.message_type)
    while waiting:
        message = waiting.pop()
        waiting += message.nested_type
        for each in message.field:
            each.ClearField("json_name")
    return file


@pytest.mark.parametrize(("name", "ours"), [("tailnet", pb.DESCRIPTOR), ("agent", agentpb.DESCRIPTOR)])
async def test_the_go_peers_have_the_schema_of_today(program: TailnetPeers, name: str, ours: FileDescriptor) -> None:
    # Should this fail: run tests/interop/go_tailnet/generate.
    theirs = FileDescriptorProto.FromString(base64.b64decode((await program.ask("schema", "any"))[name]))
    mine = FileDescriptorProto.FromString(ours.serialized_pb)
    assert bare(theirs) == bare(mine)
