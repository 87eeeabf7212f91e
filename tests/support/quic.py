"""Pairs of QUIC connections in virtual time, and a NAT that forgets."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache

import trio

from derp.transport.quic import Place, QuicDoor, QuicLine, dial, read_head
from derp.transport.tls import make_self_signed

NAME = "relay.test"
CLIENT, SERVER = Place(("192.0.2.1", 1111)), Place(("192.0.2.2", 443))


@cache
def certificate() -> tuple[bytes, bytes]:
    """Chain and key as PEM."""
    return make_self_signed(NAME, datetime.now(UTC))


def open_door() -> QuicDoor:
    door = QuicDoor(b"secret")
    door.configure(*certificate())
    return door


class Pair:
    """A client and a server, and a path of 10 ms between them; `loses(number, datagram)` says which are lost."""

    def __init__(self, loses: Callable[[int, bytes], bool] = lambda number, datagram: False) -> None:
        self.now = 1000.0
        self.loses = loses
        self.door = open_door()
        self.client = dial(SERVER, NAME, self.now)
        self.client_place = CLIENT
        self.server: QuicLine | None = None
        self.sent_count = 0

    def _survives(self, datagram: bytes) -> bool:
        self.sent_count += 1
        return not self.loses(self.sent_count, datagram)

    def exchange(self) -> int:
        """Everything that either has to say goes to the other; how many datagrams that were."""
        before = self.sent_count
        for datagram, place in self.client.datagrams_to_send(self.now):
            assert place == SERVER
            if self._survives(datagram):
                if self.server is None:
                    head = read_head(datagram)
                    assert head is not None
                    self.server = self.door.accept(head, self.client_place, self.now)
                    assert self.server is not None
                self.server.receive(datagram, self.client_place, self.now + 0.01)
        self.now += 0.01
        if self.server is not None:
            for datagram, place in self.server.datagrams_to_send(self.now):
                if self._survives(datagram) and place == self.client_place:
                    self.client.receive(datagram, SERVER, self.now + 0.01)
        self.now += 0.01
        for line in (self.client, self.server):
            if line is not None:
                line.handle_timeout(self.now)
        return self.sent_count - before

    def settle(self, rounds: int = 200) -> None:
        """Until neither has anything to say, or only after a while."""
        quiet = 0
        for _ in range(rounds):
            quiet = quiet + 1 if not self.exchange() else 0
            if quiet == 10:
                return

    @property
    def relay(self) -> QuicLine:
        assert self.server is not None
        return self.server


def connected(loses: Callable[[int, bytes], bool] = lambda number, datagram: False) -> Pair:
    """A pair that has shaken hands, and whose control stream has begun."""
    pair = Pair(loses)
    pair.settle()
    pair.client.send_stream(b"hello")
    pair.settle()
    assert pair.relay.take_stream(100) == b"hello"
    return pair


class Nat:
    """Leads the datagrams of a client to a server, and back; `forget` has them come from another port from now on."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to = to
        self._inside = _bound()
        self._outside = _bound()
        self._client: tuple[str, int] | None = None
        self._is_cut = False
        self.ports: list[int] = []
        """Those from which the server saw datagrams come."""

    @property
    def port(self) -> int:
        return int(self._inside.getsockname()[1])

    def forget(self) -> None:
        old, self._outside = self._outside, _bound()
        trio.lowlevel.notify_closing(old)
        old.close()
        self._is_cut = False

    def cut(self) -> None:
        """Let nothing through from now on, until `forget`."""
        self._is_cut = True

    async def inward(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._inside)
            data, self._client = self._inside.recvfrom(4096)
            port = int(self._outside.getsockname()[1])
            if port not in self.ports and not self._is_cut:
                self.ports.append(port)
            if not self._is_cut:
                self._outside.sendto(data, self._to)

    async def outward(self) -> None:
        while True:
            sock = self._outside
            try:
                await trio.lowlevel.wait_readable(sock)
            except trio.ClosedResourceError:
                continue
            if sock is not self._outside:
                continue  # it was forgotten after it had become readable
            data = sock.recv(4096)
            assert self._client is not None
            self._inside.sendto(data, self._client)

    def close(self) -> None:
        self._inside.close()
        self._outside.close()


def _bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def open_nat(to: tuple[str, int]) -> AsyncIterator[Nat]:
    nat = Nat(to)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nat.inward)
        nursery.start_soon(nat.outward)
        yield nat
        nursery.cancel_scope.cancel()
    nat.close()
