"""A server in this process that ends and comes back at its port."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio


class Restartable:
    """A server that can be ended and comes back at its port."""

    def __init__(self, nursery: trio.Nursery, serve: Callable[..., Awaitable[Any]], make: Callable[[int], Any]) -> None:
        self._nursery = nursery
        self._serve = serve
        self._make = make
        self._end: Callable[[], None] = lambda: None
        self._ended = trio.Event()
        self.port = 0
        self.server: Any = None

    async def start(self) -> None:
        self.server = await self._nursery.start(self._run, self._make(self.port))
        self.port = self.server.listening[0].port

    async def stop(self) -> None:
        self._end()
        await self._ended.wait()

    async def _run(self, config: Any, *, task_status: trio.TaskStatus[Any]) -> None:
        self._ended = trio.Event()
        with trio.CancelScope() as scope:
            self._end = scope.cancel
            async with trio.open_nursery() as inner:
                server = await inner.start(self._serve, config)
                task_status.started(server)
        self._ended.set()
