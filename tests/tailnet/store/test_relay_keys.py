"""Keys for relays in the store: one version for one content, whoever writes."""

from datetime import timedelta

from tailnet.store.store import Store
from tests.support.seeds import NOW

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
SECOND = timedelta(seconds=1)


def test_changes_since_a_version(store: Store) -> None:
    keys = store.relay_keys
    assert keys.changes(0).version == 0
    keys.put({A: "", B: ""}, (), NOW)
    first = keys.changes(0)
    assert (first.is_whole, set(first.known), first.revoked) == (True, {A, B}, frozenset())
    assert keys.changes(first.version).known == {}
    keys.put({C: ""}, {B}, NOW + SECOND)
    second = keys.changes(first.version)
    assert (second.is_whole, set(second.known), second.revoked) == (False, {C}, {B})
    assert second.version > first.version
    whole = keys.changes(0)
    assert (whole.version, set(whole.known), whole.revoked) == (second.version, {A, C}, {B})
    keys.put({B: ""}, (), NOW + 2 * SECOND)
    assert keys.changes(second.version).known.keys() == {B}, "who is back is revoked no more"


def test_whose_a_key_is_may_change(store: Store) -> None:
    keys = store.relay_keys
    keys.put({A: "alice", B: ""}, (), NOW)
    first = keys.changes(0)
    assert first.known == {A: "alice", B: ""}
    keys.put({A: "bob"}, (), NOW + SECOND)
    assert keys.changes(first.version).known == {A: "bob"}
    assert keys.changes(0).known == {A: "bob", B: ""}


def test_the_version_rises_in_one_moment_and_with_a_clock_that_was_put_back(store: Store) -> None:
    versions = []
    for at in (NOW, NOW, NOW - timedelta(days=400)):
        store.relay_keys.put({A: ""}, (), at)
        versions.append(store.relay_keys.changes(0).version)
    assert versions == sorted(set(versions))
    assert versions[0] == int(NOW.timestamp() * 1000), "by the clock: an older copy of the store goes on above"


def test_what_is_old_goes_and_everybody_is_told_all(store: Store) -> None:
    keys = store.relay_keys
    keys.put({A: "", B: ""}, (), NOW)
    keys.put({C: ""}, (), NOW + SECOND)
    version = keys.changes(0).version
    keys.touch({A}, NOW + 2 * SECOND)
    assert keys.changes(version).version == version, "to be in use is no change"
    assert keys.remove(NOW + SECOND, 100, NOW + 3 * SECOND) == 1
    after = keys.changes(version)
    assert (after.is_whole, set(after.known)) == (True, {A, C})
    assert keys.remove(NOW, 100, NOW) == 0
    assert keys.remove(NOW, 1, NOW + 4 * SECOND) == 1, "the oldest of too many"
    assert keys.changes(0).known.keys() == {A}
