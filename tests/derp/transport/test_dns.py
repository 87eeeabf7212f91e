"""Asking name servers: on real datagrams, with servers that are silent, closed, lying or sick."""

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from derp.errors import ConnectError, LocalProtocolError
from derp.transport.dns import ANSWER_SECONDS, look_up_txt, name_servers

HOST = "127.0.0.1"
Reply = Callable[[bytes], list[bytes]]


class NameServer:
    """Answers each question with what `reply` makes of it."""

    def __init__(self, sock: trio.socket.SocketType, reply: Reply) -> None:
        self.sock = sock
        self.reply = reply
        self.asked = 0

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.sock.getsockname()[:2]
        return host, port

    async def serve(self) -> None:
        while True:
            query, source = await self.sock.recvfrom(1500)
            self.asked += 1
            for datagram in self.reply(query):
                await self.sock.sendto(datagram, source)


@asynccontextmanager
async def open_name_server(reply: Reply, host: str = HOST) -> AsyncIterator[NameServer]:
    with trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.bind((host, 0))
        server = NameServer(sock, reply)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve)
            with trio.fail_after(20):
                yield server
            nursery.cancel_scope.cancel()


def says(text: bytes, query: bytes, flags: int = 0x8180) -> bytes:
    payload = bytes((len(text),)) + text
    head = query[:2] + struct.pack("!5H", flags, 1, 1, 0, 0)
    return head + query[12:] + b"\xc0\x0c" + struct.pack("!HHIH", 16, 1, 60, len(payload)) + payload


def sick(query: bytes) -> list[bytes]:
    return [says(b"0", query, flags=0x8182)]


@pytest.mark.parametrize("host", [HOST, "::1"])
async def test_a_record(host: str) -> None:
    async with open_name_server(lambda query: [says(b"50", query)], host) as server:
        assert await look_up_txt("a.test", [server.address]) == ["50"]
        assert server.asked == 1


async def test_lies_and_strangers_are_passed_over() -> None:
    def reply(query: bytes) -> list[bytes]:
        other = bytes((query[0] ^ 1, *query[1:]))
        return [b"", b"noise", says(b"1", other), query, says(b"50", query)]

    async with open_name_server(reply) as server, open_name_server(lambda query: []) as stranger:
        assert await look_up_txt("a.test", [server.address]) == ["50"]
        assert stranger.asked == 0


async def test_the_next_server_is_asked() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind((HOST, 0))
        nobody = closed.getsockname()
    async with open_name_server(sick) as first, open_name_server(lambda query: [says(b"7", query)]) as second:
        assert await look_up_txt("a.test", [nobody, first.address, second.address]) == ["7"]
        assert (first.asked, second.asked) == (1, 1)


async def test_each_is_asked_twice() -> None:
    answers = iter([[], [b"x"]])

    def reply(query: bytes) -> list[bytes]:
        return [says(b"7", query) for _ in next(answers)]

    async with open_name_server(reply) as lossy, open_name_server(sick) as other:
        assert await look_up_txt("a.test", [lossy.address, other.address]) == ["7"]
        assert (lossy.asked, other.asked) == (2, 1)


async def test_when_none_answers_the_error_says_why(autojump_clock: trio.testing.MockClock) -> None:
    async with open_name_server(sick) as server:
        with pytest.raises(ConnectError, match=r"TXT records of a.test: 127\.0\.0\.1: the server's answer is error 2"):
            await look_up_txt("a.test", [server.address])
        assert server.asked == 2
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        await silent.bind((HOST, 0))
        began = trio.current_time()
        with pytest.raises(ConnectError, match=r"127\.0\.0\.1 does not answer"):
            await look_up_txt("a.test", [silent.getsockname()])
        assert trio.current_time() - began == pytest.approx(2 * ANSWER_SECONDS)


async def test_what_is_no_name_is_an_error_at_once() -> None:
    with pytest.raises(LocalProtocolError):
        await look_up_txt("a..b", [])


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("nameserver 192.0.2.1\n", ["192.0.2.1"]),
        (
            "search x\n nameserver\t192.0.2.1 # here\nnameserver\nnameserver fe80::1%eth0\n",
            ["192.0.2.1", "fe80::1%eth0"],
        ),
        ("".join(f"nameserver 192.0.2.{number}\n" for number in range(5)), [f"192.0.2.{n}" for n in range(3)]),
        ("# nameserver 192.0.2.1\nnameservers 192.0.2.1\n", [HOST]),
    ],
)
def test_servers_are_those_of_the_machine(tmp_path: Path, text: str, hosts: list[str]) -> None:
    (tmp_path / "resolv.conf").write_text(text)
    assert name_servers(tmp_path / "resolv.conf") == [(host, 53) for host in hosts]


def test_without_a_file_the_machine_itself_is_asked(tmp_path: Path) -> None:
    assert name_servers(tmp_path / "nowhere") == [(HOST, 53)]
