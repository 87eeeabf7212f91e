"""Pings of keys through a real relay: answered, silent, absent; and what is no ping of ours is left alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from derp.client.client import DerpClient, open_derp_client
from derp.client.ping import Presence, answer_pings, ping_peer
from derp.config import RelayConfig
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from derp.server.server import RelayServer, serve_relay

ABSENT = NodePrivate(b"\x09" * 32).public().raw


@asynccontextmanager
async def relay() -> AsyncIterator[str]:
    config = RelayConfig(NodePrivate.generate(), listen=(("127.0.0.1", 0),), stun_enabled=False)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            server: RelayServer = await nursery.start(serve_relay, config)
            yield f"http://127.0.0.1:{server.listening[0].port}"
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[DerpClient, DerpClient, bytes]]:
    """Two clients of one relay, and the key of the second."""
    private = NodePrivate.generate()
    async with (
        relay() as url,
        open_derp_client(url, NodePrivate.generate()) as asking,
        open_derp_client(url, private) as asked,
    ):
        yield asking, asked, private.public().raw


async def test_a_peer_that_answers_gives_a_round_trip() -> None:
    async with pair() as (asking, asked, key), trio.open_nursery() as nursery:
        nursery.start_soon(answer_pings, asked)
        result = await ping_peer(asking, key, 10)
        assert result.presence is Presence.ANSWERED
        assert result.seconds is not None
        assert 0 < result.seconds < 10
        nursery.cancel_scope.cancel()


async def test_an_absent_key_is_known_at_once_and_a_silent_one_after_the_timeout() -> None:
    async with pair() as (asking, asked, key):
        assert (await ping_peer(asking, ABSENT, 10)).presence is Presence.ABSENT
        silent = await ping_peer(asking, key, 0.05)
        assert (silent.presence, silent.seconds) == (Presence.SILENT, None)
        # It did arrive, looking like disco, which genuine nodes drop when they do not know the sender.
        received = await asked.receive()
        assert isinstance(received, RecvPacket)
        assert received.packet[:6] == b"TS\xf0\x9f\x92\xac"
        assert len(received.packet) == 62


async def test_late_and_foreign_packets_are_not_taken_for_the_answer() -> None:
    async with pair() as (asking, asked, key), trio.open_nursery() as nursery:
        assert (await ping_peer(asking, key, 0.05)).presence is Presence.SILENT
        first = await asked.receive()
        assert isinstance(first, RecvPacket)
        # A late answer to the first ping, and anything else, before the answer to the second.
        await asked.send(first.src, first.packet.replace(b"request", b"answer\0"))
        await asked.send(first.src, b"something else")
        nursery.start_soon(answer_pings, asked)
        assert (await ping_peer(asking, key, 10)).presence is Presence.ANSWERED
        assert asking.statistics().packets_received == 3
        nursery.cancel_scope.cancel()


async def test_only_pings_are_answered() -> None:
    async with pair() as (asking, asked, key), trio.open_nursery() as nursery:
        nursery.start_soon(answer_pings, asked)
        await asking.send(key, b"TS\xf0\x9f\x92\xac" + b"derp ping request".ljust(32, b"\0"))  # too short
        await asking.send(key, b"x" * 62)
        assert (await ping_peer(asking, key, 10)).presence is Presence.ANSWERED
        assert asking.statistics().packets_received == 1
        nursery.cancel_scope.cancel()
