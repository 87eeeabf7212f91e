"""An agent by its name, another one in its place, and a stream that is one with a local connection."""

import pytest
import trio

from derp.errors import ConfigError, ConnectError
from tailnet.node.membership import Client, open_client
from tailnet.node.tunnel import connect, join_streams
from tailnet.server.server import CoordinatorServer
from tests.support.echoing import ECHO_PORT, MAIN, open_echoing_agent
from tests.support.seeds import user_token
from tests.tailnet.client.test_rpc import url_of

PATIENCE_SECONDS = 60


async def ask(tunnel: Client) -> bytes:
    async with await tunnel.dial(ECHO_PORT) as stream:
        await stream.send_all(b"?")
        return await stream.receive_some()


async def keep_agent(url: str, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        async with open_echoing_agent(url):
            task_status.started(scope)
            await trio.sleep_forever()


async def test_the_agent_is_another_one(server: CoordinatorServer) -> None:
    url = url_of(server)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            first: trio.CancelScope = await nursery.start(keep_agent, url)
            async with open_client(url, user_token("alice"), MAIN) as tunnel:
                assert await ask(tunnel) == b"?"
                first.cancel()
                await nursery.start(keep_agent, url)
                assert await ask(tunnel) == b"?"
            nursery.cancel_scope.cancel()


async def test_who_may_not_reach_it_is_told_at_once(server: CoordinatorServer) -> None:
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(ConnectError):
        async with open_client(url_of(server), user_token("bob"), MAIN):
            pass


async def test_an_agent_by_its_name(server: CoordinatorServer) -> None:
    url = url_of(server)
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_echoing_agent(url), connect(f"{url}/", user_token("alice"), "dev.main") as tunnel:
            assert await ask(tunnel) == b"?"
        with pytest.raises(ConfigError, match=r"yours are dev\.gpu, dev\.main"):
            async with connect(url, user_token("alice"), "nothing"):
                pass
        with pytest.raises(trio.TooSlowError):
            async with connect(url, user_token("alice"), "gpu", timeout_seconds=0.3):
                pass


@pytest.mark.parametrize("breaks", [False, True])
async def test_two_streams_are_one(server: CoordinatorServer, breaks: bool) -> None:
    near, far = trio.testing.memory_stream_pair()
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_echoing_agent(url_of(server)),
            open_client(url_of(server), user_token("alice"), MAIN) as tunnel,
            trio.open_nursery() as nursery,
        ):
            remote = await tunnel.dial(ECHO_PORT)
            counts: list[tuple[int, int]] = []

            async def join() -> None:
                if breaks:
                    with pytest.raises(trio.ClosedResourceError):
                        await join_streams(far, remote)
                else:
                    counts.append(await join_streams(far, remote))

            nursery.start_soon(join)
            await near.send_all(b"hello")
            assert await near.receive_some() == b"hello"
            if breaks:
                await remote.aclose()
            else:
                await near.send_eof()
                assert await near.receive_some() == b""
        assert counts == ([] if breaks else [(5, 5)])
