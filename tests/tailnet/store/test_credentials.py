"""Links and keys of users: changed only by whoever read the newest, gone with their user, sealed anew."""

from datetime import timedelta

import pytest

from tailnet.errors import StoreError
from tailnet.store.credentials import key_place, link_place
from tailnet.store.sealing import Sealer
from tailnet.store.store import Store
from tests.support.seeds import NOW, fill, make_id

ALICE, BOB = make_id("alice"), make_id("bob")
LATER = NOW + timedelta(hours=1)
OLD, NEW = bytes(32), bytes(range(32))


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    return store


def test_a_link_is_made_changed_and_removed(filled: Store) -> None:
    links = filled.credentials
    assert links.link(ALICE, "git") is None
    links.put_link(ALICE, "git", b"1", LATER, NOW)
    row = links.link(ALICE, "git")
    assert row is not None
    assert (row.sealed, row.expires_at, row.failure, row.created_at, row.updated_at) == (b"1", LATER, "", NOW, NOW)
    links.put_link(ALICE, "git", b"2", None, LATER)
    again = links.link(ALICE, "git")
    assert again is not None
    assert (again.sealed, again.expires_at, again.created_at, again.updated_at) == (b"2", None, NOW, LATER)
    assert not links.change_link(row, b"3", None, "", LATER), "somebody else was first"
    assert links.change_link(again, None, None, "bad_refresh_token", LATER)
    last = links.link(ALICE, "git")
    assert last is not None
    assert (last.sealed, last.failure) == (None, "bad_refresh_token")
    assert links.delete_link(ALICE, "git")
    assert not links.delete_link(ALICE, "git")


def test_one_server_at_a_time_has_a_link(filled: Store) -> None:
    links = filled.credentials
    links.put_link(ALICE, "git", b"1", None, NOW)
    row = links.link(ALICE, "git")
    assert row is not None
    assert links.claim_link(row, LATER, NOW)
    assert not links.claim_link(row, LATER, NOW)
    assert links.claim_link(row, LATER + timedelta(hours=1), LATER), "who died has it no more"
    links.release_link(row)
    assert links.claim_link(row, LATER, NOW)
    assert links.change_link(row, b"2", None, "", NOW)
    assert not links.claim_link(row, LATER, NOW), "it is another one now"
    changed = links.link(ALICE, "git")
    assert changed is not None
    assert changed.refreshing_until is None


def test_links_are_each_user_s_own(filled: Store) -> None:
    links = filled.credentials
    for user, provider in ((ALICE, "z"), (ALICE, "a"), (BOB, "a")):
        links.put_link(user, provider, b"x", None, NOW)
    assert [row.provider_id for row in links.links(ALICE)] == ["a", "z"]
    asked = {(ALICE, "a"), (BOB, "a"), (BOB, "z"), (make_id("nobody"), "a")}
    assert links.links_changed_at(asked) == {(ALICE, "a"): NOW, (BOB, "a"): NOW}
    assert links.links_changed_at(set()) == {}
    assert not links.delete_link(BOB, "z")
    with pytest.raises(StoreError):
        links.put_link(make_id("nobody"), "a", b"x", None, NOW)


def test_the_first_pair_of_keys_counts(filled: Store) -> None:
    keys = filled.credentials
    first = keys.add_git_key(ALICE, "ssh-ed25519 A", b"a", NOW)
    assert keys.add_git_key(ALICE, "ssh-ed25519 B", b"b", LATER) == first == keys.git_key(ALICE)
    keys.put_git_key(ALICE, "ssh-ed25519 C", b"c", LATER)
    row = keys.git_key(ALICE)
    assert row is not None
    assert (row.public_key, row.sealed, row.created_at, row.updated_at) == ("ssh-ed25519 C", b"c", NOW, LATER)
    assert keys.git_key(BOB) is None


def test_they_go_with_their_user(filled: Store) -> None:
    filled.credentials.put_link(BOB, "git", b"1", None, NOW)
    filled.credentials.add_git_key(BOB, "k", b"b", NOW)
    with filled.writing() as connection:
        connection.exec_driver_sql(f"DELETE FROM users WHERE id = '{BOB}'")
    assert filled.credentials.link(BOB, "git") is None
    assert filled.credentials.git_key(BOB) is None


def test_all_is_sealed_anew(filled: Store) -> None:
    old, both = Sealer([OLD]), Sealer([NEW, OLD])
    keys = filled.credentials
    keys.put_link(ALICE, "git", old.seal(b"token", link_place(ALICE, "git")), LATER, NOW)
    keys.put_link(ALICE, "new", both.seal(b"token 2", link_place(ALICE, "new")), None, NOW)
    keys.put_link(BOB, "git", Sealer([b"?" * 32]).seal(b"lost", link_place(BOB, "git")), None, NOW)
    keys.put_link(BOB, "ended", b"", None, NOW)
    ended = keys.link(BOB, "ended")
    assert ended is not None
    keys.change_link(ended, None, None, "gone", NOW)
    keys.add_git_key(ALICE, "k", old.seal(b"private", key_place(ALICE)), NOW)
    done = keys.reseal(both)
    assert (done.resealed, done.current, len(done.unreadable)) == (2, 1, 1)
    assert f"user {BOB} to git" in done.unreadable[0]
    alone = Sealer([NEW])
    row, key = keys.link(ALICE, "git"), keys.git_key(ALICE)
    assert row is not None
    assert row.sealed is not None
    assert key is not None
    assert alone.open(row.sealed, link_place(ALICE, "git")) == b"token"
    assert alone.open(key.sealed, key_place(ALICE)) == b"private"
    assert (row.expires_at, row.updated_at) == (LATER, NOW)
    again = keys.reseal(both)
    assert (again.resealed, again.current, len(again.unreadable)) == (0, 3, 1)
