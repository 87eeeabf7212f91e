"""The kinds of settings: what each takes, what it makes of it, and that a refusal says what to write instead."""

import math
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.config import parse
from derp.config.relay import MeshPeer
from derp.config.settings import SETTINGS

KEY = "nodekey:" + "0a" * 32

TAKEN: list[tuple[Any, object, object]] = [
    (parse.boolean, True, True),
    (parse.boolean, "T", True),
    (parse.boolean, "FALSE", False),
    (parse.boolean, "0", False),
    (parse.whole(-1, 9), -1, -1),
    (parse.whole(-1, 9), "9", 9),
    (parse.worker_count, 2, 2),
    (parse.worker_count, "64", 64),
    (parse.rate, 2, 2.0),
    (parse.rate, "0.5", 0.5),
    (parse.rate, "+Inf", math.inf),
    (parse.duration(0, 9e9), "0", 0.0),
    (parse.duration(0, 9e9), "2s", 2.0),
    (parse.duration(0, 9e9), "1m30s", 90.0),
    (parse.duration(0, 9e9), "1.5h", 5400.0),
    (parse.duration(0, 9e9), "1h2m3.5s250ms", 3723.75),
    (parse.duration(0, 9e9), ".5s", 0.5),
    (parse.path, "/a/b", Path("/a/b")),
    (parse.address, ":443", ("", 443)),
    (parse.address, ":https", ("", 443)),
    (parse.address, "127.0.0.1:0", ("127.0.0.1", 0)),
    (parse.address, "[::1]:3340", ("::1", 3340)),
    (parse.address, "relay.example:80", ("relay.example", 80)),
    (parse.many(parse.address), ":1, [::]:2", (("", 1), ("::", 2))),
    (parse.many(parse.address), [":1"], (("", 1),)),
    (parse.many(parse.host_name), "", ()),
    (parse.many(parse.host_name), [], ()),
    (parse.host_name, "a-1.example.", "a-1.example"),
    (parse.host_name, "FE80:0::1", "fe80::1"),
    (parse.network, "10.0.0.0/8", IPv4Network("10.0.0.0/8")),
    (parse.network, "10.1.2.3", IPv4Network("10.1.2.3/32")),
    (parse.network, "fd00::/8", IPv6Network("fd00::/8")),
    (parse.mesh_peer, "a.example", MeshPeer("a.example", 443, "a.example")),
    (parse.mesh_peer, "a.example:8443/10.0.0.1", MeshPeer("a.example", 8443, "10.0.0.1")),
    (parse.mesh_peer, "[::1]/::2", MeshPeer("::1", 443, "::2")),
    (parse.mesh_peer, "[::1]:444", MeshPeer("::1", 444, "::1")),
    (parse.dns_name_with_rollout, "a.example", ("a.example", "")),
    (parse.dns_name_with_rollout, "a.example/t.example", ("a.example", "t.example")),
    (parse.home_page, "", ""),
    (parse.home_page, "blank", "blank"),
    (parse.home_page, "https://x.example/y", "https://x.example/y"),
    (parse.url("http"), "http://[::1]:80/verify?x=1", "http://[::1]:80/verify?x=1"),
    (parse.optional(parse.host_name), "", ""),
    (parse.email, "ops+a@x.example", "ops+a@x.example"),
    (parse.command, "/bin/a 'b c' d", ("/bin/a", "b c", "d")),
    (parse.command, ["/bin/a", "b c"], ("/bin/a", "b c")),
    (parse.base64_secret, "-_8=", b"\xfb\xff"),
    (parse.base64_secret, "+/8", b"\xfb\xff"),
    (parse.node_key, KEY, b"\x0a" * 32),
    (parse.OneOf("a", "b"), "b", "b"),
]

REFUSED: list[tuple[Any, object, str]] = [
    (parse.string, 3, "text in quotes"),
    (parse.boolean, "maybe", "true or false"),
    (parse.boolean, 1, "true or false"),
    (parse.whole(-1, 9), 10, "a whole number from -1 to 9, got 10"),
    (parse.whole(-1, 9), True, "whole number"),
    (parse.whole(-1, 9), 1.0, "whole number"),
    (parse.whole(-1, 9), "1_0", "whole number"),
    (parse.whole(-1, 9), "9" * 5000, "whole number"),
    (parse.worker_count, 0, "a whole number from 1 to 64"),
    (parse.worker_count, "all", "a whole number from 1 to 64"),
    (parse.rate, 0, "a number above 0"),
    (parse.rate, "nan", "a number above 0"),
    (parse.rate, 10**400, "a number above 0"),
    (parse.rate, True, "a number above 0"),
    (parse.duration(0, 9), "5", 'such as "2s"'),
    (parse.duration(0, 9), 5, 'such as "2s"'),
    (parse.duration(0, 9), "-1s", 'such as "2s"'),
    (parse.duration(0, 9), "1s2", 'such as "2s"'),
    (parse.duration(0, 9), "", 'such as "2s"'),
    (parse.duration(1, 9), "10s", "from 1s to 9s, got '10s'"),
    (parse.path, "", "a file name"),
    (parse.address, "3340", 'such as ":3340"'),
    (parse.address, "::1:3340", "in brackets"),
    (parse.address, "[::g]:1", "::g"),
    (parse.address, "a:65536", "from 0 to 65,535"),
    (parse.address, "a b:1", "a host name or IP address"),
    (parse.host_name, "1.2.3", "a host name or IP address"),
    (parse.host_name, "-a.example", "a host name or IP address"),
    (parse.host_name, "a" * 64, "a host name or IP address"),
    (parse.host_name, "https://a.example", "a host name or IP address"),
    (parse.many(parse.host_name), "a,,b", "remove a comma"),
    (parse.many(parse.host_name), {"a": 1}, "a list"),
    (parse.network, "10.0.0.1/8", "write 10.0.0.0/8"),
    (parse.network, "ten", "such as 10.0.0.0/8"),
    (parse.mesh_peer, "a/b/c", "a host name"),
    (parse.mesh_peer, "", "host/dialhost"),
    (parse.mesh_peer, "a:0", "host/dialhost"),
    (parse.home_page, "white", "http://"),
    (parse.url("https"), "http://a", "https://"),
    (parse.url("https"), "https://", "https://"),
    (parse.url("https"), "https://a/\r\nHost: b", "https://"),
    (parse.url("https"), "https://a:99999/", "https://"),
    (parse.email, "ops", "a mail address"),
    (parse.email, "a@b,c@d", "a mail address"),
    (parse.email, "a@b?cc=c", "a mail address"),
    (parse.command, "", "a command"),
    (parse.command, "'a", "quotes closed"),
    (parse.command, ["a", 1], "text in quotes"),
    (parse.base64_secret, "a*b", "a key in base64"),
    (parse.base64_secret, "", "a key in base64"),
    (parse.node_key, "nodekey:00", "64 hex digits"),
    (parse.OneOf("a", "b"), "c", "one of a, b, got 'c'"),
]


@pytest.mark.parametrize(("parser", "value", "expected"), TAKEN)
def test_taken(parser: Any, value: object, expected: object) -> None:
    parsed = parser(value)
    assert parsed == expected
    assert type(parsed) is type(expected)


@pytest.mark.parametrize(("parser", "value", "says"), REFUSED)
def test_refused_with_a_reason(parser: Any, value: object, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        parser(value)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)


@given(
    st.sampled_from(SETTINGS.settings),
    values | st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=1),
)
def test_no_value_whatever_crashes_a_parser(setting: Any, value: object) -> None:
    try:
        setting.parse(value)
    except ValueError as error:
        said = str(error)
    else:
        said = "taken"
    assert said


@given(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations_add_up(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s{milliseconds}ms"
    expected = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
    assert parse.duration(0, 86_400)(text) == pytest.approx(expected)
