"""Replicas in the store: who counts as there, by numbers and not by clocks; test_conformance.py has the rest."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tailnet.bus import store as module
from tailnet.bus.contract import Record, encode_record
from tailnet.bus.store import StoreBus
from tailnet.errors import StoreError
from tailnet.replica.messages import ReplicaID
from tailnet.store.store import Store
from tests.support.memory_bus import Seen

A, B = (Record(ReplicaID(letter * 8), letter.decode(), None, "0", 0.0) for letter in (b"A", b"B"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path / 'tailnet.db'}")
    yield opened
    opened.close()


async def test_a_row_that_stands_still_is_nobody_and_is_swept(store: Store) -> None:
    bus = StoreBus(store)
    rows = [(A.replica.hex(), 1, encode_record(A)), (B.replica.hex(), 1, encode_record(B)), ("xx", 1, b"no record")]
    assert set(bus._alive(rows)) == {A.replica, B.replica}
    for look in range(1, module.SWEEP_LOOKS + 1):
        assert bus._dead() == []
        moved = [(A.replica.hex(), 1 + look, encode_record(A)), *rows[1:]]
        assert set(bus._alive(moved)) == ({A.replica, B.replica} if look < module.LEASE_LOOKS else {A.replica})
    assert bus._dead() == [B.replica.hex(), "xx"]


async def test_nobody_is_swept_for_a_store_that_was_away_for_hours(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or because this process was stopped: rows of replicas that live stood still meanwhile."""
    now = 100.0
    monkeypatch.setattr(trio, "current_time", lambda: now)
    bus = StoreBus(store)
    rows = [(A.replica.hex(), 1, encode_record(A)), (B.replica.hex(), 1, encode_record(B))]
    bus._alive(rows)
    now += 7200.0
    assert bus._dead() == []
    assert set(bus._alive([(A.replica.hex(), 2, encode_record(A)), rows[1]])) == {A.replica, B.replica}


async def test_a_store_that_is_away_says_nothing_about_replicas(
    store: Store, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    bus = StoreBus(store)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.05)
    nursery.start_soon(bus.run, A, seen)
    await seen.wait(lambda: set(seen.records) == {A.replica})

    def fail(*args: object) -> None:
        raise StoreError("planted")

    with monkeypatch.context() as away:
        away.setattr(store, "replicas", type("Away", (), {"renew": staticmethod(fail)}))
        await seen.wait(lambda: bus.trouble == "planted")
        assert set(seen.records) == {A.replica}
    await seen.wait(lambda: not bus.trouble)


async def test_who_ends_takes_its_row_along(store: Store) -> None:
    seen = Seen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(StoreBus(store).run, A, seen)
        await seen.wait(lambda: set(seen.records) == {A.replica})
        nursery.cancel_scope.cancel()
    assert store.replicas.renew("bb", b"", 1, []) == [("bb", 1, b"")]
