"""Whole relays under strangers: a few rounds of them, and a round finds what is planted.  `make fuzz` plays more."""

from collections.abc import Callable
from typing import Any

import pytest

from derp.relay.clients import Client
from derp.relay.router import Router
from derp.server.lobby import Lobby
from tests.fuzz.relays import fuzzed

ROUNDS = 3


@pytest.mark.parametrize("is_tls", [False, True])
async def test_strangers_harm_nobody_and_leave_nothing_behind(is_tls: bool) -> None:
    async with fuzzed(is_tls=is_tls) as world:
        for number in range(ROUNDS):
            await world.play(number)
    # What came of them depends on the machine's speed, and that something did, does not.
    assert world.done.total() > ROUNDS


def _forget_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lobby, "leave", lambda self, wire: None)


def _take_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    register = Router.register

    def mistake(self: Router, client: Client) -> None:
        register(self, client)
        next(iter(self.clients.values())).key = client.key

    monkeypatch.setattr(Router, "register", mistake)


def _fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Router, "handle_ping", fail)


@pytest.mark.parametrize("plant", [_forget_to_leave, _take_for_another, _fail])
async def test_what_is_planted_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with fuzzed(is_tls=False) as world:
            plant(monkeypatch)
            for number in range(20):
                await world.play(number)

    with pytest.raises(BaseExceptionGroup) as caught:
        await play()
    assert caught.value.split(AssertionError)[0] is not None
