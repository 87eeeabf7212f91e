"""STUN over real UDP: answers on both families, and silence for everything else."""

import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trio

from derp.protocol.stun import encode_request, parse_response
from derp.server.stun import StunResponder, stun_totals
from derp.transport.listen import open_udp
from tests.derp.server.world import HOST, PATIENCE_SECONDS, open_server, port_of, relay_config

TX = bytes(range(12))
Udp = tuple[socket.socket, StunResponder]


@contextmanager
def responder(host: str = HOST, is_well: Callable[[], bool] = lambda: True) -> Iterator[Udp]:
    with open_udp(host, 0) as sock:
        yield sock, StunResponder(sock, is_well)


def exchange(udp: Udp, datagram: bytes, host: str = HOST) -> bytes | None:
    """What comes back, with the responder served once in between; loopback delivers at once."""
    sock, served = udp
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.bind((host, 0))
        client.sendto(datagram, (host, sock.getsockname()[1]))
        served.serve_ready()
        client.setblocking(False)
        try:
            answer = client.recv(2000)
        except BlockingIOError:
            return None
        transaction, ip, port = parse_response(answer)
        assert (transaction, port) == (TX, client.getsockname()[1])
        assert ip == socket.inet_pton(family, host)
        return answer


@pytest.mark.parametrize(
    ("listen", "caller", "size", "family"),
    [
        (HOST, HOST, 32, "ipv4"),
        ("::1", "::1", 44, "ipv6"),
        ("", HOST, 32, "ipv4"),
        ("", "::1", 44, "ipv6"),
    ],
)
def test_a_request_is_answered(listen: str, caller: str, size: int, family: str) -> None:
    with responder(listen) as udp:
        answer = exchange(udp, encode_request(TX), caller)
        assert answer is not None
        assert (len(answer), answer[:2]) == (size, b"\x01\x01")
        assert udp[1].success_count == {"ipv4": 0, "ipv6": 0} | {family: 1}


@pytest.mark.parametrize("listen", ["", "0.0.0.0", "::"])
@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2"])
def test_a_client_hears_the_address_that_it_asked(listen: str, asked: str) -> None:
    """A NAT, a firewall and a connected socket let no answer of another address of ours pass."""
    with responder(listen) as (sock, served), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((HOST, 0))
        client.connect((asked, sock.getsockname()[1]))
        client.settimeout(10)
        client.send(encode_request(TX))
        served.serve_ready()
        assert parse_response(client.recv(100))[0] == TX
        assert served.success_count == {"ipv4": 1, "ipv6": 0}


def test_a_request_without_the_address_that_was_asked_is_answered_and_counted() -> None:
    with responder("::") as udp:
        udp[0].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 0)
        assert exchange(udp, encode_request(TX)) is not None
        assert (udp[1].no_local_address_count, stun_totals([udp[1]])["success"]) == (1, 1)


def fingerprinted(message: bytes) -> bytes:
    return message + struct.pack("!HHI", 0x8028, 4, zlib.crc32(message) ^ 0x5354554E)


def request(kind: int = 1, cookie: int = 0x2112A442, software: bytes = b"tailnode") -> bytes:
    attribute = struct.pack("!HH", 0x8022, len(software)) + software
    return struct.pack("!HHI", kind, len(attribute) + 8, cookie) + TX + attribute


NEGATIVES = {
    "another type": fingerprinted(request(kind=2)),
    "another cookie": fingerprinted(request(cookie=0x2112A443)),
    "another software": fingerprinted(request(software=b"headnode")),
    "no software": fingerprinted(struct.pack("!HHI", 1, 8, 0x2112A442) + TX),
    "no fingerprint": request(),
    "a wrong fingerprint": fingerprinted(request())[:-1] + b"\x00",
    "a cut": encode_request(TX)[:-1],
    "nothing": b"",
    "noise": os.urandom(1200),
    "a request and more": encode_request(TX) + bytes(1000),
    "longer than any request": encode_request(TX) + bytes(60_000),
}


@pytest.mark.parametrize("what", NEGATIVES)
def test_everything_else_gets_silence_and_is_counted(what: str) -> None:
    with responder() as udp:
        assert exchange(udp, NEGATIVES[what]) is None
        assert stun_totals([udp[1]]) == {"success": 0, "not_stun": 1, "read_error": 0, "write_error": 0, "silent": 0}


def test_a_relay_that_is_not_well_says_nothing() -> None:
    with responder(is_well=lambda: False) as udp:
        assert exchange(udp, encode_request(TX)) is None
        assert stun_totals([udp[1]])["silent"] == 1


def test_a_flood_is_served_in_portions() -> None:
    with responder() as (sock, served), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(100):
            client.sendto(b"noise", sock.getsockname())
        served.serve_ready()
        assert served.not_stun_count == 64
        served.serve_ready()
        assert served.not_stun_count == 100


class BadSocket:
    """A socket whose network is gone."""

    def __init__(self, *received: bytes) -> None:
        self.received = list(received)

    def getsockname(self) -> tuple[str, int]:
        return HOST, 3478

    def recvmsg(self, size: int, ancillary: int) -> tuple[bytes, list[object], int, tuple[str, int]]:
        if not self.received:
            raise OSError(100, "Network is down")
        return self.received.pop(0), [], 0, (HOST, 9)

    def sendmsg(self, parts: object, ancillary: object, flags: int, address: tuple[str, int]) -> int:
        raise OSError(101, "Network is unreachable")


def test_errors_are_counted_and_harm_nothing() -> None:
    served = StunResponder(BadSocket(encode_request(TX)), lambda: True)  # type: ignore[arg-type]  # a fake
    served.serve_ready()
    assert stun_totals([served, served]) == {
        "success": 0,
        "not_stun": 0,
        "read_error": 2,
        "write_error": 2,
        "silent": 0,
    }


async def test_stun_of_a_running_relay_and_its_silence_while_draining() -> None:
    async with open_server(relay_config(stun_enabled=True, stun_port=0, listen=((HOST, 0), ("::1", 0)))) as server:
        for host, kind in ((HOST, socket.AF_INET), ("::1", socket.AF_INET6)):
            port = next(one.port for one in server.listening if one.kind == "stun" and one.host == host)
            with trio.socket.socket(kind, socket.SOCK_DGRAM) as client, trio.fail_after(PATIENCE_SECONDS):
                await client.bind((host, 0))
                await client.sendto(encode_request(TX), (host, port))
                assert parse_response(await client.recv(100)) == (
                    TX,
                    socket.inet_pton(kind, host),
                    client.getsockname()[1],
                )
        assert server.statistics().stun_family == {"ipv4": 1, "ipv6": 1}
        server.is_draining = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
            late.sendto(encode_request(TX), (HOST, port_of(server, "stun")))
            server.ports.stun[0].serve_ready()
        assert server.statistics().stun["silent"] == 1
