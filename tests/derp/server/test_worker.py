import contextlib
import socket

import pytest

from derp.config.relay import WORKER_VARIABLE
from derp.keys import NodePrivate
from derp.server.memory import memory_bytes
from derp.server.worker import Worker, encode
from tests.derp.server.world import relay_config

KEY = NodePrivate(b"k" * 32)


def worker(slot: int = 1, count: int = 4) -> tuple[Worker, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(encode("place", 7, slot, count, KEY.raw))
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


def test_its_environment_says_nothing_of_it_to_processes_that_it_starts() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(encode("place", 0, 0, 2, KEY.raw))
    environment = {WORKER_VARIABLE: str(theirs.detach()), "NOTIFY_SOCKET": "/run/systemd/notify", "PATH": "/bin"}

    Worker.from_environment(environment).close()

    assert environment == {"PATH": "/bin"}
    ours.close()


def test_a_message_that_the_line_does_not_take_whole_is_our_own_fault() -> None:
    with pytest.raises(AssertionError):
        encode("sibling", "x" * 5000)
