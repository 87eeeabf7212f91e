"""Who may use a relay, as the coordinator knows it: at once here, and signed for relays elsewhere."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

import pytest
import trio
import trio.testing

from derp.admission.keyset import KeySet, open_key_set
from tailnet.coordinator.nodes import Node
from tailnet.errors import StoreError
from tailnet.services.relay_keys import HELD_SECONDS, KEEP, RelayKeys
from tailnet.store.store import Store
from tests.support.seeds import NOW

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
LIFE = 3600.0


@dataclass
class Peer:
    tenant: str


def peer_with(key: bytes, tenant: str = "") -> tuple[Peer, Node]:
    return Peer(tenant), Node(b"", b"np" + key, "", 1, (), ())


async def opened(keys: RelayKeys) -> KeySet:
    return open_key_set((await keys.document())[1], [keys.issuer])


async def published(keys: RelayKeys, version: int) -> KeySet:
    with trio.fail_after(20):
        while keys.version == version:
            await keys.wait_changed()
    return await opened(keys)


async def test_a_key_is_good_at_once_and_published_soon_and_so_is_its_end(store: Store, nursery: trio.Nursery) -> None:
    keys, known, revoked = RelayKeys(store, life_seconds=LIFE), list[bytes](), list[Collection[bytes]]()
    keys.on_known.append(known.append)
    keys.on_revoked.append(revoked.append)
    await keys.start()
    nursery.start_soon(keys.run)
    assert await opened(keys) is not None
    keys.note(A)
    keys.note(A)
    keys.note(b"short")
    assert (keys.has(A), keys.has(B), known) == (True, False, [A])
    first = await published(keys, 0)
    assert (first.keys, first.ends_at - first.issued_at) == ({A}, LIFE)
    keys.revoke([A])
    assert (keys.has(A), keys.is_revoked(A), revoked) == (False, True, [[A]])
    second = await published(keys, first.version)
    assert (second.keys, second.revoked) == (frozenset(), {A})
    keys.note(A)  # it is back, with another token
    assert (keys.has(A), keys.is_revoked(A)) == (True, False)
    third = await published(keys, second.version)
    assert (third.keys, third.revoked) == ({A}, frozenset())
    nursery.cancel_scope.cancel()


async def test_whose_a_key_is_is_known_at_once_published_and_heard_by_other_servers(
    store: Store, nursery: trio.Nursery
) -> None:
    one, other = RelayKeys(store, life_seconds=LIFE), RelayKeys(store, life_seconds=LIFE)
    known, heard = list[bytes](), list[bytes]()
    one.on_known.append(known.append)
    other.on_known.append(heard.append)
    for keys in (one, other):
        await keys.start()
        nursery.start_soon(keys.run)
    one.note(A, "alice")
    one.note(B)
    assert (one.tenant_of(A), one.tenant_of(B), one.tenant_of(C)) == ("alice", "", "")
    first = await published(one, 0)
    assert first.tenants == {A: "alice"}
    await published(other, 0)
    one.note(A, "alice")
    one.note(A, "bob")
    assert (await published(other, first.version)).tenants == {A: "bob"}
    assert (other.tenant_of(A), known, heard.count(A)) == ("bob", [A, B, A], 2)
    one.revoke([A])
    assert one.tenant_of(A) == ""
    nursery.cancel_scope.cancel()


async def test_a_key_stays_with_the_first_tenant_whose_peer_is_connected(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    peers, now, known = [peer_with(B, "alice"), peer_with(A, "alice")], [NOW], list[bytes]()
    keys = RelayKeys(store, life_seconds=LIFE, connected=lambda: peers, clock=lambda: now[0])
    keys.on_known.append(known.append)
    keys.note(A, "alice")
    peers.append(peer_with(A, "mallory"))
    for _ in range(3):
        keys.note(A, "mallory")
    assert (keys.tenant_of(A), keys.contested, known) == ("alice", 3, [A])
    assert caplog.text.count("mallory") == 1, "told once a minute"
    assert "stays with tenant 'alice'" in caplog.text
    keys.note(A, "alice")
    assert keys.contested == 3
    del peers[1]
    now[0] += timedelta(seconds=HELD_SECONDS)
    keys.note(A, "mallory")
    assert (keys.tenant_of(A), keys.contested) == ("mallory", 3), "nobody else has it any more"
    keys.note(A, "alice")
    assert (keys.tenant_of(A), keys.contested) == ("mallory", 4), "and now he is the first"


async def test_who_is_sent_away_takes_the_key_of_no_other_tenant_along(store: Store) -> None:
    peers, revoked = [peer_with(A, "alice"), peer_with(A, "mallory"), peer_with(B, "mallory")], list[bytes]()
    keys = RelayKeys(store, life_seconds=LIFE, connected=lambda: peers, clock=lambda: NOW)
    keys.on_revoked.append(revoked.extend)
    keys.note(A, "alice")
    keys.note(B, "mallory")
    keys.revoke([A, B], "mallory")
    assert (keys.has(A), keys.has(B), revoked) == (True, False, [B])
    keys.revoke([A], "alice")
    assert (keys.has(A), revoked) == (False, [B, A])


async def test_a_key_whose_holder_has_left_is_revoked_with_whoever_else_announced_it(store: Store) -> None:
    keys = RelayKeys(store, life_seconds=LIFE, connected=lambda: [peer_with(A, "mallory")], clock=lambda: NOW)
    keys.note(A, "alice")
    keys.revoke([A], "mallory")
    assert not keys.has(A)


async def test_a_key_that_was_revoked_is_whoever_announces_it(store: Store) -> None:
    keys = RelayKeys(store, life_seconds=LIFE, connected=lambda: [peer_with(A, "alice")])
    keys.note(A, "alice")
    keys.revoke([A])
    keys.note(A, "bob")
    assert (keys.tenant_of(A), keys.contested) == ("bob", 0)


async def test_followers_who_ask_together_get_one_signature(store: Store) -> None:
    seconds = iter(range(100))  # a second passes with each look at the clock
    keys = RelayKeys(store, life_seconds=LIFE, clock=lambda: NOW + timedelta(seconds=next(seconds)))
    await keys.start()
    got = list[tuple[str, bytes]]()

    async def ask() -> None:
        got.append(await keys.document())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert (len(got), len(set(got))) == (5, 1)


async def test_two_servers_on_one_store_publish_the_same(store: Store, nursery: trio.Nursery) -> None:
    one, other = RelayKeys(store, life_seconds=LIFE), RelayKeys(store, life_seconds=LIFE)
    heard = list[bytes]()
    other.on_known.append(heard.append)
    withdrawn = list[Collection[bytes]]()
    other.on_revoked.append(withdrawn.append)
    for keys in (one, other):
        await keys.start()
        nursery.start_soon(keys.run)
    assert one.issuer == other.issuer
    one.note(A)
    await published(one, 0)
    await published(other, 0)
    assert (other.has(A), heard) == (True, [A])
    assert (await opened(one)).version == (await opened(other)).version
    before = other.version
    one.revoke([A])
    await published(other, before)
    assert (other.has(A), other.is_revoked(A), withdrawn) == (False, True, [frozenset({A})])
    nursery.cancel_scope.cancel()


async def test_a_restart_knows_what_was_heard_and_forgets_what_nobody_had_for_days(
    store: Store, nursery: trio.Nursery
) -> None:
    store.relay_keys.put({A: "", B: ""}, {C}, NOW)
    keys = RelayKeys(
        store, life_seconds=LIFE, connected=lambda: [peer_with(B)], clock=lambda: NOW + KEEP + timedelta(hours=1)
    )
    await keys.start()
    assert (keys.has(A), keys.has(B), keys.is_revoked(C)) == (True, True, True)
    version = keys.version
    nursery.start_soon(keys.run)
    after = await published(keys, version)
    assert (after.keys, after.revoked) == ({B}, frozenset()), "B is in use"
    assert not keys.has(A)
    nursery.cancel_scope.cancel()


async def test_a_set_is_signed_anew_before_it_gets_old(store: Store) -> None:
    now = [NOW]
    keys = RelayKeys(store, life_seconds=24 * 3600.0, clock=lambda: now[0])
    await keys.start()
    first = await keys.document()
    now[0] += timedelta(minutes=59)
    assert await keys.document() == first
    now[0] += timedelta(minutes=1)
    etag, document = await keys.document()
    assert etag != first[0]
    assert open_key_set(document, [keys.issuer]).ends_at == int((NOW + timedelta(hours=25)).timestamp())


async def test_while_the_store_is_away_the_relay_here_goes_on(
    store: Store, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = RelayKeys(store, life_seconds=LIFE)
    await keys.start()
    put, fails = store.relay_keys.put, [True]

    def failing(*args: object) -> None:
        if fails:
            raise StoreError("store x: is away")
        put(*args)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(store.relay_keys, "put", failing)
    nursery.start_soon(keys.run)
    keys.note(A)
    with trio.fail_after(20):
        while "is away" not in caplog.text:  # noqa: ASYNC110  # the log tells nobody
            await trio.sleep(0.01)
    assert (keys.has(A), keys.version) == (True, 0)
    fails.clear()
    assert (await published(keys, 0)).keys == {A}
    nursery.cancel_scope.cancel()
