import contextlib
import socket
from collections.abc import Mapping

import pytest
import trio

from derp.config.relay import WORKER_VARIABLE, AcmeConfig, TlsConfig
from derp.keys import NodePrivate
from derp.relay.siblings import WorkerRouter
from derp.server.memory import memory_bytes
from derp.server.siblings import Siblings
from derp.server.worker import Worker, encode
from derp.transport.hostcore import HostCore
from tests.derp.server.world import PATIENCE_SECONDS, relay_config

KEY = NodePrivate(b"k" * 32)


def worker(slot: int = 1, count: int = 4, generated: tuple[bytes, bytes] | None = None) -> tuple[Worker, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(encode("place", 7, slot, count, KEY.raw, generated))
    return Worker(theirs), ours


def test_it_learns_who_it_is_before_anything_else() -> None:
    one, line = worker()
    with line, contextlib.closing(one):
        assert (one.place.number, one.place.slot, one.place.count) == (7, 1, 4)


def test_it_takes_its_part_of_what_all_may_have_and_the_one_key() -> None:
    one, line = worker()
    with line, contextlib.closing(one):
        config = relay_config(accept_connection_limit=100.0, accept_connection_burst=10, max_connections=8)
        share = one.share(config)

    assert share.private_key == KEY
    assert share.accept_connection_limit == 25.0
    assert share.accept_connection_burst == 3, "never none"
    assert share.queue_total_bytes == memory_bytes() // 4 // 4
    assert one.share(relay_config(queue_total_bytes=400)).queue_total_bytes == 100
    assert share.max_connections == 8


def test_quic_is_one_worker_s_and_its_certificate_what_the_supervisor_made() -> None:
    made = (b"chain", b"key")
    for slot in range(2):
        one, line = worker(slot, 2, made)
        with line, contextlib.closing(one):
            share = one.share(relay_config(quic=True, tls=TlsConfig(hostname="r.example", self_signed=True)))
        assert share.tls is not None
        assert (share.quic, share.tls.generated, share.tls.is_kept_elsewhere) == (slot == 0, made, False)
        assert "b'key'" not in repr(share), "it is a secret"


def test_nobody_but_the_supervisor_asks_an_authority() -> None:
    one, line = worker()
    with line, contextlib.closing(one):
        share = one.share(relay_config(tls=TlsConfig(hostname="r.example", acme=AcmeConfig())))
    assert share.tls is not None
    assert share.tls.is_kept_elsewhere


def test_its_environment_says_nothing_of_it_to_processes_that_it_starts() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(encode("place", 0, 0, 2, KEY.raw, None))
    environment = {WORKER_VARIABLE: str(theirs.detach()), "NOTIFY_SOCKET": "/run/systemd/notify", "PATH": "/bin"}

    Worker.from_environment(environment).close()

    assert environment == {"PATH": "/bin"}
    ours.close()


def test_a_message_that_the_line_does_not_take_whole_is_our_own_fault() -> None:
    with pytest.raises(AssertionError):
        encode("sibling", "x" * 5000)


class Obedient:
    """A server that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def reload(self) -> None:
        self.asked.append("reload")

    def close(self) -> None:
        raise NotImplementedError

    async def drain(self) -> None:
        self.asked.append("drain")

    async def leave_to_others(self) -> None:
        raise NotImplementedError

    def share_sockets(self, *, is_shared: bool) -> None:
        raise NotImplementedError

    def take_channel(self, channel: socket.socket) -> None:
        raise NotImplementedError

    def show_proof(self, digest: bytes | None, challenges: Mapping[str, bytes], failures: int) -> None:
        self.asked.append("show_proof")

    def look_at_certificate(self) -> None:
        raise NotImplementedError


async def test_a_supervisor_that_ended_behind_its_orders_is_drained_for_and_not_answered() -> None:
    one, line = worker()
    with line:
        for order in (("proof", b"d", {}, 0), ("reload",)):
            line.send(encode(*order))
    server = Obedient()
    router = WorkerRouter(KEY.raw, one.place, queue_depth=8, queue_bytes=1 << 20)
    with contextlib.closing(one), trio.fail_after(PATIENCE_SECONDS):
        await one.run(server, Siblings(router, HostCore(trio.current_time)))
    assert server.asked == ["show_proof", "reload", "drain"]
