"""The addresses of this machine, by netlink and without it, and news of them."""

import shutil
import socket
import subprocess
import sys
from typing import Any

import pytest
import trio
import trio.testing

from tailnet.transport import interfaces
from tailnet.transport.interfaces import LOOK_SECONDS, AddressWatch, own_hosts


def test_both_ways_agree_on_what_others_can_reach() -> None:
    assert set(interfaces._usable(interfaces._ask_routes())) <= set(own_hosts())


def test_loopback_and_link_local_are_nobody_s() -> None:
    hosts = iter(["::1", "fe80::1%eth0", "127.0.0.1", "192.0.2.9", "2001:db8::1", "0.0.0.0", "10.1.2.3"])
    assert interfaces._usable(hosts) == ["10.1.2.3", "192.0.2.9", "2001:db8::1"]


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (bytes((2, 24, 0, 0, 1, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 9, 8, 0, 2, 0, 10, 0, 0, 7)), ["10.0.0.7"]),
        (bytes((2, 24, 0x40, 0, 1, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 9)), []),
        (bytes((7, 24, 0, 0, 1, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 9)), []),
        (bytes((2, 24, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 10, 0, 0, 9)), []),
        (bytes((2, 24, 0, 0, 1, 0, 0, 0)), []),
    ],
)
@pytest.mark.skipif(sys.byteorder == "big", reason="the bytes are of the other order")
def test_what_netlink_says_of_an_address(message: bytes, found: list[str]) -> None:
    assert list(interfaces._address_in(message)) == found


async def test_without_netlink_it_is_looked_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(interfaces, "_NETLINK", None)
    watch = AddressWatch()
    await watch.wait()
    assert trio.current_time() == LOOK_SECONDS
    watch.close()
    assert own_hosts() == interfaces._usable(interfaces._ask_routes())


class Unsubscribed(socket.socket):
    """As in a sandbox that lets nobody hear the kernel's news."""

    def bind(self, address: Any) -> None:
        raise PermissionError


async def test_who_may_not_subscribe_looks_again_too(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Unsubscribed)
        watch = AddressWatch()
    with trio.fail_after(2 * LOOK_SECONDS):
        await watch.wait()
    assert trio.current_time() == LOOK_SECONDS
    watch.close()


SCRIPT = """
import subprocess, trio
from tailnet.transport.interfaces import AddressWatch, own_hosts
async def main():
    watch = AddressWatch()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in ("192.0.2.77/24", "2001:db8::77/64"):
        subprocess.run(["ip", "address", "add", address, "dev", "lo"], check=True)
        with trio.fail_after(20):
            while address.partition("/")[0] not in own_hosts():
                await watch.wait()
    print(own_hosts())
trio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("ip"), reason="of Linux")
def test_a_new_address_is_news() -> None:
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-c", SCRIPT]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unshare failed" in ran.stderr or "Operation not permitted" in ran.stderr:
        pytest.skip("no network namespace can be made here")
    assert ran.stdout.strip() == "['192.0.2.77', '2001:db8::77']", ran.stderr
