"""Addresses from the settings and from names."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest
import trio

from tailnet.bus import static
from tailnet.bus.contract import Address, Record
from tailnet.bus.static import StaticBus
from tailnet.replica.messages import ReplicaID

OWN = Record(ReplicaID(b"A" * 8), "a", None, "0", 0.0)


class Seen:
    """A Watcher that notes what it is told."""

    def __init__(self) -> None:
        self.addresses: list[list[Address]] = []
        self.told = trio.Event()

    def see_addresses(self, addresses: Collection[Address]) -> None:
        self.addresses.append(list(addresses))
        self.told.set()

    def see_records(self, records: Mapping[ReplicaID, Record]) -> None:
        raise AssertionError("there are none")

    def hear_frame(self, sender: ReplicaID, frame: bytes) -> None:
        raise AssertionError("nothing is carried")

    def see_carrier(self, is_well: bool) -> None:
        raise AssertionError("nothing is carried")


class Names(trio.abc.HostnameResolver):
    """A name server of the test's own."""

    def __init__(self) -> None:
        self.found: dict[Any, list[str]] = {}
        self.asked = 0

    async def getaddrinfo(
        self, host: Any, port: Any, family: Any = 0, type: Any = 0, proto: Any = 0, flags: Any = 0
    ) -> Any:
        self.asked += 1
        found = self.found.get(host.decode() if isinstance(host, bytes) else host)
        if found is None:
            raise OSError("no such name")
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_addresses_are_told_as_they_are(nursery: trio.Nursery) -> None:
    seen = Seen()
    places = [("10.0.0.5", 3001), ("10.0.0.6", 3001)]
    nursery.start_soon(StaticBus(places).run, OWN, seen)
    await seen.told.wait()
    assert seen.addresses == [places]
    assert not await StaticBus(places).send(OWN.replica, [b"frame"])


async def test_all_addresses_of_a_name_and_what_becomes_of_them(
    nursery: trio.Nursery, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, seen = Names(), Seen()
    trio.socket.set_custom_hostname_resolver(names)
    names.found["replicas.example"] = ["10.0.0.5", "10.0.0.6"]
    bus = StaticBus([("replicas.example", 3001)], by_name=True)
    nursery.start_soon(bus.run, OWN, seen)
    await seen.told.wait()
    assert seen.addresses == [[("10.0.0.5", 3001), ("10.0.0.6", 3001)]]
    names.found.clear()
    await trio.sleep(1.5 * static.LOOK_UP_SECONDS)
    assert "no such name" in bus.trouble
    assert len(seen.addresses) == 1, "a name server that is away says nothing about replicas"
    names.found["replicas.example"] = ["10.0.0.7"]
    await trio.sleep(static.LOOK_UP_SECONDS)
    assert not bus.trouble
    assert seen.addresses[-1] == [("10.0.0.7", 3001)]
