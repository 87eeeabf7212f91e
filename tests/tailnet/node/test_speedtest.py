"""A speed test between two nodes of ours, and what is no answer to one."""

from contextlib import aclosing, suppress

import pytest
import trio

from tailnet.errors import TransportError
from tailnet.node import speedtest
from tailnet.node.membership import open_agent, open_client
from tailnet.node.speedtest import SPEEDTEST_PORT, Measured, measure
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.speedtests import serve_speedtest
from tests.tailnet.client.test_rpc import url_of

MAIN = peer_id("main")
PATIENCE_SECONDS = 60


@pytest.mark.parametrize("is_upload", [False, True])
async def test_bytes_are_counted(server: CoordinatorServer, is_upload: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedtest, "INTERVAL_SECONDS", 0.1)
    found: list[Measured] = []
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_agent(url_of(server), agent_token("main"), MAIN) as agent,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(trio.serve_listeners, serve_speedtest, [agent.engine.listen(SPEEDTEST_PORT)])
            async with open_client(url_of(server), user_token("alice"), MAIN) as client:
                stream = await client.dial(SPEEDTEST_PORT)
                async with stream, aclosing(measure(stream, 0.5, is_upload=is_upload)) as measured:
                    async for one in measured:
                        found.append(one)
            nursery.cancel_scope.cancel()
    *intervals, whole = found
    assert intervals
    assert whole.begin_seconds == 0
    assert whole.end_seconds >= intervals[-1].end_seconds
    assert 0 < sum(each.byte_count for each in intervals) <= whole.byte_count
    assert [each.begin_seconds for each in intervals] == sorted(each.begin_seconds for each in intervals)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'{"error": "version mismatch"}\n', "the agent refuses: version mismatch"),
        (b"SSH-2.0-x\r\n", "is none of a speed test"),
        (b"[]\n", "is none of a speed test"),
        (b"{}", "is none of a speed test"),
        (b"", "is none of a speed test"),
        (b"x" * 10_000, "is none of a speed test"),
    ],
)
async def test_what_is_no_answer(server: CoordinatorServer, answer: bytes, reason: str) -> None:
    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        with suppress(trio.BrokenResourceError):
            async with stream:
                await stream.receive_some()
                await stream.send_all(answer)

    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_agent(url_of(server), agent_token("main"), MAIN) as agent,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(trio.serve_listeners, serve, [agent.engine.listen(SPEEDTEST_PORT)])
            async with open_client(url_of(server), user_token("alice"), MAIN) as client:
                stream = await client.dial(SPEEDTEST_PORT)
                async with stream:
                    with pytest.raises(TransportError, match=reason):
                        await anext(measure(stream, 0.2, is_upload=False))
            nursery.cancel_scope.cancel()


def test_bits_a_second() -> None:
    assert Measured(1.0, 3.0, 1_000_000).mbits_per_second == 4.0
    assert Measured(1.0, 1.0, 5).mbits_per_second == 0.0
