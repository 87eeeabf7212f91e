"""A relay of several real processes, seen by clients on real sockets."""

from pathlib import Path

from derp.protocol.messages import PeerGone, RecvPacket
from tests.derp.server.workers_world import call_many, open_workers

# All on one of two workers: once in 2,000 runs, and then a test is only weaker.
MANY = 12


async def test_clients_of_different_workers_talk(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers:
        for caller in callers:
            for other in callers:
                await caller.send(other.key, b"from", caller.key[:4])
        for caller in callers:
            got = [await caller.receive_a(RecvPacket) for _ in range(2 * MANY)]
            for other in callers:
                assert [one.packet for one in got if one.src == other.key] == [b"from", other.key[:4]]


async def test_whoever_heard_of_a_client_is_told_when_it_leaves(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers:
        leaver, *others = callers
        for caller in others:
            await leaver.send(caller.key, b"hello")
            assert (await caller.receive_a(RecvPacket)).src == leaver.key
        await leaver.aclose()
        for caller in others:
            assert (await caller.receive_a(PeerGone)).key == leaver.key
