"""No replica signs with a key that another one cannot verify yet."""

import base64
from datetime import UTC, datetime, timedelta

from tailnet.replica.messages import ReplicaID
from tailnet.services.resume_keys import MAX_HELD_BACK, ResumeKeys
from tailnet.services.shared_keys import SharedKeys
from tailnet.store.keys import LEAD_TIME, ROTATE_AFTER
from tailnet.store.store import Store
from tests.support.seeds import peer_id

MAIN, OTHER = peer_id("main"), ReplicaID(b"2" * 8)


async def test_a_key_signs_when_all_have_told_that_they_have_it(store: Store) -> None:
    now = datetime.now(UTC)
    ours, theirs = (ResumeKeys(store, clock=lambda: now) for _ in range(2))
    said: list[bytes] = []
    shared = SharedKeys(lambda topic, payload: None, ours)
    of_theirs = SharedKeys(lambda topic, payload: said.append(payload), theirs)
    await ours.start()
    await theirs.start()
    for payload in (b"", of_theirs.greet() + b" of-a-later-version", of_theirs.greet()):
        shared.hear(OTHER, payload)
    [old] = ours.ids

    def verified_there() -> bool:
        token = ours.current.issue(MAIN, "alice", now.timestamp()).token
        return theirs.current.verify(token, "alice", now.timestamp()) == MAIN

    def signs() -> str:
        return next(each for each in ours.ids if f'"{each}"' in _header(ours))

    now += ROTATE_AFTER
    await ours.refresh()
    assert (len(ours.ids), ours.ids[1], signs()) == (2, old, old)
    now += LEAD_TIME
    await ours.refresh()
    assert signs() == old, "as theirs has not read it"
    assert verified_there()
    said.clear()
    await theirs.refresh()
    shared.hear(OTHER, said[-1])
    assert signs() == ours.ids[0]
    assert verified_there()
    # Whoever has left holds nothing up, nor does one that reads nothing for a day.
    shared.hear(OTHER, old.encode())
    assert signs() == old
    shared.forget(OTHER)
    assert signs() == ours.ids[0]
    shared.hear(OTHER, old.encode())
    now += MAX_HELD_BACK - LEAD_TIME + timedelta(seconds=1)
    await ours.refresh()
    assert signs() == ours.ids[0]


async def test_where_the_key_that_all_have_was_revoked_there_is_another(store: Store) -> None:
    ours = ResumeKeys(store)
    await ours.start()
    SharedKeys(lambda topic, payload: None, ours).hear(OTHER, b"revoked meanwhile")
    assert ours.current.verify(ours.current.issue(MAIN, "alice", 5.0).token, "alice", 6.0) == MAIN


def _header(keys: ResumeKeys) -> str:
    return base64.urlsafe_b64decode(keys.current.issue(MAIN, "", 0.0).token.partition(".")[0] + "==").decode()
