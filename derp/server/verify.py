"""Admission by somebody else: bounds and cache around those who are asked, and one of them, a URL.  Layer L3.

Each judge is asked in turn and all have to allow.  server/tailscaled.py is the other judge.  The URL gets, in the
genuine wire form, POST {"NodePublic": "nodekey:...", "Source": "ip"}; 200 with {"Allow": true} lets the client in, and
"Tenant", which genuine servers never send, says whose it is.
Questions go round the addresses that clients come from (relay/turns.py), and nobody is asked about a client that has
gone.  Used by server/admission.py; while an answer is on its way the client's socket is not read.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final, Protocol

import trio

from derp.admission.terms import tenant_name
from derp.config import RelayConfig
from derp.errors import TransportError
from derp.log import fields
from derp.relay.turns import Turns
from derp.server.address import address_group
from derp.server.admission import ADMITTED, Finding, Question, Verdict
from derp.server.tailscaled import TailscaledJudge
from derp.text import error_text, fit_to_show
from derp.transport.fetch import HttpCaller

_log = logging.getLogger("derp.server")

TIMEOUT_SECONDS: Final = 5.0
MAX_ANSWER_BYTES: Final = 4096
# We do not ask again about a client that reconnects within this time.  We believe a yes for long enough that the client
# survives a blip of its network, and a no only so long that a client in a loop is no storm for the judges.
YES_SECONDS: Final = 30.0
NO_SECONDS: Final = 5.0
# About 200 bytes each.
MAX_CACHED: Final = 65_536
# Questions on their way.
MAX_ASKING: Final = 64
# Of these, from one address (one /64 of IPv6): four of them may be slow before anybody else notices.
MAX_ASKING_PER_ADDRESS: Final = 16
# Questions that wait.  Within the 10 s of a handshake 64 at a time of 100 ms each are 6,400: those beyond this would
# time out, so they are refused at once and may try elsewhere.
MAX_WAITING: Final = 4096
# How soon we find out that a judge cannot answer, and say so in the log, while no client comes.
LOOK_SECONDS: Final = 30.0
# A judge may be down while thousands reconnect: the log has the same complaint once in so long, with their number.
COMPLAIN_SECONDS: Final = 10.0
_WELL: Final = Finding(True, "")
_OVERLOADED: Final = Verdict(False, "too many clients wait to be asked about", answered=False)


class Judge(Protocol):
    """Somebody whom we ask.  We open `http` before the first question and close it after the last."""

    http: HttpCaller
    fails_open: bool
    """Whether clients come in while there is no answer."""

    async def judge(self, key: bytes, address: str) -> Verdict:
        """One question; raises nothing, but may take as long as `http` lets it."""

    async def look(self) -> Finding | None:
        """Whether questions would be answered now; None from one who cannot be looked at beforehand."""


class UrlJudge:
    """The control plane's URL.  `fail_open`: its verdict while it does not answer; a bad answer is always a no."""

    def __init__(self, url: str, *, fail_open: bool, http: HttpCaller | None = None) -> None:
        self.http = http or HttpCaller(timeout_seconds=TIMEOUT_SECONDS)
        self._url = url
        self._name = fit_to_show(url)
        self.fails_open = fail_open

    async def judge(self, key: bytes, address: str) -> Verdict:
        body = json.dumps({"NodePublic": f"nodekey:{key.hex()}", "Source": address}, separators=(",", ":")).encode()
        try:
            fetched = await self.http.post(self._url, body, MAX_ANSWER_BYTES)
        except TransportError as error:
            return Verdict(self.fails_open, str(error), faulty=True, answered=False)
        if fetched.status != 200:
            said = f"{self._name} answered {fetched.redirect or fetched.status}"
            if fetched.redirect:
                said += ", which is not followed: set --verify-client-url to where it leads"
            return Verdict(False, said, faulty=True)
        try:
            allowed, tenant = read_answer(fetched.body)
        except ValueError as error:
            return Verdict(False, f"{self._name} answered {error_text(error)}", faulty=True)
        return Verdict(True, tenant=tenant) if allowed else Verdict(False, f"{self._name} does not allow it")

    async def look(self) -> Finding | None:
        return None  # it can only be asked about a client


class Verifier:
    """Asks the judges.  `run` it as one task; then `cached` and `ask` from the reactor's thread."""

    def __init__(self, judges: Sequence[Judge], *, clock: Callable[[], float] = trio.current_time) -> None:
        self._judges = judges
        self._clock = clock
        self._answers: OrderedDict[tuple[bytes, str], tuple[Verdict, float]] = OrderedDict()
        self._turns = Turns[str, Question](MAX_WAITING, at_once=MAX_ASKING_PER_ADDRESS)
        self._asking_count = 0
        self._nursery: trio.Nursery | None = None
        self.on_answer: list[Callable[[bytes, str, Verdict], None]] = []
        """Called with each answer, its key and its address."""
        self._found: dict[int, Finding] = {}
        self._complained, self._complained_at, self._unsaid = "", 0.0, 0
        self.allowed_count = 0
        self.refused_count = 0
        self.faulty_count = 0
        self.unreachable_count = 0
        self.overloaded_count = 0
        self.left_count = 0

    @property
    def problem(self) -> str:
        """Which judge is not fit to answer, as far as the last look or question showed; empty: all are."""
        return "; ".join(finding.text for finding in self._found.values() if not finding.well)

    @property
    def closed_by(self) -> str:
        """The same of those whose silence means no."""
        return "; ".join(
            finding.text
            for number, finding in self._found.items()
            if not finding.well and not self._judges[number].fails_open
        )

    async def look_again(self, key: bytes) -> None:
        """Ask the judges that were not fit to answer about `key`, which is nobody's: any answer shows that they are."""
        for number, finding in tuple(self._found.items()):
            if finding.well or finding.lasting:
                continue
            verdict = await self._judges[number].judge(key, "127.0.0.1")
            if verdict.answered and not verdict.faulty:
                self._found.pop(number, None)
                self._say("it answers again", "", 0)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer questions until cancelled; started when it can be asked."""
        async with AsyncExitStack() as stack:
            for judge in self._judges:
                await stack.enter_async_context(judge.http)
            self._nursery = await stack.enter_async_context(trio.open_nursery())
            for number, judge in enumerate(self._judges):
                self._nursery.start_soon(self._watch, number, judge)
            task_status.started()
            await trio.sleep_forever()

    def totals(self) -> Mapping[str, int]:
        """Questions by answer, for metrics."""
        return {
            "allowed": self.allowed_count,
            "refused": self.refused_count,
            "faulty": self.faulty_count,
            "unanswered": self.unreachable_count,
            # and the clients about which we asked nobody
            "overloaded": self.overloaded_count,
            "left": self.left_count,
        }

    def cached(self, key: bytes, address: str) -> Verdict | None:
        """The last verdict about this key from this address, while it is fresh."""
        found = self._answers.get((key, address))
        if found is None or found[1] <= self._clock():
            return None
        return found[0]

    def ask(self, question: Question) -> Verdict | None:
        """Have a question answered later.  A verdict at once when too many wait: then it, or another one of an address
        with more of them, is refused."""
        assert self._nursery is not None, "run() is not running"
        group = address_group(question.address)
        if self._asking_count < MAX_ASKING and self._turns.start(group):
            self._start(question)
            return None
        loser = self._turns.add(group, question)
        if loser is not None:
            self.overloaded_count += 1
            self._complain(f"{MAX_WAITING:,} clients wait to be asked about, so others are refused at once")
            if loser is question:
                return _OVERLOADED
            loser.answer(_OVERLOADED)
        return None

    def _ask_next(self) -> None:
        """Start as many questions as there is room for."""
        while self._asking_count < MAX_ASKING and (question := self._turns.take()) is not None:
            if not question.is_waiting():
                self.left_count += 1
                self._turns.done(address_group(question.address))
                continue
            self._start(question)

    def _start(self, question: Question) -> None:
        assert self._nursery is not None
        self._asking_count += 1
        self._nursery.start_soon(self._ask, question)

    async def _ask(self, question: Question) -> None:
        # Another connection of the client may have been asked about meanwhile.
        verdict = self.cached(question.key, question.address)
        if verdict is None:
            verdict = await self._verdict(question.key, question.address)
        self._asking_count -= 1
        self._turns.done(address_group(question.address))
        question.answer(verdict)
        self._ask_next()

    async def _verdict(self, key: bytes, address: str) -> Verdict:
        final, tenant = ADMITTED, ""
        for number, judge in enumerate(self._judges):
            verdict = await judge.judge(key, address)
            if verdict.faulty:
                self._complain(f"{verdict.because}; {'let in' if verdict.allowed else 'refused'}")
            self._learn(number, verdict)
            if not verdict.answered:
                self.unreachable_count += 1
                final = verdict
            if not verdict.allowed:
                final = verdict
                break
            tenant = verdict.tenant or tenant
        if final.allowed:
            final = replace(final, tenant=tenant)
        if final.answered:
            # We keep only answers.  After a failure the next client asks again, so that a judge that is back is heard.
            self.allowed_count += final.allowed
            self.faulty_count += final.faulty
            self.refused_count += not (final.allowed or final.faulty)
            self.keep(key, address, final)
            for notify in self.on_answer:
                notify(key, address, final)
        return final

    def _learn(self, number: int, verdict: Verdict) -> None:
        """A question shows faults before the next look does, and that they are over."""
        before = self._found.get(number, _WELL)
        if verdict.faulty and before.well:
            self._found[number] = Finding(False, verdict.because)
        elif verdict.allowed and not verdict.faulty and not before.well and not before.lasting:
            del self._found[number]

    def keep(self, key: bytes, address: str, verdict: Verdict) -> None:
        """Remember an answer, ours or that of somebody who asked the same judges."""
        until = self._clock() + (YES_SECONDS if verdict.allowed else NO_SECONDS)
        self._answers[key, address] = (verdict, until)
        self._answers.move_to_end((key, address))
        while len(self._answers) > MAX_CACHED:
            self._answers.popitem(last=False)

    def _complain(self, text: str) -> None:
        if text == self._complained and self._clock() < self._complained_at + COMPLAIN_SECONDS:
            self._unsaid += 1
            return
        if self._unsaid:
            self._say(f"{self._complained} ({self._unsaid} more times)", self._complained, self._unsaid)
        self._say(text, text, 0)
        self._complained, self._complained_at, self._unsaid = text, self._clock(), 0

    def _say(self, text: str, reason: str, more: int) -> None:
        _log.warning("! admission: %s", text, extra=fields(event="admission_fault", reason=reason, more_count=more))

    async def _watch(self, number: int, judge: Judge) -> None:
        while (finding := await judge.look()) is not None:
            if finding != self._found.get(number):
                _log.log(
                    logging.INFO if finding.well else logging.WARNING,
                    "%s admission: %s",
                    "=" if finding.well else "!",
                    finding.text,
                )
            self._found[number] = finding
            await trio.sleep(LOOK_SECONDS)


def open_verifier(config: RelayConfig) -> Verifier | None:
    """Who is asked by these settings, in derper's order: tailscaled, then the URL.  None: nobody."""
    judges: list[Judge] = []
    if config.verify_clients:
        judges.append(TailscaledJudge(config.tailscaled_socket))
    if config.verify_client_url:
        judges.append(UrlJudge(config.verify_client_url, fail_open=config.verify_client_url_fail_open))
    return Verifier(judges) if judges else None


def read_answer(body: bytes) -> tuple[bool, str]:
    """Whether an answer says {"Allow": true}, and its "Tenant".  Names match as in Go, in any case.

    Raises ValueError: what it is instead."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):  # the second: 4 KiB of brackets
        value = None
    if not isinstance(value, dict):
        raise ValueError('what is no {"Allow": true} or false')
    said = {name.lower(): each for name, each in value.items()}
    try:
        return said.get("allow") is True, tenant_name(said["tenant"]) if said.get("tenant") else ""
    except ValueError as error:
        raise ValueError(f'a "Tenant" that {error_text(error)}') from None
