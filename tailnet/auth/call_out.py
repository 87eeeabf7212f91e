"""Who is calling, asked of the control plane's URL (layer L2).

Many who ask the same are one question; few questions are on their way at a time, each has a deadline, and an answer is
kept for as long as it says.  No redirect is followed, and what is no answer lets nobody in (call_out_wire.py).  While
the URL does not answer, nobody new comes in; `fail_open` makes an exception for those known within ten minutes.  Who is
inside stays for these ten minutes, and with `fail_open` until there is a "no".
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Final
from uuid import UUID

import trio

from derp.errors import TransportError
from derp.log import Rarely, and_more
from derp.text import error_text, fit_to_show
from derp.transport.fetch import HttpCaller
from tailnet import refusals
from tailnet.auth.call_out_wire import (
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    AgentQuestion,
    CallOutAnswer,
    ProvidersQuestion,
    Question,
    RightsQuestion,
    UserQuestion,
    question_body,
    read_answer,
    signature,
)
from tailnet.auth.callers import STALE_SECONDS, Changes, Credential, Identity, OutsideToken, Reach, Standing
from tailnet.auth.claims import Nonsense
from tailnet.auth.recent import RecentAnswers
from tailnet.config.external_auth import Provider
from tailnet.refusals import Refused
from tailnet.store.rows import AgentIdentity, UserIdentity
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.auth")

# Of one question, its wait for its turn included.  SDKs give up a dial after some ten seconds.
DEADLINE_SECONDS: Final = 5.0
# On their way at a time: 32 at 10 ms each are 3,200 a second, more than any control plane wants from one server.
MAX_ASKING: Final = 32
# Of these, about tokens that nobody has vouched for within memory, and how many of those may wait for their turn: more
# would wait longer than the deadline.  Strangers who make tokens up never stand before those who are known.
MAX_ASKING_NEW: Final = 16
MAX_WAITING_NEW: Final = 2_048
# All of them; those known are as many as their sockets.
MAX_WAITING: Final = 65_536
# An identity has below 2 KiB.
MAX_ANSWER_BYTES: Final = 64 * 1024
# After a question to which there was no answer at all the next ones fail at once for so long, and those inside are
# asked about again after as long: 4,000 dials to a control plane that hangs would otherwise be a queue of minutes.
REST_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 5.0
_COMPLAIN_SECONDS: Final = 10.0
_FREE: Final = nullcontext()

# A token's kind and SHA-256, or a user and an agent; never a token.  Of the providers there is one.
Key = tuple[str, bytes] | tuple[UUID, PeerID]
_PROVIDERS: Final[Key] = ("external_auth", b"")


class CallOutEnd(Enum):
    """How a question ended."""

    YES = "yes"
    NO = "no"
    UNREACHABLE = "unreachable"  # no connection, no answer in time, or a status of 429 or 500 and above
    NONSENSE = "nonsense"  # a redirect, another status, a web page, a field that is wrong
    OVERLOADED = "overloaded"  # not asked: too many wait, or the last one was not answered a moment ago


class _Unwell(Exception):
    """It says itself that it cannot answer now: whoever asks next is not kept from trying, or a stranger whose token it
    stumbles over would shut everybody out."""


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: CallOutAnswer
    asked_at: float
    until: float


class _Asked:
    """A question on its way, and all who wait for its answer."""

    __slots__ = ("done", "entry")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.entry: _Entry | None = None  # None: nobody could say


class CallOut:
    """One per server; `run` is one task, without which nothing is answered."""

    def __init__(
        self,
        url: str,
        secret: bytes,
        *,
        fail_open: bool = False,
        changes: Changes | None = None,
        http: HttpCaller | None = None,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        self.no_wait = False
        self.changes = Changes() if changes is None else changes
        self.ended: dict[CallOutEnd, int] = dict.fromkeys(CallOutEnd, 0)
        self.asked_seconds = 0.0  # of all questions that were asked
        self.asked_count = 0
        self._url = url
        self._name = fit_to_show(url)
        self._secret = secret
        self._fail_open = fail_open
        self._http = HttpCaller(timeout_seconds=DEADLINE_SECONDS) if http is None else http
        self._wall_seconds = wall_seconds
        self._recent: RecentAnswers[Key, _Entry] = RecentAnswers()
        self._strangers: RecentAnswers[Key, _Entry] = RecentAnswers(max_found=4_096)
        self._asking: dict[Key, _Asked] = {}
        self._turns = trio.CapacityLimiter(MAX_ASKING)
        self._turns_of_new = trio.CapacityLimiter(MAX_ASKING_NEW)
        self._new_count = 0
        self._epoch = 0  # how often something changed: an answer from before a change holds for nobody who asks later
        self._failed_at = -float("inf")
        self._rarely = Rarely(_COMPLAIN_SECONDS)
        self._nursery: trio.Nursery | None = None
        self._started = trio.Event()

    @property
    def cached_count(self) -> int:
        """Answers in memory."""
        return len(self._recent) + len(self._strangers)

    @property
    def asking_count(self) -> int:
        """Questions on their way, or waiting for their turn."""
        return len(self._asking)

    async def run(self) -> None:
        """Ask, until cancelled."""
        async with self._http, trio.open_nursery() as nursery:
            self._nursery = nursery
            self._started.set()
            await trio.sleep_forever()

    def knows(self, token: OutsideToken) -> bool:
        """Whether the control plane has vouched for this one lately."""
        return self._recent.get(_key(token)) is not None

    async def agent(self, token: OutsideToken) -> AgentIdentity | None:
        """The agent whose token this is, None if there is none.  Raises Refused when nobody can say."""
        entry = await self._find(_key(token), lambda: _question(token))
        found = entry.answer.found
        return found if isinstance(found, AgentIdentity) else None

    async def user(self, token: OutsideToken) -> UserIdentity | None:
        """The same of a user."""
        entry = await self._find(_key(token), lambda: _question(token))
        found = entry.answer.found
        return found if isinstance(found, UserIdentity) else None

    async def reach(self, user_id: UUID, agent_id: PeerID) -> Reach | None:
        """What a user may do with an agent, None if there is no such agent.  Raises Refused when nobody can say."""
        entry = await self._find((user_id, agent_id), lambda: RightsQuestion(user_id, agent_id))
        found = entry.answer.found
        return found if isinstance(found, Reach) else None

    async def providers(self) -> tuple[tuple[Provider, ...], float]:
        """At whom users may link their accounts, and until when (trio's clock) that holds.  Raises Refused when nobody
        can say."""
        entry = await self._find_now(_PROVIDERS, ProvidersQuestion)
        found = entry.answer.found
        return found if isinstance(found, tuple) else (), entry.until

    def forget(self) -> None:
        """Ask about everybody anew: the control plane says that something changed."""
        self._epoch += 1
        self._recent.clear()
        self._strangers.clear()
        self.changes.note()

    async def standing(self, asked: Mapping[OutsideToken, Collection[PeerID]]) -> Standing:
        """See Callers.standing; it never raises Refused."""
        callers: dict[Credential, Identity] = {}
        reached: dict[Credential, Mapping[PeerID, Reach]] = {}
        unanswered: set[Credential] = set()
        until: dict[Credential, float] = {}

        async def look(token: OutsideToken, agent_ids: Collection[PeerID]) -> None:
            entries = [await self._try_to_find(_key(token), lambda: _question(token))]
            who = entries[0].answer.found if entries[0] is not None else None
            reaches: dict[PeerID, Reach] = {}
            if isinstance(who, UserIdentity):
                for agent_id in agent_ids:
                    entry = await self._try_to_find((who.id, agent_id), lambda: RightsQuestion(who.id, agent_id))  # noqa: B023  # awaited in place
                    entries.append(entry)
                    if entry is not None and isinstance(entry.answer.found, Reach):
                        reaches[agent_id] = entry.answer.found
            if None in entries:
                unanswered.add(token)
                until[token] = trio.current_time() + RETRY_SECONDS
            elif isinstance(who, AgentIdentity | UserIdentity):
                callers[token], reached[token] = who, reaches
                until[token] = min(entry.until for entry in entries if entry is not None)

        async with trio.open_nursery() as nursery:
            for token, agent_ids in asked.items():
                if self._has_all(token, agent_ids):
                    await look(token, agent_ids)  # which then waits for nothing
                else:
                    nursery.start_soon(look, token, agent_ids)
        return Standing(callers, reached, unanswered, until)

    def _has_all(self, token: OutsideToken, agent_ids: Collection[PeerID]) -> bool:
        entry = self._fresh(_key(token))
        if entry is None:
            return False
        who = entry.answer.found
        return not isinstance(who, UserIdentity) or all(self._fresh((who.id, each)) for each in agent_ids)

    def _fresh(self, key: Key) -> _Entry | None:
        """The answer in memory, if it still holds."""
        entry = self._recent.get(key) or self._strangers.get(key)
        return entry if entry is not None and entry.until > trio.current_time() else None

    async def _try_to_find(self, key: Key, question: Callable[[], Question]) -> _Entry | None:
        """For somebody who is inside.  None: nobody can say, and for so short a time that he keeps what he has."""
        before = self._recent.get(key)
        try:
            return await self._find_now(key, question)
        except Refused:
            if before is None or self._fail_open or trio.current_time() - before.asked_at < STALE_SECONDS:
                return None
            return _Entry(CallOutAnswer(None, 0.0), before.asked_at, trio.current_time())

    async def _find(self, key: Key, question: Callable[[], Question]) -> _Entry:
        """The answer for somebody who wants to come in.  Raises Refused when nobody can say, unless he was known."""
        try:
            return await self._find_now(key, question)
        except Refused:
            entry = self._recent.get(key)
            if self._fail_open and entry is not None and trio.current_time() - entry.asked_at < STALE_SECONDS:
                return entry
            raise

    async def _find_now(self, key: Key, question: Callable[[], Question]) -> _Entry:
        """The answer, from memory if it still holds.  Raises Refused when nobody can say."""
        entry = self._fresh(key)
        if entry is not None:
            return entry
        if self.no_wait:
            raise trio.WouldBlock
        asked = self._asking.get(key)
        if asked is None:
            is_resting = trio.current_time() - self._failed_at < REST_SECONDS
            is_new = self._is_new(key)
            if is_resting or len(self._asking) >= MAX_WAITING or (is_new and self._new_count >= MAX_WAITING_NEW):
                self.ended[CallOutEnd.OVERLOADED] += 1
                raise refusals.control_plane_unreachable()
            asked = self._asking[key] = _Asked()
            await self._start(key, question(), asked, is_new=is_new)
        await asked.done.wait()
        if asked.entry is None:
            raise refusals.control_plane_unreachable()
        return asked.entry

    def _is_new(self, key: Key) -> bool:
        """Whether it is about a token that may be made up; a user whose rights are asked for is known."""
        return isinstance(key[0], str) and key != _PROVIDERS and self._recent.get(key) is None

    async def _start(self, key: Key, question: Question, asked: _Asked, *, is_new: bool) -> None:
        # In a task of our own: who asked first may give up, the others still want their answer.
        try:
            await self._started.wait()
        except trio.Cancelled:
            del self._asking[key]
            asked.done.set()
            raise
        assert self._nursery is not None
        self._nursery.start_soon(self._ask, key, question, asked, is_new)

    async def _ask(self, key: Key, question: Question, asked: _Asked, is_new: bool) -> None:
        started_at, epoch = trio.current_time(), self._epoch
        self._new_count += is_new
        end, why = CallOutEnd.UNREACHABLE, f"{self._name} did not answer within {DEADLINE_SECONDS:g} s"
        try:
            with trio.move_on_after(DEADLINE_SECONDS) as deadline:
                async with self._turns_of_new if is_new else _FREE, self._turns:
                    answer = await self._post(question)
                end, why = CallOutEnd.NO if answer.found is None else CallOutEnd.YES, ""
                is_old = epoch != self._epoch
                until = trio.current_time() + (0.0 if is_old else answer.seconds)
                asked.entry = _Entry(answer, started_at, until)
                if not is_old:
                    self._keep(key, asked.entry)
            if deadline.cancelled_caught:
                self._failed_at = trio.current_time()
        except TransportError as error:
            why = error_text(error)
            self._failed_at = trio.current_time()
        except _Unwell as error:
            why = error_text(error)
        except Nonsense as error:
            end, why = CallOutEnd.NONSENSE, f"{self._name}: {error}"
        finally:
            del self._asking[key]
            self._new_count -= is_new
            asked.done.set()
            self.ended[end] += 1
            self.asked_count += 1
            self.asked_seconds += trio.current_time() - started_at
        if why:
            self._complain(end, why, question)

    def _keep(self, key: Key, entry: _Entry) -> None:
        if entry.answer.found is None:
            # Whoever was known is not any more, also for `fail_open`.
            self._recent.drop(key)
            self._strangers.keep({key: entry})
        else:
            self._strangers.drop(key)
            self._recent.keep({key: entry})
            self._failed_at = -float("inf")

    async def _post(self, question: Question) -> CallOutAnswer:
        """Raises TransportError when nobody answered, _Unwell when it cannot now, Nonsense when the answer is none."""
        body = question_body(question)
        timestamp = str(int(self._wall_seconds()))
        headers = {
            "content-type": "application/json",
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: signature(self._secret, timestamp, body),
        }
        fetched = await self._http.post(self._url, body, MAX_ANSWER_BYTES + 1, headers)
        if fetched.redirect:
            where = fit_to_show(fetched.redirect)
            raise Nonsense(f"it redirects to {where}, which is not followed: set --auth-url to where it leads")
        if fetched.status == 429 or fetched.status >= 500:
            raise _Unwell(f"{self._name} answered {fetched.status}")
        if fetched.status != 200:
            hint = ": is the secret of --auth-secret-file the one that it has?" if fetched.status in (401, 403) else ""
            raise Nonsense(f"it answered {fetched.status} and not 200{hint}")
        if len(fetched.body) > MAX_ANSWER_BYTES:
            raise Nonsense(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
        return read_answer(fetched.body, question)

    def _complain(self, end: CallOutEnd, why: str, question: Question) -> None:
        is_providers = isinstance(question, ProvidersQuestion)
        so = "external auth providers stay as they were" if is_providers else "nobody is let in by it"
        more = self._rarely.held_back(end.value, trio.current_time())
        if more is not None:
            _log.error("! control plane (--auth-url): %s; %s%s", fit_to_show(why), so, and_more(more))


def _key(token: OutsideToken) -> Key:
    return "agent" if token.is_agent else "user", token.digest


def _question(token: OutsideToken) -> Question:
    return AgentQuestion(token.token) if token.is_agent else UserQuestion(token.token)
