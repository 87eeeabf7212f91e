"""server/address.py: addresses of callers against lists of networks."""

from ipaddress import ip_network

import pytest

from derp.server.address import is_in

NETWORKS = [ip_network("127.0.0.0/8"), ip_network("10.1.0.0/16"), ip_network("fd00::/8"), ip_network("::1/128")]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("::1", True),
        ("::2", False),
        ("fd12::1", True),
        ("fe80::1%eth0", False),
        ("fd12::1%eth0", True),
        # a dual-stack socket shows IPv4 callers so
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.2.2.3", False),
        ("", False),
        ("localhost", False),
        ("10.1.2", False),
        ("10.1.2.3, 127.0.0.1", False),
    ],
)
def test_addresses_and_networks(address: str, expected: bool) -> None:
    assert is_in(address, NETWORKS) is expected


def test_no_network_holds_anybody() -> None:
    assert not is_in("127.0.0.1", [])
