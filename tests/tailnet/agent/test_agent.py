"""A whole agent against a whole coordinator: its start, its end, and what happens to the coordinator meanwhile."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from derp.client.reconnect import BackOff
from derp.errors import UpgradeRefused
from tailnet.agent.agent import Agent, Settings, open_agent
from tailnet.api.rpc_admission import RpcAdmission
from tailnet.config import Banner
from tailnet.node.membership import open_client
from tailnet.proto.generated import agent_pb2
from tailnet.proto.version import Version
from tailnet.server.server import CoordinatorServer
from tailnet.services.administration.service import Administration
from tailnet.services.agent_rpc import AgentService
from tailnet.store.rows import AppHealth, LifecycleState
from tailnet.store.store import Store
from tests.support.administration import patch
from tests.support.seeds import agent_token, fill, make_id, peer_id, seed_document, user_token
from tests.tailnet.client.test_rpc import url_of
from tests.tailnet.conftest import Serve

MAIN = peer_id("main")
SOON = BackOff(first_seconds=0.02, limit_seconds=0.2)
OLD_CALLS = frozenset(
    f"/coder.agent.v2.Agent/{name}"
    for name in (
        "GetManifest",
        "GetServiceBanner",
        "UpdateStats",
        "UpdateLifecycle",
        "BatchUpdateAppHealths",
        "UpdateStartup",
        "BatchUpdateMetadata",
        "BatchCreateLogs",
    )
)


def a_script(name: str, text: str, **more: object) -> dict[str, object]:
    source = {"id": str(make_id(name)), "log_source_id": str(make_id(f"source of {name}")), "display_name": name}
    return source | {"script": text, "timeout": 30_000_000_000} | more


def define(url: str, *scripts: dict[str, object], agent: Mapping[str, object] | None = None, **more: Any) -> None:
    """Give the agent `main` these scripts and the like; `agent`: what administrators say of it."""
    store = Store.open(url)
    document: Any = seed_document()
    document["agents"][0] |= {"scripts": scripts} | more
    fill(store, document)
    if agent is not None:
        patch(Administration(store), "agent", make_id("main"), **agent)
    store.close()


@asynccontextmanager
async def an_agent(server: CoordinatorServer, **settings: Any) -> AsyncIterator[Agent]:
    with trio.fail_after(90):
        made = Settings(url_of(server), agent_token("main"), back_off=SOON, is_direct=False)
        async with open_agent(replace(made, **settings)) as agent:
            await agent.connected.wait()
            yield agent


async def wait_for(server: CoordinatorServer, is_so: Callable[[Store], object]) -> Any:
    """What the store says once it says something."""
    while not (found := await server.store.run(is_so, server.store)):  # noqa: ASYNC110  # reports go there in their time
        await trio.sleep(0.02)
    return found


def lifecycle_of(store: Store) -> LifecycleState:
    row = store.callers.get_agent(MAIN)
    assert row is not None
    return row.lifecycle_state


def outputs(store: Store) -> list[str]:
    return [line.output for line in store.reports.list_logs(MAIN, 0, 1_000)]


@asynccontextmanager
async def an_echo() -> AsyncIterator[int]:
    """A program of the workspace: its port."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def echo(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # who asks for HTTP goes away
            async with stream:
                async for part in stream:
                    await stream.send_all(part)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_a_life(filled_url: str, serve: Serve, tmp_path: Path) -> None:
    """Scripts, metadata, an app's health, a user, and the end."""
    check = {"url": "", "interval": 1, "threshold": 1}
    async with an_echo() as port:
        check["url"] = f"http://127.0.0.1:{port}"  # it echoes, which is no answer
        app = {"id": str(make_id("app")), "slug": "app", "url": check["url"], "healthcheck": check}
        define(
            filled_url,
            a_script("start", "echo started in $(pwd) for $GREETING", run_on_start=True),
            a_script("stop", "echo stopped", run_on_stop=True),
            agent={"directory": str(tmp_path), "environment": {"GREETING": "users"}},
            metadata=[{"key": "cpu", "display_name": "CPU", "script": "echo 12", "interval": 1, "timeout": 1}],
            apps=[app],
        )
        server = await serve(stats_interval_seconds=0.1)
        async with an_agent(server) as agent:
            await wait_for(server, lambda store: lifecycle_of(store) is LifecycleState.READY)
            assert await wait_for(server, outputs) == [f"started in {tmp_path} for users"]
            values = await wait_for(server, lambda store: store.reports.list_metadata(MAIN))
            assert [(each.key, each.value, each.error) for each in values] == [("cpu", "12", "")]
            unwell = await wait_for(
                server,
                lambda store: [
                    each for each in store.apps.definitions(MAIN).apps if each.health is AppHealth.UNHEALTHY
                ],
            )
            assert len(unwell) == 1
            async with open_client(agent.context.url, user_token("alice"), MAIN, is_direct=False) as client:
                async with await client.dial(port) as stream:
                    await stream.send_all(b"hello")
                    assert await stream.receive_some() == b"hello"
                    stats = await wait_for(server, lambda store: store.reports.latest_stats(MAIN))
                    while not stats.rx_bytes:
                        stats = await wait_for(server, lambda store: store.reports.latest_stats(MAIN))
                with pytest.raises(ConnectionRefusedError):
                    await client.dial(5)
            row = server.store.callers.get_agent(MAIN)
            assert row is not None
            assert row.expanded_directory == str(tmp_path)
            assert row.api_version == "2.11"
            await agent.stop()
            await wait_for(server, lambda store: lifecycle_of(store) is LifecycleState.OFF)
            assert "stopped" in await wait_for(server, lambda store: outputs(store)[1:])


@pytest.mark.parametrize(
    ("text", "timeout_seconds", "state"),
    [("exit 3", 30, LifecycleState.START_ERROR), ("sleep 1000", 0.3, LifecycleState.START_TIMEOUT)],
)
async def test_a_start_that_fails_is_told_and_the_agent_is_there(
    text: str, timeout_seconds: float, state: LifecycleState, filled_url: str, serve: Serve
) -> None:
    define(filled_url, a_script("start", text, run_on_start=True, timeout=int(timeout_seconds * 1e9)))
    server = await serve()
    async with an_agent(server) as agent:
        await wait_for(server, lambda store: lifecycle_of(store) is state)
        async with open_client(agent.context.url, user_token("alice"), MAIN, is_direct=False) as client:
            assert await client.ping() > 0


@pytest.mark.parametrize(
    ("text", "state"),
    [("exit 3", LifecycleState.SHUTDOWN_ERROR), ("sleep 1000", LifecycleState.SHUTDOWN_TIMEOUT)],
)
async def test_an_end_that_fails_is_told_within_its_deadline(
    text: str, state: LifecycleState, filled_url: str, serve: Serve
) -> None:
    hanging = a_script("start", "sleep 1000", run_on_start=True, timeout=0)
    define(filled_url, hanging, a_script("stop", text, run_on_stop=True, timeout=0))
    server = await serve()
    async with an_agent(server, stop_seconds=1.0) as agent:
        await wait_for(server, lambda store: lifecycle_of(store) is LifecycleState.STARTING)
        await agent.stop()
        await wait_for(server, lambda store: lifecycle_of(store) is state)


async def test_streams_live_on_while_the_coordinator_starts_again(filled_url: str, serve: Serve) -> None:
    """And scripts are not run again, which would be a second start of the workspace."""
    define(filled_url, a_script("start", "echo started", run_on_start=True))
    server = await serve()
    port = int(url_of(server).rpartition(":")[2])
    async with an_echo() as echo_port, an_agent(server, is_direct=True) as agent:
        await wait_for(server, lambda store: lifecycle_of(store) is LifecycleState.READY)
        async with open_client(agent.context.url, user_token("alice"), MAIN, back_off=SOON) as client:
            stream = await client.dial(echo_port)
            engine = agent.member and agent.member.engine
            connections = agent.member.link.connection_count if agent.member else 0
            await server.drain()
            agent.reports.lifecycle(agent_pb2.Lifecycle.READY)
            server = await serve(listen=(("127.0.0.1", port),))
            await agent.reports.wait_sent()
            await stream.send_all(b"still there")
            assert await stream.receive_some() == b"still there"
            assert agent.member is not None
            assert agent.member.engine is engine
            assert agent.member.link.connection_count > connections
        assert await wait_for(server, outputs) == ["started"]


async def test_a_token_that_is_revoked_is_tried_until_it_is_good_again(server: CoordinatorServer) -> None:
    document: Any = seed_document()
    document["agents"][0]["token"] = str(make_id("another token"))
    async with an_echo() as port, an_agent(server) as agent:
        assert agent.member is not None
        link, engine = agent.member.link, agent.member.engine
        await server.store.run(fill, server.store, document)
        while not server.reading().revoked_connections:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.02)
        agent.reports.lifecycle(agent_pb2.Lifecycle.READY)
        await server.store.run(fill, server.store)
        while link.connection_count < 2:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.02)
        await agent.reports.wait_sent()
        assert agent.member.engine is engine
        async with open_client(agent.context.url, user_token("alice"), MAIN, is_direct=False) as client:
            await (await client.dial(port)).aclose()


async def test_a_token_of_nobody_ends_it(server: CoordinatorServer) -> None:
    with trio.fail_after(60), pytest.raises(BaseExceptionGroup) as caught:
        async with open_agent(Settings(url_of(server), str(make_id("nobody")))):
            await trio.sleep_forever()
    assert caught.group_contains(UpgradeRefused, match="401")


async def test_a_coordinator_that_is_not_there_yet_is_waited_for(serve: Serve) -> None:
    server = await serve()
    port = int(url_of(server).rpartition(":")[2])
    await server.drain()
    with trio.fail_after(60):
        async with open_agent(Settings(f"http://127.0.0.1:{port}", agent_token("main"), back_off=SOON)) as agent:
            await serve(listen=(("127.0.0.1", port),))
            await agent.connected.wait()


async def test_an_old_coordinator(filled_url: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 2.0: it refuses the newer minors, and knows none of the newer calls."""
    monkeypatch.setitem(RpcAdmission.__init__.__kwdefaults__, "current", Version(2, 0))
    known = AgentService.unary
    monkeypatch.setattr(
        AgentService,
        "unary",
        lambda self: {path: method for path, method in known(self).items() if path in OLD_CALLS},
    )
    define(filled_url, a_script("start", "echo started", run_on_start=True))
    server = await serve(announcement_banners=(Banner(enabled=True, message="hello"),))
    async with an_agent(server) as agent:
        await wait_for(server, lambda store: lifecycle_of(store) is LifecycleState.READY)
        assert agent.control.minor == 0
        assert "ScriptCompleted" in agent.control.unknown
        while not agent.context.banners:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.02)
        assert agent.context.banners == ("hello",)
        assert agent.member is not None
        assert agent.member.link.connection_count == 1, "nothing that it does not know ended a connection"


async def test_an_agent_obeys_what_the_manifest_says_of_connections(serve: Serve) -> None:
    server = await serve(disable_direct_connections=True, derp_force_websockets=True)
    async with an_agent(server, is_direct=True) as agent:
        assert agent.member is not None
        assert server.relay is not None
        await agent.member.engine.relays.wait_home()
        assert not agent.member.engine.sockets.all
        upgrades = server.relay.upgrades
        assert (upgrades.accepts, upgrades.websocket_accepts) == (1, 1)
