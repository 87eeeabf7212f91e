"""Ports as a server has them: what is open, what a mistake leaves behind, and certificates looked at."""

import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from derp.close_reason import CloseReason
from derp.config.relay import TlsConfig
from derp.errors import ConfigError, ListenError
from derp.keys import NodePrivate
from derp.server.door import FrontDoor
from derp.server.lobby import Lobby
from derp.server.ports import LOOK_SECONDS, Ports
from derp.transport.reactor import Reactor
from derp.transport.tls import TlsServer
from tests.derp.server.world import HOST, relay_config
from tests.support.certificates import issue

NAME = "relay.example"


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    for link in tuple(made.wires):
        made.close(link, CloseReason.STOPPED)
    made._poller.close()


@pytest.fixture
def door(reactor: Reactor) -> FrontDoor:
    return FrontDoor(Lobby(reactor, relay_config()), [])


def make_ports(reactor: Reactor, tls: TlsServer | None = None) -> Ports:
    return Ports(reactor, tls)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def test_what_is_open_and_what_closing_leaves(reactor: Reactor, door: FrontDoor) -> None:
    ports = make_ports(reactor)
    ports.open("derp", HOST, 0, door, user_timeout_seconds=15.0, keepalive_seconds=600.0)
    ports.open_stun(HOST, 0, lambda: True)
    ports.start()
    derp, stun = ports.listening
    assert (derp.kind, stun.kind) == ("derp", "stun")
    with socket.create_connection((HOST, derp.port), 10) as caller:
        reactor.serve_ready()
        assert door.lobby.accepted_count == 1
        ports.close()
        assert not listens(derp.port)
        # who is inside stays inside
        (link,) = reactor.wires
        assert link.address == caller.getsockname()[:2]
        ports.close()  # once more does nothing


def test_a_port_that_is_taken_is_named(reactor: Reactor, door: FrontDoor) -> None:
    ports = make_ports(reactor)
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on TCP {HOST}:{port}"):
            ports.open("derp", HOST, port, door, user_timeout_seconds=15.0, keepalive_seconds=600.0)
    assert ports.listening == []


def test_stun_moves_to_a_free_port_only_where_no_map_names_it(
    reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    """`derp serve --dev` beside a coordinator that has the port; whoever serves the network wants to hear of it."""
    ports = make_ports(reactor)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"cannot listen on UDP {HOST}:{port}"):
            ports.open_stun(HOST, port, lambda: True)
        ports.open_stun(HOST, port, lambda: True, may_move=True)
    (stun,) = ports.listening
    assert stun.port not in (0, port)
    assert f"cannot listen on UDP {HOST}:{port}: Address already in use: STUN is on port {stun.port}" in caplog.text
    # What another process takes over is found by the port that the settings name.
    assert [(one.kind, one.port) for one in ports.sockets()] == [("udp", port)]
    ports.close()


def test_certificates_are_looked_at_now_and_then_or_when_asked(
    reactor: Reactor, door: FrontDoor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = (tmp_path / "r.crt", tmp_path / "r.key")

    def renew() -> int:
        leaf = issue(NAME)
        files[0].write_bytes(leaf.pem)
        files[1].write_bytes(leaf.key_pem)
        return leaf.certificate.serial_number

    renew()
    tls = TlsServer(TlsConfig(*files, NAME), NodePrivate.generate().public(), now=time.time())
    ports = make_ports(reactor, tls)
    ports.open("derp", HOST, 0, door, user_timeout_seconds=15.0, keepalive_seconds=600.0)
    ports.open("http", HOST, 0, door, is_plain=True, user_timeout_seconds=15.0, keepalive_seconds=600.0)
    assert [one.kind for one in ports.listening] == ["derp+tls", "http"]
    begin = reactor.now
    reactor._clock = lambda: begin
    ports.start()
    for turn in (1, 2):
        first = renew()
        reactor._clock = lambda turn=turn: begin + turn * LOOK_SECONDS - 1
        reactor.serve_ready()
        assert tls.leaf.serial_number != first
        reactor._clock = lambda turn=turn: begin + turn * LOOK_SECONDS
        reactor.serve_ready()
        assert tls.leaf.serial_number == first
    assert ports.certificate_expires_at() == tls.leaf.not_valid_after_utc.timestamp()
    # SIGHUP does not wait
    second = renew()
    ports.look_at_certificate()
    assert tls.leaf.serial_number == second
    files[1].write_bytes(b"half a key")
    ports.look_at_certificate()
    assert tls.leaf.serial_number == second
    assert "the certificate of before stays in service" in caplog.text
    ports.close()
