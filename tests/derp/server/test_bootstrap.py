"""Bootstrap DNS in virtual time, with a resolver that a test controls."""

import socket

import pytest
import trio

from derp.errors import ConnectError, DerpError
from derp.server.bootstrap import REFRESH_SECONDS, BootstrapDns, is_in_rollout

HERE = "127.0.0.1"


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


def found(dns: BootstrapDns) -> dict[str, list[str]]:
    """What everybody is told; the order of addresses is left to chance."""
    return {name: sorted(addresses) for name, addresses in (dns.answer("", HERE) or {}).items()}


async def test_names_are_looked_up_now_and_every_ten_minutes(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    resolver = installed(a_test=["192.0.2.1", "192.0.2.1", "192.0.2.2"])
    dns = BootstrapDns(["a.test"], [])
    assert dns.answer("", HERE) is None  # before anything is known
    nursery.start_soon(dns.refresh_forever)
    await trio.sleep(1)
    assert found(dns) == {"a.test": ["192.0.2.1", "192.0.2.2"]}
    resolver.names["a.test"] = ["192.0.2.3"]
    await trio.sleep(REFRESH_SECONDS - 2)
    assert found(dns) == {"a.test": ["192.0.2.1", "192.0.2.2"]}
    await trio.sleep(2)
    assert found(dns) == {"a.test": ["192.0.2.3"]}
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
    assert found(dns) == {"a.test": ["192.0.2.1"], "b.test": ["192.0.2.9"]}
    nursery.cancel_scope.cancel()


async def test_a_resolver_that_hangs_holds_nobody_up_for_long(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    installed(a_test=None, b_test=["192.0.2.2"])
    dns = BootstrapDns(["a.test", "b.test"], [])
    nursery.start_soon(dns.refresh_forever)
    await trio.sleep(11)
    assert found(dns) == {"b.test": ["192.0.2.2"]}
    nursery.cancel_scope.cancel()


async def test_who_is_told_what_and_how_it_is_counted(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    installed(a_test=["192.0.2.1"], secret_test=["192.0.2.2"], lost_test=OSError("no"), gone_test=OSError("no"))
    dns = BootstrapDns(["a.test", "gone.test"], [("secret.test", ""), ("lost.test", "")])
    nursery.start_soon(dns.refresh_forever)
    await trio.sleep(1)
    published = {"a.test": ["192.0.2.1"]}
    asked = {
        "": published,
        "a.test": published,
        "gone.test": published,
        "other.test": published,
        "secret.test": {"secret.test": ["192.0.2.2"]},
        "lost.test": published,
    }
    for query, answer in asked.items():
        assert dns.answer(query, HERE) == answer, query
    assert dns.totals() == {
        "requests": 6,
        "published_hits": 1,
        "published_misses": 1,
        "unpublished_hits": 1,
        "unpublished_misses": 2,
        "unpublished_percent_misses": 0,
    }
    assert dns.queried == set(asked) - {""}
    nursery.cancel_scope.cancel()


async def test_a_name_may_be_on_both_lists(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    installed(a_test=["192.0.2.1"], b_test=["192.0.2.2"])
    dns = BootstrapDns(["a.test", "b.test"], [("a.test", "")])
    nursery.start_soon(dns.refresh_forever)
    await trio.sleep(1)
    assert dns.answer("a.test", HERE) == {"a.test": ["192.0.2.1"]}
    assert dns.answer("", HERE) == {"a.test": ["192.0.2.1"], "b.test": ["192.0.2.2"]}
    nursery.cancel_scope.cancel()


def test_what_strangers_ask_for_is_remembered_within_bounds() -> None:
    dns = BootstrapDns([], [])
    for number in range(500):
        dns.answer(f"{number}.test", HERE)
    assert len(dns.queried) == 500
    dns.answer("1.test", HERE)
    assert len(dns.queried) == 500
    dns.answer("more.test", HERE)
    assert len(dns.queried) == 0
    dns.answer("x" * 60_000, HERE)
    assert [len(name) for name in dns.queried] == [253]


async def test_no_address_is_the_first_for_everybody(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    addresses = [f"192.0.2.{number}" for number in range(100)]
    installed(a_test=list(addresses))
    dns = BootstrapDns(["a.test"], [])
    nursery.start_soon(dns.refresh_forever)
    await trio.sleep(1)
    answer = dns.answer("", HERE)
    assert answer is not None
    assert answer["a.test"] != addresses
    assert found(dns) == {"a.test": sorted(addresses)}
    nursery.cancel_scope.cancel()


# --- rollouts


class Records:
    """What the TXT record says, or an error to raise."""

    def __init__(self, *records: str) -> None:
        self.records: list[str] | DerpError = list(records)
        self.asked: list[str] = []

    async def look_up(self, name: str) -> list[str]:
        self.asked.append(name)
        if isinstance(self.records, DerpError):
            raise self.records
        return self.records


async def rollout(dns: BootstrapDns) -> str:
    """Who is told: each of two clients that the genuine relay takes in from 26.2 % and from 94.1 % on."""
    await trio.sleep(REFRESH_SECONDS)
    return "".join(
        name for name, address in CLIENTS.items() if dns.answer("a.test", address) == {"a.test": ["192.0.2.1"]}
    )


CLIENTS = {"early": "192.0.2.2", " late": "192.0.2.1"}


async def test_a_rollout_reaches_the_clients_it_says(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    installed(a_test=["192.0.2.1"])
    txt = Records()
    dns = BootstrapDns([], [("a.test", "rollout.test")], txt.look_up)
    nursery.start_soon(dns.refresh_forever)
    steps: list[tuple[list[str] | DerpError, str]] = [
        ([], ""),
        (["0"], ""),
        (["26"], ""),
        (["27"], "early"),
        (ConnectError("no server"), "early"),  # nobody took it back
        (["94"], "early"),
        (["95"], "early late"),
        (["100"], "early late"),
        (["v=spf1 -all", "27"], "early"),
        (["101"], ""),
        (["100"], "early late"),
        (["-1"], ""),
        (["100"], "early late"),
        (["half"], ""),
        (["100"], "early late"),
        (["9" * 200], ""),
    ]
    txt.records = steps[0][0]
    await trio.sleep(1)
    for records, told in steps:
        txt.records = records
        assert await rollout(dns) == told, records
    assert set(txt.asked) == {"rollout.test"}
    assert dns.unpublished_hits == 2 * len(steps)
    assert dns.unpublished_percent_misses == sum(2 - len(told.split()) for _, told in steps)
    assert "rollout of a.test stays at 27 %: no server" in caplog.text
    assert "rollout.test has no TXT record from 0 to 100" in caplog.text
    nursery.cancel_scope.cancel()


async def test_before_its_record_is_read_a_rollout_has_not_begun(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    installed(a_test=["192.0.2.1"])
    txt = Records()
    txt.records = ConnectError("no server")
    dns = BootstrapDns([], [("a.test", "rollout.test")], txt.look_up)
    nursery.start_soon(dns.refresh_forever)
    await trio.sleep(1)
    assert dns.answer("a.test", HERE) is None
    assert dns.totals()["unpublished_percent_misses"] == 1
    nursery.cancel_scope.cancel()


# What Go's math/rand/v2 draws with the seeds that the genuine relay makes of these addresses.
DRAWN = {
    "192.0.2.1": 0.94124442561074861,
    "::ffff:192.0.2.1": 0.94124442561074861,
    "192.0.2.2": 0.26158643469572584,
    "198.51.100.77": 0.23123373544677184,
    "203.0.113.200": 0.97048988997504848,
    "2001:db8::1": 0.17365074425987426,
    "2001:db8:1234:5678:9abc:def0:1:2": 0.89815241354890363,
    "fe80::1%eth0": 0.33767084875785625,
}


@pytest.mark.parametrize("address", DRAWN)
def test_the_same_clients_are_taken_in_as_with_the_genuine_relay(address: str) -> None:
    first = int(DRAWN[address] * 100) + 1
    assert [is_in_rollout(address, percent) for percent in (0, first - 1, first, 100)] == [False, False, True, True]


def test_who_has_no_address_is_in_no_rollout_but_a_whole_one() -> None:
    assert [is_in_rollout("", percent) for percent in (0, 99, 100)] == [False, False, True]


async def test_without_names_there_is_nothing_to_do() -> None:
    dns = BootstrapDns([], [])
    await dns.refresh_forever()
    assert dns.answer("a.test", HERE) is None
