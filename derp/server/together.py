"""Pages of a relay with several workers: whichever is asked asks the others first, and shows all as one.  Layer L3.

    door.py -> PagesTogether.take -> siblings.ask -> the page is rendered as ever, with what came beside its own
Only who may see a page has it asked for.  Between two workers of one machine an answer takes a millisecond.
"""

from collections.abc import Callable
from typing import Any, Final

from derp.close_reason import CloseReason
from derp.metrics import RelayStatistics
from derp.relay.load import LOAD_PATH
from derp.server.clients_page import CLIENTS_PATH, ClientsPage
from derp.server.debug import BUSIEST_PATH, WHY_PATH, busiest, inconsistencies, why_here
from derp.server.door import HttpSession, Route
from derp.server.merged import Other, decode, encode, row_of, take_apart
from derp.server.pages import Pages, read_query
from derp.server.relay import Relay
from derp.server.siblings import Answers, Siblings
from derp.transport.host import WireEnded
from derp.transport.http import Request

_NUMBERS: Final = frozenset({"/metrics", "/debug/vars", "/debug/varz", LOAD_PATH})
_OVERVIEWS: Final = frozenset({"/debug/", BUSIEST_PATH, CLIENTS_PATH})
_TEXTS: Final = frozenset({WHY_PATH, "/debug/check"})
_PATHS: Final = _NUMBERS | _OVERVIEWS | _TEXTS


class _WaitingSession:
    """A caller whose page is being asked for.  It is not read meanwhile."""

    def __init__(self, session: HttpSession) -> None:
        self.session = session

    def received(self, at: int, end: int) -> int:
        return end

    def writable(self) -> None:
        pass

    def ended(self, reason: CloseReason, text: str) -> None:
        self.session.ended(reason, text)


class PagesTogether:
    """The pages of one worker that show all of them."""

    def __init__(self, pages: Pages, relay: Relay, siblings: Siblings, read: Callable[[], RelayStatistics]) -> None:
        """`read`: what this worker counted."""
        self._pages = pages
        self._relay = relay
        self._siblings = siblings
        self._read = read
        self._clients = ClientsPage(relay, brand="", places=())
        siblings.answerers["page"] = self._answer

    def route(self) -> Route:
        """Before the one of all pages."""
        return Route(lambda path: path in _PATHS, self.take)

    def take(self, session: HttpSession, request: Request) -> None:
        """Answer at once who may not see the page, and everybody else when all workers have said what they have."""
        if self._pages.why_closed(request, session.caller):
            self._reply(session, request)
            return
        wire, host = session.wire, self._siblings.host
        waiting = _WaitingSession(session)
        wire.session = waiting
        host.pause(wire)

        def done(answers: Answers) -> None:
            if wire.session is not waiting:
                return  # the caller has left
            wire.session = session
            try:
                self._reply_with(answers, session, request)
            except WireEnded as error:
                host.fail(wire, error)
                return
            session.go_on()
            host.resume(wire)

        self._siblings.ask("page", encode({"target": request.target}), done)

    def _reply(self, session: HttpSession, request: Request) -> None:
        made = self._pages.answer(request, session.caller)
        session.answer(made.status, made.headers, made.body)

    def _reply_with(self, answers: Answers, session: HttpSession, request: Request) -> None:
        relay = self._relay
        said = {number: decode(answer) for number, answer in sorted(answers.items()) if answer}
        relay.others = tuple(Other(number, one) for number, one in said.items())
        try:
            self._reply(session, request)
        finally:
            relay.others = ()

    def _answer(self, asked: bytes) -> bytes:
        """What this worker has for a page of a sibling."""
        relay, target = self._relay, decode(asked)["target"]
        now = relay.host.now
        path, _, query = target.partition("?")
        answer: dict[str, Any] = {}
        if path in _TEXTS:
            given = {name: values[-1] for name, values in (read_query(query) or {}).items()}
            number = self._siblings.number
            if path == WHY_PATH:
                answer["text"] = why_here(relay, given, number)
            else:
                answer["text"] = "".join(f"worker {number}: {problem}\n" for problem in inconsistencies(relay))
            return encode(answer)
        answer["reading"] = take_apart(self._read())
        answer["connections"] = len(relay.router.clients)
        if path == BUSIEST_PATH:
            answer["clients"] = [row_of(client, now) for client in busiest(relay.router.clients.values())]
        elif path in _OVERVIEWS:
            selection = self._clients.selected(read_query(query) if path == CLIENTS_PATH else None)
            if selection is not None:
                answer["clients"] = [row_of(client, now) for client in selection.clients]
                answer["matching"] = (selection.connections, selection.keys, selection.remaining)
        return encode(answer)
