"""The relay's key and its own region: where it says it is, in every form an access URL can have."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from derp.client.client import open_derp_client
from derp.keys import NodePrivate
from derp.map import DERPMap
from derp.netcheck.lint import errors, lint
from derp.server.ports import Listening
from tailnet.config import CoordinatorConfig
from tailnet.server.embedded import default_access_url, embedded_region, map_sources, relay_key
from tailnet.server.server import CoordinatorServer
from tailnet.store.store import Store

Serve = Callable[..., Awaitable[CoordinatorServer]]


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


def test_a_certificate_of_our_own_is_pinned() -> None:
    [node] = embedded_region(CoordinatorConfig(access_url="https://a.example.com"), [], "sha256-raw:" + "ab" * 32).nodes
    assert node.cert_name == "sha256-raw:" + "ab" * 32
    assert errors(lint(DERPMap({999: embedded_region(CoordinatorConfig(), [], node.cert_name)}).to_json())) == []


@pytest.mark.parametrize(
    ("url", "port"),
    [("https://a.example.com:8443", 8443), ("https://a.example.com", 0), ("http://a.example.com:8443", 0)],
)
def test_quic_is_named_where_the_access_url_leads_to_its_own_port(url: str, port: int) -> None:
    [node] = embedded_region(CoordinatorConfig(access_url=url), [Listening("derp+quic", "::", 8443)]).nodes
    assert node.quic_port == port


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
        ([Listening("tailnet", "::", 80)], "http://127.0.0.1:80"),
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


def test_the_relays_key_survives_restarts(store: Store, store_url: str) -> None:
    key = relay_key(store)
    store.close()
    again = Store.open(store_url)
    assert relay_key(again) == key
    again.close()


async def test_clients_see_the_same_relay_after_a_restart(serve: Serve) -> None:
    keys = []
    for _ in range(2):
        server = await serve()
        place = server.listening[0]
        with trio.fail_after(60):
            async with open_derp_client(f"http://{place.host}:{place.port}/derp", NodePrivate.generate()) as client:
                keys.append(client.server_key)
            await server.drain()
    assert keys[0] == keys[1]
    assert keys[0] == relay_key(server.store).public().raw
