"""Links over Unix sockets: whose file it is, and what becomes of it."""

import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from derp.errors import ConnectError, ListenError
from tailnet.bus.contract import place_of_socket, place_text
from tailnet.bus.static import StaticBus
from tailnet.bus.unix import close_unix_listener, dial_unix, open_unix_listener
from tests.support.replicated import Place


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "replica.sock")


def is_there(path: str) -> bool:
    return os.path.exists(path)


def test_it_is_its_owner_s_alone_and_goes_with_its_listener(path: str) -> None:
    sock = open_unix_listener(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert place_text(place_of_socket(sock)) == f"unix:{path}"
    close_unix_listener(sock)
    assert not is_there(path)


async def test_it_goes_with_its_replica_and_stays_for_a_successor(path: str) -> None:
    for leaves_it in (False, True):
        async with trio.open_nursery() as nursery:
            place = await nursery.start(Place(StaticBus([]), "first", (path, 0)).run)
            await (await dial_unix(path, 5.0)).aclose()
            if leaves_it:
                place.replicas.stop_listening()
            place.scope.cancel()
        assert is_there(path) == leaves_it


def test_what_a_killed_process_left_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path)
        killed.listen()
    close_unix_listener(open_unix_listener(path))


def test_a_socket_in_use_is_left_alone(path: str) -> None:
    sock = open_unix_listener(path)
    with pytest.raises(ListenError, match=f"listen on unix:{path}: something listens there already"):
        open_unix_listener(path)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
    close_unix_listener(sock)


def test_another_file_is_left_alone(path: str) -> None:
    Path(path).write_text("mine")
    with pytest.raises(ListenError):
        open_unix_listener(path)
    assert Path(path).read_text() == "mine"


async def test_nobody_there(path: str) -> None:
    with pytest.raises(ConnectError, match=f"dial unix:{path}"):
        await dial_unix(path, 5.0)
