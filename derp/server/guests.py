"""Clients that are in on terms: warned before their time ends, sent away when it or their bytes are used up.  Layer L3.

session.py says who comes and goes and charges what they send as it comes; what they receive is charged each second by
relay.py.  Next hop: leaving.py.
"""

import math
import time
from collections.abc import Callable
from typing import Final

from derp.admission.terms import Account, Terms
from derp.close_reason import CloseReason
from derp.relay.clients import Client
from derp.relay.deadlines import Deadlines
from derp.server.advisor import Advisor, health_frame
from derp.server.decisions import DecisionLog
from derp.server.leaving import Leaving
from derp.text import utc
from derp.transport.alarm import Alarm
from derp.transport.host import Host

# An hour is enough to ask somebody for more, and a warning that stands for days is not read.
WARN_SECONDS: Final = 3600.0
# Of the bytes: when a tenth is left.
_WARN_PART: Final = 10


class _Guest:
    __slots__ = ("start_bytes", "terms", "told_out")

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.start_bytes = terms.account.left if terms.account is not None else 0
        self.told_out = 0  # bytes to the client that were charged already


class Guests:
    """Those of one relay.  `clock` is the wall's, by which terms end."""

    def __init__(
        self,
        host: Host,
        advisor: Advisor,
        leaving: Leaving,
        decisions: DecisionLog | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._decisions = decisions
        self._advisor = advisor
        self._leaving = leaving
        self._clock = clock
        self._guests: dict[Client, _Guest] = {}
        self._due = Deadlines[Client]()
        self._alarm = Alarm(host, self._handle_timeout, self._due)

    def __len__(self) -> int:
        return len(self._guests)

    def terms_of(self, client: Client) -> Terms | None:
        """On what terms a client is in; None: it may stay."""
        guest = self._guests.get(client)
        return guest.terms if guest is not None else None

    def arrive(self, client: Client, terms: Terms) -> None:
        """A client has just been registered."""
        ends = self._host.now + (terms.ends_at - self._clock())
        self._guests[client] = _Guest(terms)
        if ends < math.inf:
            self._set(client, ends if terms.is_trial else max(ends - WARN_SECONDS, self._host.now))

    def depart(self, client: Client) -> None:
        """A client has just been unregistered; it need not be one of these."""
        guest = self._guests.pop(client, None)
        if guest is not None:
            self._due.clear(client)
            self._charge(client, guest)

    def charge_sent(self, client: Client, count: int) -> None:
        """A guest sent so many bytes."""
        guest = self._guests.get(client)
        if guest is not None and guest.terms.account is not None:
            guest.terms.account.spend(count)
            self._look_at(client, guest)

    def look(self) -> None:
        """Charge what guests received; called every second."""
        for client, guest in tuple(self._guests.items()):
            if guest.terms.account is not None and client.member is not None:
                self._charge(client, guest)
                self._look_at(client, guest)

    def _charge(self, client: Client, guest: _Guest) -> None:
        if guest.terms.account is not None:
            guest.terms.account.spend(client.bytes_out - guest.told_out)
            guest.told_out = client.bytes_out

    def _look_at(self, client: Client, guest: _Guest) -> None:
        account = guest.terms.account
        assert account is not None
        if account.left <= 0:
            self._end(client, guest, "has no bytes left")
        elif not guest.terms.is_trial and account.left < guest.start_bytes // _WARN_PART:
            text = f"{guest.terms.what} has few of its bytes left on this relay; ask whoever runs it for more"
            self._advisor.note_ending(client, text)

    def _set(self, client: Client, at: float) -> None:
        self._due.set(client, at)
        self._alarm.by(at)

    def _handle_timeout(self, now: float) -> None:
        for client in self._due.handle_timeout(now):
            guest = self._guests[client]  # `depart` clears its deadline
            # The wall's clock may have been put right meanwhile.
            left = guest.terms.ends_at - self._clock()
            if left <= 0:
                self._end(client, guest, "has ended")
                continue
            if left <= WARN_SECONDS and not guest.terms.is_trial:
                when = utc(guest.terms.ends_at)
                text = f"{guest.terms.what} ends at {when}, and then this relay closes it; ask whoever runs the relay"
                self._advisor.note_ending(client, text)
            self._set(client, now + (left if left <= WARN_SECONDS else left - WARN_SECONDS))

    def _end(self, client: Client, guest: _Guest, why: str) -> None:
        because = f"{guest.terms.what} {why}"
        self.send_away(client, because, f"{because}: ask whoever runs this relay")

    def end_account(self, account: Account, why: str) -> None:
        """Send away everybody who is in by an account.  A flush has to follow."""
        for client, guest in tuple(self._guests.items()):
            if guest.terms.account is account:
                self._end(client, guest, why)

    def send_away(self, client: Client, because: str, words: str) -> None:
        """End a client: `because` is for the log, its user sees `words`.  A flush has to follow."""
        if self._decisions is not None:
            self._decisions.note("sent away", client.key, client.address, because)
        self._leaving.send_away(client.wire, CloseReason.NOT_ADMITTED, because, health_frame(words))
