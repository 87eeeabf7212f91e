"""A bus in the test's own process, whose faults a test decides about."""

from collections.abc import Callable, Collection, Mapping, Sequence

import trio

from tailnet.bus.contract import Address, Record, Watcher
from tailnet.replica.messages import ReplicaID
from tests.support.tailnet_driver import wait_for


class Exchange:
    """What all replicas of a test share."""

    def __init__(self) -> None:
        self.records: dict[ReplicaID, Record] = {}
        self.watchers: dict[ReplicaID, Watcher] = {}
        self.is_paused = False
        self.lose = 0  # so many batches are lost from now on
        self.double = 0  # or arrive twice
        self.cut: set[tuple[ReplicaID, ReplicaID]] = set()  # from, to: nothing passes
        self.held: list[tuple[ReplicaID, ReplicaID, list[bytes]]] = []

    def tell(self) -> None:
        for watcher in list(self.watchers.values()):
            watcher.see_records(dict(self.records))

    def carry(self, sender: ReplicaID, receiver: ReplicaID, frames: Sequence[bytes]) -> None:
        if self.is_paused:
            self.held.append((sender, receiver, list(frames)))
        elif (sender, receiver) in self.cut:
            pass
        elif self.lose:
            self.lose -= 1
        else:
            times = 2 if self.double else 1
            self.double = max(0, self.double - 1)
            for _ in range(times):
                for frame in frames:
                    if receiver in self.watchers:
                        self.watchers[receiver].hear_frame(sender, frame)

    def pause(self) -> None:
        self.is_paused = True
        for watcher in list(self.watchers.values()):
            watcher.see_carrier(False)

    def go_on(self) -> None:
        self.is_paused = False
        held, self.held = self.held, []
        for each in held:
            self.carry(*each)
        for watcher in list(self.watchers.values()):
            watcher.see_carrier(True)

    def restart_empty(self) -> None:
        """As a Redis that lost everything: replicas write their records again one after the other."""
        records, self.records = self.records, {}
        for replica, record in records.items():
            self.records[replica] = record
            self.tell()


class MemoryBus:
    """A Bus."""

    kind = "memory"
    can_carry = True

    def __init__(self, exchange: Exchange) -> None:
        self.trouble = ""
        self._exchange = exchange
        self._own: ReplicaID

    async def run(self, own: Record, watcher: Watcher) -> None:
        exchange, self._own = self._exchange, own.replica
        exchange.records[own.replica], exchange.watchers[own.replica] = own, watcher
        exchange.tell()
        try:
            await trio.sleep_forever()
        finally:
            del exchange.watchers[own.replica]
            await self.leave()

    async def leave(self) -> None:
        self._exchange.records.pop(self._own, None)
        self._exchange.tell()

    async def send(self, receiver: ReplicaID, frames: Sequence[bytes]) -> bool:
        await trio.lowlevel.checkpoint()
        self._exchange.carry(self._own, receiver, frames)
        return True


class Seen:
    """A Watcher that notes what it is told."""

    def __init__(self) -> None:
        self.records: dict[ReplicaID, Record] = {}
        self.addresses: list[list[Address]] = []
        self.frames: list[tuple[ReplicaID, bytes]] = []
        self.carrier: bool | None = None

    def see_records(self, records: Mapping[ReplicaID, Record]) -> None:
        self.records = dict(records)

    def see_addresses(self, addresses: Collection[Address]) -> None:
        self.addresses.append(list(addresses))

    def hear_frame(self, sender: ReplicaID, frame: bytes) -> None:
        self.frames.append((sender, frame))

    def see_carrier(self, is_well: bool) -> None:
        self.carrier = is_well

    async def wait(self, is_so: Callable[[], object]) -> None:
        await wait_for(is_so)
