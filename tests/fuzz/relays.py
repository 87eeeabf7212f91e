"""Fuzz a whole relay over its sockets: `python -m tests.fuzz.relays --seconds 600`, or `make fuzz`.

Rounds of strangers (strangers.py) come to a relay of this process, with and without TLS, which follow from the round's
number; two innocents go on all the time.  After each round the relay's accounts have to be as before it.  The number of
a round that breaks a law is printed; `--seed` plays it again.
"""

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Final

import trio

from derp.close_reason import CloseReason
from derp.config.relay import LOOPBACK
from derp.keys import MeshKey, NodePrivate
from derp.protocol.messages import RecvPacket
from derp.server.server import RelayServer
from tests.derp.server.world import (
    SELF_SIGNED,
    Caller,
    call,
    move_clock,
    open_server,
    packets_sent,
    port_of,
    relay_config,
)
from tests.fuzz.strangers import Place, Stranger, check, sealed

MESH_KEY: Final = MeshKey.parse("5f" * 32)
STRANGERS: Final = 24
_GUARD_SECONDS: Final = 120.0
# Longer than every deadline of those who say nothing.
_LONG_SECONDS: Final = 120.0


class Innocents:
    """Two clients that talk to each other; each packet must come, once, in its turn."""

    def __init__(self, one: Caller, other: Caller) -> None:
        self._pair = (one, other)
        self.rounds = 0

    @property
    def keys(self) -> set[bytes]:
        return {caller.key for caller in self._pair}

    async def talk(self) -> None:
        """A packet each way."""
        one, other = self._pair
        self.rounds += 1
        for source, target in ((one, other), (other, one)):
            await source.send(target.key, sealed(source.key, target.key, self.rounds, 400))
            packet = await target.receive_a(RecvPacket)
            seal = check(packet, target.key)
            assert seal is not None
            assert (seal.source, seal.number) == (source.key, self.rounds)

    async def talk_until(self, over: trio.Event) -> None:
        """Nobody is broken off in the middle of a packet."""
        while not over.is_set():
            await self.talk()

    async def aclose(self) -> None:
        for caller in self._pair:
            await caller.aclose()


class Fuzzed:
    """A relay, its innocents, and the strangers that come."""

    def __init__(self, server: RelayServer, innocents: Innocents, *, is_tls: bool) -> None:
        self.server = server
        self.innocents = innocents
        self.done = Counter[str]()
        """What strangers came to."""
        keys = tuple(NodePrivate(bytes([number]) * 32) for number in range(1, 7))
        self._place = Place(port_of(server), is_tls, MESH_KEY, keys)

    async def play(self, number: int) -> None:
        """One round; AssertionError when it breaks a law."""
        strangers = [Stranger(self._place, number * STRANGERS + each, self.done) for each in range(STRANGERS)]
        try:
            with trio.fail_after(_GUARD_SECONDS):
                await self._live(strangers)
                if Random(number).random() < 0.3:
                    # Those who stay in the lobby are turned out when their time is up.
                    move_clock(self.server, _LONG_SECONDS)
                    while self.server.lobby.waiting:
                        await self.innocents.talk()
        finally:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as crowd:
                    for stranger in strangers:
                        crowd.start_soon(stranger.leave)
        with trio.fail_after(_GUARD_SECONDS):
            while len(self.server.reactor.wires) > 2:
                await self.innocents.talk()
            before = packets_sent(self.server)
            for _ in range(5):
                await self.innocents.talk()
        assert packets_sent(self.server) - before == 10
        self._audit()

    async def _live(self, strangers: list[Stranger]) -> None:
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.innocents.talk_until, over)
            async with trio.open_nursery() as crowd:
                for stranger in strangers:
                    crowd.start_soon(stranger.live)
            over.set()

    def _audit(self) -> None:
        """With nobody here but the innocents nothing of the strangers is left, and everybody was counted."""
        server, reactor, sessions = self.server, self.server.reactor, self.server.relay.sessions
        router, lobby = server.relay.router, server.lobby
        assert set(router.members) == set(router.routes) == self.innocents.keys
        assert (len(router.clients), router.duplicate_keys, router.home_clients) == (2, 0, 0)
        assert (router.watchers, router.dirty, router.closing, router.pool.held_bytes) == (set(), [], [], 0)
        assert (len(lobby.waiting), len(sessions.leaving)) == (0, 0)
        assert (reactor.blocked, len(reactor._patient), reactor._aside) == (set(), 0, set())
        assert not any(wire.tail or wire.kept or wire.paused for wire in reactor.wires)
        assert lobby.accepted_count == sum(lobby.closed_count.values()) + 2
        assert lobby.closed_count[CloseReason.INTERNAL_ERROR] == 0


class Complaints(logging.Handler):
    """Lines that only a defect of ours writes."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@asynccontextmanager
async def fuzzed(*, is_tls: bool) -> AsyncIterator[Fuzzed]:
    """A relay with its innocents, whose log is read."""
    complaints = Complaints()
    logging.getLogger("derp").addHandler(complaints)
    limits = {"accept_connection_limit": float("inf"), "trusted_proxies": LOOPBACK}
    config = relay_config(mesh_key=MESH_KEY, **({"tls": SELF_SIGNED} if is_tls else {}), **limits)
    try:
        async with open_server(config) as server:
            innocents = Innocents(await call(server), await call(server))
            try:
                yield Fuzzed(server, innocents, is_tls=is_tls)
            finally:
                with trio.CancelScope(shield=True):
                    await innocents.aclose()
    finally:
        logging.getLogger("derp").removeHandler(complaints)
    assert complaints.lines == []


async def fuzz(seed: int, seconds: float) -> tuple[int, Counter[str]]:
    """Rounds from this one on, for so long: how many, and what strangers came to."""
    until = time.monotonic() + seconds
    number, done = seed, Counter[str]()
    while number == seed or time.monotonic() < until:
        async with fuzzed(is_tls=bool(number % 2)) as world:
            try:
                await world.play(number)
            except BaseException:
                print(f"round {number} breaks a law: --seed {number}", file=sys.stderr)
                raise
            done += world.done
        number += 1
    return number - seed, done


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz a relay over its sockets.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1, help="the first round's number")
    chosen = parser.parse_args()
    rounds, done = trio.run(fuzz, chosen.seed, chosen.seconds)
    print(f"{rounds} rounds, no find: {', '.join(f'{count:,} {what}' for what, count in sorted(done.items()))}")


if __name__ == "__main__":
    main()
