"""Feeds: something that changes, and whoever follows it (layer L3).

A feed keeps its last events, each with an id that only rises.  Events of one key replace each other; without a key each
counts, as lines of a log do.  Who comes back names the last id it saw and gets what came after it, once and in order.
Nobody waits for a follower: one that takes nothing, or falls behind what is kept, is dropped alone, and counted.

    with feed.follow(after) as follower:
        async for events in follower:        # ends when the feed is closed and everything is told
            with follower.sending():
                await send(events)
Next hop: api/streams.py (websockets); RPC streams in derp_maps.py and workspaces.py.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Generic, TypeVar

import trio

T = TypeVar("T")

# The reference's patience with a write that is stuck: the buffers of the kernels at both ends are full by then.
PATIENCE_SECONDS: Final = 10.0


class DropReason(Enum):
    """Why a follower was dropped: also the label set of the metric."""

    SLOW = "slow"  # it did not take what it was sent in time
    BEHIND = "behind"  # what comes next for it is no longer kept


class FollowerDropped(Exception):
    """This follower gets no more; the others do not notice.  The text is for the one that is dropped."""

    def __init__(self, reason: DropReason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Event(Generic[T]):
    """One thing that happened.  `id` rises from one event of a feed to the next."""

    id: int
    value: T


@dataclass(slots=True)
class FeedCounts:
    """What all feeds of one kind have in common, for metrics."""

    followers: int = 0  # now
    dropped: Counter[DropReason] = field(default_factory=Counter)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Around what one follower does: counts it, and what it is dropped for."""
        self.followers += 1
        try:
            yield
        except FollowerDropped as dropped:
            self.dropped[dropped.reason] += 1
            raise
        finally:
            self.followers -= 1


@contextmanager
def patiently(seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Around each send that waits for its reader.  Raises FollowerDropped when the reader takes too long."""
    with trio.move_on_after(seconds) as patience:
        yield
    if patience.cancelled_caught:
        raise FollowerDropped(DropReason.SLOW, f"nothing of the last message was taken for {seconds:.0f} s")


def newest_only(_value: object) -> None:
    """The `key` of a feed of which only the newest value is of use."""


class Feed(Generic[T]):
    """Published to by one service, followed by any number of tasks; used from trio's thread only.

    `kept`: events that stay for those who are behind.  With a `key` it bounds the keys.  `start`: the id of an event
    before the first, where others gave ids before this feed began.
    """

    def __init__(
        self,
        *,
        kept: int = 1,
        key: Callable[[T], Hashable] | None = None,
        counts: FeedCounts | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        start: int = 0,
    ) -> None:
        self.counts = counts if counts is not None else FeedCounts()
        self.last_id = start  # of the newest event
        self.patience_seconds = patience_seconds
        self.closed_because: str | None = None
        self._kept = kept
        self._key = key
        self._events: OrderedDict[Hashable, Event[T]] = OrderedDict()  # by key, in the order of their ids
        self._lost_id = start  # of the newest event that is no longer kept and that no other of its key replaced
        self._changed = trio.Event()

    def publish(self, value: T, event_id: int | None = None) -> int:
        """Tell all followers, and wait for none.  Returns the event's id: one more than the last, unless it is given.

        Clients keep ids over a restart of ours; a feed for such clients is given the ids that the store gave.
        """
        assert self.closed_because is None, "a closed feed has no more to tell"
        event_id = self.last_id + 1 if event_id is None else event_id
        assert event_id > self.last_id, "ids rise"
        key = event_id if self._key is None else self._key(value)
        self._events.pop(key, None)
        self._events[key] = Event(event_id, value)
        self.last_id = event_id
        while len(self._events) > self._kept:
            self._lost_id = self._events.popitem(last=False)[1].id
        self._wake()
        return event_id

    def close(self, because: str) -> None:
        """No more will come.  Followers get what is kept and end; those who come later, too."""
        if self.closed_because is None:
            self.closed_because = because
            self._wake()

    @property
    def newest(self) -> Event[T] | None:
        """The last event; None before the first."""
        return next(reversed(self._events.values()), None)

    @contextmanager
    def follow(self, after: int | None = None) -> Iterator["Follower[T]"]:
        """Follow from the event `after` on, or from the oldest that is kept.

        Inside, FollowerDropped says that it is over.  `after` may lie ahead of what was published.
        """
        with self.counts.following():
            yield Follower(self, self._lost_id if after is None else after)

    def since(self, event_id: int) -> list[Event[T]]:
        """What came after an event, the oldest first.  Raises FollowerDropped when some of it is no longer kept."""
        if event_id < self._lost_id:
            raise FollowerDropped(DropReason.BEHIND, f"events up to {self._lost_id} are no longer kept")
        found: list[Event[T]] = []
        for event in reversed(self._events.values()):
            if event.id <= event_id:
                break
            found.append(event)
        found.reverse()
        return found

    async def wait_changed(self) -> None:
        """Until something is published, or the feed is closed."""
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Follower(Generic[T]):
    """One who follows a feed.  Iterate over it for what came since, never an empty list; see `Feed.follow`."""

    def __init__(self, feed: Feed[T], position: int) -> None:
        self._feed = feed
        self.position = position  # the id of the last event it was given

    def __aiter__(self) -> "Follower[T]":
        return self

    async def __anext__(self) -> Sequence[Event[T]]:
        """What came since the last time, waiting for it.  Nothing is lost when the wait is cancelled."""
        feed = self._feed
        await trio.lowlevel.checkpoint()
        while not (events := feed.since(self.position)):
            if feed.closed_because is not None:
                raise StopAsyncIteration
            await feed.wait_changed()
        self.position = events[-1].id
        return events

    @property
    def ended_because(self) -> str:
        """Why no more comes; "" while more may."""
        return self._feed.closed_because or ""

    def sending(self) -> AbstractContextManager[None]:
        """Around each send that waits for its reader.  Raises FollowerDropped when the reader takes too long."""
        return patiently(self._feed.patience_seconds)

    def too_slow(self, text: str) -> FollowerDropped:
        """What to raise for a reader whose buffer is full, where a send does not wait."""
        return FollowerDropped(DropReason.SLOW, text)
