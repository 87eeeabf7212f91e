"""What the reactor takes of trio's loop: it is tried out at start, and another trio is noticed and told of, once."""

import select
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio._core._run import GLOBAL_RUN_CONTEXT, Deadlines
from trio.testing import MockClock

from derp.transport import trioloop
from derp.transport.reactor import Reactor
from derp.transport.trioloop import NotPossible, TrioLoop
from tests.support.wires import socket_pair


def runner() -> Any:
    return GLOBAL_RUN_CONTEXT.runner


def test_what_is_taken_is_given_back() -> None:
    async def main() -> None:
        before = type(runner().runq)
        for _ in range(2):
            loop = await TrioLoop.enter()
            assert type(runner().runq) is not before
            assert 0 < loop.seconds_to_spare() <= 60
            with trio.move_on_after(5):
                await trio.lowlevel.checkpoint()
                assert 4 < loop.seconds_to_spare() <= 5
            loop.leave()
            assert type(runner().runq) is before
        await trio.lowlevel.checkpoint()

    trio.run(main)


def test_tasks_that_can_run_leave_nothing_to_spare() -> None:
    async def main() -> None:
        loop = await TrioLoop.enter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
            assert loop.seconds_to_spare() == 0
            await trio.lowlevel.checkpoint()
        loop.leave()

    trio.run(main)


@pytest.mark.parametrize("what", ["a clock of tests", "another reactor"])
def test_it_may_be_meant(what: str) -> None:
    async def main() -> None:
        first = await TrioLoop.enter() if what == "another reactor" else None
        with pytest.raises(NotPossible, match=what) as refused:
            await TrioLoop.enter()
        assert refused.value.is_expected
        if first is not None:
            first.leave()

    trio.run(main, clock=MockClock() if what == "a clock of tests" else None)


class _OtherSet:
    """Trio's set, under a descriptor that is not its own."""

    def __init__(self, inner: Any, other: select.epoll) -> None:
        self._inner = inner
        self._other = other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def fileno(self) -> int:
        return self._other.fileno()


def _other_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trioloop._RunQueue, "clear", deque.clear)


def _blind_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadlines, "next_deadline", lambda self: float("inf"))


def _no_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Deadlines, "next_deadline")


def _other_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    io_manager = runner().io_manager
    monkeypatch.setattr(io_manager, "_epoll", _OtherSet(io_manager._epoll, select.epoll()))


CHANGES = [
    (_other_queue, "`runq`"),
    (_blind_deadlines, "`deadlines`"),
    (_no_deadlines, "next_deadline"),
    (_other_descriptor, "descriptor"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_another_trio_is_noticed(change: Callable[[pytest.MonkeyPatch], None], told: str) -> None:
    async def main() -> None:
        before = type(runner().runq)
        with pytest.MonkeyPatch.context() as monkeypatch:
            change(monkeypatch)
            with pytest.raises(NotPossible, match=told) as refused:
                await TrioLoop.enter()
        assert not refused.value.is_expected
        assert type(runner().runq) is before, "trio has its own queue again"

    trio.run(main)


@pytest.mark.parametrize("is_expected", [True, False])
def test_a_reactor_serves_beside_another_trio_and_says_so(
    is_expected: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def enter() -> TrioLoop:
        raise NotPossible("no `runq`", is_expected=is_expected)

    async def main() -> None:
        reactor = Reactor()
        near, far = socket_pair()
        served = trio.Event()
        reactor.watch(near.fileno(), served.set)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reactor.run)
            far.send(b"x")
            await served.wait()
            assert not reactor.is_in_trios_place
            nursery.cancel_scope.cancel()
        near.close()
        far.close()

    monkeypatch.setattr(TrioLoop, "enter", enter)
    trio.run(main)
    told = [record.message for record in caplog.records if record.name == "derp.transport"]
    assert len(told) == (0 if is_expected else 1)
    assert is_expected or f"trio {trio.__version__} is another than this relay knows (no `runq`)" in told[0]


def test_somebody_else_s_wake_ups_are_no_other_trio() -> None:
    """A signal or a thread that ends wakes trio in the very moment in which we try it out."""

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()

        async def wake_all_the_time() -> None:
            while True:
                token.run_sync_soon(lambda: None)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wake_all_the_time)
            for _ in range(100):
                (await TrioLoop.enter()).leave()
            nursery.cancel_scope.cancel()

    trio.run(main)
