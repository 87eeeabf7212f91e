"""How much of something may pass per second: what operators say of it, and the token buckets that hold it.

Layer L1: `now` is an argument.  config/limits.py reads the values off a file; server/limiter.py holds clients to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from derp.protocol.frames import MAX_SEND_BYTES

DEFAULT_TENANT: Final = "default"
"""Whose clients are of no other tenant.  Its limits are also those of each tenant that has none of its own."""
# That the limits name, and as many others; each has buckets and turns of its own, 0.7 KB and 0.1 for each client.
MAX_TENANTS: Final = 1000


@dataclass(frozen=True, slots=True)
class Rate:
    """What may be sent: bytes of frame payload, and packets; 0 is no limit.  Mesh clients are exempt.

    A burst of less than one packet would stop a client for good that sends a large one: it is raised, as by derper.
    """

    bytes_per_second: int = 0
    burst_bytes: int = 0
    packets_per_second: int = 0
    burst_packets: int = 0

    def __post_init__(self) -> None:
        if self.bytes_per_second:
            object.__setattr__(self, "burst_bytes", max(self.burst_bytes, MAX_SEND_BYTES))
        if self.packets_per_second:
            object.__setattr__(self, "burst_packets", max(self.burst_packets, 1))

    def __bool__(self) -> bool:
        """Whether there is a limit at all."""
        return bool(self.bytes_per_second or self.packets_per_second)

    def seconds_of(self, count: int, packets: int) -> float:
        """How long so much takes at this rate."""
        by_bytes = count / self.bytes_per_second if self.bytes_per_second else 0.0
        by_packets = packets / self.packets_per_second if self.packets_per_second else 0.0
        return max(by_bytes, by_packets)

    def __str__(self) -> str:
        bytes_part = f"{self.bytes_per_second:,} bytes" if self.bytes_per_second else ""
        packets_part = f"{self.packets_per_second:,} packets" if self.packets_per_second else ""
        return f"{' and '.join(filter(None, (bytes_part, packets_part))) or 'anything'} a second"


@dataclass(frozen=True, slots=True)
class Quota:
    """Bytes that may be relayed in a day and in a month of UTC, both ways; 0 is any number.

    When they are used up, whoever it is goes on at `floor`; with `refuses` it is sent away until the next day or month.
    """

    bytes_per_day: int = 0
    bytes_per_month: int = 0
    floor: Rate = Rate()
    refuses: bool = False

    def __bool__(self) -> bool:
        """Whether there is a quota at all."""
        return bool(self.bytes_per_day or self.bytes_per_month)


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Of one client.  Without a rate, --rate-config's counts."""

    rate: Rate | None = None
    quota: Quota = Quota()


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Of one tenant: all its clients together, and each of them (None: as any client)."""

    rate: Rate = Rate()
    quota: Quota = Quota()
    weight: float = 1.0
    client: ClientLimits | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """All of one relay.  Keys are raw public keys of clients; `tenant_by_key` has those that the operator names."""

    node: Rate = Rate()
    client: ClientLimits = ClientLimits()
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict)
    tenant_by_key: Mapping[bytes, str] = field(default_factory=dict)
    client_by_key: Mapping[bytes, ClientLimits] = field(default_factory=dict)

    @property
    def has_quotas(self) -> bool:
        """Whether anybody's use has to be remembered."""
        return any(self._quotas())

    @property
    def has_quotas_of_months(self) -> bool:
        """Whether it has to be remembered for a month."""
        return any(each.bytes_per_month for each in self._quotas())

    def _quotas(self) -> list[Quota]:
        clients = [self.client, *self.client_by_key.values()]
        clients += [each.client for each in self.tenants.values() if each.client is not None]
        return [each.quota for each in clients] + [each.quota for each in self.tenants.values()]

    def of_tenant(self, name: str) -> TenantLimits:
        """Those of a tenant, or of the default one."""
        return self.tenants.get(name) or self.tenants.get(DEFAULT_TENANT) or _NO_LIMITS

    def of_client(self, key: bytes, tenant: str) -> ClientLimits:
        """Those of one client: its own, else those of its tenant's clients, else those of any client."""
        return self.client_by_key.get(key) or self.of_tenant(tenant).client or self.client


_NO_LIMITS: Final = TenantLimits()
UNLIMITED: Final = Rate()
NO_LIMITS: Final = Limits()


class TokenBucket:
    """`per_second` tokens flow in, and the bucket keeps at most `burst` of them.  It starts full."""

    __slots__ = ("_at", "_burst", "_tokens", "per_second")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self.per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Take `tokens` if so many are there; if not, take nothing and return False."""
        self._refill(now)
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True

    def spend(self, now: float, tokens: float) -> float:
        """Take `tokens`, into debt if need be; return for how many seconds the caller should take nothing more."""
        self._refill(now)
        self._tokens -= tokens
        if self._tokens >= 0:
            return 0.0
        return -self._tokens / self.per_second

    def _refill(self, now: float) -> None:
        self._tokens = min(self._tokens + (now - self._at) * self.per_second, self._burst)
        self._at = now

    def balance(self, now: float) -> float:
        """What is there, as seconds of its rate; below zero, for how long it is in debt."""
        self._refill(now)
        return self._tokens / self.per_second

    def is_full(self, now: float) -> bool:
        """Whether nobody needed it for a while."""
        self._refill(now)
        return self._tokens >= self._burst


class Meter:
    """The buckets of one Rate, which has a limit."""

    __slots__ = ("_buckets", "_bytes", "_packets", "rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self._bytes = TokenBucket(rate.bytes_per_second, rate.burst_bytes, now) if rate.bytes_per_second else None
        self._packets = (
            TokenBucket(rate.packets_per_second, rate.burst_packets, now) if rate.packets_per_second else None
        )
        self._buckets = tuple(each for each in (self._bytes, self._packets) if each is not None)

    def spend(self, now: float, count: int, packets: int) -> float:
        """So many bytes and packets passed; return for how many seconds nothing more should."""
        wait = self._bytes.spend(now, count) if self._bytes is not None else 0.0
        return max(wait, self._packets.spend(now, packets)) if self._packets is not None else wait

    def balance(self, now: float) -> float:
        """What may pass now, as seconds of the rate; below zero, for how long nothing may."""
        return min(each.balance(now) for each in self._buckets)

    def is_full(self, now: float) -> bool:
        """Whether nobody needed it for a while."""
        return all(each.is_full(now) for each in self._buckets)
