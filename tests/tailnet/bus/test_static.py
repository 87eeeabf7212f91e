"""Addresses from the settings and from names."""

from typing import Any

import pytest
import trio

from tailnet.bus import static
from tailnet.bus.contract import Record
from tailnet.bus.static import StaticBus
from tailnet.replica.messages import ReplicaID
from tests.support.memory_bus import Seen
from tests.support.tailnet_driver import wait_for

OWN = Record(ReplicaID(b"A" * 8), "a", None, "0", 0.0)


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
    await wait_for(lambda: seen.addresses)
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
    await wait_for(lambda: seen.addresses)
    assert seen.addresses == [[("10.0.0.5", 3001), ("10.0.0.6", 3001)]]
    names.found.clear()
    await trio.sleep(1.5 * static.LOOK_UP_SECONDS)
    assert "no such name" in bus.trouble
    assert len(seen.addresses) == 1, "a name server that is away says nothing about replicas"
    names.found["replicas.example"] = ["10.0.0.7"]
    await trio.sleep(static.LOOK_UP_SECONDS)
    assert not bus.trouble
    assert seen.addresses[-1] == [("10.0.0.7", 3001)]
