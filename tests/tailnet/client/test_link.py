"""A connection that is made anew: after which delay, as whom, and when no more."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from derp.client.reconnect import BackOff
from derp.errors import ConnectError, DerpError, UpgradeRefused
from tailnet.client.coordination import client_door
from tailnet.client.link import Link, first_error, is_refusal
from tailnet.client.rpc import RpcClient
from tailnet.errors import NotAuthorised, RpcError
from tailnet.server.server import CoordinatorServer
from tests.support.proxies import Front, open_front
from tests.support.seeds import peer_id, user_token
from tests.support.tailnet_driver import wait_for
from tests.tailnet.client.test_rpc import url_of

MAIN = peer_id("main")
AT_ONCE = BackOff(first_seconds=0.01, limit_seconds=0.01)
PATIENCE_SECONDS = 60


@asynccontextmanager
async def front_of(server: CoordinatorServer) -> AsyncIterator[Front]:
    async with open_front() as front:
        front.target = server.listening[0].port
        yield front


def link_to(url: str) -> Link:
    return Link(url, client_door(MAIN), user_token("alice"), back_off=AT_ONCE)


async def test_what_goes_wrong_at_first_is_raised(server: CoordinatorServer) -> None:
    async def serve(rpc: RpcClient) -> None:
        raise RpcError("not today")

    async with front_of(server) as front:
        link = link_to(front.url)
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RpcError, match="not today"):
            await link.run(serve)
        front.pass_on = lambda head: b"HTTP/1.1 503 Later"
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(UpgradeRefused, match="503"):
            await link.run(serve)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_it_comes_back_until_it_is_refused(server: CoordinatorServer, status: int) -> None:
    async with front_of(server) as front:
        link = link_to(front.url)

        async def serve(rpc: RpcClient) -> None:
            link.proven()
            if link.connection_count == 3:
                front.pass_on = lambda head: b"HTTP/1.1 %d No" % status
            raise RpcError("lost")

        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(UpgradeRefused) as caught:
            await link.run(serve)
        assert (link.connection_count, caught.value.status) == (3, status)


async def test_who_insists_is_turned_away_by_the_version_alone(server: CoordinatorServer) -> None:
    """A proxy whose coordinator starts again says 404; a version that the new coordinator does not serve is 400."""
    async with front_of(server) as front:
        link = Link(front.url, client_door(MAIN), user_token("alice"), back_off=AT_ONCE, insists=True)
        said = [400, 401, 404]

        async def serve(rpc: RpcClient) -> None:
            link.proven()
            front.pass_on = lambda head: b"HTTP/1.1 %d No" % said.pop()
            raise RpcError("lost")

        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(UpgradeRefused) as caught:
            await link.run(serve)
        assert (caught.value.status, said) == (400, [])


@pytest.mark.parametrize("is_there", [True, False], ids=["from a connection", "from a wait"])
async def test_another_address_makes_another_connection_at_once(
    server: CoordinatorServer, caplog: pytest.LogCaptureFixture, is_there: bool
) -> None:
    """It neither waits for the old connection to end, nor for its turn, which would be in an hour."""
    served = trio.Event()
    never = BackOff(first_seconds=3600.0, limit_seconds=3600.0)
    link = Link(url_of(server), client_door(MAIN), user_token("alice"), back_off=never)

    async def serve(rpc: RpcClient) -> None:
        link.proven()
        served.set()
        if not is_there and link.connection_count == 1:
            raise RpcError("lost")
        await trio.sleep_forever()

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run, serve)
            await served.wait()
            if not is_there:
                await wait_for(lambda: "the next try is in" in caplog.text)
            link.redial()
            await wait_for(lambda: link.connection_count == 2)
            nursery.cancel_scope.cancel()


async def test_another_address_while_the_first_connection_is_made_is_no_error(server: CoordinatorServer) -> None:
    async with front_of(server) as front:
        link = link_to(front.url)

        async def serve(rpc: RpcClient) -> None:
            if link.connection_count == 1:
                link.redial()
                await trio.sleep_forever()
            raise RpcError("the second one came")

        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RpcError, match="the second one came"):
            await link.run(serve)


@pytest.mark.parametrize(("status", "header"), [(503, b"7"), (429, b"7"), (503, b"7000")])
async def test_a_coordinator_says_when_to_come(
    server: CoordinatorServer, caplog: pytest.LogCaptureFixture, status: int, header: bytes
) -> None:
    async with front_of(server) as front, trio.open_nursery() as nursery:
        link = link_to(front.url)
        said = trio.Event()

        class Told(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if str(status) in record.getMessage():
                    said.set()

        async def serve(rpc: RpcClient) -> None:
            link.proven()
            front.pass_on = lambda head: b"HTTP/1.1 %d Later\r\nRetry-After: %s" % (status, header)
            raise RpcError("lost")

        logger = logging.getLogger("tailnet.client")
        handler = Told()
        logger.addHandler(handler)
        nursery.start_soon(link.run, serve)
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                await said.wait()
        finally:
            logger.removeHandler(handler)
        nursery.cancel_scope.cancel()
    assert f"next try is in {'60.0' if header == b'7000' else '7.0'} s" in caplog.messages[-1]


async def test_it_is_the_same_peer_again_and_another_one_when_its_token_is_not_taken(
    server: CoordinatorServer,
) -> None:
    targets: list[bytes] = []

    async with front_of(server) as front:
        link = link_to(front.url)

        def pass_on(head: bytes) -> bytes:
            target = head.split(b" ")[1]
            targets.append(target)
            return b"HTTP/1.1 401 No" if b"resume_token=" in target and len(targets) == 3 else head

        front.pass_on = pass_on

        async def serve(rpc: RpcClient) -> None:
            link.proven()
            if link.connection_count == 3:
                raise NotAuthorised("enough")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.keep_resume_token, rpc)
                await wait_for(lambda: link._resume_token)
                nursery.cancel_scope.cancel()
            raise RpcError("lost")

        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(NotAuthorised):
            await link.run(serve)
    assert [b"resume_token=" in target for target in targets] == [False, True, True, False]


def test_of_several_errors_a_refusal_counts() -> None:
    refusal = NotAuthorised("authorization: no")
    group = BaseExceptionGroup[DerpError]("", [ConnectError("x"), BaseExceptionGroup("", [RpcError("y"), refusal])])
    assert first_error(group) is refusal
    assert not any(
        map(is_refusal, (ConnectError("x"), RpcError("y"), UpgradeRefused("", 500), UpgradeRefused("", 429)))
    )
