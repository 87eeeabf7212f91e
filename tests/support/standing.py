"""Callers of whom one loses its right when a test says so, for streams that follow by a permit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import trio

from tailnet.api.streams import POLICY_VIOLATION, End, Permit
from tailnet.auth.backends import Callers


class Standing:
    """What a stream asks of tailnet/auth/backends.py."""

    def __init__(self) -> None:
        self.end: End | None = None
        self.told: list[Callable[[], None]] = []
        self.generation = 0
        self._changed = trio.Event()
        self.permit = Permit(cast(Callers, self), self.ask)

    async def ask(self) -> End | None:
        return self.end

    @contextmanager
    def telling(self, changed: Callable[[], None]) -> Iterator[None]:
        self.told.append(changed)
        yield
        self.told.remove(changed)

    async def wait_changed(self, known: int) -> int:
        while self.generation == known:
            await self._changed.wait()
        return self.generation

    def change(self) -> None:
        """Callers changed, this one or another."""
        self.generation += 1
        self._changed.set()
        self._changed = trio.Event()
        for tell in tuple(self.told):
            tell()

    def withdraw(self) -> None:
        """This one may not follow any longer."""
        self.end = POLICY_VIOLATION, "authorization withdrawn"
        self.change()
