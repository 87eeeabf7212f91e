"""Health checks of apps: changes alone are told, and a bad app only after its threshold."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tailnet.agent.apps import check_apps
from tailnet.agent.manifest import AppCheck
from tailnet.errors import RpcError, Unimplemented
from tailnet.proto.generated import agent_pb2 as agent
from tests.support.agents import FakeRpc

APP = b"a" * 16
INTERVAL_SECONDS = 60.0
# An interval is also the time that an app has for its answer: the clock goes on after so many idle real ones.
IDLE_SECONDS = 0.2


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=IDLE_SECONDS)


class App:
    """Answers with a status, and counts."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/healthz"
        self.status = 200
        self.asked = 0
        self._changed = trio.lowlevel.ParkingLot()

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            self.asked += 1
            self._changed.unpark_all()
            await stream.send_all(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % self.status)

    async def wait_asked(self, count: int) -> None:
        at = self.asked + count
        while self.asked < at:
            await self._changed.park()


@asynccontextmanager
async def an_app() -> AsyncIterator[App]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    app = App(listener)
    with trio.fail_after(100 * INTERVAL_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, app.serve, [listener])
            yield app
            nursery.cancel_scope.cancel()


def healths(rpc: FakeRpc) -> list[int]:
    return [update.health for each in rpc.said("BatchUpdateAppHealths") for update in each.updates if update.id == APP]


async def test_changes_are_told(clock: MockClock) -> None:
    rpc = FakeRpc()
    async with an_app() as app, trio.open_nursery() as nursery:
        nursery.start_soon(check_apps, [AppCheck(APP, "app", app.url, INTERVAL_SECONDS, 3)], rpc.control())
        await rpc.wait_said("BatchUpdateAppHealths", 1)
        app.status = 503
        await app.wait_asked(2)
        app.status = 404
        await app.wait_asked(4)
        assert healths(rpc) == [agent.HEALTHY], "two failures are not three, and what answers is there"
        app.status = 500
        await rpc.wait_said("BatchUpdateAppHealths", 2)
        app.status = 302
        await rpc.wait_said("BatchUpdateAppHealths", 3)
        nursery.cancel_scope.cancel()
    assert healths(rpc) == [agent.HEALTHY, agent.UNHEALTHY, agent.HEALTHY]


async def test_what_does_not_listen_is_unwell(clock: MockClock) -> None:
    rpc = FakeRpc()
    async with an_app() as app, trio.open_nursery() as nursery:
        url = app.url.replace("http:", "https:")
        nursery.start_soon(check_apps, [AppCheck(APP, "app", url, INTERVAL_SECONDS, 2)], rpc.control())
        await rpc.wait_said("BatchUpdateAppHealths")
        nursery.cancel_scope.cancel()
    assert healths(rpc) == [agent.UNHEALTHY]


async def test_a_coordinator_with_other_apps_wants_its_manifest_asked_for_again() -> None:
    rpc = FakeRpc(BatchUpdateAppHealths=RpcError("app health: app x is none of this agent's"))
    async with an_app() as app:
        with pytest.RaisesGroup(RpcError):
            await check_apps([AppCheck(APP, "app", app.url, INTERVAL_SECONDS, 2)], rpc.control())


async def test_one_that_knows_no_healths_is_not_asked_again() -> None:
    rpc = FakeRpc(BatchUpdateAppHealths=Unimplemented())
    async with an_app() as app:
        await check_apps([AppCheck(APP, "app", app.url, INTERVAL_SECONDS, 2)], rpc.control())
    assert len(rpc.calls) == 1
