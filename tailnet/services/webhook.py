"""The webhook: tells one receiver what happens to agents (layer L3), each event until it is taken.

Events lie in the store (store/events.py), so what waits survives a restart, and so does how far the receiver is.  Each
is a POST, signed (tailnet/signatures.py) and named by an id that every try has: a receiver may get one twice, after a
crash of either side.  Events of one agent go in order, several agents beside each other.  A receiver that fails is
tried with one event and growing pauses; one event that it refuses while it takes others is given up.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final

import trio

from derp.log import fields
from derp.text import without_secrets
from tailnet.config import WebhookTarget
from tailnet.errors import StoreError, TransportError
from tailnet.go_json import go_json, go_time
from tailnet.services.events import Events
from tailnet.signatures import sign
from tailnet.store.rows import EventPage, StoredEvent
from tailnet.store.store import Store
from tailnet.transport.fetch import Posted, Poster
from tailnet.transport.tracing import Tracing

_log = logging.getLogger("tailnet.webhook")

READER: Final = "webhook"
# A receiver that does more than note what it is told should do it after its answer.
ANSWER_SECONDS: Final = 10.0
# Agents whose events are on their way at once.
LANES: Final = 8
# One look at the store.  Of a window so many may be delivered before its first one is.
BATCH_EVENTS: Final = 100
WINDOW_EVENTS: Final = 1_000
# No new try begins later in a turn: with the last answer it ends before the reader is another server's.
TURN_SECONDS: Final = 15.0
HELD: Final = timedelta(seconds=30)
# With nothing to do: events of other servers, and whether one that had the reader has died.
LOOK_SECONDS: Final = 5.0
FIRST_PAUSE_SECONDS: Final = 1.0
MOST_PAUSE_SECONDS: Final = 300.0
# Of one event while others are taken: some five minutes.
MAX_TRIES: Final = 9


class Outcome(Enum):
    """What became of a try: the label set of the metric."""

    TAKEN = "taken"
    UNREACHABLE = "unreachable"  # no answer, or not in time
    REFUSED = "refused"  # an answer that is not 2xx
    GONE = "gone"  # 410: the receiver wants no more


class GivenUp(Enum):
    """Why an event was never taken: the label set of the metric."""

    REFUSED = "refused"  # others were taken meanwhile
    EXPIRED = "expired"  # it was kept no longer


@dataclass(slots=True)
class _Trouble:
    """An event that was not taken yet."""

    tries: int
    taken_before: int  # events, when it failed first
    again_at: float


class Webhook:
    """One per server; of several servers on one store one delivers at a time.  `run` is one task.

    `target` may be exchanged at any time, and `is_gone` taken back: server/server.py does when it reads its settings.
    """

    def __init__(
        self,
        store: Store,
        events: Events,
        target: WebhookTarget | None,
        server_id: str,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
        answer_seconds: float = ANSWER_SECONDS,
        tracing: Tracing | None = None,
    ) -> None:
        self.target = target
        self.is_gone = False
        self.outcomes: Counter[Outcome] = Counter()
        self.given_up: Counter[GivenUp] = Counter()
        self.waiting_count = 0
        self.oldest_at: datetime | None = None  # of the events that wait
        self._store = store
        self._events = events
        self._server_id = server_id
        self._clock = clock
        self._jitter = jitter
        self._answer_seconds = answer_seconds
        self._tracing = tracing
        self._poster: Poster
        self._pausing = trio.CancelScope()
        self._done: set[int] = set()  # events behind the position that are done with
        self._troubles: dict[int, _Trouble] = {}
        self._failures = 0  # in a row
        self._rest_until = 0.0

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest event waits; 0 if none does."""
        return max(0.0, (self._clock() - self.oldest_at).total_seconds()) if self.oldest_at is not None else 0.0

    def retarget(self, target: WebhookTarget | None) -> None:
        """The settings were read again: who answered 410 is asked once more."""
        self.target, self.is_gone, self._rest_until, self._failures = target, False, 0.0, 0
        self._pausing.cancel()  # a new reader begins with what comes next, so it begins now

    async def run(self) -> None:
        """Deliver, until cancelled."""
        async with Poster(timeout_seconds=self._answer_seconds, max_connections=LANES) as self._poster:
            while True:
                try:
                    pause = await self.take_turn()
                except StoreError as error:
                    _log.warning("! events wait: %s", error)
                    pause = LOOK_SECONDS
                with self._pausing:
                    await self._events.wait_more(pause)
                self._pausing = trio.CancelScope()

    async def take_turn(self) -> float:
        """Look for events and try to deliver them.  Returns for how many seconds to wait.  Raises StoreError."""
        target, now = self.target, trio.current_time()
        if target is None or self.is_gone:
            return LOOK_SECONDS
        if now < self._rest_until:
            return self._rest_until - now
        position = await self._hold()
        if position is None:
            self._forget()
            return LOOK_SECONDS
        limit = min(BATCH_EVENTS + len(self._done), WINDOW_EVENTS)
        page = await self._store.run(self._store.events.page, position, limit)
        self._note_lost(page, position)
        due = self._due(page.events, now)
        if due:
            await self._deliver(target, due)
        await self._move(page, position)
        return self._pause(page, limit, bool(due))

    async def finish(self) -> None:
        """The server ends: let another one deliver at once."""
        if self.target is not None:
            try:
                await self._store.run(self._store.events.release_reader, READER, self._server_id)
            except StoreError as error:
                _log.warning("! another server delivers events only in %d s: %s", HELD.total_seconds(), error)

    # --- whose turn it is

    async def _hold(self) -> int | None:
        now = self._clock()
        return await self._store.run(self._store.events.hold_reader, READER, self._server_id, now, now + HELD)

    def _forget(self) -> None:
        """Another server delivers."""
        self._done.clear()
        self._troubles.clear()
        self.waiting_count, self.oldest_at = 0, None

    def _note_lost(self, page: EventPage, position: int) -> None:
        """Events that are kept no longer count as given up."""
        lost = page.oldest - 1 - position - sum(1 for number in self._done if number < page.oldest)
        if page.events and lost > 0:
            self.given_up[GivenUp.EXPIRED] += lost
            self._done.update(range(position + 1, page.oldest))  # so that they are lost once
            _log.error("! the receiver was away for so long that %d events are kept no longer", lost)

    def _due(self, events: Sequence[StoredEvent], now: float) -> list[list[StoredEvent]]:
        """Events to try now, those of one agent together; while the receiver fails, one."""
        lanes: dict[object, list[StoredEvent]] = {}
        held: set[object] = set()  # agents of which an earlier event has to wait
        for event in events:
            agent = event.data.get("agent_id")
            if event.number in self._done or agent in held:
                continue
            trouble = self._troubles.get(event.number)
            if trouble is not None and trouble.again_at > now:
                # One that is refused again and again: whether the next one is taken tells if it is the event's fault.
                if trouble.tries < MAX_TRIES:
                    held.add(agent)
                continue
            lanes.setdefault(agent, []).append(event)
        if self._failures and lanes:
            # The one that was tried least: else the one that is refused would be tried for all others.
            return [[min((lane[0] for lane in lanes.values()), key=self._tries)]]
        return list(lanes.values())

    def _tries(self, event: StoredEvent) -> int:
        trouble = self._troubles.get(event.number)
        return trouble.tries if trouble is not None else 0

    async def _move(self, page: EventPage, position: int) -> None:
        """Remember how far all is done, and what waits."""
        moved = max(position, page.oldest - 1) if page.events else position
        waiting = [event for event in page.events if event.number not in self._done]
        for event in page.events:
            if event.number not in self._done:
                break
            moved = event.number
        self.waiting_count = len(waiting) + max(0, page.newest - page.events[-1].number) if page.events else 0
        self.oldest_at = waiting[0].at if waiting else None
        if moved != position:
            until = self._clock() + HELD
            move = self._store.events.move_reader
            if not await self._store.run(move, READER, self._server_id, moved, until):
                self._forget()
                return
        self._done = {number for number in self._done if number > moved}

    def _pause(self, page: EventPage, limit: int, has_tried: bool) -> float:
        now = trio.current_time()
        if self._rest_until > now:
            return self._rest_until - now
        if has_tried and len(page.events) == limit < WINDOW_EVENTS:
            return 0.0  # there may be more
        again = min((trouble.again_at for trouble in self._troubles.values()), default=now + LOOK_SECONDS)
        return min(max(again - now, 0.0), LOOK_SECONDS)

    # --- one try

    async def _deliver(self, target: WebhookTarget, lanes: Sequence[list[StoredEvent]]) -> None:
        waiting = iter(lanes)
        failures, ends_at = self._failures, trio.current_time() + TURN_SECONDS

        async def work() -> None:
            for lane in waiting:
                for event in lane:
                    if self._failures > failures or self.is_gone or trio.current_time() > ends_at:
                        return
                    if not await self._try(target, event):
                        break  # its agent's next ones come behind it

        async with trio.open_nursery() as nursery:
            for _ in range(min(LANES, len(lanes))):
                nursery.start_soon(work)

    async def _try(self, target: WebhookTarget, event: StoredEvent) -> bool:
        """Returns whether the event is done with."""
        if self._tracing is None:
            outcome, problem, posted = await self._post(target, event, {})
        else:
            about = {"http.request.method": "POST", "tailnet.event.id": str(event.id), "tailnet.event.type": event.type}
            with self._tracing.asking("webhook", target.url, about) as span:
                outcome, problem, posted = await self._post(target, event, span.headers)
                if posted is not None:
                    span.note(http__response__status_code=posted.status)
                if problem:
                    span.fail(problem)
        self.outcomes[outcome] += 1
        if outcome is Outcome.TAKEN:
            self._note_taken(target, event)
            return True
        return self._note_failed(target, event, outcome, problem, posted)

    async def _post(
        self, target: WebhookTarget, event: StoredEvent, more: Mapping[str, str]
    ) -> tuple[Outcome, str, Posted | None]:
        body, headers = self._message(target, event)
        try:
            posted = await self._poster.post(target.url, body, {**headers, **more})
        except TransportError as error:
            return Outcome.UNREACHABLE, str(error), None
        outcome = _judge(posted)
        return outcome, _problem(posted) if outcome is not Outcome.TAKEN else "", posted

    def _message(self, target: WebhookTarget, event: StoredEvent) -> tuple[bytes, Mapping[str, str]]:
        body = go_json({"type": event.type, "timestamp": go_time(event.at), "data": event.data}).rstrip(b"\n")
        message_id, timestamp = str(event.id), int(self._clock().timestamp())
        headers = {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(target.secrets, message_id, timestamp, body),
        }
        return body, headers

    def _note_taken(self, target: WebhookTarget, event: StoredEvent) -> None:
        if self._failures:
            _log.warning("= the receiver %s takes events again", without_secrets(target.url))
        self._failures = 0
        self._done.add(event.number)
        self._troubles.pop(event.number, None)

    def _note_failed(
        self, target: WebhookTarget, event: StoredEvent, outcome: Outcome, problem: str, posted: Posted | None
    ) -> bool:
        taken = self.outcomes[Outcome.TAKEN]
        trouble = self._troubles.setdefault(event.number, _Trouble(0, taken, 0.0))
        trouble.tries += 1
        trouble.again_at = trio.current_time() + self._backoff(trouble.tries)
        shown = without_secrets(target.url)
        if outcome is Outcome.GONE:
            self.is_gone = True
            _log.error("! the receiver %s answers 410: it gets no more until the settings are read again", shown)
            return False
        takes_others = taken > trouble.taken_before
        if takes_others and trouble.tries >= MAX_TRIES:
            self.given_up[GivenUp.REFUSED] += 1
            self._done.add(event.number)
            del self._troubles[event.number]
            more = fields(event="webhook_given_up", id=str(event.id), type=event.type)
            _log.error("! event %s (%s) is given up: the receiver %s", event.id, event.type, problem, extra=more)
            return True
        if outcome is Outcome.UNREACHABLE or not takes_others or posted is None or posted.retry_after_seconds:
            if not self._failures:
                _log.warning("! the receiver %s %s: events wait", shown, problem)
            self._failures += 1
            asked = posted.retry_after_seconds if posted is not None else None
            pause = max(self._backoff(self._failures), min(asked or 0.0, MOST_PAUSE_SECONDS))
            self._rest_until = max(self._rest_until, trio.current_time() + pause)
        return False

    def _backoff(self, failures: int) -> float:
        """Twice as long after each, and at random between a half and all of it, so that servers do not come at once."""
        most = min(MOST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 20))
        return most * (0.5 + self._jitter() / 2)


def _judge(posted: Posted) -> Outcome:
    if 200 <= posted.status < 300:
        return Outcome.TAKEN
    return Outcome.GONE if posted.status == 410 else Outcome.REFUSED


def _problem(posted: Posted) -> str:
    if 300 <= posted.status < 400:
        return f"answers {posted.status}, and redirects are not followed: say where it is in --webhook-url"
    return f"answers {posted.status}"
