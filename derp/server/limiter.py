"""Holds clients to what they may send: each of them, all of a tenant, and all of the relay.  Layer L3.

session.py charges what it received from a client that has limits.  Who sent too much is not read for a while, so that
its bytes wait in the kernels on the way; nothing is dropped.  Next hop: relay/limits.py, relay/shares.py.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from derp.relay.clients import Client
from derp.relay.counters import Counters
from derp.relay.deadlines import Deadlines
from derp.relay.limits import DEFAULT_TENANT, Limits, Meter, Rate
from derp.relay.shares import Shares, Tenant
from derp.server.advisor import Advisor
from derp.transport.alarm import Alarm
from derp.transport.host import Host

# A pause costs the relay a timer and two system calls.  A shorter one, or what rounding left of an earlier one, stays a
# debt of the client, and its next pause includes it.
_SHORTEST_PAUSE_SECONDS: Final = 0.001


PAUSED_BY: Final = ("client", "tenant", "node")
"""Whose limit a client may reach."""
OTHER_TENANTS: Final = "(others)"
"""In metrics, all tenants that the limits do not name: whoever admits may name any number of them."""


class Sender:
    """A client with limits: its own, and the tenant whose limits, or the relay's, it shares."""

    __slots__ = ("client", "meter", "tenant")

    def __init__(self, client: Client, meter: Meter | None, tenant: "Tenant[Sender] | None") -> None:
        self.client = client
        self.meter = meter
        self.tenant = tenant


class Limiter:
    """One per relay."""

    def __init__(self, host: Host, advisor: Advisor, counters: Counters) -> None:
        self._host = host
        self._advisor = advisor
        self._counters = counters
        self.rate = Rate()
        """What a client may send of which nothing else is said."""
        self.rate_by_key: Mapping[bytes, Rate] = {}
        self.limits = Limits()
        self.pauses = Counter[tuple[str, str]]()
        """How often clients were made to wait, by `label` of their tenant and PAUSED_BY."""
        self.floors: dict[bytes, Rate] = {}
        """What keys may send that have used up a quota, in place of all else."""
        self.shares = Shares[Sender](self.limits, host.now)
        # Who sent more than its own limit allows, and when the host reads each of them again.
        self.throttled = Deadlines[Sender]()
        self._alarm = Alarm(host, self._handle_timeout, self.throttled)
        self._shares_alarm = Alarm(host, self._read_on, self.shares)

    def configure(self, rate: Rate, by_key: Mapping[bytes, Rate], limits: Limits) -> list[Sender]:
        """Take other limits.  Returns who is paused: by the old ones, perhaps for hours.  Every session has to ask for
        its `sender` anew, and these have to be resumed then."""
        paused = [*self.throttled.handle_timeout(math.inf), *self.shares.release()]
        self.rate, self.rate_by_key, self.limits = rate, by_key, limits
        self.shares = Shares(limits, self._host.now)
        self._shares_alarm = Alarm(self._host, self._read_on, self.shares)
        return paused

    def resume(self, senders: Iterable[Sender]) -> None:
        """Read on, beginning with what was kept, for which the session may be paused again at once."""
        for sender in senders:
            if sender.client.wire is not None:  # also of one that is seen off: relay.py
                self._host.resume(sender.client.wire)

    def label(self, tenant: str) -> str:
        """What metrics call a tenant: there are as many as the limits name, and two."""
        return tenant if tenant in self.limits.tenants or tenant == DEFAULT_TENANT else OTHER_TENANTS

    def sender(self, client: Client) -> Sender | None:
        """What a client may send; None: what it likes.  `forget` it when the client leaves, or gets another one."""
        if client.is_mesh_peer or client.is_own:
            return None
        rate = self.floors.get(client.key)
        if rate is None:
            rate = self.rate_by_key.get(client.key)
        if rate is None:
            rate = self.limits.of_client(client.key, client.tenant).rate
        if rate is None:
            rate = self.rate
        tenant = self.shares.tenant(client.tenant, self._host.now)
        if tenant is not None:
            tenant.client_count += 1
        meter = Meter(rate, self._host.now) if rate else None
        return Sender(client, meter, tenant) if meter is not None or tenant is not None else None

    def charge(self, sender: Sender, count: int, packets: int) -> None:
        """A client sent so many bytes and packets."""
        now, meter, tenant = self._host.now, sender.meter, sender.tenant
        wait = shared_wait = 0.0
        if meter is not None:
            wait = meter.spend(now, count, packets)
        if tenant is not None:
            shared_wait, reached = self.shares.charge(sender, tenant, count, packets, now)
        if meter is not None and wait > _SHORTEST_PAUSE_SECONDS:
            text = f"this relay lets this machine send {meter.rate}; it sends more, which waits"
            self._pause(sender, "client", wait, text)
            self.throttled.set(sender, now + wait)
            self._alarm.by(now + wait)
        elif tenant is not None and shared_wait > _SHORTEST_PAUSE_SECONDS:
            by_tenant = reached is tenant.limits.rate
            whose = f"the machines of {tenant.name} together" if by_tenant else "all machines together"
            text = f"this relay lets {whose} send {reached}; they send more, and take turns"
            self._pause(sender, "tenant" if by_tenant else "node", shared_wait, text)
            self._wait(sender, tenant, count, packets)

    def forget(self, sender: Sender) -> None:
        """A client left."""
        self.throttled.clear(sender)
        if sender.tenant is not None:
            sender.tenant.client_count -= 1
            self.shares.forget(sender, sender.tenant)

    def _pause(self, sender: Sender, limit: str, seconds: float, text: str) -> None:
        self._counters.rate_limited += 1
        self.pauses[self.label(sender.client.tenant), limit] += 1
        self._advisor.note_throttled(sender.client, seconds, text)
        self._host.pause(sender.client.wire)

    def _wait(self, sender: Sender, tenant: Tenant[Sender], count: int, packets: int) -> None:
        self.shares.wait(sender, tenant, count, packets, self._host.now)
        self._shares_alarm.look()

    def _handle_timeout(self, now: float) -> None:
        for sender in self.throttled.handle_timeout(now):
            if sender.tenant is None or self.shares.is_open(sender.tenant, now):
                self.resume((sender,))
            else:
                self._wait(sender, sender.tenant, 0, 0)

    def _read_on(self, now: float) -> None:
        self.resume(self.shares.handle_timeout(now))
