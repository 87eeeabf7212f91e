"""server/address.py: who calls, against lists of networks and behind proxies."""

from ipaddress import ip_network

import pytest

from derp.server.address import Caller, find_caller, is_in, why_closed

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


# --- proxies

PROXY, STRANGER = ("127.0.0.1", 7), ("198.51.100.1", 8)
TRUSTED = [ip_network("127.0.0.0/8"), ip_network("10.1.0.0/16")]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("203.0.113.9", "203.0.113.9"),
        (" 203.0.113.9 ", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9", "203.0.113.9"),  # only the last was seen by somebody we trust
        ("203.0.113.9, 127.0.0.7", "203.0.113.9"),  # two proxies of ours
        ("203.0.113.9, 10.1.2.3:9, 127.0.0.7:80", "203.0.113.9"),
        ("2001:db8::9", "2001:db8::9"),
        ("203.0.113.7:51234", "203.0.113.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("[::ffff:203.0.113.9]:51234", "203.0.113.9"),
    ],
)
def test_a_trusted_proxy_says_who_calls(header: str, expected: str) -> None:
    assert find_caller(PROXY, {"x-forwarded-for": header}, TRUSTED) == Caller(expected, 0)
    assert find_caller(STRANGER, {"x-forwarded-for": header}, TRUSTED) == Caller(*STRANGER, is_hidden=True)
    assert find_caller(PROXY, {"x-forwarded-for": header}, []) == Caller(*PROXY, is_hidden=True)


@pytest.mark.parametrize(
    "header", ["", " ", "unknown", "203.0.113.9, unknown", "127.0.0.7", "203.0.113.9,", "_hidden:5", "1.2.3.4:5:6", "["]
)
def test_a_proxy_that_does_not_say_who_calls_hides_it(header: str) -> None:
    assert find_caller(PROXY, {"x-forwarded-for": header}, TRUSTED) == Caller(*PROXY, is_hidden=True)


@pytest.mark.parametrize("mark", ["x-forwarded-for", "forwarded", "via", "x-real-ip"])
@pytest.mark.parametrize("value", ["", "127.0.0.1", "1.1 proxy", "for=127.0.0.1"])
def test_every_mark_of_a_proxy_counts_whatever_its_value(mark: str, value: str) -> None:
    for peer in (PROXY, STRANGER):
        assert find_caller(peer, {mark: value}, TRUSTED).is_hidden
    assert not find_caller(PROXY, {"host": value}, TRUSTED).is_hidden


# --- operator's pages

HERE = Caller("127.0.0.1", 7)


@pytest.mark.parametrize(
    "host",
    [
        "",  # HTTP/1.0, which no browser speaks
        *("127.0.0.1", "127.0.0.1:3340", "[::1]", "[::1]:3340", "192.0.2.1:80"),
        *("localhost", "LOCALHOST:3340", "localhost.", "relay.localhost:3340"),
        *("relay.example", "Relay.Example.:443", "own.example"),
    ],
)
def test_from_this_machine_pages_are_asked_for_by_names_that_are_ours(host: str) -> None:
    assert why_closed(HERE, host, ("relay.example", "own.example.", ""), NETWORKS) == ""


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:3340", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example."),
        *(
            "relay.example.evil.example",
            "notlocalhost",
            "127.0.0.1:3340:evil",
            "[evil.example]:80",
            "0x7f000001",
            ":80",
        ),
    ],
)
def test_a_web_page_that_leads_its_own_name_here_reads_nothing(host: str) -> None:
    """DNS rebinding: the browser is on this machine, so its address is one that may see everything."""
    assert "who asks for" in why_closed(HERE, host, ("relay.example", ""), NETWORKS)
    assert "who asks for" in why_closed(Caller("::ffff:127.0.0.1", 7), host, ("relay.example",), NETWORKS)
    # Prometheus asks over the network, by whatever name its operator gives the machine.
    assert why_closed(Caller("10.1.2.3", 7), host, (), NETWORKS) == ""


def test_strangers_and_the_hidden_hear_what_to_change() -> None:
    assert "debug_allow" in why_closed(Caller("198.51.100.1", 7), "localhost", (), NETWORKS)
    assert "trusted_proxies" in why_closed(Caller("127.0.0.1", 7, is_hidden=True), "localhost", (), NETWORKS)
