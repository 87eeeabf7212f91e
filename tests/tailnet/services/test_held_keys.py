"""Whose a key is at another replica: two ledgers of one store, joined as replicas are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest

from tailnet.replica.messages import ReplicaID
from tailnet.services import relay_keys
from tailnet.services.held_keys import MAX_TENANT_BYTES, HeldKeys
from tailnet.services.relay_keys import ANSWER_SECONDS, ELSEWHERE_SECONDS, HELD_SECONDS, RelayKeys
from tailnet.store.store import Store
from tests.support.seeds import NOW
from tests.tailnet.services.test_relay_keys import Peer, peer_with

A, B = b"a" * 32, b"b" * 32
Connected = list[tuple[Peer, relay_keys.Node]]


@dataclass
class Side:
    """A replica's ledger, and the peers that are connected there."""

    keys: RelayKeys
    peers: Connected
    revoked: list[bytes] = field(default_factory=list)

    def announce(self, key: bytes, tenant: str) -> None:
        self.peers.append(peer_with(key, tenant))
        self.keys.note(key, tenant)

    def leave(self, tenant: str) -> None:
        self.peers[:] = [each for each in self.peers if each[0].tenant != tenant]

    async def exchange(self) -> None:
        """What its task does each second."""
        self.keys.settle()
        await self.keys._write()
        await self.keys._refresh()


@dataclass
class Both:
    one: Side
    other: Side
    pass_time: Callable[[float], None]
    told: list[bytes]
    is_linked: bool = True

    async def exchange(self) -> None:
        for _ in range(2):
            await self.one.exchange()
            await self.other.exchange()


@pytest.fixture
async def both(store: Store) -> Both:
    now: list[datetime] = [NOW]

    def side() -> Side:
        peers: Connected = []
        keys = RelayKeys(store, life_seconds=3600.0, connected=lambda: peers, clock=lambda: now[0])
        made = Side(keys, peers)
        keys.on_revoked.append(made.revoked.extend)
        return made

    def pass_time(seconds: float) -> None:
        now[0] += timedelta(seconds=seconds)

    found = Both(side(), side(), pass_time, [])
    shared: list[HeldKeys] = []

    def tell_from(number: int) -> Callable[[str, bytes], None]:
        def tell(topic: str, payload: bytes) -> None:
            found.told.append(payload)
            shared[1 - number].hear(ReplicaID(b"%d" % number * 8), payload)

        return tell

    for number, each in enumerate((found.one, found.other)):
        await each.keys.start()
        shared.append(HeldKeys(tell_from(number), lambda: found.is_linked, each.keys))
    return found


async def test_a_key_of_a_peer_at_one_is_not_taken_at_the_other(both: Both) -> None:
    one, other = both.one, both.other
    one.announce(A, "alice")
    await both.exchange()
    other.announce(A, "mallory")
    assert (other.keys.tenant_of(A), other.keys.contested) == ("alice", 1)
    for _ in range(5):
        other.keys.note(A, "mallory")
    assert len(both.told) == 2, "one question and one answer; what was said is believed for a while"
    both.pass_time(ELSEWHERE_SECONDS + 1)
    await both.exchange()
    assert (one.keys.tenant_of(A), other.keys.tenant_of(A)) == ("alice", "alice")
    other.keys.revoke([A], "mallory")
    await both.exchange()
    both.pass_time(ANSWER_SECONDS + 1)
    await both.exchange()
    assert (one.keys.has(A), other.keys.has(A), one.revoked, other.revoked) == (True, True, [], [])


async def test_a_key_that_nobody_holds_any_more_is_whoever_announces_it_once_others_had_time_to_answer(
    both: Both,
) -> None:
    one, other = both.one, both.other
    one.announce(A, "alice")
    one.announce(B, "alice")
    await both.exchange()
    one.leave("alice")
    both.pass_time(HELD_SECONDS)
    other.announce(A, "bob")
    other.announce(B, "carol")
    other.leave("carol")  # and does not have it any more when the time is over
    assert (other.keys.tenant_of(A), other.keys.contested) == ("alice", 0)
    both.pass_time(ANSWER_SECONDS)
    await both.exchange()
    assert [side.keys.tenant_of(A) for side in (one, other)] == ["bob", "bob"]
    assert [side.keys.tenant_of(B) for side in (one, other)] == ["alice", "alice"]
    other.keys.revoke([B], "carol")
    assert other.revoked == []
    both.pass_time(ANSWER_SECONDS)
    await both.exchange()
    assert (other.revoked, one.revoked, one.keys.has(B)) == ([B], [B], False)


@pytest.mark.parametrize("claim", ["announced", "signed out"])
@pytest.mark.parametrize("comes_to", ["the one that asks", "the one that was asked"])
async def test_a_peer_that_dials_anew_while_others_are_asked_keeps_its_key(
    both: Both, claim: str, comes_to: str
) -> None:
    """Its replica was killed, so nobody has it for a moment in which somebody claims the key."""
    one, other = both.one, both.other
    one.announce(A, "alice")
    await both.exchange()
    one.leave("alice")
    both.pass_time(HELD_SECONDS)
    if claim == "announced":
        other.announce(A, "mallory")
    else:
        other.keys.revoke([A], "mallory")
    (other if comes_to == "the one that asks" else one).announce(A, "alice")
    both.pass_time(ANSWER_SECONDS)
    await both.exchange()
    assert [side.keys.tenant_of(A) for side in (one, other)] == ["alice", "alice"]
    assert (one.revoked, other.revoked) == ([], [])
    assert not other.keys._claims


@pytest.mark.parametrize("claim", ["announced", "signed out"])
async def test_who_claimed_a_key_first_and_is_here_is_not_put_aside_by_another(both: Both, claim: str) -> None:
    one, other = both.one, both.other
    one.announce(A, "alice")
    await both.exchange()
    one.leave("alice")
    both.pass_time(HELD_SECONDS)
    other.announce(A, "bob")
    if claim == "announced":
        other.announce(A, "mallory")
    else:
        other.keys.revoke([A], "mallory")
    both.pass_time(ANSWER_SECONDS)
    await both.exchange()
    assert [side.keys.tenant_of(A) for side in (one, other)] == ["bob", "bob"]
    assert other.revoked == []


async def test_who_claimed_a_key_and_signs_out_takes_it_away(both: Both) -> None:
    one, other = both.one, both.other
    one.announce(A, "alice")
    await both.exchange()
    one.leave("alice")
    both.pass_time(HELD_SECONDS)
    other.announce(A, "bob")
    other.keys.revoke([A], "bob")  # his peer is here still
    both.pass_time(ANSWER_SECONDS)
    await both.exchange()
    assert (other.revoked, one.revoked) == ([A], [A])


async def test_where_no_other_replica_is_a_key_moves_at_once(both: Both) -> None:
    both.is_linked = False
    both.one.announce(A, "alice")
    await both.exchange()
    both.other.announce(A, "bob")
    assert both.other.keys.tenant_of(A) == "bob"
    assert both.told == []


async def test_a_key_that_the_other_had_not_heard_of_yet_is_defended_once(both: Both) -> None:
    """Both write it; the second write would take it from whoever was first."""
    one, other = both.one, both.other
    one.announce(A, "alice")
    await one.exchange()
    other.announce(A, "mallory")  # before it has looked at the store
    await other.keys._write()
    await one.exchange()
    assert (one.keys.tenant_of(A), one.keys.contested) == ("alice", 1)
    for _ in range(5):
        await both.exchange()
    versions = {side.keys.version for side in (one, other)}
    await both.exchange()
    assert {side.keys.version for side in (one, other)} == versions, "they do not write for ever"
    assert one.keys.tenant_of(A) == other.keys.tenant_of(A)


async def test_all_that_is_due_costs_one_walk_over_the_peers(both: Both) -> None:
    """0.6 ms each where 10,000 are connected."""
    one, other = both.one, both.other
    many = [bytes([number]) * 32 for number in range(10)]
    for key in many:
        one.announce(key, "alice")
    await both.exchange()
    one.leave("alice")
    both.pass_time(HELD_SECONDS)
    for key in many:
        other.announce(key, "bob")
    both.pass_time(ANSWER_SECONDS)
    walks: list[int] = []

    def connected() -> Connected:
        walks.append(1)
        return other.peers

    other.keys._connected = connected
    other.keys.settle()
    assert {other.keys.tenant_of(key) for key in many} == {"bob"}
    other.keys.settle()
    assert len(walks) == 1


async def test_what_others_make_us_remember_is_bounded(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_keys, "_MAX_HELD", 4)
    many = [bytes([number]) * 32 for number in range(10)]
    for key in many:
        both.one.announce(key, "alice")
    await both.exchange()
    both.one.leave("alice")
    both.pass_time(HELD_SECONDS)
    for key in many:
        both.other.announce(key, "mallory")
        both.other.keys.note_held_elsewhere(key, "somebody")
    assert len(both.other.keys._claims) == 4
    assert {both.other.keys.tenant_of(key) for key in many} == {"alice"}
    for key in many:
        both.other.keys.note_held_elsewhere(key, "alice")
    assert len(both.other.keys._elsewhere_until) <= 4
    assert not both.other.keys._claims


async def test_what_nobody_understands_is_passed_over(both: Both) -> None:
    shared = HeldKeys(lambda topic, payload: both.told.append(payload), lambda: True, both.one.keys)
    both.one.announce(A, "alice")
    for payload in (b"", b"?", b"?" + A[:31], b"!" + A + b"alice", b"?" + A + b"x" * (MAX_TENANT_BYTES + 1)):
        shared.hear(ReplicaID(b"2" * 8), payload)
    assert both.told == []
    shared.hear(ReplicaID(b"2" * 8), b"?" + A + b"alice")
    assert both.told == [b"=" + A + b"alice"]
