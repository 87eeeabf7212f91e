"""The relay's own region: where it says it is, in every form an access URL can have."""

from pathlib import Path

import pytest

from derp.map import DERPMap
from derp.netcheck.lint import errors, lint
from derp.server.server import Listening
from tailnet.config import CoordinatorConfig
from tailnet.server.embedded import default_access_url, embedded_region, map_sources


@pytest.mark.parametrize(
    ("url", "host", "port", "plain"),
    [
        ("http://127.0.0.1:3000", "127.0.0.1", 3000, True),
        ("http://tailnet.example.com", "tailnet.example.com", 80, True),
        ("https://tailnet.example.com", "tailnet.example.com", 443, False),
        ("https://tailnet.example.com:8443/base", "tailnet.example.com", 8443, False),
        ("https://[2001:db8::1]:8443", "2001:db8::1", 8443, False),
    ],
)
def test_where_it_is(url: str, host: str, port: int, plain: bool) -> None:
    region = embedded_region(CoordinatorConfig(access_url=url), [])
    [node] = region.nodes
    assert (node.host_name, node.derp_port, node.force_http, node.stun_port) == (host, port, plain, -1)
    assert (region.embedded_relay, region.region_id, node.name, node.region_id) == (True, 999, "999b", 999)
    assert errors(lint(DERPMap({999: region}).to_json())) == []


def test_its_stun_and_that_of_others() -> None:
    config = CoordinatorConfig(
        access_url="https://a.example.com", derp_region_id=5, stun_servers=(("s.example.com", 19302),)
    )
    helper, relay = embedded_region(config, [Listening("tailnet", "127.0.0.1", 1), Listening("stun", "::", 2)]).nodes
    assert (helper.name, helper.stun_only, helper.host_name, helper.stun_port) == (
        "5stun0",
        True,
        "s.example.com",
        19302,
    )
    assert (relay.stun_port, relay.stun_only) == (2, False)


@pytest.mark.parametrize(
    ("listening", "url"),
    [
        ([Listening("stun", "127.0.0.1", 1), Listening("tailnet", "127.0.0.1", 2)], "http://127.0.0.1:2"),
        ([Listening("tailnet+tls", "0.0.0.0", 443)], "https://127.0.0.1:443"),
        ([Listening("tailnet", "::", 80)], "http://[::1]:80"),
        ([], ""),
    ],
)
def test_without_an_access_url(listening: list[Listening], url: str) -> None:
    assert default_access_url(listening) == url


def test_sources_of_the_settings() -> None:
    config = CoordinatorConfig(
        derp_map=(Path("a.json"),), derp_map_url=("https://maps.example.com/",), derp_map_poll_seconds=7
    )
    file, url = map_sources(config)
    assert (file.name, url.name, url.poll_seconds) == ("a.json", "https://maps.example.com/", 7)
