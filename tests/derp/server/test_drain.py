"""The pace of a drain, in virtual time, and that a region loses nothing by it.

What it does on the sockets of one relay is in test_server.py and test_relay.py; genuine clients are in tests/interop.
"""

from itertools import pairwise
from typing import cast

import pytest
import trio

from derp.keys import NodePrivate
from derp.protocol.frames import PeerGoneReason
from derp.protocol.messages import PeerGone, RecvPacket
from derp.relay.mailbox import MAILBOX_SECONDS
from derp.server.debug import why
from derp.server.drain import drain_clients
from derp.server.relay import Relay
from tests.derp.server.mesh_world import MESH_KEY, Node, hears_nothing, knows, knows_not, open_region, until
from tests.derp.server.world import PATIENCE_SECONDS, Caller, move_clock


class Leaving:
    """A relay with so many clients; `stuck` of them never get rid of their packets, and the last hangs up `late`.
    `kin` other relays are closed behind them, all at once."""

    def __init__(self, clients: int, stuck: int = 0, alone: bool = False, late: int = 0, kin: int = 0) -> None:
        self.left = clients
        self.kin = kin
        self.stuck = stuck
        self.alone = alone
        self.late = late
        self.announced: list[tuple[float, float]] = []
        self.closed: list[tuple[float, int]] = []
        self.router = self

    @property
    def clients(self) -> range:
        return range(self.left + self.kin)

    def has_neighbours(self) -> bool:
        return not self.alone

    def neighbours_to_move(self) -> int:
        return 0

    def announce_restart(self, reconnect_in_seconds: float, try_for_seconds: float) -> None:
        assert not self.closed
        self.announced.append((reconnect_in_seconds, try_for_seconds))

    def close_clients(self, count: int) -> int:
        assert count >= 0
        closing = min(count, self.left - self.stuck)
        self.closed.append((trio.current_time(), closing))
        if not self.left:
            self.kin = 0
        self.left -= closing
        if self.left == 0 and self.late > 0:
            self.late -= 1
            return 1
        return self.left + self.kin

    async def drain(self, seconds: float) -> float:
        """How long it took."""
        started = trio.current_time()
        await drain_clients(cast(Relay, self), seconds)
        return trio.current_time() - started


async def test_a_single_client_is_told_first_and_then_closed(autojump_clock: trio.testing.MockClock) -> None:
    relay = Leaving(1)
    assert await relay.drain(25.0) == 0.0
    assert relay.announced == [(2.0, 60.0)]
    assert relay.left == 0


# With 25 s: as many a second as there are up to 250, then 250 a second, then what 22.5 s ask for.
@pytest.mark.parametrize(
    ("clients", "a_second"),
    [(10, 10.0), (100, 100.0), (500, 250.0), (20_000, 20_000 / 22.5), (100_000, 100_000 / 22.5)],
)
async def test_closes_are_even_and_within_the_deadline(
    clients: int, a_second: float, autojump_clock: trio.testing.MockClock
) -> None:
    relay = Leaving(clients)
    took = await relay.drain(25.0)
    assert relay.left == 0
    assert took == pytest.approx(clients / a_second, rel=0.1, abs=0.1)
    begin, gone = relay.closed[0][0], 0
    for at, count in relay.closed:
        gone += count
        assert gone <= (at - begin) * a_second + 2
        assert gone >= min((at - begin) * a_second - 2, clients)
        assert count <= 0.03 * a_second + 2, "no step is longer"


async def test_steps_keep_no_time(autojump_clock: trio.testing.MockClock) -> None:
    relay = Leaving(1000)
    await relay.drain(25.0)
    steps = {round(later[0] - earlier[0], 4) for earlier, later in pairwise(relay.closed)}
    assert len(steps) > 20
    assert 0.01 <= min(steps) < max(steps) <= 0.03


async def test_one_without_another_node_closes_faster_as_nobody_can_come_back_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    alone, meshed = Leaving(10_000, alone=True), Leaving(10_000)
    assert await alone.drain(25.0) < 1.1 < 9.0 < await meshed.drain(25.0)


async def test_the_last_one_to_hang_up_is_waited_for_no_longer_than_needed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert 0.02 <= await Leaving(1, late=2).drain(25.0) <= 0.06


async def test_other_relays_are_closed_at_once_and_may_take_their_time_to_hang_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = Leaving(2, kin=4, late=3)
    await relay.drain(25.0)
    assert (relay.left, relay.kin, relay.late) == (0, 0, 0)


async def test_the_deadline_is_kept_for_those_who_never_finish(autojump_clock: trio.testing.MockClock) -> None:
    relay = Leaving(10, stuck=2)
    assert await relay.drain(5.0) == 5.0
    assert relay.left == 2


async def test_who_finishes_late_does_not_make_up_for_it_at_once(autojump_clock: trio.testing.MockClock) -> None:
    relay = Leaving(1000, stuck=1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.drain, 25.0)
        await trio.sleep(10.0)
        relay.stuck = 0
        seen = len(relay.closed)
        await trio.sleep(5.0)
    assert relay.left == 0
    assert max(count for _, count in relay.closed[seen:]) <= 0.05 * 250 + 1


async def test_no_time_at_all(autojump_clock: trio.testing.MockClock) -> None:
    relay = Leaving(5000)
    assert await relay.drain(0.0) == 0.0
    assert len(relay.closed) == 1


# --- a region


async def send_away(node: Node, caller: Caller) -> None:
    """`node` begins to leave, and closes its one client."""
    node.server.relay.announce_restart(2.0, 60.0)
    node.server.relay.close_clients(1)
    await caller.wait_closed()


async def test_a_client_loses_nothing_on_its_way_to_the_next_node() -> None:
    async with open_region(2) as (alpha, beta):
        private = NodePrivate.generate()
        a, b = await alpha.call(private=private), await beta.call()
        await knows(a, alpha, b)
        await knows(b, beta, a)
        await b.send(a.key, b"before")
        assert await a.receive_a(RecvPacket) == RecvPacket(b.key, b"before")
        await a.send(b.key, b"before")
        assert await b.receive_a(RecvPacket) == RecvPacket(a.key, b"before")
        await send_away(alpha, a)
        await a.send(b.key, b"after it was told")
        assert await b.receive_a(RecvPacket) == RecvPacket(a.key, b"after it was told")
        packets = [bytes([number]) * 1000 for number in range(50)]
        await b.send(a.key, *packets)
        await until(b, lambda: alpha.router.mailboxes.held_bytes == 50 * 1037)
        await a.aclose()
        again = await beta.call(private=private)
        assert [await again.receive() for _ in packets] == [RecvPacket(b.key, packet) for packet in packets]
        await b.send(a.key, b"at the new place")
        assert await again.receive_a(RecvPacket) == RecvPacket(b.key, b"at the new place")
        await again.send(b.key, b"from there")
        assert await b.receive_a(RecvPacket) == RecvPacket(a.key, b"from there"), (
            "and nothing between: it was never gone"
        )
        while alpha.server.relay.close_clients(0) or alpha.server.relay.sessions.leaving:
            await again.ping()
        await hears_nothing(b)


async def test_what_a_client_sends_at_its_new_place_waits_for_what_it_sent_at_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("derp.server.session.HOLD_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr("derp.server.leaving._SEE_OFF_SECONDS", PATIENCE_SECONDS)
    async with open_region(2) as (alpha, beta):
        private = NodePrivate.generate()
        a, b = await alpha.call(private=private), await beta.call()
        await knows(a, alpha, b)
        await knows(b, beta, a)
        await send_away(alpha, a)
        again = await beta.call(private=private)
        said = why(beta.relay, {"from": a.key.hex(), "to": b.key.hex()})
        assert "It has just come from a relay that is leaving" in said
        assert "rate limit" not in said
        await again.send(b.key, b"newer")
        await b.send(a.key, b"one")
        await a.send(b.key, b"older")
        assert await b.receive_a(RecvPacket) == RecvPacket(a.key, b"older")
        await hears_nothing(b)
        await b.send(a.key, b"two")
        await a.aclose()
        assert await b.receive_a(RecvPacket) == RecvPacket(a.key, b"newer")
        assert [await again.receive(), await again.receive()] == [RecvPacket(b.key, b"one"), RecvPacket(b.key, b"two")]


@pytest.mark.parametrize("is_held", [False, True])
async def test_another_relay_of_the_region_is_read_at_once(monkeypatch: pytest.MonkeyPatch, is_held: bool) -> None:
    """Also where a relay that leaves has announced its key, as all announce all relays."""
    for name in ("session.HOLD_SECONDS", "leaving._SEE_OFF_SECONDS"):
        monkeypatch.setattr(f"derp.server.{name}", 10 * PATIENCE_SECONDS)
    async with open_region(3) as (alpha, beta, gamma):
        private = NodePrivate.generate()
        a, b = await alpha.call(private=private), await beta.call()
        await knows(b, beta, a)
        await send_away(alpha, a)  # and does not hang up, so alpha does not answer
        link = beta.mesh.sessions[alpha.peer].route
        await until(b, lambda: link.is_leaving)
        if is_held:
            await gamma.call(private=private)
            await until(b, lambda: len(beta.router.mailboxes) == 1)
        peer = await beta.call(private=private, mesh_key=MESH_KEY)
        await hears_nothing(peer)


async def test_who_comes_back_nowhere_is_gone_for_all() -> None:
    async with open_region(2) as (alpha, beta):
        a, stays, b = await alpha.call(), await alpha.call(), await beta.call()
        await knows(a, alpha, b)
        await knows(b, beta, a)
        await a.send(b.key, b"before")
        assert await b.receive_a(RecvPacket) == RecvPacket(a.key, b"before")
        await send_away(alpha, a)
        move_clock(alpha.server, MAILBOX_SECONDS)
        await knows_not(stays, alpha, a)
        await knows_not(b, beta, a)
        assert await b.receive_a(PeerGone) == PeerGone(a.key, PeerGoneReason.DISCONNECTED)
