"""The reactor as a trio task: both ways of waiting, idle and flooded, beside other tasks."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from derp.close_reason import CloseReason
from derp.transport.links import Link
from derp.transport.reactor import Reactor
from tests.support.wires import socket_pair

PATIENCE_SECONDS = 60  # a hang guard
SMALL = 4096
pytestmark = pytest.mark.usefixtures("poller")


# --- as a trio task

WAYS = ("around", "beside")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(way: str, main: Callable[[], Awaitable[None]]) -> None:
    """With trio's own clock the reactor waits in the place of trio's loop, with a clock of tests beside it."""

    async def guarded() -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            await main()

    trio.run(guarded, clock=None if way == "around" else MockClock(rate=1.0))


def waits_in_trios_place() -> bool:
    """Whether a reactor has put its own queue into trio's loop."""
    from trio._core._run import GLOBAL_RUN_CONTEXT

    return type(GLOBAL_RUN_CONTEXT.runner.runq).__module__ == "derp.transport.trioloop"


@asynccontextmanager
async def running(reactor: Reactor) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        for _ in range(4):  # its start, and its look at trio
            await trio.lowlevel.checkpoint()
        yield
        nursery.cancel_scope.cancel()


class Echo:
    """Sends back what it gets: two of them at the ends of a socket never stop."""

    def __init__(self, reactor: Reactor, link: Link) -> None:
        self.reactor, self.link = reactor, link
        self.count = 0
        self.reason: CloseReason | None = None
        link.session = self
        reactor.add(link)

    def received(self, at: int, end: int) -> int:
        self.count += 1
        self.link.send([bytes(self.reactor.view[at:end])], end - at)
        return end

    def writable(self) -> None:
        pass

    def ended(self, reason: CloseReason, text: str) -> None:
        self.reason = reason


def flood(reactor: Reactor, pairs: int) -> list[Echo]:
    """Links between which packets fly for ever, so that the set is never without a ready one."""
    echoes = []
    for _ in range(pairs):
        near, far = socket_pair()
        far.setblocking(False)
        echoes += [Echo(reactor, Link(sock, ("127.0.0.1", 1))) for sock in (near, far)]
        near.send(b"ball")
    return echoes


async def live() -> None:
    """What other tasks of a relay do: sleep, talk to each other, use sockets, threads and subtasks."""
    for _ in range(3):
        await trio.sleep(0.002)
    with trio.move_on_after(0.002) as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught
    send, receive = trio.open_memory_channel[int](0)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(send.send, number)
        assert sorted([await receive.receive() for _ in range(5)]) == list(range(5))
    near, far = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send, b"hello")
        assert await far.recv(100) == b"hello"
    near.close()
    far.close()
    assert await trio.to_thread.run_sync(lambda: trio.from_thread.run_sync(lambda: "from a thread")) == "from a thread"


def test_the_way_of_waiting_follows_the_clock(way: str) -> None:
    async def main() -> None:
        async with running(Reactor()):
            assert waits_in_trios_place() is (way == "around")
        assert not waits_in_trios_place()

    run(way, main)


def test_others_live_while_the_reactor_waits(way: str) -> None:
    async def main() -> None:
        async with running(Reactor()):
            for _ in range(5):
                await live()

    run(way, main)


@pytest.mark.parametrize("pairs", [1, 40, 400])
def test_others_live_while_the_reactor_is_flooded(way: str, pairs: int) -> None:
    async def main() -> None:
        reactor = Reactor()
        echoes = flood(reactor, pairs)
        async with running(reactor):
            for _ in range(5):
                await live()
            before = [echo.count for echo in echoes]
            while any(echo.count == count for echo, count in zip(echoes, before, strict=True)):
                await live()

    run(way, main)


def test_links_are_served_while_others_are_busy(way: str) -> None:
    async def spin() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        reactor = Reactor()
        (first, second) = flood(reactor, 1)
        async with running(reactor), trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(spin)
            while min(first.count, second.count) < 100:
                await live()
            nursery.cancel_scope.cancel()

    run(way, main)


def test_a_task_that_a_session_wakes_runs_at_once(way: str) -> None:
    """Nothing else happens meanwhile: a reactor that goes back to waiting would leave the task where it is."""

    async def main() -> None:
        reactor = Reactor()
        near, far = socket_pair()
        called = [trio.Event() for _ in range(20)]

        class Bell(Echo):
            def received(self, at: int, end: int) -> int:
                called[self.reactor.view[end - 1]].set()
                return end

        def ring() -> None:  # from another thread, so that the reactor is waiting by then
            for number in range(20):
                far.send(bytes([number]))
                far.recv(1)

        Bell(reactor, Link(near, ("127.0.0.1", 1)))
        async with running(reactor), trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, ring)
            for event in called:
                await event.wait()
                near.send(b"!")
        far.close()

    run(way, main)


def test_a_link_added_later_is_served(way: str) -> None:
    async def main() -> None:
        reactor = Reactor()
        async with running(reactor):
            await trio.sleep(0.005)  # the reactor waits by now, with nothing of its own
            near, far = socket_pair()
            Echo(reactor, Link(near, ("127.0.0.1", 1)))
            stream = trio.socket.from_stdlib_socket(far)
            for _ in range(20):
                await stream.send(b"hello")
                assert await stream.recv(100) == b"hello"
            stream.close()

    run(way, main)


def test_cancelling_closes_every_link(way: str) -> None:
    async def main() -> None:
        reactor = Reactor()
        echoes = flood(reactor, 3)
        async with running(reactor):
            await live()
        assert [echo.reason for echo in echoes] == [CloseReason.STOPPED] * 6
        assert all(echo.link.sock.fileno() == -1 for echo in echoes)

    run(way, main)


def test_a_deadline_ends_the_reactor(way: str) -> None:
    async def main() -> None:
        with trio.move_on_after(0.005) as scope:
            await Reactor().run()
        assert scope.cancelled_caught

    run(way, main)


def test_timers_call_while_nothing_else_happens_and_while_much_does(way: str) -> None:
    async def main() -> None:
        reactor = Reactor()
        flushes: list[str] = []
        reactor.flushers.append(lambda: flushes.append("flush"))
        async with running(reactor):
            for _ in range(2):
                called = trio.Event()
                late = reactor.call_at(reactor.tick() + 3600.0, lambda: None)
                reactor.call_at(reactor.tick() + 0.01, called.set)  # sooner than the one before
                late.cancel()
                flushes.clear()
                await called.wait()
                assert flushes
                flood(reactor, 20)

    run(way, main)


def test_several_reactors_share_a_loop() -> None:
    """Only one can wait in trio's place; the other's set is then one of those trio waits for."""

    async def main() -> None:
        reactors = [Reactor(), Reactor(), Reactor()]
        async with running(reactors[0]), running(reactors[1]), running(reactors[2]):
            for _ in range(3):
                echoes = [echo for reactor in reactors for echo in flood(reactor, 1)]
                while min(echo.count for echo in echoes) < 50:
                    await live()
                for echo in echoes:
                    echo.reactor.close(echo.link, CloseReason.DRAINED)
                await trio.sleep(0.002)  # all of them idle, then busy again

    run("around", main)


def test_when_one_reactor_ends_the_next_takes_its_place() -> None:
    async def main() -> None:
        for _ in range(3):
            reactor = Reactor()
            echoes = flood(reactor, 1)
            async with running(reactor):
                assert waits_in_trios_place()
                while min(echo.count for echo in echoes) < 10:
                    await live()
            assert not waits_in_trios_place()
        await live()

    run("around", main)


def test_nothing_stays_open() -> None:
    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            reactor = Reactor()
            flood(reactor, 2)
            async with running(reactor):
                await live()
        assert len(os.listdir("/proc/self/fd")) == before

    run("around", live)  # what trio opens once for all
    run("around", main)


def test_a_timer_may_ask_again_for_a_time_that_has_come(way: str) -> None:
    """As an alarm does that has handled a portion of what is due."""

    async def main() -> None:
        reactor = Reactor()
        rung: list[float] = []
        over = trio.Event()

        def ring() -> None:
            rung.append(reactor.now)
            if len(rung) < 20:
                reactor.call_at(rung[0] - 1.0, ring)
            else:
                over.set()

        async with running(reactor):
            reactor.call_at(reactor.tick(), ring)
            await over.wait()

    run(way, main)
