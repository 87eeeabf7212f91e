"""The agent's side of a speed test: against our client, several at once, and with clients that ask for nonsense."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import trio

from tailnet.agent import speedtest
from tailnet.agent.ports import Service
from tailnet.agent.speedtest import MAX_TESTS, SpeedtestServer, Wish, read_wish
from tailnet.errors import RemoteProtocolError
from tailnet.node.speedtest import BLOCK_BYTES, SPEEDTEST_PORT, measure
from tailnet.node.streams import TunnelStream
from tests.support.agents import Served, served

NANOSECONDS = 1_000_000_000


@asynccontextmanager
async def speedtests() -> AsyncIterator[Served]:
    async with served(SPEEDTEST_PORT, Service("speedtest", SpeedtestServer().serve)) as agent:
        yield agent


async def ask(stream: TunnelStream, text: str) -> Any:
    await stream.send_all(text.encode() + b"\n")
    line = b""
    while not line.endswith(b"\n"):
        line += await stream.receive_some(1)
    return json.loads(line)


def wish(seconds: float, direction: int) -> str:
    return json.dumps({"version": 2, "time": int(seconds * NANOSECONDS), "direction": direction})


@pytest.mark.parametrize("is_upload", [False, True])
async def test_our_client_measures(is_upload: bool) -> None:
    async with speedtests() as agent:
        stream = await agent.dial()
        async with stream, aclosing(measure(stream, 0.2, is_upload=is_upload)) as measured:
            whole = [one async for one in measured][-1]
        assert whole.byte_count >= BLOCK_BYTES
        assert whole.byte_count % BLOCK_BYTES == 0


async def test_the_one_more_is_told_and_its_place_is_free_again_when_another_vanishes() -> None:
    async with speedtests() as agent:
        streams = [await agent.dial() for _ in range(MAX_TESTS)]
        for stream in streams:
            assert await ask(stream, wish(50, 1)) == {}
        assert "are running" in (await ask(await agent.dial(), wish(1, 0)))["error"]
        streams[0].abort()
        while agent.context.counters.connections["speedtest"] >= MAX_TESTS:  # nobody tells
            await trio.lowlevel.checkpoint()
        assert await ask(await agent.dial(), wish(1, 0)) == {}


async def test_a_client_that_says_nothing_and_one_that_never_ends_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedtest, "WISH_SECONDS", 0.05)
    monkeypatch.setattr(speedtest, "GRACE_SECONDS", 0.05)
    async with speedtests() as agent:
        silent = await agent.dial()
        assert b"a test begins with a line of JSON" in await silent.receive_some()
        endless = await agent.dial()
        assert await ask(endless, wish(0.05, 1)) == {}
        assert await endless.receive_some() == b""  # it sends no end, and the agent leaves all the same


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "begins with a line"),
        ("SSH-2.0-x", "begins with a line"),
        ("[]", "begins with a line"),
        ('{"version": 1, "time": 1, "direction": 0}', "speaks version 2"),
        ('{"version": 2, "time": "1s", "direction": 0}', "nanoseconds"),
        ('{"version": 2, "time": -1, "direction": 0}', "nanoseconds"),
        ('{"version": 2, "time": 60000000001, "direction": 0}', "from 0 to 60 s"),
        ('{"version": 2, "time": 1e9, "direction": 0}', "nanoseconds"),
        ('{"version": 2, "time": 1, "direction": 2}', "direction is 0"),
        ('{"version": 2, "time": 1, "direction": [0]}', "direction is 0"),
        ('{"version": 2, "time": 1}', "direction is 0"),
    ],
)
def test_what_is_no_wish(line: str, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        read_wish(line.encode())


def test_wishes() -> None:
    assert read_wish(wish(60, 0).encode()) == Wish(60.0, is_download=True)
    assert read_wish(wish(0, 1).encode()) == Wish(0.0, is_download=False)
