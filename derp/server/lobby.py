"""The lobby of a server: who has not said yet what he wants, how many may come, and why connections ended.  Layer L3.

One per server, with or without a relay.  Listeners ask it before they accept, front doors put connections here, and
whatever becomes of a connection (a relay's client, a peer of the tailnet, an API request) is taken out.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from derp.close_reason import CloseReason
from derp.config import ServerConfig
from derp.log import Rarely, and_more, fields
from derp.relay.deadlines import Deadlines
from derp.relay.limits import TokenBucket
from derp.server.address import Caller, find_caller, is_in
from derp.transport.alarm import Alarm
from derp.transport.host import Host, Wire
from derp.transport.hostcore import MAX_CLOSED_AT_ONCE

_log = logging.getLogger("derp.server")

# Whoever scans the internet says hello in every wrong way; the first of each kind tells an operator what to mend.
_TELL_SECONDS: Final = 60.0
# Beyond --max-connections, for whoever may see operators' pages: a full server is the one that they ask.  A scrape, a
# steerer, a health check and a person at a time, twice.
RESERVE: Final = 8


class Lobby:
    """What all listeners and front doors of a server share."""

    def __init__(self, host: Host, config: ServerConfig, *, count_elsewhere: Callable[[], int] = lambda: 0) -> None:
        """`count_elsewhere`: connections that left the host and are still ours."""
        self.host = host
        self.waiting = Deadlines[Wire]()
        """Connections that have to say what they want, and to prove who they are, and until when."""
        self._alarm = Alarm(host, self._end_overdue, self.waiting)
        self.closed_count: dict[CloseReason, int] = dict.fromkeys(CloseReason, 0)
        self.most_connections = 0
        """The most at a time since somebody set this anew."""
        self.reserved: set[Wire] = set()
        """Connections that came when all were taken: they see operators' pages, and nothing else (door.py)."""
        self.accepted_count = self.too_fast_count = self.too_many_count = 0
        self.tls_accepted_count = self.tls_rejected_count = 0
        self._rarely = Rarely(_TELL_SECONDS)
        self._count_elsewhere = count_elsewhere
        self._bucket: TokenBucket | None = None
        self._rate = (0.0, 0.0)
        self.configure(config)

    def configure(self, config: ServerConfig) -> None:
        """Take limits, deadlines and trusted proxies from settings; for those who come from now on."""
        self._config = config
        rate = (config.accept_connection_limit, float(config.accept_connection_burst))
        if rate != self._rate:
            self._rate = rate
            self._bucket = TokenBucket(*rate, self.host.now) if config.has_accept_limit else None

    # --- how many may come

    def admits(self, *, is_tls: bool = False) -> bool:
        """Whether one more connection may come in now; counts it either way, those of TLS listeners twice."""
        admitted = self._admits(self.host.now)
        if is_tls:
            self.tls_accepted_count += admitted
            self.tls_rejected_count += not admitted
        return admitted

    def _admits(self, now: float) -> bool:
        count = self.connection_count
        if count >= self.most_connections:
            self.most_connections = count + 1
        if count >= self._config.max_connections:
            self.count_too_many()
            return False
        if self._bucket is not None and not self._bucket.take(now):
            self.too_fast_count += 1
            limit = f"more than {self._config.accept_connection_limit:,.0f} came within a second"
            self.tell_refused("too_fast", f"{limit}; --accept-connection-limit says how many may")
            return False
        self.accepted_count += 1
        return True

    def count_too_many(self) -> None:
        """One more is refused since all connections are taken."""
        self.too_many_count += 1
        remedy = self._config.connections_remedy or "raise --max-connections, if this machine has room for more"
        self.tell_refused("too_many", f"{self.connection_count:,} are open, and no more are allowed; {remedy}")

    def has_reserve_for(self, address: str) -> bool:
        """Whether all connections are taken, and one more is kept for this address.  Whoever lets it in calls
        `reserve`."""
        over = self.connection_count - self._config.max_connections
        return 0 <= over < RESERVE and is_in(address, self._config.debug_allow)

    def reserve(self, wire: Wire, *, is_tls: bool = False) -> None:
        """It came in beyond the bound, and counts as those whom `admits` lets in."""
        self.accepted_count += 1
        self.tls_accepted_count += is_tls
        self.reserved.add(wire)

    def tell_refused(self, kind: str, why: str) -> None:
        """Log that connections are not let in: once a minute of each kind, with what an operator can do."""
        more = self._rarely.held_back(kind, self.host.now)
        if more is not None:
            told = fields(event="connections_refused", reason=kind, more_count=more)
            _log.warning("! connections are refused: %s%s", why, and_more(more), extra=told)

    @property
    def max_connections(self) -> int:
        """How many connections there may be."""
        return self._config.max_connections

    @property
    def connection_count(self) -> int:
        """All connections of the server, also those of the API."""
        return len(self.host.wires) + self._count_elsewhere()

    # --- who waits

    def enter(self, wire: Wire, seconds: float | None = None) -> None:
        """A connection has from now on so much time until it is closed: by default what settings give it to say what
        it wants, also after an answer."""
        wire.is_newcomer = True
        until = self.host.now + (self._config.handshake_timeout_seconds if seconds is None else seconds)
        self.waiting.set(wire, until)
        self._alarm.by(until)

    def leave(self, wire: Wire) -> None:
        """It is known what a connection wants, or it ended: its deadline does not count any more."""
        wire.is_newcomer = False
        self.waiting.clear(wire)
        self.reserved.discard(wire)

    def _end_overdue(self, now: float) -> None:
        for wire in self.waiting.handle_timeout(now, MAX_CLOSED_AT_ONCE):
            self.host.close(wire, CloseReason.HANDSHAKE_TIMEOUT)

    # --- who it is, and why connections end

    def find_caller(self, peer: tuple[str, int], headers: Mapping[str, str]) -> Caller:
        """Who sent a request that came over a connection from `peer`, by what trusted proxies say."""
        return find_caller(peer, headers, self._config.trusted_proxies)

    def count_closed(self, reason: CloseReason) -> None:
        """Every connection is counted once, when it ends, whatever had become of it."""
        self.closed_count[reason] += 1

    def tell_no_tls(self, address: tuple[str, int], reason: CloseReason, text: str) -> None:
        """Log why somebody did not get through TLS: once a minute for each reason, with how many more there were."""
        more = self._rarely.held_back(reason.value, self.host.now)
        if more is not None:
            told = fields(event="no_tls", address=address[0], reason=reason.value, more_count=more)
            _log.info("x %s:%d at the door: %s%s", *address[:2], text, and_more(more), extra=told)
