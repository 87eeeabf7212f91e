"""A relay whose TCP is dead, whose certificate is old or that can admit nobody leaves probes unanswered, and comes
back.  Every fault is planted in a server on real sockets; a look is taken each second, so these tests take some.
"""

import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from derp.close_reason import CloseReason
from derp.config import TlsConfig
from derp.errors import ConnectError
from derp.protocol.messages import PeerPresent, WatchConns, encode
from derp.protocol.stun import encode_request
from derp.relay import wellness
from derp.relay.wellness import Sign
from derp.server.selfcheck import SelfCheck
from derp.server.server import RelayServer
from tests.derp.server.control_plane import NO, YES, open_control_plane
from tests.derp.server.mesh_world import MESH_KEY
from tests.derp.server.world import (
    HOST,
    PATIENCE_SECONDS,
    SELF_SIGNED,
    ask,
    call,
    closed,
    open_server,
    port_of,
    relay_config,
)
from tests.support.certificates import issue

PROBE = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look counts, and one good look is enough: patience is tested with the core."""
    for sign in Sign:
        monkeypatch.setitem(wellness.PATIENCE_SECONDS, sign, 0.0)
    monkeypatch.setattr(wellness, "RECOVERY_SECONDS", 0.0)


@asynccontextmanager
async def checked(**changes: Any) -> AsyncIterator[tuple[RelayServer, SelfCheck]]:
    """A relay that looks at itself, once a packet of its own has come back."""
    async with open_server(relay_config(self_check=True, stun_enabled=True, stun_port=0, **changes)) as server:
        with trio.fail_after(PATIENCE_SECONDS):
            while server.self_check is None or not server.self_check.packets_returned:  # noqa: ASYNC110
                await trio.sleep(0.05)
        yield server, server.self_check


async def until_problem(server: RelayServer, *words: str) -> str:
    """Wait until the server calls itself unwell, for a reason with these words."""
    with trio.fail_after(PATIENCE_SECONDS):
        while (problem := server.problem()) is None or not all(word in problem for word in words):  # noqa: ASYNC110
            await trio.sleep(0.05)
    return problem


async def until_well(server: RelayServer) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while server.problem() is not None:  # noqa: ASYNC110
            await trio.sleep(0.05)


def stun_answers(server: RelayServer) -> bool:
    """Whether STUN answers; loopback delivers at once, and the server's own hand serves what arrived."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((HOST, 0))
        client.sendto(encode_request(bytes(12)), (HOST, port_of(server, "stun")))
        server.ports.stun[0].serve_ready()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            return bool(client.recv(2000))
    return False


@pytest.mark.parametrize("tls", [None, SELF_SIGNED], ids=["plain", "tls"])
async def test_a_relay_that_is_well_answers_probes(tls: TlsConfig | None) -> None:
    async with checked(tls=tls) as (server, check):
        assert server.problem() is None
        assert stun_answers(server)
        assert (await ask(server, PROBE % b"/derp/latency-check", tls=tls is not None)).startswith(b"HTTP/1.1 200")
        reading = check.read()
        assert reading is not None
        assert reading.failures == 0
        assert not any(reading.signs.values())
        assert 0 < reading.round_trip_seconds < PATIENCE_SECONDS
        assert server.statistics().self_check is not None


async def test_its_own_client_is_nobody_s_business(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "derp.server")
    async with checked(mesh_key=MESH_KEY, accept_connection_limit=1.0, accept_connection_burst=1) as (server, _):
        statistics = server.statistics()
        assert (statistics.clients_local, statistics.connections, statistics.accepted) == (0, 0, 0)
        watcher = await call(server, mesh_key=MESH_KEY)
        await watcher.write(encode(WatchConns()))
        assert (await watcher.receive_a(PeerPresent)).key == watcher.key
        await watcher.ping()
        assert watcher.inbox == [], "a watcher hears of itself alone"
        assert [record.message for record in caplog.records if "client 1 " in record.message] == []
        await watcher.aclose()


async def test_an_allow_list_holds_for_all_others() -> None:
    async with checked(allow_keys=frozenset()) as (server, check):
        with pytest.raises(ConnectError, match="does not admit this machine"):
            await call(server)
        assert check.failure_count == 0


@contextlib.contextmanager
def deaf(server: RelayServer) -> Iterator[None]:
    """No connection is accepted, as if its TCP were dead; UDP goes on."""
    listener = server.ports.listeners[0]
    server.reactor.unwatch(listener._sock.fileno())
    listener._is_watched = False
    yield
    listener.start()


async def test_a_relay_whose_tcp_is_dead_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derp.server.selfcheck._CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("derp.server.selfcheck._PACKETS_PER_CONNECTION", 1)
    async with checked() as (server, check):
        with deaf(server):
            problem = await until_problem(server, "own port", str(port_of(server)))
            assert problem.endswith("no answer")
            assert not stun_answers(server)
            assert check.failure_count > 0
        await until_well(server)
        assert stun_answers(server)


async def test_a_relay_that_relays_nothing_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts, shakes hands, and no packet arrives."""
    monkeypatch.setattr("derp.server.selfcheck._RETURN_SECONDS", 0.3)
    async with checked() as (server, _):
        routes = server.relay.router.routes
        for key in tuple(routes):
            routes.pop(key)
        await until_problem(server, "no answer")
        answer = await ask(server, PROBE % b"/healthz")
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"no packet comes back through our own port" in answer
        assert (await ask(server, PROBE % b"/derp/probe")).startswith(b"HTTP/1.1 503")
        await until_well(server)  # its next connection has a route again


async def test_a_full_accept_queue() -> None:
    async with checked() as (server, _):
        sock = server.ports.listeners[0]._sock
        with deaf(server), contextlib.ExitStack() as stack:
            sock.listen(1)
            for _ in range(4):
                knocking = stack.enter_context(socket.socket())
                knocking.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    knocking.connect((HOST, port_of(server)))
            await until_problem(server, "wait to be accepted")
            sock.listen(100)
        await until_well(server)


async def test_a_certificate_that_has_expired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = issue(HOST, valid=(timedelta(days=-2), timedelta(days=-1)))
    (tmp_path / "crt").write_bytes(old.pem)
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(old.key_pem)
    async with checked(tls=TlsConfig(cert_file=tmp_path / "crt", key_file=tmp_path / "key")) as (server, _):
        await until_problem(server, "certificate expired at", "UTC")
        assert not stun_answers(server)
        told = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(told) == 1
        assert "probes get no answer" in told[0].message
        new = issue(HOST)
        (tmp_path / "crt").write_bytes(new.pem)
        (tmp_path / "key").write_bytes(new.key_pem)
        server.ports.look_at_certificate()
        await until_well(server)


async def test_a_loop_that_lags() -> None:
    async with checked() as (server, _):
        until = time.monotonic() + 2.0
        while time.monotonic() < until:  # what somebody's callback does who does not think of others
            pass
        await until_problem(server, "event loop was")
        await until_well(server)


async def test_nobody_can_be_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derp.server.selfcheck._ADMISSION_SECONDS", 0.2)
    async with open_control_plane(lambda request: None) as plane, checked(verify_client_url=plane.url) as (server, _):
        assert plane.requests == [], "its own client is not asked about"
        with pytest.raises(ConnectError, match="does not admit this machine"):
            await call(server)
        await until_problem(server, "nobody can be admitted")
        assert not stun_answers(server)
        plane.answer = lambda request: NO  # it answers again, whatever that is
        await until_well(server)
        plane.answer = lambda request: YES
        await (await call(server)).aclose()


async def test_who_fails_open_is_not_unwell_for_it() -> None:
    changes = {"verify_client_url_fail_open": True}
    async with (
        open_control_plane(lambda request: None) as plane,
        checked(verify_client_url=plane.url, **changes) as (server, check),
    ):
        await (await call(server)).aclose()
        assert server.relay.sessions.admission.problem
        seen = check.packets_returned
        with trio.fail_after(PATIENCE_SECONDS):
            while check.packets_returned < seen + 3:  # noqa: ASYNC110 - in which admission was looked at, too
                await trio.sleep(0.05)
        assert server.problem() is None


async def test_it_is_not_there_when_it_is_not_wanted() -> None:
    async with open_server(relay_config()) as server:
        assert server.self_check is None
        assert server.problem() is None
        assert server.statistics().self_check is None


async def test_its_client_leaves_when_the_others_are_sent_away() -> None:
    async with open_server(relay_config(self_check=True, drain_seconds=5.0)) as server:
        caller = await call(server)
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.drain)
                await caller.wait_closed()
        await caller.aclose()
        assert server.problem() == "draining: this relay is about to stop"
        assert closed(server).get(CloseReason.DRAINED.value) == 1
