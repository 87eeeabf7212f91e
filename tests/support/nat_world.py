"""A small internet of network namespaces: a relay with STUN in its middle, and hosts behind routers of several kinds.

    with open_world(Kind.EASY, Kind.HARD) as world:
        world.command("a", [...])     what runs on the first host
Routers are the kernel's, with Debian's nftables.  Needs root.  Names carry the pid, so that several worlds stand side
by side; whatever is left of one is taken away at its end.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum

RELAY_4, RELAY_6 = "203.0.113.1", "2001:db8::1"
RELAY_PORT, STUN_PORT = 443, 3478
# The same STUN as another destination, so that nodes see that a NAT has another port for each.
OTHER_STUN_PORT = 3479


class Kind(Enum):
    """What is between a host and the others."""

    OPEN = "open"
    """A router without a firewall."""
    EASY = "easy"
    """A NAT that keeps a socket's port whatever it talks to, and lets nobody in who was not asked."""
    HARD = "hard"
    """A NAT with another port for each destination."""
    NO_UDP = "no UDP"
    IPV6 = "IPv6"
    """No IPv4, and a firewall that lets nobody in who was not asked."""


_NAT = """
table ip nat {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname "out" masquerade {ports}
    }}
}}
"""
_OTHER_STUN = f"""
table ip nat {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        udp dport {OTHER_STUN_PORT} redirect to :{STUN_PORT}
    }}
}}
"""
_STATIC = """
table ip static {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        iifname "out" udp dport {port} dnat to {host}:{port}
    }}
}}
insert rule inet firewall forward iifname "out" udp dport {port} accept
"""
# A packet that nobody asked for must leave no trace, which would take the port from whom it is for.
_FIREWALL = """
table inet firewall {{
    chain input {{
        type filter hook input priority filter
        iifname "out" meta l4proto udp drop
    }}
    chain forward {{
        type filter hook forward priority filter
        {udp}
        ct state established,related accept
        iifname "out" drop
    }}
}}
"""


def missing() -> str:
    """Why this machine cannot do it; "" where it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    for program, package in (("ip", "iproute2"), ("nft", "nftables"), ("unshare", "util-linux")):
        if not shutil.which(program):
            return f"needs Debian's {package}"
    table = ["unshare", "-n", "nft", "add table ip nat; add chain ip nat x { type nat hook postrouting priority 0; }"]
    made = subprocess.run(table, capture_output=True, check=False)
    return "" if made.returncode == 0 else "network namespaces with NAT are not allowed here"


def rules(kind: Kind) -> str:
    """What nft on the router is told."""
    if kind is Kind.OPEN:
        return ""
    firewall = _FIREWALL.format(udp="meta l4proto udp drop" if kind is Kind.NO_UDP else "")
    if kind is Kind.IPV6:
        return firewall
    return _NAT.format(ports="random,fully-random" if kind is Kind.HARD else "") + firewall


class World:
    """Made by `open_world`.  Hosts are called a, b ...; their networks are 10.0.N.0/24 or 2001:db8:N::/64, N from 2."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self.kinds = dict(zip("abcdef", kinds, strict=False))
        self._prefix = f"tn{os.getpid()}"
        self.names: list[str] = []

    def name(self, place: str) -> str:
        return f"{self._prefix}-{place}"

    def command(self, place: str, words: Sequence[str]) -> list[str]:
        """To run a program there: `a`, `a-router`, or `net`, where the relay is."""
        return ["ip", "netns", "exec", self.name(place), *words]

    def ip(self, place: str, *lines: str) -> None:
        subprocess.run(["ip", "-batch", "-", "-netns", self.name(place)], input="\n".join(lines), text=True, check=True)

    def relay_for(self, place: str) -> str:
        return RELAY_6 if self.kinds[place] is Kind.IPV6 else RELAY_4

    def number(self, place: str) -> int:
        return 2 + list(self.kinds).index(place)

    def build(self) -> None:
        self._add("net", "link add bridge type bridge", "link set bridge up",
                  f"addr add {RELAY_4}/24 dev bridge", f"addr add {RELAY_6}/64 dev bridge nodad")  # fmt: skip
        self._nft("net", _OTHER_STUN)
        for place, kind in self.kinds.items():
            self._add_host(place, kind)

    def _add(self, place: str, *lines: str) -> None:
        subprocess.run(["ip", "netns", "add", self.name(place)], check=True)
        self.names.append(self.name(place))
        settings = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
        subprocess.run(self.command(place, ["sysctl", "-qw", *settings]), check=True)
        self.ip(place, "link set lo up", *lines)

    def _add_host(self, place: str, kind: Kind) -> None:
        number, router = self.number(place), f"{place}-router"
        host, inside = f"10.0.{number}.2", f"10.0.{number}.1"
        self._add(router)
        self._add(place)
        self.ip("net", f"link add to-{place} type veth peer name out netns {self.name(router)}",
                f"link set to-{place} master bridge up")  # fmt: skip
        self.ip(
            router,
            f"link add in type veth peer name eth0 netns {self.name(place)}",
            "link set out up",
            "link set in up",
        )
        self.ip(place, "link set eth0 up")
        if kind is Kind.IPV6:
            self.ip(router, f"addr add 2001:db8::{number}/64 dev out nodad",
                    f"addr add 2001:db8:{number}::1/64 dev in nodad", f"route add default via {RELAY_6}")  # fmt: skip
            self.ip(place, f"addr add 2001:db8:{number}::2/64 dev eth0 nodad",
                    f"route add default via 2001:db8:{number}::1")  # fmt: skip
            self.ip("net", f"route add 2001:db8:{number}::/64 via 2001:db8::{number}")
        else:
            self.ip(router, f"addr add 203.0.113.{number}/24 dev out", f"addr add {inside}/24 dev in",
                    f"route add default via {RELAY_4}")  # fmt: skip
            self.ip(place, f"addr add {host}/24 dev eth0", f"route add default via {inside}")
            if kind is Kind.OPEN:
                self.ip("net", f"route add 10.0.{number}.0/24 via 203.0.113.{number}")
        self.filter(place, kind)

    def filter(self, place: str, kind: Kind) -> None:
        """Have the host's router be of this kind from now on."""
        self._nft(f"{place}-router", "flush ruleset\n" + rules(kind))

    def map_port(self, place: str, port: int) -> str:
        """Have a NAT let a UDP port in to its host, as people do by hand: the address that others reach."""
        number = self.number(place)
        self._nft(f"{place}-router", _STATIC.format(port=port, host=f"10.0.{number}.2"))
        return f"203.0.113.{number}:{port}"

    def _nft(self, place: str, text: str) -> None:
        subprocess.run(self.command(place, ["nft", "-f", "-"]), input=text, text=True, check=True)

    def set_link(self, place: str, *, is_up: bool) -> None:
        """The cable between a router and the internet."""
        self.ip("net", f"link set to-{place} {'up' if is_up else 'down'}")

    def outside(self, place: str) -> str:
        """The router's address, once it was moved."""
        return f"203.0.113.{100 + self.number(place)}"

    def move(self, place: str) -> None:
        """A host behind a NAT has another address, in another network of its router, which has another one too."""
        number = self.number(place)
        self.ip(f"{place}-router", "addr flush dev out", "addr flush dev in",
                f"addr add {self.outside(place)}/24 dev out", f"addr add 10.0.{100 + number}.1/24 dev in",
                f"route add default via {RELAY_4}")  # fmt: skip
        self.ip(place, "addr flush dev eth0", f"addr add 10.0.{100 + number}.2/24 dev eth0",
                f"route add default via 10.0.{100 + number}.1")  # fmt: skip

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False)


@contextmanager
def open_world(*kinds: Kind) -> Iterator[World]:
    world = World(kinds)
    try:
        world.build()
        yield world
    finally:
        world.close()
