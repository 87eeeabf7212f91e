"""A reactor that waits in trio's place takes nobody's turn: neither tasks of its own pass, nor threads, nor signals."""

import os
import signal

import trio

from derp.transport.reactor import Reactor


async def checkpoints(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def test_tasks_in_the_same_pass_run() -> None:
    # A reactor that blocks while others of its pass are waiting wakes at the deadline, far too late.
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Reactor().run)
            for _ in range(50):
                async with trio.open_nursery() as several:
                    for count in (1, 2, 3):
                        several.start_soon(checkpoints, count)
            nursery.cancel_scope.cancel()


async def test_threads_come_back() -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Reactor().run)
            for number in range(20):
                assert await trio.to_thread.run_sync(abs, -number) == number
            nursery.cancel_scope.cancel()


async def test_signals_come_through() -> None:
    # SIGURG: one that arrives late, when the test has failed already, is ignored and does not kill the test run.
    with trio.fail_after(60), trio.open_signal_receiver(signal.SIGURG) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Reactor().run)
            for _ in range(20):
                await trio.to_thread.run_sync(os.kill, os.getpid(), signal.SIGURG)
                assert await anext(signals) == signal.SIGURG
            nursery.cancel_scope.cancel()
