"""Signing keys survive restarts, rotate, and go when nothing they signed can be valid; maps are kept by source."""

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from itertools import count

from tailnet.store.keys import KEY_BYTES, LEAD_TIME, ROTATE_AFTER, VERIFY_AFTER_ROTATION, signer
from tailnet.store.rows import SigningKey
from tailnet.store.store import Store
from tests.support.seeds import NOW

PURPOSE = "one purpose"

MOMENT = timedelta(microseconds=1)


def counting_bytes() -> Callable[[int], bytes]:
    numbers = count(1)
    return lambda length: next(numbers).to_bytes(length, "big")


def test_keys_survive_a_restart(store_url: str) -> None:
    store = Store.open(store_url)
    [first] = store.keys.signing_keys(PURPOSE, NOW, counting_bytes())
    store.close()
    again = Store.open(store_url)
    assert again.keys.signing_keys(PURPOSE, NOW + timedelta(days=1), counting_bytes()) == [first]
    again.close()
    assert len(first.secret) == KEY_BYTES
    assert first.secret.hex() not in repr(first)


def test_purposes_do_not_share_keys(store: Store) -> None:
    random_bytes = counting_bytes()
    [resume] = store.keys.signing_keys(PURPOSE, NOW, random_bytes)
    [other] = store.keys.signing_keys("other", NOW, random_bytes)
    assert resume.secret != other.secret


def test_a_lasting_key_is_the_first_one_for_ever(store: Store, store_url: str) -> None:
    random_bytes = counting_bytes()
    first = store.keys.lasting_key("relay", NOW, random_bytes, 32)
    assert len(first) == 32
    other = Store.open(store_url)
    assert other.keys.lasting_key("relay", NOW + 10 * ROTATE_AFTER, random_bytes, 32) == first
    assert other.keys.lasting_key("another", NOW, random_bytes, 32) != first
    other.close()


def test_processes_that_start_together_have_one_lasting_key(store: Store) -> None:
    keys: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: keys.append(store.keys.lasting_key("relay", NOW, os.urandom, 32)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_rotation(store: Store) -> None:
    random_bytes = counting_bytes()
    [first] = store.keys.signing_keys(PURPOSE, NOW, random_bytes)
    rotated = NOW + ROTATE_AFTER
    assert store.keys.signing_keys(PURPOSE, rotated - MOMENT, random_bytes) == [first]
    second, old = store.keys.signing_keys(PURPOSE, rotated, random_bytes)
    assert old == first
    assert second not in (first,)
    # The old key verifies for as long as a token of its last moment may live, and a day more.
    late = rotated + VERIFY_AFTER_ROTATION
    assert store.keys.signing_keys(PURPOSE, late - MOMENT, random_bytes) == [second, first]
    assert store.keys.signing_keys(PURPOSE, late, random_bytes) == [second]
    assert store.keys.signing_keys(PURPOSE, late - MOMENT, random_bytes) == [second]


def test_which_key_signs() -> None:
    """One that every server has had time to read; the first one at once, and the last one that is left."""
    keys = [SigningKey(str(age), b"", NOW - age) for age in (timedelta(), LEAD_TIME - MOMENT, LEAD_TIME, ROTATE_AFTER)]
    assert signer(keys, NOW) is keys[2]
    assert signer(keys, NOW + MOMENT) is keys[1]
    assert signer(keys, NOW + LEAD_TIME) is keys[0]
    assert signer(keys[:2], NOW) is keys[1]
    assert signer(keys[:1], NOW) is keys[0]
    # A clock that was wrong when a key was made.
    assert signer(keys, NOW - ROTATE_AFTER + LEAD_TIME) is keys[3]


def test_a_server_that_slept_past_both_limits(store: Store) -> None:
    random_bytes = counting_bytes()
    [first] = store.keys.signing_keys(PURPOSE, NOW, random_bytes)
    keys = store.keys.signing_keys(PURPOSE, NOW + 10 * ROTATE_AFTER, random_bytes)
    # The sleeper's key signed until now, so it still verifies.
    assert keys[1:] == [first]


def test_processes_that_start_together_agree(store_url: str) -> None:
    Store.open(store_url).close()
    found: list[str] = []
    gate = threading.Barrier(4)

    def start(seed: int) -> None:
        store = Store.open(store_url)
        gate.wait()
        keys = store.keys.signing_keys(PURPOSE, NOW, lambda length: seed.to_bytes(length, "big"))
        found.append(keys[0].id)
        store.close()

    threads = [threading.Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_kept_maps(store: Store) -> None:
    assert store.keys.kept_map("https://maps.example.com") is None
    store.keys.keep_map("https://maps.example.com", "{}", NOW)
    store.keys.keep_map("https://maps.example.com", '{"Regions":{}}', NOW + timedelta(hours=1))
    store.keys.keep_map("/etc/map.json", "[]", NOW)
    assert store.keys.kept_map("https://maps.example.com") == ('{"Regions":{}}', NOW + timedelta(hours=1))
