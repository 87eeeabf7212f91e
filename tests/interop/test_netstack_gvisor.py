"""Our stack and gVisor's, configured as genuine nodes configure it, in both directions; packets travel in UDP."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tailnet.netstack import icmp
from tailnet.netstack.connection import Connection
from tailnet.netstack.events import End
from tailnet.netstack.limits import Limits
from tailnet.netstack.stack import EchoReceived, Event, Happened
from tailnet.netstack.states import State
from tests.support.gobuild import NETSTACK_PEER
from tests.support.netsim import ADDRESSES
from tests.support.netstack_driver import Driver, Way
from tests.support.netstack_services import Services, Transfer, close, get, put
from tests.support.peers import require

pytestmark = pytest.mark.interop
OURS, THEIRS = ADDRESSES
SIZE = 10_000_000
LOSSY = Way(0.002, 0.01)


class GVisor:
    """The Go program, and a driver of ours that talks with it."""

    def __init__(self, *arguments: str) -> None:
        command = [str(require(NETSTACK_PEER)), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline())
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 7 << 20)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 7 << 20)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        os.set_blocking(self.process.stdout.fileno(), False)

    def driver(self, way: Way | None = None) -> Driver:
        """A stack of ours from a fresh start."""
        driver = Driver(OURS, self.socket.fileno(), limits=Limits(), out=way, back=way)
        # The peer sends to whoever sent last.
        driver.stack.send_ping(THEIRS, b"register")
        return driver

    def command(self, driver: Driver, line: str, seconds: float = 90) -> dict[str, Any]:
        """Let it do something while our stack runs; its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        output = self.process.stdout
        said = b""

        def read() -> None:
            nonlocal said
            said += os.read(output.fileno(), 65536)

        driver.watch(output.fileno(), read)
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        driver.run(seconds, lambda: b"\n" in said)
        answer = json.loads(said)
        assert answer["ok"], answer
        return dict(answer)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.socket.close()


@pytest.fixture(scope="module")
def gvisor() -> Iterator[GVisor]:
    peer = GVisor()
    yield peer
    peer.end()


def test_ten_megabytes_each_way_of_a_connection_that_we_dial(gvisor: GVisor) -> None:
    driver = gvisor.driver()
    put(driver, THEIRS, SIZE)
    get(driver, THEIRS, SIZE)
    counters = driver.stack.counters
    assert counters.retransmissions <= 0.02 * counters.segments_sent


def test_ten_megabytes_each_way_of_a_connection_that_it_dials(gvisor: GVisor) -> None:
    driver = gvisor.driver()
    Services(driver)
    assert gvisor.command(driver, f"put 9 {SIZE}")["count"] == SIZE
    assert gvisor.command(driver, f"get 19 {SIZE}")["count"] == SIZE


@pytest.mark.parametrize("arguments", [(), ("-cubic", "-rack")], ids=["as-genuine", "cubic-rack"])
def test_a_lossy_way(arguments: tuple[str, ...]) -> None:
    peer = GVisor(*arguments)
    try:
        driver = peer.driver(LOSSY)
        Services(driver)
        put(driver, THEIRS, 2_000_000)
        get(driver, THEIRS, 2_000_000)
        peer.command(driver, "put 9 2000000")
        peer.command(driver, "get 19 2000000")
        assert driver.out.lost > 20
        assert driver.back.lost > 20
        counters = driver.stack.counters
        # It never tells of duplicates, so a probe of the tail that was for nothing is the only waste.
        assert counters.retransmissions <= driver.out.lost + counters.tail_probes + 10 * counters.rtos
    finally:
        peer.end()


def test_two_hundred_connections_at_once_each_way(gvisor: GVisor) -> None:
    driver = gvisor.driver()
    Services(driver)
    assert gvisor.command(driver, "many 7 200")["count"] == 200
    lines = [b"line %d\n" % number for number in range(200)]
    transfers = [Transfer(driver, driver.stack.connect(THEIRS, 7), line) for line in lines]
    driver.run(30, lambda: all(transfer.is_done for transfer in transfers))
    assert [bytes(transfer.got) for transfer in transfers] == lines
    for transfer in transfers:
        close(driver, transfer)
    driver.run(5, lambda: all(transfer.connection.state is State.TIME_WAIT for transfer in transfers))


def test_its_resets_and_refusals(gvisor: GVisor) -> None:
    driver = gvisor.driver()
    refused = driver.stack.connect(THEIRS, 99)
    driver.run(5, lambda: refused.end is not None)
    assert refused.end is End.REFUSED
    reset = Transfer(driver, driver.stack.connect(THEIRS, 20), b"")
    driver.run(5, lambda: reset.connection.end is not None)
    assert reset.connection.end is End.RESET


def test_our_resets_and_refusals(gvisor: GVisor) -> None:
    driver = gvisor.driver()
    gvisor.command(driver, "refused 99")
    driver.stack.listen(98, hold=True)

    def refuse(event: Event) -> None:
        if isinstance(event, Happened) and isinstance(event.subject, Connection):
            event.subject.refuse()

    driver.users.append(refuse)
    gvisor.command(driver, "refused 98")
    assert driver.stack.counters.refused == 1
    aborted = Transfer(driver, driver.stack.connect(THEIRS, 7), b"")
    driver.run(5, lambda: aborted.connection.state is not State.SYN_SENT)
    aborted.connection.abort()
    put(driver, THEIRS, 1000)


def test_what_it_answers_to_echo_and_udp(gvisor: GVisor) -> None:
    driver = gvisor.driver()
    heard: list[Event] = []
    driver.users.append(heard.append)
    echo = icmp.Echo(False, 7, 1, b"payload")
    driver.stack.send_echo(THEIRS, echo)
    port = driver.stack.open_udp()
    port.send(THEIRS, 53, b"question")
    driver.run(5, lambda: len(heard) == 2)
    assert EchoReceived(THEIRS, icmp.Echo(True, 7, 1, b"payload")) in heard
    heard_back = port.receive()
    assert heard_back is not None
    assert (heard_back.source, heard_back.source_port, heard_back.payload) == (THEIRS, 53, b"question")


def test_idle_connections_cost_nothing(gvisor: GVisor) -> None:
    """No timer runs while nothing is under way, but that of the keep-alive in two hours."""
    driver = gvisor.driver()
    transfer = Transfer(driver, driver.stack.connect(THEIRS, 9), b"")
    driver.run(5, lambda: transfer.is_done)
    idle = driver.stack.connect(THEIRS, 7)
    driver.run(5, lambda: idle.state is State.ESTABLISHED)
    close(driver, transfer)
    driver.run(5, lambda: transfer.connection.state is not State.FIN_WAIT_1)
    at = driver.stack.next_timeout()
    assert at is not None
    assert at > time.monotonic() + 50
