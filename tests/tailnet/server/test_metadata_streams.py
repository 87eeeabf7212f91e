"""Metadata over a real server: what an agent reports over its channel reaches whoever watches, by SSE and websocket."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from derp.protocol.websocket import CloseCode
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, defined_document, fill, peer_id, user_token
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, Peer, open_connection, open_peer, wait_for
from tests.support.text_sockets import open_text_socket

MAIN = peer_id("main")
TARGET = f"/api/v2/workspaceagents/{MAIN}/watch-metadata"
ALICE = user_token("alice")
PING_EVENT = b"event: ping"


class Events:
    """The caller's end of an SSE answer: chunks of HTTP, events of lines."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self.head = b""
        self._stream = stream
        self._raw = b""
        self._text = b""

    async def read_head(self) -> None:
        while b"\r\n\r\n" not in self._raw:
            self._raw += await self._stream.receive_some()
        self.head, _, self._raw = self._raw.partition(b"\r\n\r\n")

    async def read(self) -> tuple[str, Any]:
        """The next event that is no ping: its type and its data.  EOFError at the end."""
        event = PING_EVENT
        while event == PING_EVENT:
            while b"\n\n" not in self._text:
                await self._read_chunk()
            event, _, self._text = self._text.partition(b"\n\n")
        kind, data, *_ = event.decode().split("\n")
        assert kind.startswith("event: ")
        assert data.startswith("data: ")
        return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    async def _read_chunk(self) -> None:
        while b"\r\n" not in self._raw:
            self._raw += await self._receive()
        size, _, self._raw = self._raw.partition(b"\r\n")
        count = int(size, 16)
        if not count:
            raise EOFError
        while len(self._raw) < count + 2:
            self._raw += await self._receive()
        self._text += self._raw[:count]
        self._raw = self._raw[count + 2 :]

    async def _receive(self) -> bytes:
        data = bytes(await self._stream.receive_some())
        assert data, "cut off in the middle"
        return data


@asynccontextmanager
async def watching(server: CoordinatorServer) -> AsyncIterator[Events]:
    async with open_connection(server) as stream:
        head = [f"GET {TARGET} HTTP/1.1", "Host: x", "Accept-Encoding: gzip", f"Coder-Session-Token: {ALICE}"]
        await stream.send_all(("\r\n".join(head) + "\r\n\r\n").encode())
        events = Events(stream)
        await events.read_head()
        yield events


async def report(peer: Peer, value: str) -> None:
    result = agent.WorkspaceAgentMetadata.Result(value=value)
    request = agent.BatchUpdateMetadataRequest(metadata=[agent.Metadata(key="cpu", result=result)])
    await peer.call(AGENT + "BatchUpdateMetadata", request, agent.BatchUpdateMetadataResponse)


@pytest.fixture
async def defined(server: CoordinatorServer) -> CoordinatorServer:
    await server.store.run(fill, server.store, defined_document())
    return server


async def test_a_value_reaches_whoever_watches(defined: CoordinatorServer) -> None:
    async with (
        watching(defined) as events,
        open_text_socket(defined, TARGET + "-ws", ALICE) as socket,
        open_peer(defined, AGENT_DOOR, agent_token("main")) as peer,
    ):
        assert events.head.startswith(b"HTTP/1.1 200")
        assert b"content-encoding" not in events.head.lower()
        kind, [cpu, disk] = await events.read()
        first = await socket.read()
        assert (kind, first) == ("data", {"type": "data", "data": [cpu, disk]})
        assert (cpu["description"]["display_name"], cpu["result"]["value"]) == ("CPU", "")
        await report(peer, "42 %")
        while cpu["result"]["value"] != "42 %":
            kind, [cpu, disk] = await events.read()
        assert (kind, cpu["result"]["age"] <= 1, disk["result"]["value"]) == ("data", True, "")  # written behind
        while (await socket.read())["data"][0]["result"]["value"] != "42 %":
            pass
        reading = defined.reading()
        assert (reading.feed_followers["metadata"], reading.feed_drops["metadata", "slow"]) == (2, 0)
    await wait_for(lambda: not defined.metadata.counts.followers)


async def test_an_end_that_says_why(defined: CoordinatorServer) -> None:
    async with watching(defined) as events, open_text_socket(defined, TARGET + "-ws", ALICE) as socket:
        await events.read()
        await socket.read()
        await defined.store.run(defined.store.callers.delete_agent, MAIN)
        why = {"message": "The stream ended.", "detail": "the agent is gone"}
        assert await events.read() == ("error", why)
        with pytest.raises(EOFError):
            await events.read()
        assert await socket.read() == {"type": "error", "data": why}
        assert await socket.end() == (CloseCode.NORMAL, "the agent is gone")


async def test_a_stream_for_listeners_only(defined: CoordinatorServer) -> None:
    async with open_text_socket(defined, TARGET + "-ws", ALICE) as socket:
        await socket.read()
        await socket.write("hello")
        message = await socket.read()
        assert message["type"] == "error"
        code, text = await socket.end()
        assert (code, text) == (CloseCode.PROTOCOL_ERROR, "Clients cannot send messages for one-way WebSockets")
