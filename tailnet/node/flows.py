"""Joins UDP flows of one side with sockets on the other, as a NAT does.  Layer L3.

An agent's flows come from its peers and lead to sockets of its machine; those of `tailnet port-forward` come from
programs here and lead to the agent.  Whose flow a datagram is says its key, a tuple that begins with whom to charge.
The first datagram of a key opens its far end; whoever says nothing for a while loses it, and, when there are too many,
the one that has been silent for the longest.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

import trio

from derp.log import Rarely, and_more
from derp.relay.limits import TokenBucket
from derp.text import error_text
from tailnet.errors import DerpError, LocalProtocolError

log = logging.getLogger(__name__)

# As the genuine stack forwards: two minutes of silence end a flow, for DNS half a minute.
IDLE_SECONDS: Final = 120.0
DNS_IDLE_SECONDS: Final = 30.0
_DNS_PORT: Final = 53
# Each is a descriptor and two tasks: a quarter of the 1,024 descriptors that a process may have at first.
MAX_FLOWS: Final = 256
MAX_FLOWS_PER_OWNER: Final = 128
# Opening one costs some 200 us, so that an owner who uses every port once takes a tenth of a core.
NEW_FLOWS_PER_SECOND: Final = 500.0
# What waits while a far end opens, or does not take it.
MAX_WAITING: Final = 64
_TELL_SECONDS: Final = 60.0

Key = TypeVar("Key", bound=tuple[Hashable, ...])


class FarEnd(Protocol):
    """Where the datagrams of one flow go."""

    async def send(self, payload: bytes) -> None: ...

    async def receive(self) -> bytes: ...

    def close(self) -> None: ...


def idle_seconds_of(port: int) -> float:
    """How long a flow to this port may be silent."""
    return DNS_IDLE_SECONDS if port == _DNS_PORT else IDLE_SECONDS


@dataclass(eq=False, slots=True)
class _Owner:
    openings: TokenBucket
    flow_count: int = 0


@dataclass(eq=False, slots=True)
class _Flow:
    idle_seconds: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    waiting: deque[bytes] = field(default_factory=deque)
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class Flows(Generic[Key]):
    """Give it each datagram by `take`; its tasks live in the nursery, and end with it.

    `open_far` opens the far end of a flow; `back` gets what comes from there.  Both may raise OSError, DerpError,
    trio.TooSlowError and trio.ClosedResourceError, which end that flow; LocalProtocolError loses that datagram.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        open_far: Callable[[Key], Awaitable[FarEnd]],
        back: Callable[[Key, bytes], Awaitable[None]],
        *,
        max_flows: int = MAX_FLOWS,
        max_flows_per_owner: int = MAX_FLOWS_PER_OWNER,
    ) -> None:
        self.lost_datagrams = 0
        """Too long, too many, or of a flow that could not be opened."""
        self.opened_flows = 0
        self._nursery = nursery
        self._open_far = open_far
        self._back = back
        self._max_flows = max_flows
        self._max_flows_per_owner = max_flows_per_owner
        self._flows: dict[Key, _Flow] = {}  # whoever said something last is last
        self._owners: dict[Hashable, _Owner] = {}
        self._rarely = Rarely(_TELL_SECONDS)

    def take(self, key: Key, payload: bytes, idle_seconds: float = IDLE_SECONDS) -> None:
        """A datagram of a flow, whose far end is opened if it is the first."""
        flow = self._flows.get(key) or self._begin(key, idle_seconds)
        if flow is None:
            self._lose("new", "too many new flows")
            return
        self._used(key, flow)
        if len(flow.waiting) >= MAX_WAITING:
            self._lose("waiting", "too many datagrams wait for the other end")
            return
        flow.waiting.append(payload)
        flow.changed.unpark_all()

    def _begin(self, key: Key, idle_seconds: float) -> _Flow | None:
        now = trio.current_time()
        owner = self._owners.get(key[0])
        if owner is None:
            bucket = TokenBucket(NEW_FLOWS_PER_SECOND, NEW_FLOWS_PER_SECOND, now)
            owner = self._owners[key[0]] = _Owner(bucket)
        if not owner.openings.take(now):
            return None
        if owner.flow_count >= self._max_flows_per_owner:
            self._displace(next(each for each in self._flows if each[0] == key[0]))
        elif len(self._flows) >= self._max_flows:
            self._displace(next(iter(self._flows)))
        # One that was displaced was its owner's last, perhaps this one's.
        self._owners.setdefault(key[0], owner).flow_count += 1
        flow = self._flows[key] = _Flow(idle_seconds)
        self.opened_flows += 1
        self._nursery.start_soon(self._run, key, flow)
        return flow

    def _displace(self, key: Key) -> None:
        self._tell("room", "there are too many flows: the one that was silent for the longest ended")
        flow = self._flows[key]
        self._forget(key, flow)
        flow.scope.cancel()

    def _forget(self, key: Key, flow: _Flow) -> None:
        if self._flows.get(key) is not flow:
            return
        del self._flows[key]
        owner = self._owners[key[0]]
        owner.flow_count -= 1
        if not owner.flow_count:
            del self._owners[key[0]]

    def _used(self, key: Key, flow: _Flow) -> None:
        if self._flows.pop(key, None) is not None:
            self._flows[key] = flow
            flow.scope.deadline = trio.current_time() + flow.idle_seconds

    async def _run(self, key: Key, flow: _Flow) -> None:
        try:
            with flow.scope, closing(await self._open_far(key)) as far:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry_out, flow, far)
                    while True:
                        payload = await far.receive()
                        self._used(key, flow)
                        try:
                            await self._back(key, payload)
                        except LocalProtocolError as error:
                            self._lose("long", error_text(error))
        except* (OSError, DerpError, trio.TooSlowError, trio.ClosedResourceError) as group:
            self._tell("end", f"a flow ended: {error_text(group)}")
        finally:
            self.lost_datagrams += len(flow.waiting)
            self._forget(key, flow)

    async def _carry_out(self, flow: _Flow, far: FarEnd) -> None:
        while True:
            while flow.waiting:
                try:
                    await far.send(flow.waiting.popleft())
                except LocalProtocolError as error:
                    self._lose("long", error_text(error))
            await flow.changed.park()

    def _lose(self, kind: str, reason: str) -> None:
        self.lost_datagrams += 1
        self._tell(kind, reason)

    def _tell(self, kind: str, reason: str) -> None:
        if (held := self._rarely.held_back(kind, trio.current_time())) is not None:
            log.warning("UDP: %s%s", reason, and_more(held))
