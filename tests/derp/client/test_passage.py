"""Packets of our own through a relay: they pass, their delays, a burst; and what happens when they do not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from derp.client import passage as passages
from derp.client.client import DerpClient, open_derp_client
from derp.client.dial import DialOptions
from derp.client.passage import Passage, PassageError
from derp.errors import ConnectionClosed
from derp.keys import NodePrivate
from tests.support.inprocess import HOST, PATIENCE_SECONDS, open_relay_here, port_of

ABSENT = NodePrivate(b"\x09" * 32)


@asynccontextmanager
async def open_passage(receiver: NodePrivate | None = None) -> AsyncIterator[Passage]:
    """Two clients of one relay; `receiver`: whom packets are sent to, if not the second client."""
    keys = NodePrivate.generate(), NodePrivate.generate()
    options = DialOptions(environment=None)
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_relay_here(tls=False, stun_enabled=False) as server:
            url = f"http://{HOST}:{port_of(server)}"
            async with (
                open_derp_client(url, keys[0], options=options) as near,
                open_derp_client(url, keys[1], options=options) as far,
            ):
                yield Passage(near, far, keys[0], receiver or keys[1])


async def test_the_first_packet_arrives() -> None:
    async with open_passage() as passage:
        assert 0 < await passage.first_packet() < PATIENCE_SECONDS


async def test_one_client_can_send_to_itself() -> None:
    key = NodePrivate.generate()
    async with open_relay_here(tls=False, stun_enabled=False) as server:
        url = f"http://{HOST}:{port_of(server)}"
        async with open_derp_client(url, key, options=DialOptions(environment=None)) as both:
            with trio.fail_after(PATIENCE_SECONDS):
                assert await Passage(both, both, key, key).first_packet() > 0


async def test_every_packet_of_a_train_has_its_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "INTERVAL_SECONDS", 0.001)
    async with open_passage() as passage:
        delays = await passage.delays(15)
    assert len(delays) == 15
    assert all(delay > 0 for delay in delays)


@pytest.mark.parametrize("size", [1, 65536, 65537, 3_000_000])
async def test_a_burst_arrives_whole(size: int) -> None:
    async with open_passage() as passage:
        burst = await passage.burst(size)
    assert not burst.stalled
    assert burst.sent_packets == burst.received_packets == -(-size // 65536)
    assert size <= burst.received_bytes <= size + 11
    assert burst.seconds > 0


async def test_a_receiver_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INTERVAL_SECONDS", "FIRST_PACKET_SECONDS", "LATE_SECONDS", "STALL_SECONDS"):
        monkeypatch.setattr(passages, name, 0.05)
    async with open_passage(ABSENT) as passage:
        with pytest.raises(PassageError, match=r"none of \d+ packets arrived within 0.05 s"):
            await passage.first_packet()
        assert await passage.delays(2) == []
        burst = await passage.burst(3_000_000)
    assert burst.stalled
    assert burst.received_packets == 0
    assert burst.sent_packets == passages.WINDOW_PACKETS


async def test_a_relay_that_goes_away_is_told_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "FIRST_PACKET_SECONDS", PATIENCE_SECONDS)
    keys = NodePrivate.generate(), NodePrivate.generate()
    options = DialOptions(environment=None)
    async with open_relay_here(tls=False, stun_enabled=False) as server:
        url = f"http://{HOST}:{port_of(server)}"
        near = await _client(url, keys[0], options)
        async with open_derp_client(url, keys[1], options=options) as far:
            passage = Passage(near, far, keys[0], ABSENT)
            with pytest.raises(ConnectionClosed):
                await passage.first_packet()


async def _client(url: str, key: NodePrivate, options: DialOptions) -> DerpClient:
    """A client whose connection has ended."""
    async with open_derp_client(url, key, options=options) as client:
        pass
    return client
