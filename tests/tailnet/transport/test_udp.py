"""UDP of both families on loopback: batches by source, and what cannot be sent."""

import pytest
import trio

from tailnet.paths.endpoint import Endpoint
from tailnet.transport.udp import UdpSockets


async def test_datagrams_come_in_batches_by_their_source() -> None:
    one, other, third = UdpSockets(), UdpSockets(), UdpSockets()
    at_one, at_other, at_third = (sockets.open() for sockets in (one, other, third))
    received: dict[Endpoint, list[bytes]] = {}
    pumped = trio.Event()

    def receive(datagrams: list[bytes], source: Endpoint) -> None:
        received.setdefault(source, []).extend(datagrams)

    for number in range(3):
        assert other.send(at_one[0], b"%d" % number)
    assert third.send(at_one[0], b"another")
    with trio.fail_after(20):
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
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for sock in one.all:
                nursery.start_soon(one.serve, sock, lambda datagrams, source: received.extend(datagrams), lambda: None)
            for _ in range(3):
                assert one.send(gone[0], b"lost")
            assert one.send(at_one[0], b"to myself")
            while not received:  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert received == [b"to myself"]
    one.close()


def test_a_family_that_the_system_lacks() -> None:
    with pytest.raises(OSError, match="no addresses of that family"):
        UdpSockets().send(Endpoint("2001:db8::1", 1), b"x")
