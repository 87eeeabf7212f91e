"""Bootstrap DNS in virtual time, with a resolver that a test controls."""

import socket

import pytest
import trio

from derp.server.bootstrap import REFRESH_SECONDS, BootstrapDns


class Resolver(trio.abc.HostnameResolver):
    """name -> addresses, an error to raise, or None to hang."""

    def __init__(self, names: dict[str, "list[str] | Exception | None"]) -> None:
        self.names = names
        self.asked: list[str] = []

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # type: ignore[no-untyped-def]
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        found = self.names[name]
        if found is None:
            await trio.sleep_forever()
        if isinstance(found, Exception):
            raise found
        return [(socket.AF_INET, type, 6, "", (address, port)) for address in found]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


def installed(**names: "list[str] | Exception | None") -> Resolver:
    resolver = Resolver({name.replace("_", "."): value for name, value in names.items()})
    trio.socket.set_custom_hostname_resolver(resolver)
    return resolver


async def test_names_are_looked_up_now_and_every_ten_minutes(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    resolver = installed(a_test=["192.0.2.1", "192.0.2.1", "192.0.2.2"])
    dns = BootstrapDns(["a.test"], [])
    assert dns.answer("") is None  # before anything is known
    nursery.start_soon(dns.refresh_forever)
    await trio.sleep(1)
    assert dns.answer("") == {"a.test": ["192.0.2.1", "192.0.2.2"]}
    resolver.names["a.test"] = ["192.0.2.3"]
    await trio.sleep(REFRESH_SECONDS - 2)
    assert dns.answer("") == {"a.test": ["192.0.2.1", "192.0.2.2"]}
    await trio.sleep(2)
    assert dns.answer("") == {"a.test": ["192.0.2.3"]}
    assert resolver.asked == ["a.test", "a.test"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("trouble", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
async def test_a_name_in_trouble_keeps_its_last_answer_and_stops_no_other(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, trouble: Exception
) -> None:
    resolver = installed(a_test=["192.0.2.1"], b_test=["192.0.2.2"])
    dns = BootstrapDns(["a.test", "b.test"], [])
    nursery.start_soon(dns.refresh_forever)
    await trio.sleep(1)
    resolver.names |= {"a.test": trouble, "b.test": ["192.0.2.9"]}
    await trio.sleep(REFRESH_SECONDS)
    assert dns.answer("") == {"a.test": ["192.0.2.1"], "b.test": ["192.0.2.9"]}
    nursery.cancel_scope.cancel()


async def test_a_resolver_that_hangs_holds_nobody_up_for_long(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    installed(a_test=None, b_test=["192.0.2.2"])
    dns = BootstrapDns(["a.test", "b.test"], [])
    nursery.start_soon(dns.refresh_forever)
    await trio.sleep(11)
    assert dns.answer("") == {"b.test": ["192.0.2.2"]}
    nursery.cancel_scope.cancel()


async def test_who_is_told_what_and_how_it_is_counted(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    installed(a_test=["192.0.2.1"], secret_test=["192.0.2.2"], lost_test=OSError("no"))
    dns = BootstrapDns(["a.test"], [("secret.test", ""), ("lost.test", "")])
    nursery.start_soon(dns.refresh_forever)
    await trio.sleep(1)
    published = {"a.test": ["192.0.2.1"]}
    assert dns.answer("") == published
    assert dns.answer("a.test") == published
    assert dns.answer("other.test") == published
    assert dns.answer("secret.test") == {"secret.test": ["192.0.2.2"]}
    assert dns.answer("lost.test") == published
    assert dns.totals() == {
        "requests": 5,
        "published_hits": 1,
        "published_misses": 1,
        "unpublished_hits": 1,
        "unpublished_misses": 1,
    }
    nursery.cancel_scope.cancel()


async def test_without_names_there_is_nothing_to_do() -> None:
    dns = BootstrapDns([], [])
    await dns.refresh_forever()
    assert dns.answer("a.test") is None
