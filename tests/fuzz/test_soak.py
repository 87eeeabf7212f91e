"""A region in faults, for some cycles; and the soak finds what is planted.  `make soak` plays for ten minutes."""

import math
from collections.abc import Callable

import pytest

from derp.relay.clients import Client
from derp.relay.router import Router
from derp.server.session import Sessions
from tests.fuzz.soak import soak, soaked
from tests.fuzz.soak_workers import Workers


def nobody_hears(_: str) -> None:
    """What a soak tells."""


async def test_some_cycles_break_no_law() -> None:
    await soak(3, 0.0, nobody_hears)


async def test_a_cycle_of_a_relay_of_workers_breaks_no_law() -> None:
    async with soaked(Workers, 3) as region:
        await region.cycle()


def _forget_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leak: of each client that has left, all that was known."""
    unregister, kept = Router.unregister, []

    def leak(self: Router, client: Client) -> None:
        kept.append([[client] for _ in range(1000)])
        unregister(self, client)

    monkeypatch.setattr(Router, "unregister", leak)


def _count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Sessions.flush

    def flush(self: Sessions) -> None:
        self.router.counters.packets_received += len(self.router.dirty)
        original(self)

    monkeypatch.setattr(Sessions, "flush", flush)


def _send_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Sessions.flush

    def flush(self: Sessions) -> None:
        for route in self.router.dirty:
            route.pending_bytes *= 2
            route.pending *= 2
        original(self)

    monkeypatch.setattr(Sessions, "flush", flush)


@pytest.mark.parametrize("plant", [_forget_nobody, _count_twice, _send_twice])
async def test_what_is_planted_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(BaseExceptionGroup) as caught:
        await soak(3, math.inf, nobody_hears)
    assert caught.value.split(AssertionError)[0] is not None
