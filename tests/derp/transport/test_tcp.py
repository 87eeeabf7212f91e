"""The race of addresses, in virtual time on fake streams, and real dials on loopback."""

import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from derp.errors import ConnectError, TransportTimeout
from derp.transport.tcp import TcpTarget, dial_tcp, has_route, race


class FakeStream(trio.abc.AsyncResource):
    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


class Course:
    """Runners with set times; keeps when each one started."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}
        self.opened: list[FakeStream] = []

    def runner(self, name: str, seconds: float, *, fails: bool = False) -> Callable[[], Awaitable[FakeStream]]:
        async def run() -> FakeStream:
            self.started[name] = trio.current_time()
            await trio.sleep(seconds)
            if fails:
                raise ConnectError(f"{name} refused")
            stream = FakeStream(name)
            self.opened.append(stream)
            return stream

        return run


@pytest.fixture
def course() -> Course:
    return Course()


async def test_ipv4_waits_and_loses_to_a_quick_ipv6(course: Course, autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    won = await race([course.runner("v6", 0.15), course.runner("v4", 0.01)], stagger_seconds=0.2)
    assert won.name == "v6"
    assert trio.current_time() - start == pytest.approx(0.15)
    assert list(course.started) == ["v6"]


async def test_ipv4_starts_late_and_beats_a_dead_ipv6(course: Course, autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    won = await race([course.runner("v6", 999), course.runner("v4", 0.05)], stagger_seconds=0.2)
    assert won.name == "v4"
    assert trio.current_time() - start == pytest.approx(0.25)


async def test_a_refusal_starts_the_next_one_at_once(course: Course, autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    await race([course.runner("v6", 0.01, fails=True), course.runner("v4", 0.05)], stagger_seconds=0.2)
    assert course.started["v4"] - start == pytest.approx(0.01)


async def test_without_delay_both_start_together(course: Course, autojump_clock: trio.testing.MockClock) -> None:
    won = await race([course.runner("v6", 0.2), course.runner("v4", 0.1)], stagger_seconds=0)
    assert won.name == "v4"
    assert course.started["v6"] == course.started["v4"]


async def test_all_refusals_are_reported_once_each(course: Course, autojump_clock: trio.testing.MockClock) -> None:
    runners = [course.runner("a", 0.3, fails=True), course.runner("b", 0.1, fails=True)]
    with pytest.raises(ConnectError, match=r"^a refused; b refused$"):
        await race([*runners, runners[0]], stagger_seconds=0.01)


async def test_of_two_winners_in_one_tick_one_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    gun = trio.Event()
    opened: list[FakeStream] = []

    async def run() -> FakeStream:
        await gun.wait()
        opened.append(FakeStream("twin"))
        return opened[-1]

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def fire() -> None:
            await trio.testing.wait_all_tasks_blocked()
            gun.set()

        won = await race([run, run], stagger_seconds=0)
    assert [stream.closed for stream in opened if stream is not won] == [True]
    assert not won.closed


async def test_a_winner_is_closed_when_the_whole_race_is_cancelled() -> None:
    stream = FakeStream("a")
    scope = trio.CancelScope()

    async def wins_as_the_world_ends() -> FakeStream:
        scope.cancel()
        return stream

    with scope:
        await race([wins_as_the_world_ends], stagger_seconds=0.2)
    assert scope.cancelled_caught
    assert stream.closed


@pytest.mark.parametrize(
    ("target", "families"),
    [
        (TcpTarget("a.example", 1), [(socket.AF_INET6, "a.example"), (socket.AF_INET, "a.example")]),
        (TcpTarget("a.example", 1, ipv4="10.0.0.1"), [(socket.AF_INET6, "a.example"), (socket.AF_INET, "10.0.0.1")]),
        (TcpTarget("a.example", 1, ipv6="none"), [(socket.AF_INET, "a.example")]),
        (TcpTarget("a.example", 1, ipv4="none", ipv6="fd00::1"), [(socket.AF_INET6, "fd00::1")]),
        (TcpTarget("a.example", 1, ipv4="fd00::1"), [(socket.AF_INET6, "a.example")]),
        (TcpTarget("10.0.0.1", 1), [(socket.AF_INET, "10.0.0.1")]),
        (TcpTarget("fd00::1", 1), [(socket.AF_INET6, "fd00::1")]),
    ],
)
def test_which_families_are_dialled(target: TcpTarget, families: list[tuple[int, str]]) -> None:
    assert target.families() == families


def test_no_family_left_says_what_to_change() -> None:
    with pytest.raises(ConnectError, match="switches IPv4 \\('none'\\) and IPv6 \\('none'\\) off"):
        TcpTarget("a.example", 1, ipv4="none", ipv6="none").families()


def test_a_target_without_a_name_is_not_this_machine() -> None:
    """The system would answer a question for no name with loopback."""
    target = TcpTarget("", 443, ipv4="192.0.2.1")
    assert target.families() == [(socket.AF_INET, "192.0.2.1")]
    assert target.label() == "192.0.2.1:443"
    with pytest.raises(ConnectError, match="no name and no address"):
        TcpTarget("", 443).families()


@asynccontextmanager
async def listening(host: str) -> AsyncIterator[int]:
    listeners = await trio.open_tcp_listeners(0, host=host)
    try:
        yield listeners[0].socket.getsockname()[1]
    finally:
        for listener in listeners:
            await listener.aclose()


async def test_a_real_dial_sets_the_options_that_matter() -> None:
    async with listening("127.0.0.1") as port:
        stream = await dial_tcp(TcpTarget("127.0.0.1", port), timeout_seconds=5)
        async with stream:
            assert stream.socket.getpeername() == ("127.0.0.1", port)
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


async def test_the_other_family_is_used_when_one_refuses() -> None:
    async with listening("127.0.0.1") as port:
        target = TcpTarget("relay.invalid", port, ipv4="127.0.0.1", ipv6="::1")
        stream = await dial_tcp(target, timeout_seconds=5, prefer_ipv6=True)
        async with stream:
            assert stream.socket.getpeername()[0] == "127.0.0.1"


async def test_refusal_names_each_address() -> None:
    async with listening("127.0.0.1") as port:
        pass
    with pytest.raises(ConnectError, match=f"connect to 127.0.0.1:{port}: 127.0.0.1: nothing listens"):
        await dial_tcp(TcpTarget("127.0.0.1", port), timeout_seconds=5)


async def test_a_name_that_cannot_be_one() -> None:
    with pytest.raises(ConnectError, match=r"not a host name|does not resolve"):
        await dial_tcp(TcpTarget("a..b", 1), timeout_seconds=5)


async def test_a_family_without_an_address_is_no_news_beside_what_the_other_met() -> None:
    class OnlyIPv4(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: object, port: object, family: int = 0, *args: object, **how: object) -> Any:
            if family == socket.AF_INET6 or host == b"nowhere.example":
                raise socket.gaierror(socket.EAI_NONAME, "not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        async def getnameinfo(self, *args: object, **kwargs: object) -> tuple[str, str]:
            raise AssertionError

    async with listening("127.0.0.1") as port:
        pass
    trio.socket.set_custom_hostname_resolver(OnlyIPv4())
    with pytest.raises(ConnectError) as caught:
        await dial_tcp(TcpTarget("relay.example", port), timeout_seconds=5)
    assert str(caught.value).startswith(f"connect to relay.example:{port}: 127.0.0.1: nothing listens on that port")
    with pytest.raises(ConnectError, match=r"IPv6: the name does not resolve .*; IPv4: the name does not resolve"):
        await dial_tcp(TcpTarget("nowhere.example", port), timeout_seconds=5)


async def test_a_silent_network_runs_into_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    class SilentResolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *args: object, **kwargs: object) -> list[object]:
            await trio.sleep_forever()
            raise AssertionError

        async def getnameinfo(self, *args: object, **kwargs: object) -> tuple[str, str]:
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(SilentResolver())
    start = trio.current_time()
    with pytest.raises(TransportTimeout, match=r"relay.example:443 within 1.5 s"):
        await dial_tcp(TcpTarget("relay.example", 443), timeout_seconds=1.5)
    assert trio.current_time() - start == pytest.approx(1.5)


def test_a_route_is_looked_for_where_an_address_is_stated() -> None:
    assert has_route(TcpTarget("127.0.0.1", 1))  # whether anybody listens does not matter
    assert has_route(TcpTarget("relay.invalid", 443))  # not looked up
    assert has_route(TcpTarget("relay.invalid", 443, ipv4="127.0.0.1", ipv6="none"))
    with pytest.raises(ConnectError, match="off"):
        has_route(TcpTarget("relay.invalid", 443, ipv4="none", ipv6="none"))


def test_without_addresses_there_is_no_route() -> None:
    alone = ["unshare", "--user", "--map-root-user", "--net"]  # a network where not even loopback is up
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us make a network namespace")
    code = (
        "from derp.transport.tcp import TcpTarget, has_route\n"
        "stated = [TcpTarget('relay.invalid', 443, '192.0.2.1', ipv6) for ipv6 in ('none', '2001:db8::1', '')]\n"
        "print([has_route(one) for one in stated])"
    )
    done = subprocess.run([*alone, sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[False, False, True]\n"  # the last one also by name
