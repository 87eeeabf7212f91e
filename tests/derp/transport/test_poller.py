"""Every way to wait that there is, by the same tests; kqueue on a stand-in where the system has none."""

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from derp.errors import ConfigError
from derp.transport import poller as module
from derp.transport.poller import ENVIRONMENT, FAILED, POLLERS, READ, WRITE, KqueuePoller, Poller, open_poller
from tests.support.kqueue import stand_in
from tests.support.wires import socket_pair


@pytest.fixture(params=POLLERS)
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Poller]:
    name = str(request.param)
    is_here = hasattr(select, name)
    assert is_here or name == "kqueue"
    monkeypatch.setattr(module, "select", select if is_here else stand_in())
    made = POLLERS[name]()
    assert made.name == name
    yield made
    made.close()
    assert made.is_closed


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket_pair()
    near.setblocking(False)
    yield near, far
    near.close()
    far.close()


Pair = tuple[socket.socket, socket.socket]


def test_bytes_are_reported_until_they_are_read(poller: Poller, pair: Pair) -> None:
    near, far = pair
    poller.add(near.fileno())
    assert poller.wait(0, 10) == []
    far.send(b"x")
    for _ in range(2):
        assert poller.wait(0, 10) == [(near.fileno(), READ)]
    near.recv(10)
    assert poller.wait(0, 10) == []


def test_room_is_reported_while_it_is_asked_for(poller: Poller, pair: Pair) -> None:
    near, far = pair
    poller.add(near.fileno())
    poller.change(near.fileno(), read=False, write=True)
    far.send(b"not asked for")
    assert poller.wait(0, 10) == [(near.fileno(), WRITE)]
    poller.change(near.fileno(), read=True, write=True)
    assert poller.wait(0, 10) == [(near.fileno(), READ | WRITE)]
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(bytes(65536))
    assert poller.wait(0, 10) == [(near.fileno(), READ)]
    poller.change(near.fileno(), read=False, write=False)
    assert poller.wait(0, 10) == []
    poller.change(near.fileno(), read=True, write=False)
    assert poller.wait(0, 10) == [(near.fileno(), READ)]


def test_the_end_is_reported(poller: Poller, pair: Pair) -> None:
    near, far = pair
    poller.add(near.fileno())
    far.close()
    ((fd, mask),) = poller.wait(0, 10)
    assert fd == near.fileno()
    assert mask & READ
    poller.change(near.fileno(), read=False, write=False)
    # Paused: kqueue says nothing then, the others say that it failed.
    assert all(mask & FAILED for _, mask in poller.wait(0, 10))


def test_what_is_removed_is_silent_and_may_come_back(poller: Poller, pair: Pair) -> None:
    near, far = pair
    far.send(b"x")
    for _ in range(2):
        poller.add(near.fileno())
        assert poller.wait(0, 10) == [(near.fileno(), READ)]
        poller.remove(near.fileno())
        assert poller.wait(0, 10) == []
    reader, writer = os.pipe()
    poller.add(reader)
    os.write(writer, b"x")
    assert poller.wait(0, 10) == [(reader, READ)]
    poller.remove(reader)
    os.close(reader)
    os.close(writer)


def test_many_are_reported_together_and_none_starves(poller: Poller) -> None:
    pairs = [socket_pair() for _ in range(20)]
    for near, far in pairs:
        poller.add(near.fileno())
        far.send(b"x")
    seen = set()
    for _ in range(20):
        for fd, _ in poller.wait(0, 5):
            seen.add(fd)
    assert seen == {near.fileno() for near, _ in pairs}
    for near, far in pairs:
        poller.remove(near.fileno())
        near.close()
        far.close()


def test_a_set_may_lie_in_another_if_it_says_so(poller: Poller, pair: Pair) -> None:
    near, far = pair
    descriptor = poller.fileno()
    if descriptor is None:
        assert poller.name == "poll"
        return
    poller.add(near.fileno())
    outer = select.poll()
    outer.register(descriptor, READ)
    assert outer.poll(0) == []
    far.send(b"x")
    assert outer.poll(0) == [(descriptor, READ)]


def test_the_environment_may_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(module, "select", select)
    best = open_poller()
    assert best.name == next(name for name in POLLERS if hasattr(select, name))
    best.close()
    monkeypatch.setenv(ENVIRONMENT, "poll")
    assert open_poller().name == "poll"
    monkeypatch.setenv(ENVIRONMENT, "ports")
    with pytest.raises(ConfigError, match=r"cannot wait with 'ports': it has .*poll"):
        open_poller()


def test_the_best_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(module, "select", SimpleNamespace(poll=select.poll))
    assert open_poller().name == "poll"
    monkeypatch.setattr(module, "select", stand_in())
    assert isinstance(open_poller(), KqueuePoller)
