"""STUN over real sockets: a relay's answer, a name, silence, strangers, and families that are not there."""

import errno
import socket

import pytest
import trio

from derp.client.stun import MAX_WAITING, StunClient, open_stun
from derp.errors import ConnectError
from derp.netcheck.plan import StunTarget
from derp.protocol.stun import encode_response, parse_request
from tests.support.inprocess import HOST, PATIENCE_SECONDS, open_relay_here, port_of


async def udp_here() -> tuple[trio.socket.SocketType, int]:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await sock.bind((HOST, 0))
    return sock, sock.getsockname()[1]


@pytest.mark.parametrize("name", [HOST, "localhost"])
async def test_a_relay_tells_our_address(name: str) -> None:
    async with open_relay_here() as server, open_stun() as stun:
        with trio.fail_after(PATIENCE_SECONDS):
            answer = await stun.ask(StunTarget(name, port_of(server, "stun"), 4))
    assert str(answer.ip) == HOST
    assert answer.port > 0
    assert 0 < answer.seconds < PATIENCE_SECONDS


async def test_many_ask_at_once_and_each_gets_its_own_answer() -> None:
    async with open_relay_here() as server, open_stun() as stun:
        got = []

        async def ask() -> None:
            got.append(await stun.ask(StunTarget(HOST, port_of(server, "stun"), 4)))

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask)
    assert len({answer.port for answer in got}) == 1
    assert len(got) == 20


async def test_nonsense_and_answers_to_somebody_else_are_passed_over() -> None:
    sock, port = await udp_here()
    with sock:
        async with open_stun() as stun, trio.open_nursery() as nursery:

            async def answer_badly_then_well() -> None:
                request, address = await sock.recvfrom(1500)
                transaction_id = parse_request(request)
                assert transaction_id is not None
                await sock.sendto(b"nonsense", address)
                await sock.sendto(encode_response(bytes(12), b"\x01\x02\x03\x04", 5), address)
                await sock.sendto(encode_response(transaction_id, b"\xc0\x00\x02\x09", 99), address)

            nursery.start_soon(answer_badly_then_well)
            with trio.fail_after(PATIENCE_SECONDS):
                answer = await stun.ask(StunTarget(HOST, port, 4))
    assert (str(answer.ip), answer.port) == ("192.0.2.9", 99)


async def test_silence_waits_until_somebody_sets_a_deadline() -> None:
    sock, port = await udp_here()
    with sock:
        async with open_stun() as stun:
            with trio.move_on_after(0.05) as scope:
                await stun.ask(StunTarget(HOST, port, 4))
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (StunTarget("no such name", 3478, 4), "does not resolve"),
        (StunTarget("a..b", 3478, 4), "not a host name"),
        (StunTarget("::1", 3478, 4), "does not resolve"),
    ],
)
async def test_a_wrong_name_is_told(target: StunTarget, words: str) -> None:
    async with open_stun() as stun:
        with pytest.raises(ConnectError, match=words):
            await stun.ask(target)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EAGAIN])
async def test_what_does_not_leave_this_machine_counts_as_sent_and_lost(number: int) -> None:
    """A rule of the local firewall, and a full buffer; anything else is told."""

    def transmit(family: int, datagram: bytes, address: object) -> None:
        raise OSError(number if family == 4 else errno.EACCES, "not now")

    client = StunClient(transmit)
    with await client.send(4, (HOST, 1)) as answers, pytest.raises(trio.WouldBlock):
        answers.receive_nowait()
    with pytest.raises(ConnectError):
        await client.send(6, (HOST, 1))


async def test_requests_that_nobody_answers_are_bounded() -> None:
    sent: list[bytes] = []
    client = StunClient(lambda family, datagram, address: sent.append(datagram))
    channels = [await client.send(4, (HOST, 1)) for _ in range(MAX_WAITING + 1)]
    for datagram in sent[:2]:
        transaction_id = parse_request(datagram)
        assert transaction_id is not None
        client.receive(encode_response(transaction_id, bytes((192, 0, 2, 9)), 99))
    with pytest.raises(trio.WouldBlock):
        channels[0].receive_nowait()
    assert channels[1].receive_nowait().port == 99
