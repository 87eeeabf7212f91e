"""Our stack and the kernel's TCP behind a TUN device in a network namespace, CUBIC and BBR, in both directions."""

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tailnet.netstack.connection import Connection
from tests.support import kernel_peer
from tests.support.kernel_peer import KernelPeer
from tests.support.netsim import ADDRESSES
from tests.support.netstack_driver import Driver, Way
from tests.support.netstack_services import Services, Transfer, close, get, put

pytestmark = pytest.mark.interop
OURS, THEIRS = ADDRESSES
OURS_TEXT, THEIRS_TEXT = (socket.inet_ntop(socket.AF_INET6, address) for address in ADDRESSES)
SIZE = 10_000_000


@pytest.fixture(scope="module", params=["cubic", "bbr"])
def kernel(request: pytest.FixtureRequest) -> Iterator[KernelPeer]:
    reason = kernel_peer.missing()
    if not reason and request.param not in kernel_peer.available():
        reason = f"this kernel has no {request.param}"
    if reason:
        pytest.skip(reason)
    peer = KernelPeer(THEIRS_TEXT, OURS_TEXT, request.param)
    yield peer
    peer.close()


def command(kernel: KernelPeer, driver: Driver, line: str) -> dict[str, Any]:
    """Let it do something while our stack runs."""
    said = b""

    def read() -> None:
        nonlocal said
        said += os.read(kernel.output, 65536)

    driver.watch(kernel.output, read)
    kernel.ask(line)
    driver.run(120, lambda: b"\n" in said)
    answer = json.loads(said)
    assert answer["ok"], answer
    return dict(answer)


def test_ten_megabytes_each_way_whoever_dials(kernel: KernelPeer) -> None:
    driver = Driver(OURS, kernel.tun)
    Services(driver)
    put(driver, THEIRS, SIZE)
    get(driver, THEIRS, SIZE)
    command(kernel, driver, f"put 9 {SIZE}")
    command(kernel, driver, f"get 19 {SIZE}")
    counters = driver.stack.counters
    assert counters.retransmissions <= 0.02 * counters.segments_sent


def test_a_lossy_way_is_repaired_without_waste(kernel: KernelPeer) -> None:
    driver = Driver(OURS, kernel.tun, out=Way(0.003, 0.01), back=Way(0.003, 0.01))
    Services(driver)
    put(driver, THEIRS, 1_500_000)
    get(driver, THEIRS, 1_500_000)
    command(kernel, driver, "put 9 1500000")
    command(kernel, driver, "get 19 1500000")
    assert driver.out.lost > 10
    assert driver.back.lost > 10
    counters = driver.stack.counters
    assert counters.retransmissions <= driver.out.lost + counters.tail_probes + 10 * counters.rtos


def test_two_hundred_connections_at_once(kernel: KernelPeer) -> None:
    driver = Driver(OURS, kernel.tun)
    lines = [b"line %d\n" % number for number in range(200)]
    transfers = [Transfer(driver, driver.stack.connect(THEIRS, 7), line) for line in lines]
    driver.run(30, lambda: all(transfer.is_done for transfer in transfers))
    assert [bytes(transfer.got) for transfer in transfers] == lines
    for transfer in transfers:
        close(driver, transfer)
    driver.run(5, lambda: all(_is_over(transfer.connection) for transfer in transfers))


def _is_over(connection: Connection) -> bool:
    return connection.end is not None
