"""The local mesh of a relay with several workers: links to the others, what is told over them, questions.  Layer L3.

The supervisor gives each pair of workers a socket pair (worker.py adds our end here).  Packets and presences go to
relay/siblings.py.  Pages that show the whole relay ask: `ask` sends a question to every sibling and calls back with
what they answered.  Verdicts of admission are told as they come, so that no other worker asks again.
"""

import itertools
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from derp.close_reason import CloseReason
from derp.errors import RemoteProtocolError
from derp.protocol.frames import HEADER, HEADER_BYTES
from derp.protocol.siblings import (
    BATCH,
    BATCH_HEAD_BYTES,
    CONTROL,
    MAX_CONTROL_BYTES,
    control_frame,
    parse_control,
)
from derp.relay.deadlines import Deadlines
from derp.relay.forward import relay_packets
from derp.relay.siblings import Arrivals, SiblingRoute, WorkerRouter, count_unsent
from derp.transport.alarm import Alarm
from derp.transport.host import Host
from derp.transport.sibling_link import SiblingLink
from derp.transport.timers import Timer

_log = logging.getLogger("derp.workers")

# A sibling answers within a batch or two.  One that does not is stuck or just being replaced, and the page goes out
# without it.
ANSWER_SECONDS: Final = 2.0
# A limit on connections may be exceeded by what comes within this: nobody has a core that accepts 5,000 in it.
STANDING_SECONDS: Final = 1.0
# Of an answer in one frame: what msgpack puts around it fits beside.
_PIECE_BYTES: Final = MAX_CONTROL_BYTES - 1024
# An answer is some thousand rows at the most.
_MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
# So many keys of a lost sibling are forgotten between two batches of packets: 3 us each.
_FORGET_AT_ONCE: Final = 1000

Answers = Mapping[int, bytes]
"""By the number of the worker."""


class SiblingSession:
    """What comes over the link to one sibling."""

    __slots__ = ("_arrivals", "_batch_left", "_siblings", "route")

    def __init__(self, siblings: "Siblings", route: SiblingRoute) -> None:
        self.route = route
        self._siblings = siblings
        self._arrivals = Arrivals(siblings.router, siblings.host.now)
        self._batch_left = 0  # bytes of the batch of which a part was served

    def received(self, at: int, end: int) -> int:
        host, arrivals = self._siblings.host, self._arrivals
        while True:
            if self._batch_left:
                stop = min(end, at + self._batch_left)
                rest = relay_packets(host.arena, host.view, at, stop, arrivals.source, arrivals, host.now)
                self._batch_left -= rest - at
                at = rest
                if self._batch_left:
                    if stop < end:
                        raise RemoteProtocolError("a batch with something else in it than packets")
                    return at
            if end - at < HEADER_BYTES:
                return at
            kind, length = HEADER.unpack_from(host.arena, at)
            if kind == BATCH:
                if end - at < BATCH_HEAD_BYTES:
                    return at
                arrivals.begin(bytes(host.arena[at + HEADER_BYTES : at + BATCH_HEAD_BYTES]))
                self._batch_left = length + HEADER_BYTES - BATCH_HEAD_BYTES
                at += BATCH_HEAD_BYTES
                continue
            if kind != CONTROL or length > MAX_CONTROL_BYTES:
                raise RemoteProtocolError(f"frame 0x{kind:02x} of {length} bytes from another worker")
            stop = at + HEADER_BYTES + length
            if stop > end:
                return at
            self._siblings.handle_control(self.route, parse_control(bytes(host.arena[at + HEADER_BYTES : stop])))
            at = stop

    def writable(self) -> None:
        """Nothing waits here: the link holds what the kernel did not take."""

    def ended(self, reason: CloseReason, text: str) -> None:
        self._siblings.remove(self.route)


@dataclass(slots=True)
class _Question:
    """What was asked, and what came so far."""

    done: Callable[[Answers], None]
    missing: set[int]
    answers: dict[int, bytes] = field(default_factory=dict)


class Siblings:
    """The other workers, as this one knows them."""

    def __init__(self, router: WorkerRouter, host: Host) -> None:
        self.router = router
        self.host = host
        self.number = router.place.number
        """Ours."""
        self.told: dict[str, Callable[..., None]] = {}
        """What is done with a message, by its name: other parts add theirs."""
        self.answerers: dict[str, Callable[[bytes], bytes]] = {}
        """Who answers a question, by its name."""
        self.read_standing: Callable[[], tuple[int, str]] = lambda: (0, "")
        """Our connections, and what is the matter with us: told to each sibling every second."""
        self._standing_timer: Timer | None = None
        self._numbers = itertools.count(1)
        self._questions: dict[int, _Question] = {}
        self._late = Deadlines[int]()
        self._alarm = Alarm(host, self._give_up, self._late)

    def add(self, index: int, sock: socket.socket) -> None:
        """Our end of the link to worker `index`."""
        wire = SiblingLink(sock, f"worker {index}")
        route = SiblingRoute(self.router.own_key, index, wire)
        wire.session = SiblingSession(self, route)
        self.host.add(wire)
        self.router.add_sibling(route)
        if self._standing_timer is None:
            self._tell_standing()
        self.host.flush()

    def _tell_standing(self) -> None:
        self.tell("stands", *self.read_standing())
        self._standing_timer = self.host.call_at(self.host.now + STANDING_SECONDS, self._tell_standing)

    @property
    def connection_count(self) -> int:
        """Of all siblings, as they last said."""
        return sum(link.connection_count for link in self.router.links)

    @property
    def problem(self) -> str | None:
        """Why a client that comes here may be ill served, because it may come to one of them; None if all are well."""
        return next((f"worker {link.index}: {link.problem}" for link in self.router.links if link.problem), None)

    def remove(self, route: SiblingRoute) -> None:
        """A link ended: the sibling did, or is about to."""
        sent_bytes, held = route.wire.take_held()
        count_unsent(sent_bytes, held, self.router.counters)
        count_unsent(0, b"".join(route.pending), self.router.counters)
        route.pending = []
        route.pending_bytes = 0
        self._forget(route)
        for number in [number for number, question in self._questions.items() if route.index in question.missing]:
            self._settle(number, route.index)

    def _forget(self, route: SiblingRoute) -> None:
        if self.router.forget_some(route, _FORGET_AT_ONCE):
            self.host.call_at(self.host.now, lambda: self._forget(route))

    def tell(self, *items: object) -> None:
        """Tell all siblings; with the next flush."""
        self.router.tell_siblings(control_frame(*items))

    def handle_control(self, route: SiblingRoute, items: Sequence[Any]) -> None:
        """One message of a sibling.  Those that we do not know are of a newer version, and read past."""
        router = self.router
        match items:
            case ["came", frame]:
                router.sibling_came(route, frame)
            case ["left", key]:
                router.sibling_left(route, key)
            case ["went", key, index]:
                router.sibling_went(route, key, index)
            case ["has", frames]:
                router.sibling_has(route, frames)
            case ["wrote", key]:
                router.sibling_wrote(route, key)
            case ["stands", connection_count, problem]:
                route.connection_count, route.problem = connection_count, problem
            case ["close", key]:
                router.close_here(key)
            case ["ask", number, name, asked]:
                self._answer(route, number, name, asked)
            case ["answer", number, piece, is_last]:
                self._take_answer(route.index, number, piece, is_last)
            case [str(name), *rest] if name in self.told:
                self.told[name](*rest)
            case _:
                pass

    # --- questions

    def ask(self, name: str, asked: bytes, done: Callable[[Answers], None]) -> None:
        """Ask every sibling; `done` is called once, from the host, with what came in time.  A flush has to follow."""
        missing = {link.index for link in self.router.links}
        if not missing:
            done({})
            return
        number = next(self._numbers)
        self._questions[number] = _Question(done, missing)
        until = self.host.now + ANSWER_SECONDS
        self._late.set(number, until)
        self._alarm.by(until)
        self.tell("ask", number, name, asked)

    def _answer(self, route: SiblingRoute, number: int, name: str, asked: bytes) -> None:
        answerer = self.answerers.get(name)
        answer = answerer(asked) if answerer is not None else b""
        for at in range(0, len(answer) or 1, _PIECE_BYTES):
            piece = answer[at : at + _PIECE_BYTES]
            self.router.send(route, control_frame("answer", number, piece, at + _PIECE_BYTES >= len(answer)))

    def _take_answer(self, index: int, number: int, piece: bytes, is_last: bool) -> None:
        question = self._questions.get(number)
        if question is None or index not in question.missing:
            return  # too late
        so_far = question.answers.get(index, b"") + piece
        if len(so_far) > _MAX_ANSWER_BYTES:
            raise RemoteProtocolError("an answer without an end")
        question.answers[index] = so_far
        if is_last:
            self._settle(number, index)

    def _settle(self, number: int, index: int) -> None:
        question = self._questions[number]
        question.missing.discard(index)
        if not question.missing:
            self._end(number)

    def _end(self, number: int) -> None:
        question = self._questions.pop(number)
        self._late.clear(number)
        question.done({index: answer for index, answer in question.answers.items() if index not in question.missing})

    def _give_up(self, now: float) -> None:
        for number in self._late.handle_timeout(now):
            missing = ", ".join(map(str, sorted(self._questions[number].missing)))
            _log.warning("! worker %s did not answer within %.0f s", missing, ANSWER_SECONDS)
            self._end(number)
