"""UDP of both families on loopback: batches by source, and what cannot be sent."""

import socket
from collections.abc import Sequence

import pytest
import trio

from tailnet.paths.endpoint import Endpoint
from tailnet.transport import udp
from tailnet.transport.udp import UdpSockets


async def test_datagrams_come_in_batches_by_their_source() -> None:
    one, other, third = UdpSockets(), UdpSockets(), UdpSockets()
    at_one, at_other, at_third = (sockets.open() for sockets in (one, other, third))
    received: dict[Endpoint, list[bytes]] = {}
    pumped = trio.Event()

    def receive(datagrams: list[bytes], source: Endpoint) -> None:
        received.setdefault(source, []).extend(datagrams)

    for number in range(3):
        assert other.send(at_one[0], [b"%d" % number]) == 1
    assert third.send(at_one[0], [b"another"]) == 1
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for sock in one.all:
                nursery.start_soon(one.serve, sock, receive, pumped.set)
            await pumped.wait()
            nursery.cancel_scope.cancel()
    assert received == {at_other[0]: [b"0", b"1", b"2"], at_third[0]: [b"another"]}
    for sockets in (one, other, third):
        sockets.close()


async def test_what_nobody_receives_harms_nobody() -> None:
    """A port that is closed answers by ICMP, which Linux shows with the next call on the socket."""
    one, other = UdpSockets(), UdpSockets()
    at_one, gone = one.open(), other.open()
    other.close()
    received: list[bytes] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for sock in one.all:
                nursery.start_soon(one.serve, sock, lambda datagrams, source: received.extend(datagrams), lambda: None)
            for _ in range(3):
                assert one.send(gone[0], [b"lost"]) == 1
            assert one.send(at_one[0], [b"to myself"]) == 1
            while not received:  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert received == [b"to myself"]
    one.close()


def test_a_family_that_the_system_lacks() -> None:
    with pytest.raises(OSError, match="no addresses of that family"):
        UdpSockets().send(Endpoint("2001:db8::1", 1), [b"x"])


async def test_batches_of_any_sizes_come_as_they_were_sent() -> None:
    """Runs of one size go in one call, and datagrams keep their limits: none is joined with another, none is split."""
    sizes = [1312] * 120 + [7] + [1312, 80, 80, 32, 1312, 2048, 1] + [32] * 70
    wanted = [bytes((number % 251,)) * size for number, size in enumerate(sizes)]
    one, other = UdpSockets(), UdpSockets()
    at_one = one.open()
    other.open()
    received: list[bytes] = []
    batches: list[int] = []

    def receive(datagrams: list[bytes], source: Endpoint) -> None:
        received.extend(datagrams)
        batches.append(len(datagrams))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for sock in one.all:
                nursery.start_soon(one.serve, sock, receive, lambda: None)
            assert other.send(at_one[0], wanted) == len(wanted)
            while len(received) < len(wanted):  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert received == wanted
    assert max(batches) <= 64 + 63, "others have their turn after each batch"
    one.close()
    other.close()


@pytest.mark.parametrize("size", [2049, 60_000])
async def test_larger_ones_are_nobodys(size: int) -> None:
    one, other = UdpSockets(), UdpSockets()
    at_one = one.open()
    other.open()
    received: list[bytes] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for sock in one.all:
                nursery.start_soon(one.serve, sock, lambda datagrams, source: received.extend(datagrams), lambda: None)
            assert other.send(at_one[0], [bytes(size), b"after it"]) == 2
            while not received:  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert received == [b"after it"]
    one.close()
    other.close()


async def test_where_the_kernel_gathers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call for each datagram, as on other systems; also when a call for many is refused."""
    one, other = UdpSockets(), UdpSockets()
    at_one = one.open()
    other.open()
    calls: list[int] = []

    def refuse(sock: socket.socket, endpoint: Endpoint, run: Sequence[bytes]) -> bool:
        calls.append(len(run))
        return False

    monkeypatch.setattr(udp, "_send_gathered", refuse)
    received: list[bytes] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for sock in one.all:
                nursery.start_soon(one.serve, sock, lambda datagrams, source: received.extend(datagrams), lambda: None)
            assert other.send(at_one[0], [b"aa", b"bb", b"c"]) == 3
            monkeypatch.setattr(udp, "_IS_GATHERING", False)
            assert other.send(at_one[0], [b"dd", b"ee"]) == 2
            while len(received) < 5:  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert received == [b"aa", b"bb", b"c", b"dd", b"ee"]
    assert calls == [3], "where the system cannot, it is not asked"
    one.close()
    other.close()
