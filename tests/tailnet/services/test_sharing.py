"""What holds for everything that replicas share: later versions say other things, and replicas leave at any time."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tailnet.replica.messages import ReplicaID, Tell
from tailnet.replica.pair import End
from tailnet.server.server import CoordinatorServer
from tests.support.tailnet_driver import wait_for
from tests.tailnet.server.test_replicated import Places, linked, replicas_of

STRANGER = ReplicaID(b"stranger")
LATER = (b"", b"\0", b"\xff" * 40, b"-1", b"{}", b"\x93\x01\xa1x\xc0", b"9" * 60_000)


@pytest.fixture
def places(serve: Callable[..., Awaitable[CoordinatorServer]], filled_file: Path, tmp_path: Path) -> Places:
    return Places(serve, filled_file, tmp_path)


async def test_what_a_later_version_says_harms_nobody(places: Places) -> None:
    one, other = await places.start(0), await places.start(1)
    await linked(one, other)
    ours, theirs = replicas_of(one), replicas_of(other)
    assert ours.shared
    topics = (*ours.shared, "of a later version")

    def all_was_heard() -> bool:
        """What is told while a second link takes the place of the first is lost."""
        for topic in topics:
            for payload in LATER:
                ours.tell(topic, payload)
        return theirs.cluster.heard[Tell] >= 3 * len(LATER) * len(topics)

    await wait_for(all_was_heard)
    for shared in theirs.shared.values():
        for payload in LATER:
            shared.hear(STRANGER, payload)
        shared.forget(STRANGER)
        shared.forget(STRANGER)
    assert not theirs.ends[End.MALFORMED]
    await linked(one, other)


async def test_who_comes_is_greeted_with_all_that_is_shared(places: Places) -> None:
    one = await places.start(0)
    heard: set[str] = set()
    for topic, shared in replicas_of(one).shared.items():
        shared.hear = lambda other, payload, topic=topic: heard.add(topic)  # type: ignore[method-assign, misc]  # a fake
    other = await places.start(1)
    await linked(one, other)
    greeted = {topic for topic, shared in replicas_of(other).shared.items() if shared.greet()}
    assert greeted
    await wait_for(lambda: heard >= greeted)
