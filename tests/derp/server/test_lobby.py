"""The lobby: how many may come, who has how much time, and what settings that are read again change."""

import logging
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from derp.close_reason import CloseReason
from derp.config.relay import LOOPBACK
from derp.server.address import Caller
from derp.server.door import FrontDoor, Route, every_path
from derp.server.lobby import RESERVE, Lobby
from derp.transport.hostcore import MAX_CLOSED_AT_ONCE
from derp.transport.links import Link
from derp.transport.reactor import Reactor
from tests.derp.server.world import relay_config
from tests.support.wires import socket_pair


class World:
    """A lobby in virtual time, with wires that somebody put behind its door."""

    def __init__(self, **changes: Any) -> None:
        self.time = 0.0
        self.reactor = Reactor(clock=lambda: self.time)
        self.elsewhere = 0
        self.lobby = Lobby(self.reactor, relay_config(**changes), count_elsewhere=lambda: self.elsewhere)
        self.door = FrontDoor(self.lobby, [Route(every_path, lambda visit, request: visit.answer(204, (), b""))])
        self.far_ends: list[Any] = []

    def come(self) -> Link:
        near, far = socket_pair(None)
        self.far_ends.append(far)
        link = Link(near, ("127.0.0.1", len(self.far_ends)))
        self.door.open(link)
        self.reactor.add(link)
        return link

    def wait(self, seconds: float) -> None:
        self.time += seconds
        self.reactor.serve_ready()

    def admits(self, count: int, *, is_tls: bool = False) -> list[bool]:
        self.reactor.tick()
        return [self.lobby.admits(is_tls=is_tls) for _ in range(count)]


@pytest.fixture
def made() -> Iterator[list[World]]:
    worlds: list[World] = []
    yield worlds
    for world in worlds:
        for link in tuple(world.reactor.wires):
            world.reactor.close(link, CloseReason.STOPPED)
        for far in world.far_ends:
            far.close()
        world.reactor._poller.close()


def world(made: list[World], **changes: Any) -> World:
    made.append(World(**changes))
    return made[-1]


def test_connections_are_paced_and_bounded_and_each_counted_once(made: list[World]) -> None:
    here = world(made, accept_connection_limit=1.0, accept_connection_burst=2, max_connections=3)
    lobby = here.lobby
    assert here.admits(3) == [True, True, False]
    here.time = 1.0
    assert here.admits(1) == [True]
    here.time = 100.0
    here.come()
    here.elsewhere = 2  # those of the API count as well
    assert here.admits(1) == [False]
    here.elsewhere = 1
    assert here.admits(1) == [True]
    assert (lobby.accepted_count, lobby.too_fast_count, lobby.too_many_count) == (4, 1, 1)
    assert (lobby.tls_accepted_count, lobby.tls_rejected_count) == (0, 0)


def test_connections_of_tls_listeners_are_counted_apart(made: list[World]) -> None:
    here = world(made, accept_connection_limit=1.0, accept_connection_burst=2)
    assert here.admits(1, is_tls=True) + here.admits(1) + here.admits(2, is_tls=True) == [True, True, False, False]
    assert (here.lobby.accepted_count, here.lobby.too_fast_count) == (2, 2)
    assert (here.lobby.tls_accepted_count, here.lobby.tls_rejected_count) == (1, 2)


def test_when_all_are_taken_a_few_are_kept_for_operators(made: list[World]) -> None:
    here = world(made, max_connections=2, debug_allow=(ip_network("192.0.2.0/24"),))
    here.elsewhere = 1
    assert not here.lobby.has_reserve_for("192.0.2.1"), "there is room for all"
    for here.elsewhere in (2, 1 + RESERVE):
        assert here.lobby.has_reserve_for("192.0.2.1")
        assert not here.lobby.has_reserve_for("127.0.0.1")
    here.elsewhere = 2 + RESERVE
    assert not here.lobby.has_reserve_for("192.0.2.1")
    for is_tls in (False, True):
        link = here.come()
        here.lobby.reserve(link, is_tls=is_tls)
        here.reactor.close(link, CloseReason.STOPPED)
    assert (here.lobby.reserved, here.lobby.accepted_count, here.lobby.tls_accepted_count) == (set(), 2, 1)


def test_without_a_rate_everybody_may_come_at_once(made: list[World]) -> None:
    assert all(world(made, accept_connection_limit=float("inf"), accept_connection_burst=1).admits(1000))


def test_each_has_its_time_and_a_request_gives_new_time(made: list[World]) -> None:
    here = world(made, handshake_timeout_seconds=10.0)
    silent, busy = here.come(), here.come()
    here.wait(9.0)
    here.far_ends[1].send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    here.reactor.serve_ready()
    late = here.come()
    here.wait(1.5)
    assert list(here.lobby.waiting) == [busy, late]
    assert silent not in here.reactor.wires
    here.lobby.leave(late)
    here.wait(9.0)
    assert (list(here.reactor.wires), len(here.lobby.waiting)) == ([late], 0)
    assert here.lobby.closed_count[CloseReason.HANDSHAKE_TIMEOUT] == 2


def test_a_crowd_of_silent_ones_ends_by_and_by(made: list[World]) -> None:
    here = world(made, handshake_timeout_seconds=10.0)
    for _ in range(2 * MAX_CLOSED_AT_ONCE + 1):
        here.come()
    left = []
    here.time += 10.0
    while here.reactor.wires:
        here.reactor.serve_ready()
        left.append(len(here.reactor.wires))
    assert left == [MAX_CLOSED_AT_ONCE + 1, 1, 0]
    assert here.lobby.closed_count[CloseReason.HANDSHAKE_TIMEOUT] == 2 * MAX_CLOSED_AT_ONCE + 1


def test_who_waits_in_the_lobby_lets_others_pass(made: list[World]) -> None:
    here = world(made)
    wire = here.come()
    assert wire.is_newcomer
    here.lobby.leave(wire)
    assert not wire.is_newcomer


def test_settings_that_are_read_again_count_for_those_who_come(made: list[World]) -> None:
    here = world(made, accept_connection_limit=1.0, accept_connection_burst=2, max_connections=1)
    assert here.lobby.find_caller(("127.0.0.1", 7), {"x-forwarded-for": "203.0.113.9"}).is_hidden
    assert here.admits(3) == [True, True, False]
    here.lobby.configure(relay_config(accept_connection_limit=1.0, accept_connection_burst=2, trusted_proxies=LOOPBACK))
    assert here.lobby.find_caller(("127.0.0.1", 7), {"x-forwarded-for": "203.0.113.9"}) == Caller("203.0.113.9", 0)
    assert here.admits(1) == [False], "a rate that is as before is not filled up anew"
    here.lobby.configure(relay_config(accept_connection_limit=float("inf")))
    here.come()
    assert here.admits(5) == [True] * 5


def test_that_connections_are_refused_is_told_with_what_to_do(
    made: list[World], caplog: pytest.LogCaptureFixture
) -> None:
    remedy = "this process may open 66 files: raise its limit"
    here = world(made, max_connections=2, connections_remedy=remedy, handshake_timeout_seconds=600.0)
    here.come()
    assert (here.admits(1), caplog.messages) == ([True], []), "as long as there is room nobody need know"
    here.come()
    assert here.admits(3) == [False] * 3
    (line,) = caplog.messages
    assert line == f"! connections are refused: 2 are open, and no more are allowed; {remedy}"
    here.wait(60.0)
    assert here.admits(1) == [False]
    assert caplog.messages[-1].endswith("raise its limit (2 more since the last such line)")
    here.lobby.configure(relay_config(max_connections=2))
    here.wait(60.0)
    assert here.admits(1) == [False]
    assert "raise --max-connections, if this machine has room for more" in caplog.messages[-1]


def test_that_too_many_come_at_once_is_told(made: list[World], caplog: pytest.LogCaptureFixture) -> None:
    here = world(made, accept_connection_limit=2.0, accept_connection_burst=1)
    assert here.admits(2) == [True, False]
    (line,) = caplog.messages
    assert line == (
        "! connections are refused: more than 2 came within a second; --accept-connection-limit says how many may"
    )


def test_why_tls_failed_is_told_once_a_minute_for_each_reason(
    made: list[World], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "derp.server")
    here = world(made)

    def fail(reason: CloseReason, count: int) -> list[str]:
        caplog.clear()
        for _ in range(count):
            here.reactor.close(here.come(), reason, f"because of {reason.value}")
        return [record.getMessage().partition("at the door: ")[2] for record in caplog.records]

    assert fail(CloseReason.TLS_NO_NAME, 5) == ["because of tls_no_name"]
    assert fail(CloseReason.TLS_OTHER_NAME, 2) == ["because of tls_other_name"]
    here.wait(59.0)
    assert fail(CloseReason.TLS_NO_NAME, 3) == []
    here.wait(1.0)
    assert fail(CloseReason.TLS_NO_NAME, 2) == ["because of tls_no_name (7 more since the last such line)"]
    here.wait(60.0)
    assert fail(CloseReason.TLS_NO_NAME, 1) == ["because of tls_no_name (1 more since the last such line)"]
    here.wait(60.0)
    assert fail(CloseReason.TLS_NO_NAME, 1) == ["because of tls_no_name"]
    assert fail(CloseReason.HANDSHAKE_TIMEOUT, 2) == []  # of scanners and half-dead clients there is no news
    assert here.lobby.closed_count[CloseReason.TLS_NO_NAME] == 12
